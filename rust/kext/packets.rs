// SPDX-License-Identifier: GPL-2.0
//! Packets on their way to a guest, in the rings of TAPs and in our own: skbs, and XDP frames.
//!
//! C headers: `include/linux/if_tun.h`, `include/linux/ptr_ring.h`, `include/linux/virtio_net.h`.

use core::ptr::{
    self,
    NonNull, //
};

use kernel::{
    error::to_result,
    prelude::*, //
};

use super::{
    bindings,
    usermem::{
        has_room,
        UserMem, //
    }, //
};
use crate::vcore::{
    addr::Seg,
    hdr, //
};

/// Packets taken from a ring at once.
pub(crate) const RING_BATCH: usize = 64;

/// An entry of a ring: an skb, or an XDP frame with the lowest bit of the pointer set.
///
/// # Invariants
///
/// A packet taken from a ring, and owned.
#[repr(transparent)]
struct Packet(NonNull<c_void>);

// SAFETY: A packet may be used and freed by any thread.
unsafe impl Send for Packet {}

impl Drop for Packet {
    fn drop(&mut self) {
        // SAFETY: By the type's invariant the packet is ours to free.
        unsafe { bindings::tun_ptr_free(self.0.as_ptr()) };
    }
}

/// What the headers of packets say.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct Headers {
    /// They have tunnel fields.
    pub(crate) tunnel: bool,
    /// They say nothing of checksum and segments.
    pub(crate) blank: bool,
    /// They tell the hash, if the packet came with it.
    pub(crate) hashed: bool,
}

/// Packets taken from a ring and not yet delivered.
///
/// # Invariants
///
/// There are `RING_BATCH` slots, of which those in `head..tail` hold packets; and as many infos,
/// of which those in `head..tail` describe them, if `described` is not `None`.
pub(crate) struct Packets {
    slots: KVec<Option<Packet>>,
    infos: KVec<bindings::rvh_packet>,
    /// What the infos were made with; see [`Self::describe`].
    described: Option<Headers>,
    head: usize,
    tail: usize,
}

// SAFETY: What points to a packet's bytes goes with the packet, which any thread may use.
unsafe impl Send for Packets {}

impl Packets {
    /// Bytes that the room for them takes.
    pub(crate) const BYTES: usize =
        RING_BATCH * (size_of::<Option<Packet>>() + size_of::<bindings::rvh_packet>());

    /// None yet.
    pub(crate) fn new() -> Result<Self> {
        let mut slots = KVec::with_capacity(RING_BATCH, GFP_KERNEL)?;
        let mut infos = KVec::with_capacity(RING_BATCH, GFP_KERNEL)?;
        for _ in 0..RING_BATCH {
            infos.push(bindings::rvh_packet::default(), GFP_KERNEL)?;
            slots.push(None, GFP_KERNEL)?;
        }
        Ok(Self {
            slots,
            infos,
            described: None,
            head: 0,
            tail: 0,
        })
    }

    /// Takes packets from a ring, if there are none here. Returns how many.
    ///
    /// # Safety
    ///
    /// The ring must be valid, and hold packets as a TAP's does.
    #[inline]
    pub(super) unsafe fn take(&mut self, ring: NonNull<bindings::ptr_ring>) -> usize {
        if !self.is_empty() {
            return 0;
        }
        // SAFETY: The ring by the function's contract; and there is room for `RING_BATCH` pointers:
        // `Option<Packet>` is one, by `Packet`'s layout.
        let n = unsafe {
            bindings::rvh_ring_consume(
                ring.as_ptr(),
                self.slots.as_mut_ptr().cast(),
                RING_BATCH as c_int,
            )
        };
        self.head = 0;
        self.described = None;
        // PANIC: the kernel returns no more than it was asked for.
        self.tail = usize::try_from(n).unwrap_or(0).min(RING_BATCH);
        self.len()
    }

    /// The packets, as the ring had them, and how many.
    #[inline]
    pub(super) fn raw(&mut self) -> (*mut *mut c_void, c_int) {
        let slots = self.slots.get_mut(self.head..self.tail).unwrap_or(&mut []);
        // CAST: at most `RING_BATCH`.
        (slots.as_mut_ptr().cast(), slots.len() as c_int)
    }

    /// Puts what is left back to the front of the ring, in order. What finds no room is freed.
    ///
    /// # Safety
    ///
    /// As for [`Self::take`].
    pub(super) unsafe fn put_back(&mut self, ring: NonNull<bindings::ptr_ring>) {
        let (head, count) = (self.head, self.len());
        self.head = 0;
        self.tail = 0;
        let Some(left) = self.slots.get_mut(head..head + count) else {
            return;
        };
        if count == 0 {
            return;
        }
        // SAFETY: These are `count` packets of a TAP's kind, whose ownership goes to the ring.
        // CAST: at most `RING_BATCH`.
        unsafe {
            bindings::rvh_ring_unconsume(ring.as_ptr(), left.as_mut_ptr().cast(), count as c_int)
        };
        for slot in left {
            // SAFETY: The pointers were given away: forget them without freeing.
            unsafe { ptr::write(slot, None) };
        }
    }

