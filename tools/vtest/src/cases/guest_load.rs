// SPDX-License-Identifier: GPL-2.0

//! A guest that does all it can, as fast as it can: what else goes on goes on.

use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;

use super::guest::fresh_start;
use crate::case::Ctx;
use crate::case::Table;
use crate::frame::NetHdr;
use crate::ring::Desc;
use crate::traffic::Split;
use crate::vmm::Setup;
use crate::vmm::Vmm;

pub(super) fn register(table: &mut Table) {
    table.add("guest::flood_to_the_network_leaves_reception_alone", flood);
    table.add_long(
        "guest::takes_nothing_while_packets_come",
        Duration::from_secs(180),
        takes_nothing,
    );
    table.add("guest::neighbour_goes_on", neighbour);
}

/// Ends a thread's loop, whatever becomes of the case.
struct Flood<'a> {
    done: &'a AtomicBool,
}

impl Drop for Flood<'_> {
    fn drop(&mut self) {
        self.done.store(true, Ordering::Relaxed);
    }
}

/// Keeps moving the available index and kicks, as another CPU of the guest, until
/// it is told that it is enough.
pub(super) fn endless(
    ring: usize,
    kick: &vmm_sys_util::eventfd::EventFd,
    done: &AtomicBool,
) -> u64 {
    let avail = (ring + 2) as *mut u16;
    let mut rounds = 0;
    while !done.load(Ordering::Relaxed) {
        // SAFETY: The index lies in guest memory, which outlives the thread;
        // everybody accesses it as shared memory.
        unsafe { avail.write_volatile(avail.read_volatile().wrapping_add(16)) };
        let _ = kick.write(1);
        rounds += 1;
        if rounds % 64 == 0 {
            thread::yield_now();
        }
    }
    rounds
}

pub(super) fn fill_tx(vmm: &mut Vmm) -> Result<usize> {
    let frame = vmm.tx_frames.plain(1000);
    let segs = vmm.tx_segs(&NetHdr::default(), &frame, &Split::Whole)?;
    for slot in 0..256 {
        let desc = Desc {
            addr: segs[0].addr,
            len: segs[0].len,
            flags: 0,
            next: 0,
        };
        vmm.tx.ring.set_desc(slot, desc);
        vmm.tx.ring.set_avail(slot, slot);
    }
    Ok(vmm.mem.host(vmm.tx.ring.layout().avail)? as usize)
}

fn flood(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new().build(ctx)?;
    vmm.post_rx(100, &[2048])?;
    let avail = fill_tx(&mut vmm)?;
    let kick = vmm.tx.kick.try_clone().context("dup")?;
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| endless(avail, &kick, &done));
        let _stop = Flood { done: &done };
        for i in 0..200 {
            let start = Instant::now();
            let frame = vmm.send_rx(60 + i)?;
            let received = vmm.expect_in_guest(&frame)?;
            vmm.repost(&received)?;
            vmm.wire.drain()?;
            let time = start.elapsed();
            ensure!(
                time < Duration::from_secs(5),
                "packet {i} took {time:?} while the other direction was flooded"
            );
        }
        Ok(())
    })
}

fn takes_nothing(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new().build(ctx)?;
    let memory = || -> Result<u64> {
        let text = std::fs::read_to_string("/proc/meminfo")?;
        let line = text.lines().find_map(|line| line.strip_prefix("Slab:"));
        let kib = line.and_then(|line| line.split_whitespace().next());
        Ok(kib.context("Slab")?.parse()?)
    };
    let frame = vmm.rx_frames.plain(1500);
    // What the rings hold is held by then.
    let packets = u64::from(ctx.cycles.clamp(250, 25_000)) * 40;
    let mut after_first = 0;
    for i in 0..packets {
        vmm.wire.send(&NetHdr::default(), &frame)?;
        if i == packets / 10 {
            after_first = memory()?;
        }
    }
    let more = memory()?.saturating_sub(after_first);
    ensure!(
        more < 16 << 10,
        "{more} KiB more are in use after {packets} packets than after a tenth of them"
    );
    let dropped = crate::net::counters("vt0")?.tx_dropped;
    ensure!(dropped > packets / 2, "{dropped} of {packets} were dropped");
    // Those that were kept come now.
    vmm.post_rx(200, &[2048])?;
    for _ in 0..100 {
        let received = vmm.recv()?;
        crate::frame::compare("packet", &received.frame, &frame)?;
        vmm.repost(&received)?;
    }
    Ok(())
}

/// Loops, wild addresses, heads beyond the ring, among chains that are good.
pub(super) fn spoil_tx(vmm: &Vmm) {
    for slot in (0..256).step_by(3) {
        let desc = Desc {
            addr: if slot % 2 == 0 { u64::MAX - 7 } else { 0x2000 },
            len: 2000,
            flags: slot % 2,
            next: slot,
        };
        vmm.tx.ring.set_desc(slot, desc);
    }
    vmm.tx.ring.set_avail(255, 999);
}

/// One device has an endless ring of broken chains and kicks without end; the
/// other one's packets take no longer than they may.
fn neighbour(ctx: &Ctx) -> Result<()> {
    let mut bad = Setup::new().tap_name("vt1").build(ctx)?;
    let mut good = Setup::new().build(ctx)?;
    good.post_rx(100, &[2048])?;
    good.check_alive()?;
    let avail = fill_tx(&mut bad)?;
    spoil_tx(&bad);
    let kick = bad.tx.kick.try_clone().context("dup")?;
    let done = AtomicBool::new(false);
    let slowest = thread::scope(|scope| {
        scope.spawn(|| endless(avail, &kick, &done));
        let _stop = Flood { done: &done };
        let mut slowest = Duration::ZERO;
        for _ in 0..300 {
            let start = Instant::now();
            good.check_alive()?;
            slowest = slowest.max(start.elapsed());
            bad.wire.drain()?;
        }
        Ok::<_, anyhow::Error>(slowest)
    })?;
    ensure!(
        slowest < Duration::from_secs(5),
        "a round trip took {slowest:?} beside the other device"
    );
    fresh_start(&mut bad)
}
