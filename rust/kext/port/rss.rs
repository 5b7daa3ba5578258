// SPDX-License-Identifier: GPL-2.0
//! How a port chooses the queue for a packet.

use kernel::{
    alloc::KVVec,
    prelude::*,
    sync::atomic::Relaxed, //
};

use super::{
    bindings,
    Decide,
    Port,
    Rtnl,
    MAX_QUEUES, //
};
use crate::vcore::rss::{
    self,
    Key,
    Steering,
    Table,
    Toeplitz,
    INPUT_BYTES,
    KEY_BYTES,
    MAX_ENTRIES,
    NO_SUMS, //
};

/// How a port chooses the queue, as its owner sees it.
#[derive(Clone)]
pub(crate) struct Rss {
    pub(crate) types: u32,
    pub(crate) unclassified: u16,
    pub(crate) key: Key,
    pub(crate) table: Table,
    /// Whether the table follows the queues there are.
    pub(crate) even: bool,
}

impl Port {
    /// How queues are chosen.
    pub(crate) fn rss(&self) -> Rss {
        self.0.state.get(&mut Rtnl::lock()).rss.clone()
    }

    /// Packets that fell on each entry of the table.
    pub(crate) fn carried(&self) -> impl Iterator<Item = u64> + '_ {
        self.0.carried.iter().map(|count| count.load(Relaxed))
    }

    /// Changes how queues are chosen, while packets flow. `change` must not sleep for long.
    pub(crate) fn change_rss(&self, change: impl FnOnce(&mut Rss) -> Result) -> Result {
        let mut rtnl = Rtnl::lock();
        let mut rss = self.0.state.get(&mut rtnl).rss.clone();
        change(&mut rss)?;
        self.0.steer(rss, &mut rtnl)?;
        self.0.follow(&mut rtnl)
    }

    /// Moves up to `max` entries of the table from busy to idle queues. Returns how many.
    pub(crate) fn rebalance(&self, max: usize) -> Result<usize> {
        let mut loads = KVec::from_elem(0, MAX_QUEUES, GFP_KERNEL)?;
        let mut now = KVec::with_capacity(MAX_ENTRIES, GFP_KERNEL)?;
        let mut rtnl = Rtnl::lock();
        let here = self.0.queues(&mut rtnl);
        for count in self.carried() {
            now.push(count, GFP_KERNEL)?;
        }
        let state = self.0.state.get(&mut rtnl);
        let mut rss = state.rss.clone();
        let mut lately = KVec::with_capacity(MAX_ENTRIES, GFP_KERNEL)?;
        for (now, before) in now.iter().zip(&state.before) {
            lately.push(now.wrapping_sub(*before), GFP_KERNEL)?;
        }
        state.before = now;
        let loads = loads.get_mut(..here).unwrap_or_default();
        let moved = rss::rebalance(
            rss.table.entries_mut(),
            &lately,
            loads,
            max.min(MAX_ENTRIES),
        );
        if moved > 0 {
            rss.even = false;
            self.0.steer(rss, &mut rtnl)?;
        }
        Ok(moved)
    }
}

impl Rss {
    pub(super) fn decide(&self) -> Result<KBox<Decide>> {
        let sums = KVVec::from_elem(NO_SUMS, INPUT_BYTES, GFP_KERNEL)?;
        let decide = Steering {
            toeplitz: Toeplitz::new(&self.key, sums),
            types: self.types,
            table: self.table,
            unclassified: self.unclassified,
        };
        Ok(KBox::new(decide, GFP_KERNEL)?)
    }
}

pub(super) fn random_key() -> Key {
    let mut key = [0u8; KEY_BYTES];
    fill_randomly(&mut key);
    Key(key)
}

/// A random key for which both directions of a flow are alike.
pub(crate) fn random_symmetric_key() -> Key {
    let mut seed = [0u8; 2];
    fill_randomly(&mut seed);
    Key::symmetric(u16::from_ne_bytes(seed))
}

fn fill_randomly(bytes: &mut [u8]) {
    // SAFETY: The buffer is valid for its length.
    unsafe { bindings::get_random_bytes(bytes.as_mut_ptr().cast(), bytes.len()) };
}
