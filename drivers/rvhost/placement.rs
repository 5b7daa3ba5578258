// SPDX-License-Identifier: GPL-2.0
//! Where a queue's thread runs, if it is not left to the scheduler.

use kernel::prelude::*;

use crate::{
    device::Owner,
    ioctl::Arg,
    kext::{
        param,
        place,
        usermem::UserMem,
        wait::Bell, //
    },
    memtable::MemTable, //
};

/// The most bytes of a set of CPUs.
const MAX_BYTES: u32 = 1024;
/// Pages that are looked at to find where memory is.
const SAMPLES: u64 = 64;
/// The most nodes that are told apart.
const NODES: usize = 64;

/// `RVHOST_NET_SET_CPUS`.
pub(crate) fn set_cpus(owner: &Owner, arg: Arg) -> Result {
    let [queue, bytes] = arg.get::<[u32; 2]>(0)?;
    let at: u64 = arg.get(8)?;
    if bytes % 8 != 0 || bytes > MAX_BYTES {
        return Err(EINVAL);
    }
    let bell = owner.bell(queue)?;
    let mask = Arg::at(at);
    let mut words = KVec::new();
    for i in 0..u64::from(bytes / 8) {
        words.push(mask.get::<u64>(8 * i)?, GFP_KERNEL)?;
    }
    bell.set_cpus(&words)
}

/// Keeps the thread that answers `bell` to the node with most of the memory in `table`.
pub(crate) fn settle(bell: &Bell, table: &MemTable, user: &UserMem<'_>) -> Option<u32> {
    if !place::has_nodes() || !param::near_memory() {
        return None;
    }
    let node = node_of(table, user)?;
    bell.prefer_node(node).then_some(node)
}

/// The node with most of the memory in `table`, by a few of its pages that are there.
fn node_of(table: &MemTable, user: &UserMem<'_>) -> Option<u32> {
    let size = |first: u64, last: u64| (last - first).saturating_add(1);
    let all = table
        .regions()
        .iter()
        .fold(0u64, |sum, r| sum.saturating_add(size(r.first, r.last)));
    let step = (all / SAMPLES).max(4096);
    let mut pages = [0u32; NODES];
    let mut skip = 0;
    for region in table.regions() {
        let size = size(region.first, region.last);
        let mut at = skip;
        while at < size {
            let node = place::node_of(user, region.hva.wrapping_add(at));
            // CAST: u32 to usize widens.
            if let Some(count) = node.and_then(|node| pages.get_mut(node as usize)) {
                *count += 1;
            }
            at = at.saturating_add(step);
        }
        skip = at - size;
    }
    let (node, count) = (0u32..).zip(pages).max_by_key(|(_, count)| *count)?;
    (count > 0).then_some(node)
}
