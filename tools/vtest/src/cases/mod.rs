// SPDX-License-Identifier: GPL-2.0

//! The test cases, one file per group.

use crate::case::Case;
use crate::case::Table;

mod bad_rx;
mod bad_tx;
mod control;
mod data;
mod features;
mod index;
mod iotlb;
mod leaks;
mod log;
mod malformed;
mod multi;
mod notify;
mod owner;
mod processes;
mod restart;
mod shapes;
mod stress;
mod xdp;

/// Every case there is.
pub(crate) fn all() -> Vec<Case> {
    let mut table = Table::default();
    features::register(&mut table);
    owner::register(&mut table);
    control::register(&mut table);
    data::register(&mut table);
    shapes::register(&mut table);
    index::register(&mut table);
    notify::register(&mut table);
    malformed::register(&mut table);
    bad_tx::register(&mut table);
    bad_rx::register(&mut table);
    multi::register(&mut table);
    processes::register(&mut table);
    restart::register(&mut table);
    xdp::register(&mut table);
    log::register(&mut table);
    iotlb::register(&mut table);
    stress::register(&mut table);
    table.into_cases()
}
