// SPDX-License-Identifier: GPL-2.0
//! Error numbers that the `kernel` crate has no constants for (and no way to make any).

use kernel::error::Error;

use super::bindings;

macro_rules! errno {
    ($($(#[$attr:meta])* $name:ident: $code:ident;)*) => {$(
        $(#[$attr])*
        #[cold]
        pub(crate) fn $name() -> Error {
            // CAST: error numbers are small.
            Error::from_errno(-(bindings::$code as i32))
        }
    )*};
}

errno! {
    /// `EBADFD`: the file is in a bad state.
    ebadfd: EBADFD;
    /// `ENOBUFS`: there is no such queue.
    enobufs: ENOBUFS;
    /// `ENOTCONN`: there is no port.
    enotconn: ENOTCONN;
    /// `ENOTSOCK`: the file is no backend.
    enotsock: ENOTSOCK;
    /// `EOPNOTSUPP`: not offered.
    eopnotsupp: EOPNOTSUPP;
}
