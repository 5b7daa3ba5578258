// SPDX-License-Identifier: GPL-2.0

//! What it takes that a device is there at all: time and memory.

use std::fs;
use std::path::Path;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use anyhow::bail;
use anyhow::Context;
use anyhow::Result;
use vhost::VhostBackend;

use crate::bench::rig::Rig;
use crate::bench::Times;
use crate::case::Ctx;
use crate::device::VhostNet;

/// How long whole lives take, from open to close with a TAP attached in between,
/// and how long it takes to detach and attach the TAP of a device that runs.
pub(crate) fn start(rig: &mut Rig, ctx: &Ctx, count: u64) -> Result<(Times, Times)> {
    let vmm = &mut rig.vmm;
    let base = [0, 1].map(|index| vmm.queue(index).ring.avail_idx());
    let mut restarts = Vec::new();
    for _ in 0..count {
        let start = Instant::now();
        vmm.stop()?;
        vmm.start()?;
        restarts.push(start.elapsed());
    }
    vmm.stop()?;
    close(rig)?;
    let mut lives = Vec::new();
    for _ in 0..count {
        let vmm = &mut rig.vmm;
        let start = Instant::now();
        vmm.vhost = VhostNet::open(&ctx.device, &vmm.mem)?;
        vmm.vhost.set_owner().context("VHOST_SET_OWNER")?;
        vmm.set_features(vmm.features)?;
        vmm.configure(base)?;
        vmm.start()?;
        vmm.stop()?;
        close(rig)?;
        lives.push(start.elapsed());
    }
    Ok((Times::new(lives), Times::new(restarts)))
}

/// Closes the device; the rest of the machine stays.
fn close(rig: &mut Rig) -> Result<()> {
    let vmm = &mut rig.vmm;
    vmm.vhost = VhostNet::open(Path::new("/dev/null"), &vmm.mem)?;
    Ok(())
}

/// Kilobytes that come free for each device that is closed while nothing else is.
/// A quarter of them is closed beforehand: what the kernel keeps for reuse, it
/// keeps from them.
pub(crate) fn memory(mut rigs: Vec<Rig>) -> Result<f64> {
    let quarter = rigs.len() / 4;
    let (early, late) = rigs.split_at_mut(quarter);
    let close_all = |rigs: &mut [Rig]| {
        rigs.iter_mut().try_for_each(|rig| {
            rig.vmm.stop()?;
            close(rig)
        })
    };
    close_all(early)?;
    let before = free_kb()?;
    close_all(late)?;
    Ok((free_kb()? - before) / late.len() as f64)
}

/// Free memory, once the kernel has put everything away that it keeps for later.
fn free_kb() -> Result<f64> {
    const SETTLED_KB: i64 = 64;
    let mut before = 0;
    for _ in 0..20 {
        // Threads end and RCU frees seconds later.
        thread::sleep(Duration::from_secs(1));
        fs::write("/proc/sys/vm/drop_caches", "3").context("dropping caches")?;
        let now = numbers("/proc/meminfo", "MemFree:")? + 4 * numbers("/proc/zoneinfo", "count:")?;
        if (now - before).abs() < SETTLED_KB {
            return Ok(now as f64);
        }
        before = now;
    }
    bail!("free memory does not settle")
}

/// The sum of the numbers behind a word of a file. Where it is `count:`, pages that
/// lie ready for the CPUs: they count as neither free nor used.
fn numbers(file: &str, word: &str) -> Result<i64> {
    let text = fs::read_to_string(file).context(file.to_owned())?;
    let mut words = text.split_ascii_whitespace();
    let mut sum = 0;
    while words.any(|seen| seen == word) {
        let number = words.next().context(file.to_owned())?;
        sum += number.parse::<i64>().context(file.to_owned())?;
    }
    Ok(sum)
}
