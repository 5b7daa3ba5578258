// SPDX-License-Identifier: GPL-2.0
//! What the calling thread may do.

use super::bindings;

/// Whether it administers the network of the machine.
pub(crate) fn net_admin() -> bool {
    // SAFETY: Asks of the calling thread.
    unsafe { bindings::rvh_net_admin() }
}
