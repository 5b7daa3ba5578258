// SPDX-License-Identifier: GPL-2.0
//! Where a queue's thread runs, if it is not left to the scheduler.

use kernel::prelude::*;

use crate::{
    device::Owner,
    ioctl::Arg, //
};

/// The most bytes of a set of CPUs.
const MAX_BYTES: u32 = 1024;

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
