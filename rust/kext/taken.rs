// SPDX-License-Identifier: GPL-2.0
//! A packet that is taken from a ring for a file's reader.
//!
//! C header: `include/linux/if_tun.h`.

use core::ptr::{
    self,
    NonNull, //
};

use kernel::{
    error::to_result,
    iov::IovIterDest,
    prelude::*, //
};

use super::bindings;
use crate::vcore::hdr;

/// A packet that was taken from a ring.
///
/// # Invariants
///
/// The packet is ours, of the kind that a TAP's ring holds, and `info` describes it.
pub(crate) struct Taken {
    packet: NonNull<c_void>,
    info: bindings::rvh_packet,
}

impl Taken {
    /// Takes the first packet.
    ///
    /// # Safety
    ///
    /// The ring must be valid, and hold packets as a TAP's does.
    pub(super) unsafe fn from_ring(ring: NonNull<bindings::ptr_ring>) -> Option<Self> {
        let mut packet = ptr::null_mut();
        // SAFETY: By the function's contract; there is room for one pointer.
        let n = unsafe { bindings::rvh_ring_consume(ring.as_ptr(), &mut packet, 1) };
        let packet = NonNull::new(packet).filter(|_| n == 1)?;
        let mut info = bindings::rvh_packet::default();
        // SAFETY: The packet was taken just now, and there is one info.
        unsafe {
            bindings::rvh_packets_describe(&mut packet.as_ptr(), &mut info, 1, false, false, false)
        };
        // INVARIANT: As above.
        Some(Self { packet, info })
    }

    /// Writes a header of `header` bytes, if any, and the frame. What of the frame finds no room is
    /// cut off. Returns the bytes of both, cut off or not.
    ///
    /// # Errors
    ///
    /// `EINVAL` if there is no room for the header, or if none can describe the packet.
    pub(crate) fn write_to(&self, to: &mut IovIterDest<'_>, header: usize) -> Result<usize> {
        if header > 0 {
            if to.len() < header || self.info.bad {
                return Err(EINVAL);
            }
            let base = self.info.header.get(..hdr::BASE_BYTES).unwrap_or(&[]);
            put(to, base)?;
            let mut left = header.saturating_sub(base.len());
            while left > 0 {
                let zeroes = [0; 64];
                let zeroes = zeroes.get(..left.min(zeroes.len())).unwrap_or(&[]);
                put(to, zeroes)?;
                left -= zeroes.len();
            }
        }
        // SAFETY: By the type's invariant; the iterator is valid.
        to_result(unsafe {
            bindings::rvh_packet_to_iter(self.packet.as_ptr(), &self.info, to.as_raw())
        })?;
        // CAST: u32 to usize widens.
        Ok(header + self.info.len as usize)
    }
}

fn put(to: &mut IovIterDest<'_>, bytes: &[u8]) -> Result {
    if to.copy_to_iter(bytes) == bytes.len() {
        Ok(())
    } else {
        Err(EFAULT)
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        // SAFETY: By the type's invariant the packet is ours to free.
        unsafe { bindings::tun_ptr_free(self.packet.as_ptr()) };
    }
}
