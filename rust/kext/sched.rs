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

/// Lets others run if any wait, also where their turn would come with the next tick only.
#[cold]
pub(crate) fn give_way() {
    // SAFETY: As above.
    unsafe { bindings::rvh_give_way() };
}

/// Whether this thread is wanted outside of its work: to stop, to freeze or to die. Never true of
/// a kernel thread.
#[inline]
pub(crate) fn interrupted() -> bool {
    // SAFETY: May be called anywhere.
    unsafe { bindings::rvh_signal_pending() }
}

/// Whether the calling process is being killed, or ends.
pub(crate) fn is_dying() -> bool {
    // SAFETY: May be called anywhere.
    unsafe { bindings::rvh_is_dying() }
}

/// A clock, in nanoseconds: for differences on one CPU, and rough ones between CPUs.
#[inline]
pub(crate) fn clock() -> u64 {
    // SAFETY: Reads a clock.
    unsafe { bindings::rvh_local_clock() }
}

/// Looks for work until `found`, for `timeout` units of 1,024 ns at the most, or until someone
/// else needs the CPU, or this thread is [wanted elsewhere](interrupted). Returns whether it was found.
pub(crate) fn poll(timeout: u32, mut found: impl FnMut() -> bool) -> bool {
    if timeout == 0 {
        return false;
    }
    let now = || clock() >> 10;
    let end = now().saturating_add(u64::from(timeout));
    loop {
        if found() {
            return true;
        }
        // SAFETY: May be called anywhere.
        if unsafe { bindings::rvh_need_resched() } || interrupted() || now() > end {
            return false;
        }
        // SAFETY: Tells the processor that this is a loop of waiting.
        unsafe { bindings::rvh_cpu_relax() };
    }
}

/// Looks for work until `found`, `looks` times at the most, or as long as nobody else waits for the
/// CPU. Returns whether it was found.
#[inline]
pub(crate) fn look(looks: u16, mut found: impl FnMut() -> bool) -> bool {
    for _ in 0..looks {
        if found() {
            return true;
        }
        // SAFETY: Both may be called anywhere.
        unsafe {
            if !bindings::rvh_alone() {
                return false;
            }
            bindings::rvh_cpu_relax();
        }
    }
    false
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
