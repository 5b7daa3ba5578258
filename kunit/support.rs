// SPDX-License-Identifier: GPL-2.0
//! User memory and a TAP for the suites.

use kernel::prelude::*;

use crate::{
    kext::{
        file::FileRef,
        mm::OwnerMm, //
    },
    vcore::addr::Hva,
};

/// Bytes of a page of user memory.
pub(crate) const PAGE: u64 = 4096;

extern "C" {
    fn rvk_map(len: usize) -> usize;
    fn rvk_tap() -> c_int;
    fn rvk_close(fd: c_int);
    fn rvk_send(len: c_uint, fill: u8) -> c_int;
    fn rvk_received() -> u64;
}

/// Pages of user memory, mapped until the case ends; and the address space they are in.
pub(crate) fn map(pages: u64) -> Result<(OwnerMm, Hva)> {
    // SAFETY: May be called by any case.
    let at = unsafe { rvk_map((pages * PAGE) as usize) };
    if at == 0 {
        return Err(ENOMEM);
    }
    Ok((OwnerMm::of_current().ok_or(EINVAL)?, Hva(at as u64)))
}

/// A TAP, which exists as long as this does.
pub(crate) struct Tap(c_int);

impl Tap {
    pub(crate) fn new() -> Result<Self> {
        // SAFETY: May be called by any case.
        let fd = unsafe { rvk_tap() };
        kernel::error::to_result(fd)?;
        Ok(Self(fd))
    }

    /// Its descriptor.
    pub(crate) fn fd(&self) -> i32 {
        self.0
    }

    /// Its file.
    pub(crate) fn file(&self) -> Result<FileRef> {
        FileRef::get(self.0)
    }

    /// Has the stack send a frame to it.
    pub(crate) fn push(&self, len: u32, fill: u8) -> Result {
        // SAFETY: May be called by any case.
        kernel::error::to_result(unsafe { rvk_send(len, fill) })
    }

    /// Frames it has brought in.
    pub(crate) fn received(&self) -> u64 {
        // SAFETY: May be called by any case.
        unsafe { rvk_received() }
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        // SAFETY: The descriptor is ours.
        unsafe { rvk_close(self.0) };
    }
}
