// SPDX-License-Identifier: GPL-2.0
//! What the ioctls about one queue change in it.

use kernel::prelude::*;

use crate::{
    kext::{
        eventfd::EventFd,
        file::FileRef, //
    },
    queue::Queue,
    virtqueue::Addresses, //
};

impl Queue {
    /// `VHOST_SET_VRING_NUM`. `num` is read only where it matters.
    pub(crate) fn set_num(&mut self, num: u32) -> Result {
        let vq = self.stopped()?;
        vq.ring.layout = vq.ring.layout.resized(num).ok_or(EINVAL)?;
        Ok(())
    }

    /// `VHOST_SET_VRING_BASE`.
    pub(crate) fn set_base(&mut self, base: u32) -> Result {
        let vq = self.stopped()?;
        vq.ring
            .cursor
            .set_base(base.try_into().map_err(|_| EINVAL)?);
        Ok(())
    }

    /// `VHOST_GET_VRING_BASE`.
    pub(crate) fn base(&mut self) -> Result<u32> {
        self.with(|vq| vq.ring.cursor.base().into())
    }

    /// `VHOST_SET_VRING_ADDR`, after the checks of flags and alignment.
    pub(crate) fn set_addresses(&mut self, at: Addresses) -> Result {
        let running = self.has_backend();
        self.with(|vq| vq.set_addresses(at, running))?
    }

    /// `VHOST_SET_VRING_BUSYLOOP_TIMEOUT`.
    pub(crate) fn set_busyloop(&mut self, timeout: u32) -> Result {
        self.with(|vq| vq.busyloop = timeout)
    }

    /// `VHOST_GET_VRING_BUSYLOOP_TIMEOUT`.
    pub(crate) fn busyloop(&mut self) -> Result<u32> {
        self.with(|vq| vq.busyloop)
    }

    /// `VHOST_SET_VRING_KICK`.
    pub(crate) fn set_kick(&mut self, kick: Option<FileRef>) -> Result {
        if let Some(file) = &kick {
            EventFd::of(file)?;
        }
        self.with(|vq| vq.set_kick(kick))?
    }

    /// `VHOST_SET_VRING_CALL`.
    pub(crate) fn set_call(&mut self, call: Option<EventFd>) -> Result {
        let old = self.with(|vq| core::mem::replace(&mut vq.ring.call, call))?;
        drop(old);
        Ok(())
    }

    /// `VHOST_SET_VRING_ERR`.
    pub(crate) fn set_err(&mut self, err: Option<EventFd>) -> Result {
        let old = self.with(|vq| core::mem::replace(&mut vq.ring.err, err))?;
        drop(old);
        Ok(())
    }
}
