// SPDX-License-Identifier: GPL-2.0

//! The test cases, one file per group.

use crate::case::Case;
use crate::case::Table;

mod backend;
mod bad_rx;
mod bad_tx;
mod busy;
mod compat32;
mod control;
mod data;
mod dirty;
mod fair;
mod fault;
mod fault_netdev;
pub(crate) mod features;
mod front;
mod front_vhost;
mod fuzz;
mod guest;
mod guest_load;
mod held;
mod in_order;
mod index;
mod iotlb;
mod isolation;
mod leaks;
mod lifetime;
mod lifetime_host;
mod lifetime_owner;
mod log;
mod macvtap;
mod malformed;
pub(crate) mod matrix;
mod mem_table;
mod memory;
mod misses;
mod multi;
mod netdev;
mod netdev_changes;
mod netdev_kinds;
mod netdev_socket;
mod netdev_tc;
mod netdev_waits;
mod notify;
mod owner;
mod processes;
mod random;
mod refused;
mod restart;
mod restart_waiting;
mod shapes;
mod sriov;
mod stats;
mod steering;
mod steering_macvtap;
mod stress;
mod waits;
mod worker;
mod xdp;

/// Groups that carry traffic in bulk: what they show about the interface,
/// others show in less time.
const BULK: [&str; 9] = [
    "data::",
    "fault::",
    "fuzz::",
    "index::",
    "lifetime::",
    "shapes::",
    "sriov::",
    "stress::",
    "xdp::",
];
/// Groups about what only the replacement has.
const OURS: [&str; 5] = [
    "front::",
    "isolation::",
    "netdev::",
    "stats::",
    "steering::",
];

/// Whether a case belongs to the groups that pin down the interface.
pub(crate) fn is_abi(case: &Case) -> bool {
    !is_in(&BULK, &case.name) && !is_ours(&case.name)
}

/// Whether the case called `name` is about what C vhost_net does not have.
pub(crate) fn is_ours(name: &str) -> bool {
    is_in(&OURS, name)
}

fn is_in(groups: &[&str], name: &str) -> bool {
    groups.iter().any(|group| name.starts_with(group))
}

/// Every case there is.
pub(crate) fn all() -> Vec<Case> {
    let mut table = Table::default();
    features::register(&mut table);
    matrix::register(&mut table);
    owner::register(&mut table);
    control::register(&mut table);
    mem_table::register(&mut table);
    data::register(&mut table);
    shapes::register(&mut table);
    index::register(&mut table);
    notify::register(&mut table);
    in_order::register(&mut table);
    busy::register(&mut table);
    fair::register(&mut table);
    malformed::register(&mut table);
    bad_tx::register(&mut table);
    bad_rx::register(&mut table);
    refused::register(&mut table);
    memory::register(&mut table);
    multi::register(&mut table);
    processes::register(&mut table);
    backend::register(&mut table);
    macvtap::register(&mut table);
    netdev::register(&mut table);
    netdev_changes::register(&mut table);
    netdev_kinds::register(&mut table);
    netdev_socket::register(&mut table);
    netdev_tc::register(&mut table);
    netdev_waits::register(&mut table);
    front::register(&mut table);
    front_vhost::register(&mut table);
    sriov::register(&mut table);
    steering::register(&mut table);
    steering_macvtap::register(&mut table);
    compat32::register(&mut table);
    worker::register(&mut table);
    restart::register(&mut table);
    restart_waiting::register(&mut table);
    xdp::register(&mut table);
    stats::register(&mut table);
    log::register(&mut table);
    dirty::register(&mut table);
    iotlb::register(&mut table);
    misses::register(&mut table);
    guest::register(&mut table);
    lifetime::register(&mut table);
    lifetime_host::register(&mut table);
    lifetime_owner::register(&mut table);
    isolation::register(&mut table);
    waits::register(&mut table);
    held::register(&mut table);
    random::register(&mut table);
    fuzz::register(&mut table);
    fault::register(&mut table);
    fault_netdev::register(&mut table);
    stress::register(&mut table);
    table.into_cases()
}
