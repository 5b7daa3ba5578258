// SPDX-License-Identifier: GPL-2.0
//! What a port does for files that stand for its queues as a TAP's do.

use kernel::prelude::*;

use super::{
    bindings,
    Port,
    PortQueue,
    Rtnl, //
};
use crate::kext::{
    errno,
    taken::Taken, //
};

impl Port {
    /// From now on the readers of all queues take `offloads`.
    pub(crate) fn set_offloads(&self, offloads: u32) {
        let mut rtnl = Rtnl::lock();
        self.0.state.get(&mut rtnl).offloads = Some(offloads);
        for inlet in self.0.steer.queues(&rtnl) {
            inlet.set_offloads(offloads);
        }
    }

    /// The device's address; none if it is gone.
    pub(crate) fn mac(&self) -> Option<[u8; 6]> {
        let _rtnl = Rtnl::lock();
        let mut mac = [0; 6];
        self.0.dev.with(|dev| {
            // SAFETY: The device is there, and RTNL held; there is room for an address.
            unsafe { bindings::rvh_dev_mac(dev.as_ptr(), mac.as_mut_ptr()) }
        })?;
        Some(mac)
    }

    /// Whether the device is up.
    pub(crate) fn is_up(&self) -> bool {
        let up = self.0.dev.with(|dev| {
            // SAFETY: The device is there.
            unsafe { bindings::rvh_dev_is_up(dev.as_ptr()) }
        });
        up == Some(true)
    }
}

impl PortQueue {
    /// Its number.
    pub(crate) fn number(&self) -> usize {
        self.number
    }

    /// Takes one packet.
    pub(crate) fn take(&self) -> Option<Taken> {
        self.inlet.take()
    }

    /// Whether packets come here.
    pub(crate) fn is_open(&self) -> bool {
        self.inlet.is_open()
    }

    /// Has packets come here, or not any more: what waits here then is dropped.
    ///
    /// # Errors
    ///
    /// `EBADFD` if the device is gone, `EINVAL` if nothing would change.
    pub(crate) fn set_open(&self, open: bool) -> Result {
        let mut rtnl = Rtnl::lock();
        if self.port.is_gone() {
            return Err(errno::ebadfd());
        }
        if self.inlet.is_open() == open {
            return Err(EINVAL);
        }
        self.inlet.set_open(open);
        if let Err(e) = self.port.0.steer.follow(&mut rtnl) {
            self.inlet.set_open(!open);
            return Err(e);
        }
        if !open {
            rtnl.wait_for_receivers();
            while self.inlet.take().is_some() {}
        }
        Ok(())
    }
}
