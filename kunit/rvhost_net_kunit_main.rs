// SPDX-License-Identifier: GPL-2.0
//! The test module: mounts the sources of the module again and runs their suites in the kernel.
#![crate_name = "rvhost_net_kunit"]

#[path = "../rust/kext/mod.rs"]
#[allow(dead_code)] // The driver's files and tracepoints are not in this module.
mod kext;
mod memory;
mod support;
mod tap;
mod threads;
#[path = "../rust/vcore/mod.rs"]
pub mod vcore;

use kernel::prelude::*;

module! {
    type: Tests,
    name: "rvhost_net_kunit",
    authors: ["The rvhost developers"],
    description: "KUnit suites of rvhost_net",
    license: "GPL",
}

struct Tests;

impl kernel::Module for Tests {
    fn init(_module: &'static ThisModule) -> Result<Self> {
        Ok(Self)
    }
}
