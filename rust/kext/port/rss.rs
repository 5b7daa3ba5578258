// SPDX-License-Identifier: GPL-2.0
//! How a port chooses the queue for a packet.

use kernel::{
    alloc::KVVec,
    prelude::*, //
};

use super::{
    bindings,
    Port,
    Rtnl, //
};
use crate::vcore::rss::{
    Key,
    Steering,
    Sums,
    Table,
    Toeplitz,
    INPUT_BYTES,
    KEY_BYTES,
    NO_SUMS, //
};

/// All that decides on a packet's queue.
pub(super) struct Decide {
    pub(super) steering: Steering<KVVec<Sums>>,
    /// The queue that gets everything, if there is one only.
    pub(super) only: Option<u16>,
}

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
        self.0.steer.rss(&mut Rtnl::lock())
    }

    /// Packets that fell on each entry of the table.
    pub(crate) fn carried(&self) -> impl Iterator<Item = u64> + '_ {
        self.0.steer.carried()
    }

    /// Changes how queues are chosen, while packets flow. `change` must not sleep for long.
    pub(crate) fn change_rss(&self, change: impl FnOnce(&mut Rss) -> Result) -> Result {
        self.0.steer.change(&mut Rtnl::lock(), change)
    }

    /// Moves up to `max` entries of the table from busy to idle queues. Returns how many.
    pub(crate) fn rebalance(&self, max: usize) -> Result<usize> {
        self.0.steer.rebalance(&mut Rtnl::lock(), max)
    }
}

impl Rss {
    /// What decides so, where `only` is the queue that gets everything.
    pub(super) fn decide(&self, only: Option<u16>) -> Result<KBox<Decide>> {
        let sums = KVVec::from_elem(NO_SUMS, INPUT_BYTES, GFP_KERNEL)?;
        let steering = Steering {
            toeplitz: Toeplitz::new(&self.key, sums),
            types: self.types,
            table: self.table,
            unclassified: self.unclassified,
        };
        Ok(KBox::new(Decide { steering, only }, GFP_KERNEL)?)
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
