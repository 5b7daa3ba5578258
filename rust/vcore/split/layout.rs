// SPDX-License-Identifier: GPL-2.0
//! Where a split ring lies, and its parts in it (virtio 1.3, 2.7).

use crate::vcore::{
    addr::RingAddr,
    wire::{
        DESC_BYTES,
        USED_BYTES, //
    },
};

/// One of a ring's three areas.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Area {
    /// Where it starts.
    pub at: RingAddr,
    /// Its length in bytes.
    pub len: u64,
}

/// Where a ring lies and how large it is.
///
/// # Invariants
///
/// `num` is a power of two, from 1 to [`MAX_NUM`](super::MAX_NUM).
#[derive(Clone, Copy, Debug)]
pub struct Layout {
    pub(super) num: u16,
    pub(super) desc: RingAddr,
    avail: RingAddr,
    used: RingAddr,
}

impl Layout {
    /// A ring of `num` descriptors; `None` if that is no size for a ring.
    pub fn new(num: u32, desc: RingAddr, avail: RingAddr, used: RingAddr) -> Option<Self> {
        let num = u16::try_from(num).ok()?;
        // INVARIANT: a 16-bit power of two is `MAX_NUM` at most.
        num.is_power_of_two().then_some(Self {
            num,
            desc,
            avail,
            used,
        })
    }

    /// The same ring with `num` descriptors; `None` if that is no size for a ring.
    pub fn resized(&self, num: u32) -> Option<Self> {
        Self::new(num, self.desc, self.avail, self.used)
    }

    /// A ring of the same size at other places.
    pub fn moved(&self, desc: RingAddr, avail: RingAddr, used: RingAddr) -> Self {
        Self {
            num: self.num,
            desc,
            avail,
            used,
        }
    }

    /// Whether the owner has not said where the ring is.
    pub fn is_nowhere(&self) -> bool {
        (self.desc, self.avail, self.used) == (RingAddr(0), RingAddr(0), RingAddr(0))
    }

    /// The ring's size.
    pub fn num(&self) -> u16 {
        self.num
    }

    /// The areas that the device reads: descriptor table and available ring.
    pub fn readable(&self, event_idx: bool) -> [Area; 2] {
        let num = u64::from(self.num);
        let event = if event_idx { 2 } else { 0 };
        [
            Area {
                at: self.desc,
                len: num * DESC_BYTES as u64,
            },
            Area {
                at: self.avail,
                len: 4 + 2 * num + event,
            },
        ]
    }

    /// The area that the device writes: the used ring.
    pub fn writable(&self, event_idx: bool) -> Area {
        let event = if event_idx { 2 } else { 0 };
        Area {
            at: self.used,
            len: 4 + u64::from(self.num) * USED_BYTES as u64 + event,
        }
    }

    #[inline]
    pub(super) fn slot(&self, idx: u16) -> u16 {
        // No underflow: `num` is 1 at least.
        idx & (self.num - 1)
    }

    #[inline]
    pub(super) fn avail_flags(&self) -> RingAddr {
        self.avail
    }

    #[inline]
    pub(super) fn avail_idx(&self) -> RingAddr {
        self.avail.at(2)
    }

    #[inline]
    pub(super) fn avail_entry(&self, slot: u16) -> RingAddr {
        self.avail.at(4 + 2 * u64::from(slot))
    }

    #[inline]
    pub(super) fn used_event(&self) -> RingAddr {
        self.avail_entry(self.num)
    }

    #[inline]
    pub(super) fn used_flags(&self) -> RingAddr {
        self.used
    }

    #[inline]
    pub(super) fn used_idx(&self) -> RingAddr {
        self.used.at(2)
    }

    #[inline]
    pub(super) fn used_entry(&self, slot: u16) -> RingAddr {
        self.used.at(4 + USED_BYTES as u64 * u64::from(slot))
    }

    #[inline]
    pub(super) fn avail_event(&self) -> RingAddr {
        self.used_entry(self.num)
    }
}
