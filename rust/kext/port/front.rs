// SPDX-License-Identifier: GPL-2.0
//! What a port does for files that stand for its queues as a TAP's do.

use kernel::{
    error::from_err_ptr,
    iov::IovIterSource,
    prelude::*, //
};

use super::{
    bindings,
    Port,
    PortQueue,
    Rtnl,
    MAX_BYTES, //
};
use crate::{
    kext::{
        errno,
        taken::Taken, //
    },
    vcore::hdr, //
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

    /// Transmits one packet, all there is in `from`, whose header is `base`.
    ///
    /// # Errors
    ///
    /// `EBADFD` if the device is gone, `EFAULT` if the packet could not be read, `EMSGSIZE` if it is
    /// too long; `EINVAL` if the header does not fit it.
    pub(crate) fn write(
        &self,
        from: &mut IovIterSource<'_>,
        base: &[u8; hdr::BASE_BYTES],
    ) -> Result {
        let len = from.len();
        if len > MAX_BYTES {
            return Err(EMSGSIZE);
        }
        // CAST: u16 to usize widens.
        let linear = hdr::hdr_len(base) as usize;
        // SAFETY: The iterator is valid and has so many bytes.
        let skb = from_err_ptr(unsafe { bindings::rvh_skb_from_iter(from.as_raw(), len, linear) })?;
        // Aligned as a header is.
        let mut aligned = [0u16; hdr::BASE_BYTES / 2];
        for (to, bytes) in aligned.iter_mut().zip(base.chunks_exact(2)) {
            *to = u16::from_ne_bytes([
                bytes.first().copied().unwrap_or(0),
                bytes.get(1).copied().unwrap_or(0),
            ]);
        }
        // SAFETY: The packet was made just now.
        unsafe { self.hand_over(skb, &aligned) }
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
