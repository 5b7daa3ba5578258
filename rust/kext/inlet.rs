// SPDX-License-Identifier: GPL-2.0
//! A ring of packets that were received for one queue, and how its reader hears of them.
//!
//! C header: `include/linux/ptr_ring.h`.

use core::ptr::NonNull;

use kernel::{
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Full,
            Relaxed, //
        },
        barrier::smp_mb,
        Arc, //
    },
};

use super::{
    bindings,
    packets::Packets,
    taken::Taken,
    wait::{
        Bell,
        Waiters, //
    },
};
use crate::vcore::rss::Hash;

/// `TUN_F_*` bits that say what a reader takes.
pub(crate) const OFFLOADS: u32 = 0x7f;
/// The longest ring.
pub(crate) const MAX_RING: usize = 1 << 16;

/// Whether the reader wants to hear of the next packet.
const WANTED: u32 = 1;

/// How somebody hears of something.
pub(super) enum Ear {
    Bell(Arc<Bell>, u32),
    Waiters(Arc<Waiters>),
}

impl Ear {
    /// Tells of it.
    pub(super) fn call(&self) {
        match self {
            Self::Bell(bell, event) => bell.ring(*event),
            Self::Waiters(waiters) => waiters.wake(),
        }
    }
}

/// A ring with one reader, into which any CPU puts packets.
///
/// # Invariants
///
/// `ring` is valid, holds packets as a TAP's does, and is ours to free.
pub(super) struct Inlet {
    ring: NonNull<bindings::ptr_ring>,
    /// What the reader takes, as features of a device.
    features: Atomic<u64>,
    ear: Ear,
    wanted: Atomic<u32>,
    /// Whether it is to have packets.
    open: Atomic<bool>,
}

// SAFETY: The ring has its own locks.
unsafe impl Send for Inlet {}
// SAFETY: As above.
unsafe impl Sync for Inlet {}

impl Inlet {
    /// A ring for `len` packets, whose reader takes `offloads`.
    pub(super) fn new(len: usize, offloads: u32, ear: Ear) -> Result<Arc<Self>> {
        if len == 0 || len > MAX_RING || offloads & !OFFLOADS != 0 {
            return Err(EINVAL);
        }
        // SAFETY: May be called anywhere that may sleep.
        // CAST: at most `MAX_RING`.
        let ring = NonNull::new(unsafe { bindings::rvh_ring_new(len as c_int) }).ok_or(ENOMEM)?;
        // INVARIANT: The ring was made just now.
        let this = Self {
            ring,
            features: Atomic::new(features(offloads)),
            ear,
            wanted: Atomic::new(0),
            open: Atomic::new(true),
        };
        Ok(Arc::new(this, GFP_KERNEL)?)
    }

    /// From now on the reader takes `offloads`.
    pub(super) fn set_offloads(&self, offloads: u32) {
        self.features.store(features(offloads), Relaxed);
    }

    /// Whether it is to have packets.
    #[inline]
    pub(super) fn is_open(&self) -> bool {
        self.open.load(Relaxed)
    }

    /// Says whether it is to have packets.
    pub(super) fn set_open(&self, open: bool) {
        self.open.store(open, Relaxed);
    }

    /// Puts a packet into the ring, of which `hash` tells its flow.
    ///
    /// # Safety
    ///
    /// The packet must be the caller's, who gives it up, and have a device. Within a receive handler
    /// only.
    #[inline]
    pub(super) unsafe fn deliver(&self, skb: *mut bindings::sk_buff, hash: Hash) {
        let features = self.features.load(Relaxed);
        let hash = u64::from_ne_bytes(hash.to_bytes());
        // SAFETY: The ring is valid; the packet by the function's contract.
        unsafe { bindings::rvh_arrival_deliver(self.ring.as_ptr(), skb, features, hash) };
        // Pairs with the barrier in `want`: either we see that a packet is wanted, or its reader
        // sees the packet.
        smp_mb();
        if self.wanted.load(Relaxed) == WANTED {
            self.tell();
        }
    }

    /// Tells the reader that there is something to see, if it wants to know.
    #[cold]
    fn tell(&self) {
        if self.wanted.xchg(0, Full) == WANTED {
            self.call();
        }
    }

    /// Tells the reader that there is something to see.
    pub(super) fn call(&self) {
        self.ear.call();
    }

    /// Has the next packet told of. Returns whether there is one already.
    pub(super) fn want(&self) -> bool {
        self.wanted.store(WANTED, Relaxed);
        // Pairs with that in `deliver`.
        smp_mb();
        !self.is_empty()
    }

    /// Has no packet told of.
    pub(super) fn want_none(&self) {
        self.wanted.store(0, Relaxed);
    }

    /// Whether there is no packet.
    #[inline]
    pub(super) fn is_empty(&self) -> bool {
        // SAFETY: By the type's invariant the ring is valid.
        unsafe { bindings::rvh_ring_empty(self.ring.as_ptr()) }
    }

    /// Takes packets into the empty `packets`. Returns how many.
    #[inline]
    pub(super) fn receive(&self, packets: &mut Packets) -> usize {
        // SAFETY: By the type's invariant the ring is valid, and of a TAP's kind.
        unsafe { packets.take(self.ring) }
    }

    /// Takes one packet.
    pub(super) fn take(&self) -> Option<Taken> {
        // SAFETY: As above.
        unsafe { Taken::from_ring(self.ring) }
    }

    /// Puts what is left of `packets` back to the front.
    pub(super) fn put_back(&self, packets: &mut Packets) {
        // SAFETY: As above.
        unsafe { packets.put_back(self.ring) }
    }
}

fn features(offloads: u32) -> u64 {
    // SAFETY: May be called anywhere.
    unsafe { bindings::rvh_offload_features(offloads) }
}

impl Drop for Inlet {
    fn drop(&mut self) {
        // SAFETY: By the type's invariant; nobody uses it any more.
        unsafe { bindings::rvh_ring_destroy(self.ring.as_ptr()) };
    }
}
