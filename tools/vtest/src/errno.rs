// SPDX-License-Identifier: GPL-2.0

//! System call errors by name.

use std::fmt;
use std::io;

/// An error number, printed by its name.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Errno(pub(crate) i32);

macro_rules! names {
    ($($name:ident),* $(,)?) => {
        fn name(number: i32) -> Option<&'static str> {
            match number {
                $(libc::$name => Some(stringify!($name)),)*
                _ => None,
            }
        }
    };
}

names!(
    EPERM, EINTR, EIO, E2BIG, EBADF, EAGAIN, ENOMEM, EFAULT, EBUSY, EEXIST, ENODEV, EINVAL, ENOTTY,
    ENOSPC, EBADFD, ENOTSOCK, EOPNOTSUPP, ENOBUFS, ENOENT, EACCES, ESRCH, ENOSYS,
);

impl Errno {
    /// The error of the system call that just failed.
    pub(crate) fn last() -> Self {
        Self(io::Error::last_os_error().raw_os_error().unwrap_or(0))
    }
}

impl fmt::Debug for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match name(self.0) {
            Some(name) => f.write_str(name),
            None => write!(f, "errno {}", self.0),
        }
    }
}

impl fmt::Display for Errno {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(self, f)
    }
}

impl std::error::Error for Errno {}
