// SPDX-License-Identifier: GPL-2.0
//! The queues of a port, and how one of them is chosen for a packet.

use core::ptr;

use kernel::{
    prelude::*,
    sync::{
        atomic::{
            Acquire,
            Atomic,
            Full,
            Relaxed,
            Release, //
        },
        Arc, //
    },
};

use super::{
    rss::{
        self,
        Decide,
        Rss, //
    },
    Rtnl,
    RtnlCell,
    MAX_QUEUES, //
};
use crate::{
    kext::trace,
    vcore::{
        flow::Flow,
        rss::{
            types,
            Choice,
            Hash,
            Table,
            MAX_ENTRIES, //
        },
    },
};

/// What a port distributes packets to.
pub(super) trait Queue {
    /// Whether it is to have packets.
    fn is_open(&self) -> bool;
}

/// The queues there are, and how one is chosen.
///
/// # Invariants
///
/// - Each of `slots` is null, or holds a reference to a queue; it is given up only after all that
///   might have seen it while they received a packet are done.
/// - `decide` is an allocated value that is given up in the same way.
pub(super) struct Steer<Q: Queue> {
    /// The device's number when the port was made.
    ifindex: u32,
    slots: KVec<Atomic<*mut Q>>,
    decide: Atomic<*mut Decide>,
    /// Packets by the entry they fell on.
    carried: KVec<Atomic<u64>>,
    state: RtnlCell<State>,
}

// SAFETY: What is pointed to is shared, and given up, as the type's invariant says.
unsafe impl<Q: Queue + Send + Sync> Send for Steer<Q> {}
// SAFETY: As above.
unsafe impl<Q: Queue + Send + Sync> Sync for Steer<Q> {}

struct State {
    rss: Rss,
    /// What the entries had carried when they were last rebalanced.
    before: KVec<u64>,
}

impl<Q: Queue> Steer<Q> {
    /// No queues yet, with a random key.
    pub(super) fn new(ifindex: u32) -> Result<Self> {
        let rss = Rss {
            types: types::ALL,
            unclassified: 0,
            key: rss::random_key(),
            table: Table::even(1),
            even: true,
        };
        let mut slots = KVec::with_capacity(MAX_QUEUES, GFP_KERNEL)?;
        for _ in 0..MAX_QUEUES {
            slots.push(Atomic::new(ptr::null_mut()), GFP_KERNEL)?;
        }
        let mut carried = KVec::with_capacity(MAX_ENTRIES, GFP_KERNEL)?;
        for _ in 0..MAX_ENTRIES {
            carried.push(Atomic::new(0), GFP_KERNEL)?;
        }
        let before = KVec::from_elem(0, MAX_ENTRIES, GFP_KERNEL)?;
        let decide = KBox::into_raw(rss.decide(None)?);
        // INVARIANT: There are no slots in use; `decide` was allocated just now.
        Ok(Self {
            ifindex,
            slots,
            decide: Atomic::new(decide),
            carried,
            state: RtnlCell::new(State { rss, before }),
        })
    }

    /// The queue in a slot.
    fn queue<'a>(slot: &'a Atomic<*mut Q>, _rtnl: &'a Rtnl) -> Option<&'a Q> {
        // SAFETY: By the type's invariant it is null, or valid as long as RTNL is held.
        unsafe { slot.load(Acquire).as_ref() }
    }

    /// All queues.
    pub(super) fn queues<'a>(&'a self, rtnl: &'a Rtnl) -> impl Iterator<Item = &'a Q> {
        self.slots.iter().filter_map(|slot| Self::queue(slot, rtnl))
    }

    /// Whether there is no queue.
    pub(super) fn is_empty(&self, _rtnl: &mut Rtnl) -> bool {
        self.slots.iter().all(|slot| slot.load(Relaxed).is_null())
    }

