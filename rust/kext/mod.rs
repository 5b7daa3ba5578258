// SPDX-License-Identifier: GPL-2.0
//! Safe types over the kernel's C that the `kernel` crate lacks.
//!
//! The only place with `unsafe` and with raw bindings. One abstraction per file; none can be
//! misused from safe code.

#[path = "bindings/mod.rs"]
mod bindings;

pub(crate) mod affinity;
pub(crate) mod capable;
pub(crate) mod cgroup;
pub(crate) mod chrdev;
pub(crate) mod counter;
pub(crate) mod errno;
pub(crate) mod eventfd;
pub(crate) mod file;
pub(crate) mod handoff;
pub(crate) mod ifname;
pub(crate) mod inlet;
pub(crate) mod killable;
pub(crate) mod kthread;
pub(crate) mod log;
pub(crate) mod mm;
pub(crate) mod netdev;
pub(crate) mod packets;
pub(crate) mod param;
pub(crate) mod poll;
pub(crate) mod port;
mod rtnl;
pub(crate) mod sched;
pub(crate) mod socket;
pub(crate) mod taken;
pub(crate) mod task;
pub(crate) mod trace;
pub(crate) mod tun;
pub(crate) mod usermem;
pub(crate) mod wait;
pub(crate) mod xdp;
pub(crate) mod zerocopy;
