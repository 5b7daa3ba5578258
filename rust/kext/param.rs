// SPDX-License-Identifier: GPL-2.0
//! Module parameters that C holds.

use kernel::prelude::*;

use super::bindings;

/// The name of the device node (`devname`).
pub(crate) fn devname() -> &'static CStr {
    // SAFETY: The parameter is written while the module is loaded, before any of its code runs,
    // and is read-only afterwards; it is a string that lives as long as the module.
    unsafe { CStr::from_char_ptr(bindings::rvh_param_devname) }
}
