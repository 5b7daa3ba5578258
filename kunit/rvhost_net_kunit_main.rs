// SPDX-License-Identifier: GPL-2.0
//! The test module: mounts the sources of the module again and runs their suites in the kernel.
//!
//! The suites of the core stand in its own files; those here are one for each abstraction of
//! `kext`, against the real kernel.
#![crate_name = "rvhost_net_kunit"]

mod card;
mod cgroup;
mod chrdev;
mod counter;
mod errno;
mod eventfd;
mod file;
mod handoff;
#[path = "../rust/kext/mod.rs"]
#[allow(dead_code)] // What only the driver's files use.
mod kext;
mod killable;
mod kthread;
mod log;
mod mm;
mod outlet;
mod param;
mod poll;
mod port;
mod sched;
mod socket;
mod support;
mod trace;
mod tun;
mod usermem;
#[path = "../rust/vcore/mod.rs"]
pub mod vcore;
mod vtap;
mod wait;
mod xdp;

use kernel::prelude::*;

use self::kext::netdev::Watch;

module! {
    type: Tests,
    name: "rvhost_net_kunit",
    authors: ["The rvhost developers"],
    description: "KUnit suites of rvhost_net",
    license: "GPL",
}

struct Tests(#[allow(dead_code)] Watch);

impl kernel::Module for Tests {
    fn init(_module: &'static ThisModule) -> Result<Self> {
        Ok(Self(Watch::new()?))
    }
}

impl Drop for Tests {
    fn drop(&mut self) {
        support::clean_up();
        card::clean_up();
    }
}
