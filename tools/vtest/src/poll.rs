// SPDX-License-Identifier: GPL-2.0

//! Waiting with a deadline: for conditions, for eventfds, for file descriptors.

use std::os::fd::AsRawFd;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use anyhow::bail;
use anyhow::Context;
use anyhow::Result;
use vmm_sys_util::eventfd::EventFd;

/// How long anything that must happen may take: the machine may be emulated
/// and its CPUs shared.
pub(crate) const PATIENCE: Duration = Duration::from_secs(10);

/// Calls `probe` until it returns a value, for at most [`PATIENCE`].
pub(crate) fn wait_for<T>(what: &str, probe: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    wait_at_most(PATIENCE, what, probe)
}

/// Calls `probe` until it returns a value, for at most `limit`.
pub(crate) fn wait_at_most<T>(
    limit: Duration,
    what: &str,
    mut probe: impl FnMut() -> Result<Option<T>>,
) -> Result<T> {
    let deadline = Instant::now() + limit;
    let mut rounds = 0u32;
    loop {
        if let Some(value) = probe()? {
            return Ok(value);
        }
        if Instant::now() >= deadline {
            bail!("timed out after {limit:?} waiting for {what}");
        }
        rounds += 1;
        if rounds < 50 {
            thread::yield_now();
        } else {
            thread::sleep(Duration::from_micros(200));
        }
    }
}

/// Waits until `fd` is readable; false when `limit` passed first.
pub(crate) fn readable(fd: &impl AsRawFd, limit: Duration) -> Result<bool> {
    let mut entry = libc::pollfd {
        fd: fd.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    let millis = i32::try_from(limit.as_millis()).unwrap_or(i32::MAX);
    // SAFETY: `entry` is one valid pollfd that outlives the call.
    let count = unsafe { libc::poll(&mut entry, 1, millis) };
    if count < 0 {
        return Err(std::io::Error::last_os_error()).context("poll");
    }
    Ok(count > 0)
}

/// The signals an eventfd has collected since the last look; clears them.
pub(crate) fn take_signals(event: &EventFd) -> u64 {
    event.read().unwrap_or(0)
}

/// Waits for at least one signal on an eventfd and clears it.
pub(crate) fn wait_signal(event: &EventFd, what: &str) -> Result<u64> {
    if !readable(event, PATIENCE)? {
        bail!("timed out after {PATIENCE:?} waiting for {what}");
    }
    Ok(take_signals(event))
}