    /// Whether there is none.
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.head == self.tail
    }

    /// How many there are.
    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.tail - self.head
    }

    /// Looks at all of them. Their headers say what `headers` asks for, and that the packet is in one
    /// buffer.
    #[inline]
    pub(crate) fn describe(&mut self, headers: Headers) {
        if self.described == Some(headers) {
            return;
        }
        let range = self.head..self.tail;
        let (Some(slots), Some(infos)) = (
            self.slots.get_mut(range.clone()),
            self.infos.get_mut(range), //
        ) else {
            return;
        };
        // SAFETY: By the type's invariant these slots hold packets; there is an info for each.
        // INVARIANT: All are described now.
        // CAST: at most `RING_BATCH`.
        unsafe {
            bindings::rvh_packets_describe(
                slots.as_mut_ptr().cast(),
                infos.as_mut_ptr(),
                slots.len() as c_int,
                headers.tunnel,
                headers.blank,
                headers.hashed,
            )
        };
        self.described = Some(headers);
    }

    /// What there is to know of the `i`th packet, if they were [looked at](Self::describe).
    #[inline]
    pub(crate) fn get(&self, i: usize) -> Option<PacketView<'_>> {
        self.views().nth(i)
    }

    /// What there is to know of each packet, if they were [looked at](Self::describe).
    #[inline]
    pub(crate) fn views(&self) -> impl Iterator<Item = PacketView<'_>> {
        let range = match self.described {
            Some(_) => self.head..self.tail,
            None => 0..0,
        };
        let slots = self.slots.get(range.clone()).unwrap_or(&[]);
        let infos = self.infos.get(range).unwrap_or(&[]);
        slots.iter().zip(infos).map_while(|(slot, info)| {
            // INVARIANT: By the type's invariant the info describes this packet.
            let packet = slot.as_ref()?;
            Some(PacketView { packet, info })
        })
    }

    /// Frees the first `n` packets, which were delivered.
    #[inline]
    pub(crate) fn consume(&mut self, n: usize) {
        let n = n.min(self.len());
        let Some(slots) = self.slots.get_mut(self.head..self.head + n) else {
            return;
        };
        // SAFETY: By the type's invariant these slots hold packets of our own; the slots are
        // overwritten below without another look.
        // CAST: at most `RING_BATCH`.
        unsafe { bindings::rvh_ring_free(slots.as_mut_ptr().cast(), n as c_int) };
        for slot in slots {
            // SAFETY: The packet was freed just now: forget it.
            unsafe { ptr::write(slot, None) };
        }
        self.head += n;
    }

    /// Drops the first packet.
    pub(crate) fn drop_first(&mut self) {
        if self.head < self.tail {
            if let Some(slot) = self.slots.get_mut(self.head) {
                *slot = None;
            }
            self.head += 1;
        }
    }
}

/// A packet, looked at.
///
/// # Invariants
///
/// `info` describes `packet`, which does not change while it is borrowed.
pub(crate) struct PacketView<'a> {
    packet: &'a Packet,
    info: &'a bindings::rvh_packet,
}

impl<'a> PacketView<'a> {
    /// Bytes of the frame, a VLAN tag included.
    #[inline]
    pub(crate) fn len(&self) -> usize {
        // CAST: u32 to usize widens.
        self.info.len as usize
    }

    /// The header that describes it, as far as its kind goes; `None` if none can.
    #[inline]
    pub(crate) fn header(&self) -> Option<&'a [u8; hdr::MAX_BYTES]> {
        (!self.info.bad).then_some(&self.info.header)
    }

    /// The whole frame, if it lies in one piece.
    #[inline]
    pub(crate) fn bytes(&self) -> Option<&'a [u8]> {
        if self.info.tagged || self.info.linear != self.info.len || self.info.data.is_null() {
            return None;
        }
        // SAFETY: By the type's invariant these are the packet's bytes, and nobody writes them
        // while the packet is ours, which it is for `'a` at least.
        Some(unsafe { core::slice::from_raw_parts(self.info.data.cast(), self.len()) })
    }

    /// Copies the frame to `segs`, behind their first `skip` bytes. `EFAULT` if not all of it
    /// could be written.
    pub(crate) fn copy_to(&self, _user: &mut UserMem<'_>, segs: &[Seg], skip: usize) -> Result {
        if !has_room(segs, skip, self.len()) {
            return Err(EFAULT);
        }
        // SAFETY: The packet is valid and `info` describes it; `Seg` is laid out as an iovec that
        // is long enough, and the user addresses are checked on the way.
        to_result(unsafe {
            bindings::rvh_packet_to_user(
                self.packet.0.as_ptr(),
                self.info,
                segs.as_ptr().cast(),
                segs.len() as c_ulong,
                skip,
            )
        })
    }
}
