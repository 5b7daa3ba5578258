// SPDX-License-Identifier: GPL-2.0
//! References to open files.
//!
//! C header: `include/linux/file.h`.

use core::ptr::NonNull;

use kernel::{
    error::Result,
    prelude::*, //
};

use super::bindings;

/// A counted reference to an open file.
///
/// Unlike the kernel crate's it may go to another thread: nothing here touches the file's
/// position, which is what the crate's type guards.
///
/// # Invariants
///
/// Points at a file on which this value holds one reference.
pub(crate) struct FileRef(NonNull<bindings::file>);

// SAFETY: A file may be released on any thread.
unsafe impl Send for FileRef {}
// SAFETY: `&FileRef` gives no more than the pointer.
unsafe impl Sync for FileRef {}

impl FileRef {
    /// Resolves a descriptor of the calling process. `EBADF` if it names no file.
    ///
    /// Not for use in a file's release, when the descriptor table may be gone.
    pub(crate) fn get(fd: i32) -> Result<Self> {
        let fd = u32::try_from(fd).map_err(|_| EBADF)?;
        // SAFETY: May be called with any number.
        let file = unsafe { bindings::fget(fd) };
        // INVARIANT: `fget` returned a new reference.
        NonNull::new(file).map(Self).ok_or(EBADF)
    }

    pub(super) fn as_ptr(&self) -> *mut bindings::file {
        self.0.as_ptr()
    }
}

impl Clone for FileRef {
    fn clone(&self) -> Self {
        // SAFETY: The file is referenced.
        unsafe { bindings::get_file(self.as_ptr()) };
        // INVARIANT: That was one more reference.
        Self(self.0)
    }
}

impl PartialEq for FileRef {
    fn eq(&self, other: &Self) -> bool {
        self.0 == other.0
    }
}

impl Drop for FileRef {
    fn drop(&mut self) {
        // SAFETY: By the type's invariant the reference is ours to give up.
        unsafe { bindings::fput(self.as_ptr()) };
    }
}