    /// One more than the number of the last queue that is to have packets.
    fn count(&self, rtnl: &mut Rtnl) -> usize {
        self.numbers(rtnl)
            .last()
            .map_or(0, |last| usize::from(last) + 1)
    }

    /// The numbers of the queues that are to have packets.
    fn numbers<'a>(&'a self, rtnl: &'a Rtnl) -> impl Iterator<Item = u16> + Clone + 'a {
        let open = |slot| Self::queue(slot, rtnl).is_some_and(Q::is_open);
        (0u16..)
            .zip(&self.slots)
            .filter(move |(_, slot)| open(slot))
            .map(|(number, _)| number)
    }

    /// Adds a queue, with number `wanted`, or the first one that is free. Returns its number.
    pub(super) fn add(
        &self,
        wanted: Option<usize>,
        queue: &Arc<Q>,
        rtnl: &mut Rtnl,
    ) -> Result<usize> {
        let free = |slot: &Atomic<*mut Q>| slot.load(Relaxed).is_null();
        let number = match wanted {
            Some(number) => number,
            None => self.slots.iter().position(free).ok_or(E2BIG)?,
        };
        let slot = self.slots.get(number).ok_or(EINVAL)?;
        if !free(slot) {
            return Err(EBUSY);
        }
        // INVARIANT: The slot has a reference of its own.
        slot.store(Arc::into_raw(queue.clone()).cast_mut(), Release);
        if let Err(e) = self.follow(rtnl) {
            let queue = slot.xchg(ptr::null_mut(), Full);
            rtnl.wait_for_receivers();
            // SAFETY: As made above; whoever has seen it is done.
            drop(unsafe { Arc::from_raw(queue.cast_const()) });
            return Err(e);
        }
        Ok(number)
    }

    /// Takes a queue away; if it was the last one, does `when_empty`. Nobody uses it any more for
    /// a packet that is received when this returns.
    pub(super) fn remove(
        &self,
        number: usize,
        rtnl: &mut Rtnl,
        when_empty: impl FnOnce(&mut Rtnl),
    ) -> Option<Arc<Q>> {
        let queue = self.slots.get(number)?.xchg(ptr::null_mut(), Full);
        if self.is_empty(rtnl) {
            when_empty(rtnl);
        } else {
            // What the old table still sends here goes to a queue that is there.
            let _ = self.follow(rtnl);
        }
        rtnl.wait_for_receivers();
        // SAFETY: By the type's invariant a slot that is not null holds a reference, which nobody
        // has seen who is not done.
        (!queue.is_null()).then(|| unsafe { Arc::from_raw(queue.cast_const()) })
    }

    /// Has the table follow the queues there are, if it is to.
    pub(super) fn follow(&self, rtnl: &mut Rtnl) -> Result {
        let state = self.state.get(rtnl);
        if !state.rss.even {
            return Ok(());
        }
        let mut rss = state.rss.clone();
        rss.table = Table::even(1);
        let numbers = self.numbers(rtnl);
        let mut there = numbers.clone().cycle();
        for entry in rss.table.entries_mut() {
            *entry = there.next().unwrap_or(0);
        }
        let only = there.next().filter(|_| numbers.count() == 1);
        drop(there);
        self.take_over(rss, only, rtnl)
    }

    /// Takes over how queues are chosen. `only`: there is one, which gets everything.
    fn take_over(&self, rss: Rss, only: Option<u16>, rtnl: &mut Rtnl) -> Result {
        let decide = KBox::into_raw(rss.decide(only)?);
        let old = self.decide.xchg(decide, Full);
        rtnl.wait_for_receivers();
        // SAFETY: By the type's invariant; whoever has seen it is done.
        drop(unsafe { KBox::from_raw(old) });
        // CAST: there are few.
        let entries = rss.table.entries().len() as u32;
        trace::steering(self.ifindex, rss.types, entries, rss.even.into());
        self.state.get(rtnl).rss = rss;
        Ok(())
    }

