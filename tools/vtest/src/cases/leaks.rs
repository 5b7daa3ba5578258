// SPDX-License-Identifier: GPL-2.0

//! Start and stop over and over under traffic, then count what is left.

use std::fs;

use anyhow::Context;
use anyhow::Result;

use crate::case::Ctx;
use crate::frame::NetHdr;
use crate::poll;
use crate::runner;
use crate::traffic::expect;
use crate::traffic::Split;
use crate::vmm::Setup;

/// What must be the same before and after.
#[derive(Debug, PartialEq, Eq)]
struct Holdings {
    descriptors: usize,
    threads: usize,
    kernel_threads: usize,
    packet_sockets: usize,
    module_references: Option<u64>,
}

impl Holdings {
    fn count(ctx: &Ctx) -> Result<Self> {
        let entries = |path: &str| -> Result<usize> {
            Ok(fs::read_dir(path).with_context(|| path.to_owned())?.count())
        };
        let sockets = fs::read_to_string("/proc/net/packet").unwrap_or_default();
        Ok(Self {
            descriptors: entries("/proc/self/fd")?,
            threads: entries("/proc/self/task")?,
            kernel_threads: kernel_threads()?,
            packet_sockets: sockets.lines().count(),
            module_references: runner::references(ctx),
        })
    }
}

/// Processes that are called as vhost-net calls its threads.
pub(crate) fn kernel_threads() -> Result<usize> {
    let mut count = 0;
    for entry in fs::read_dir("/proc")? {
        let path = entry?.path().join("comm");
        // A process may end while we look.
        if fs::read_to_string(path).is_ok_and(|name| name.starts_with("vhost-")) {
            count += 1;
        }
    }
    Ok(count)
}

/// `ctx.cycles` rounds: most stop and start a device, some close it.
pub(crate) fn cycles(ctx: &Ctx) -> Result<()> {
    let before = Holdings::count(ctx)?;
    let mut left = ctx.cycles;
    let mut device = 0;
    while left > 0 {
        let rounds = left.min(50);
        left -= rounds;
        device += 1;
        one_device(ctx, device, rounds)?;
    }
    poll::wait_for("everything to be let go of", || {
        Ok((Holdings::count(ctx)? == before).then_some(()))
    })
    .or_else(|_| expect("held afterwards", Holdings::count(ctx)?, before))
}

fn one_device(ctx: &Ctx, device: u32, rounds: u32) -> Result<()> {
    let mut vmm = Setup::new().tap_name(&format!("vt{device}")).build(ctx)?;
    vmm.post_rx(128, &[2048])?;
    for round in 0..rounds {
        for _ in 0..20 {
            let frame = vmm.tx_frames.plain(200);
            vmm.queue_tx(&NetHdr::default(), &frame, &Split::Whole)?;
            vmm.send_rx(200)?;
        }
        vmm.tx.flush()?;
        // Packets are under way in both directions.
        vmm.stop()?;
        vmm.start()?;
        let context = || format!("device {device}, round {round}");
        vmm.tx.drain().with_context(context)?;
        for _ in 0..20 {
            vmm.wire.recv().with_context(context)?;
            let received = vmm.recv().with_context(context)?;
            vmm.repost(&received)?;
        }
    }
    vmm.check_quiet()
}
