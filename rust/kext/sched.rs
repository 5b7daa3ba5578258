// SPDX-License-Identifier: GPL-2.0
//! Sharing the CPU.

use kernel::prelude::*;

use super::bindings;

/// Lets others run if it is their turn.
#[inline]
pub(crate) fn yield_if_due() {
    // SAFETY: Callers may sleep: nothing in this module's safe code runs in atomic context
    // except wake-up callbacks, which `kext` keeps to itself.
    unsafe { bindings::rvh_cond_resched() };
}

/// Lets others run if it is their turn; `EINTR` if the caller was killed.
pub(crate) fn yield_unless_killed() -> Result {
    yield_if_due();
    // SAFETY: May be called anywhere.
    if unsafe { bindings::rvh_fatal_signal_pending() } {
        return Err(EINTR);
    }
    Ok(())
}