    /// How queues are chosen.
    pub(super) fn rss(&self, rtnl: &mut Rtnl) -> Rss {
        self.state.get(rtnl).rss.clone()
    }

    /// Packets that fell on each entry of the table.
    pub(super) fn carried(&self) -> impl Iterator<Item = u64> + '_ {
        self.carried.iter().map(|count| count.load(Relaxed))
    }

    /// Changes how queues are chosen, while packets flow. `change` must not sleep for long.
    pub(super) fn change(
        &self,
        rtnl: &mut Rtnl,
        change: impl FnOnce(&mut Rss) -> Result,
    ) -> Result {
        let mut rss = self.rss(rtnl);
        change(&mut rss)?;
        self.take_over(rss, None, rtnl)?;
        self.follow(rtnl)
    }

    /// Moves up to `max` entries of the table from busy to idle queues. Returns how many.
    pub(super) fn rebalance(&self, rtnl: &mut Rtnl, max: usize) -> Result<usize> {
        let mut loads = KVec::from_elem(0, self.count(rtnl), GFP_KERNEL)?;
        let mut now = KVec::with_capacity(MAX_ENTRIES, GFP_KERNEL)?;
        for count in self.carried() {
            now.push(count, GFP_KERNEL)?;
        }
        let state = self.state.get(rtnl);
        let mut rss = state.rss.clone();
        let mut lately = KVec::with_capacity(MAX_ENTRIES, GFP_KERNEL)?;
        for (now, before) in now.iter().zip(&state.before) {
            lately.push(now.wrapping_sub(*before), GFP_KERNEL)?;
        }
        state.before = now;
        let moved = crate::vcore::rss::rebalance(
            rss.table.entries_mut(),
            &lately,
            &mut loads,
            max.min(MAX_ENTRIES),
        );
        if moved > 0 {
            rss.even = false;
            self.take_over(rss, None, rtnl)?;
        }
        Ok(moved)
    }

    /// Chooses a queue for a packet that is received, of which these are the headers. Where
    /// there is one queue only, they are hashed, and counted by entry, only for who wants the hash.
    ///
    /// # Safety
    ///
    /// While a packet is received, in an RCU read-side section.
    #[inline]
    pub(super) unsafe fn choose(&self, frame: &[u8], hashes: bool) -> Choice {
        // SAFETY: By the type's invariant it is valid until the packet was received.
        let decide = unsafe { &*self.decide.load(Acquire) };
        if let (Some(queue), false) = (decide.only, hashes) {
            let (entry, hash) = (None, Hash::default());
            return Choice { queue, entry, hash };
        }
        let choice = decide.steering.choose(&Flow::of_frame(frame));
        if let Some(carried) = choice.entry.and_then(|entry| self.carried.get(entry)) {
            carried.add(1u64, Relaxed);
        }
        choice
    }

    /// What `of` makes of the queue with this number; of the first one of which it makes something,
    /// if that is nothing.
    ///
    /// # Safety
    ///
    /// As for [`Self::choose`], until the last use of what is returned.
    #[inline]
    pub(super) unsafe fn pick<'a, R>(
        &'a self,
        number: usize,
        of: impl Fn(&'a Q) -> Option<R>,
    ) -> Option<R> {
        let in_slot = |slot: &'a Atomic<*mut Q>| {
            // SAFETY: By the type's invariant it is null, or valid until the packet was received.
            unsafe { slot.load(Acquire).as_ref() }.and_then(&of)
        };
        let wanted = self.slots.get(number).and_then(in_slot);
        wanted.or_else(|| self.slots.iter().find_map(in_slot))
    }
}

impl<Q: Queue> Drop for Steer<Q> {
    fn drop(&mut self) {
        // The slots are empty: a queue that stands in one has a reference to what this is part of.
        // SAFETY: By the type's invariant; nobody receives any more: that needs a reference as well.
        drop(unsafe { KBox::from_raw(self.decide.load(Relaxed)) });
    }
}
