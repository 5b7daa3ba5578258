// SPDX-License-Identifier: GPL-2.0
//! Module parameters that C holds.

use kernel::prelude::*;

use super::bindings;

/// Whether threads are by default those of the owner's process (`fork_from_owner_default`).
pub(crate) fn fork_from_owner_default() -> bool {
    // SAFETY: As below.
    unsafe { bindings::rvh_param_fork_from_owner_default }
}

/// Whether large packets are sent without a copy (`experimental_zcopytx`).
pub(crate) fn zerocopy() -> bool {
    // SAFETY: As below.
    unsafe { bindings::rvh_param_zcopytx != 0 }
}

/// Regions that a memory table may have (`max_mem_regions`).
pub(crate) fn max_mem_regions() -> u16 {
    // SAFETY: As below.
    let wanted = unsafe { bindings::rvh_param_max_mem_regions };
    // Sorting them takes time by the square of their number.
    wanted.min(4096)
}

/// The name of the device node (`devname`).
pub(crate) fn devname() -> &'static CStr {
    // SAFETY: The parameter is written while the module is loaded, before any of its code runs,
    // and is read-only afterwards; it is a string that lives as long as the module.
    unsafe { CStr::from_char_ptr(bindings::rvh_param_devname) }
}

/// The name of the device node that stands for network devices (`tapname`).
pub(crate) fn tapname() -> &'static CStr {
    // SAFETY: As above.
    unsafe { CStr::from_char_ptr(bindings::rvh_param_tapname) }
}
