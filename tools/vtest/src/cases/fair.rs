// SPDX-License-Identifier: GPL-2.0

//! A queue that always has work leaves everybody else their turn.

use std::fs;
use std::mem::size_of;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU16;
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::thread;
use std::thread::JoinHandle;
use std::time::Instant;

use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;
use vmm_sys_util::eventfd::EventFd;

use super::processes::own_prefix;
use super::processes::threads;
use crate::case::Ctx;
use crate::case::Table;
use crate::device::RX;
use crate::device::TX;
use crate::errno::Errno;
use crate::frame::NetHdr;
use crate::poll;
use crate::traffic::expect;
use crate::traffic::Split;
use crate::virtqueue::Seg;
use crate::vmm::Setup;
use crate::vmm::Vmm;

/// Packets of whoever waits for a turn.
const ROUNDS: usize = 20;
/// The largest ring there is.
const LONG: u16 = 32_768;

pub(super) fn register(table: &mut Table) {
    table.add("fair::endless_tx_leaves_rx_its_turn", |ctx| {
        turns(ctx, |vmm| vmm.check_rx(60).map(drop))
    });
    table.add("fair::endless_tx_leaves_control_calls_their_turn", |ctx| {
        turns(ctx, |vmm| {
            for index in [TX, RX] {
                vmm.fence(index)?;
                vmm.base(index)?;
            }
            vmm.stop_queue(TX)?;
            vmm.start_queue(TX)
        })
    });
    table.add("fair::endless_tx_leaves_another_device_its_turn", others);
    table.add(
        "fair::control_call_comes_before_a_long_ring_is_done",
        between,
    );
    table.add("fair::long_ring_stops_before_it_is_done", stops);
}

/// Makes whatever a queue has used available again, until it is dropped.
struct Feeder {
    done: Arc<AtomicBool>,
    thread: Option<JoinHandle<Result<()>>>,
}

/// Two fields of a ring in guest memory.
#[derive(Clone, Copy)]
struct Indices {
    avail: usize,
    used: usize,
}

impl Indices {
    fn of(vmm: &Vmm) -> Result<Self> {
        let layout = vmm.tx.ring.layout();
        Ok(Self {
            avail: vmm.mem.host(layout.avail + 2)? as usize,
            used: vmm.mem.host(layout.used + 2)? as usize,
        })
    }

    /// Makes available whatever was used.
    fn refill(self, size: u16) {
        // SAFETY: The fields are aligned, and in guest memory, which outlives
        // the feeder; all accesses to them are atomic.
        let (avail, used) = unsafe {
            (
                AtomicU16::from_ptr(self.avail as *mut u16),
                AtomicU16::from_ptr(self.used as *mut u16),
            )
        };
        let full = used.load(Ordering::Acquire).wrapping_add(size);
        avail.store(full, Ordering::Release);
    }
}

impl Feeder {
    /// Fills the TX ring with one packet, again and again. On one CPU, for the
    /// device to have the other.
    fn start(vmm: &mut Vmm) -> Result<Self> {
        fill(vmm)?;
        let (indices, size) = (Indices::of(vmm)?, vmm.tx.ring.layout().size);
        let kick: EventFd = vmm.tx.kick.try_clone().context("dup")?;
        let done = Arc::new(AtomicBool::new(false));
        let stop = done.clone();
        let thread = thread::spawn(move || {
            bind(0, 1)?;
            while !stop.load(Ordering::Relaxed) {
                indices.refill(size);
                kick.write(1).context("kick")?;
            }
            Ok(())
        });
        let feeder = Self {
            done,
            thread: Some(thread),
        };
        let sent = vmm.tx.ring.used_idx();
        poll::wait_for("the ring to go round", || {
            Ok((vmm.tx.ring.used_idx().wrapping_sub(sent) > size).then_some(()))
        })?;
        Ok(feeder)
    }

    fn finish(mut self) -> Result<()> {
        self.done.store(true, Ordering::Relaxed);
        match self.thread.take().map(JoinHandle::join) {
            Some(Ok(result)) => result,
            _ => anyhow::bail!("the feeder panicked"),
        }
    }
}

impl Drop for Feeder {
    fn drop(&mut self) {
        self.done.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Puts as many chains of one packet into the TX ring as there is room for.
fn fill(vmm: &mut Vmm) -> Result<()> {
    let frame = vmm.tx_frames.plain(60);
    let mut bytes = NetHdr::default().bytes(vmm.hdr_len);
    bytes.extend(&frame);
    let addr = vmm.mem.alloc(bytes.len() as u64, 16)?;
    vmm.mem.write(addr, &bytes)?;
    let len = bytes.len() as u32;
    for _ in 0..vmm.tx.ring.layout().size {
        vmm.tx.add(&[Seg { addr, len }], &[])?;
    }
    vmm.tx.publish();
    vmm.tx.kick()
}

/// Binds a thread (0: the caller) to a CPU, if there are so many.
fn bind(thread: libc::pid_t, cpu: usize) -> Result<()> {
    // SAFETY: All zeroes are an empty set, which has room for more CPUs.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    let cpus = thread::available_parallelism().map_or(1, |n| n.get());
    // SAFETY: As above.
    unsafe { libc::CPU_SET(cpu % cpus, &mut set) };
    // SAFETY: The set is valid for its size.
    let rc = unsafe { libc::sched_setaffinity(thread, size_of::<libc::cpu_set_t>(), &set) };
    ensure!(rc == 0, "sched_setaffinity: {}", Errno::last());
    Ok(())
}

/// All of the device's threads on one CPU: they have only each other's mercy.
fn bind_threads() -> Result<()> {
    let threads = threads(&own_prefix())?;
    ensure!(!threads.is_empty(), "the device has no threads");
    for (_, folder) in threads {
        bind(number(&folder)?, 0)?;
    }
    Ok(())
}

fn number(folder: &Path) -> Result<libc::pid_t> {
    let status = fs::read_to_string(folder.join("status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("Pid:"));
    Ok(line.context("no Pid")?.trim().parse()?)
}

/// Does something with a device whose TX never runs empty.
fn turns(ctx: &Ctx, turn: impl Fn(&mut Vmm) -> Result<()>) -> Result<()> {
    let mut vmm = Setup::new().build(ctx)?;
    vmm.post_rx(ROUNDS, &[2048])?;
    bind_threads()?;
    let feeder = Feeder::start(&mut vmm)?;
    for round in 0..ROUNDS {
        let start = Instant::now();
        turn(&mut vmm).with_context(|| format!("round {round}"))?;
        let took = start.elapsed();
        ensure!(took < poll::PATIENCE, "round {round} took {took:?}");
    }
    let before = vmm.tx.ring.used_idx();
    poll::wait_for("TX to go on", || {
        Ok((vmm.tx.ring.used_idx() != before).then_some(()))
    })?;
    feeder.finish()
}

fn others(ctx: &Ctx) -> Result<()> {
    let mut busy = Setup::new().build(ctx)?;
    let mut other = Setup::new().tap_name("vt1").build(ctx)?;
    other.post_rx(ROUNDS, &[2048])?;
    bind_threads()?;
    let feeder = Feeder::start(&mut busy)?;
    for round in 0..ROUNDS {
        other
            .check_tx(60, &Split::Whole)
            .and_then(|()| other.check_rx(60))
            .with_context(|| format!("round {round}"))?;
    }
    feeder.finish()
}

/// A ring of many packets, its start and its end.
fn long_ring(ctx: &Ctx) -> Result<Vmm> {
    let mut vmm = Setup::new().size(LONG).stopped().build(ctx)?;
    fill(&mut vmm)?;
    Ok(vmm)
}

/// Does something until it comes while a long ring is worked off: it may be too
/// late now and then.
fn meanwhile(vmm: &Vmm, act: impl Fn() -> Result<u16>) -> Result<()> {
    let indices = Indices::of(vmm)?;
    for _ in 0..20 {
        let end = vmm.tx.ring.avail_idx();
        let start = end.wrapping_sub(LONG);
        poll::wait_for("the first packet", || {
            vmm.tx.kick()?;
            Ok((vmm.tx.ring.used_idx() != start).then_some(()))
        })?;
        if act()? != end {
            return Ok(());
        }
        poll::wait_for("the last packet", || {
            Ok((vmm.tx.ring.used_idx() == end).then_some(()))
        })?;
        indices.refill(LONG);
    }
    anyhow::bail!("it always came when all {LONG} packets were sent")
}

fn between(ctx: &Ctx) -> Result<()> {
    let vmm = long_ring(ctx)?;
    vmm.start_queue(TX)?;
    meanwhile(&vmm, || vmm.base(TX))?;
    let end = vmm.tx.ring.avail_idx();
    poll::wait_for("the last packet", || {
        Ok((vmm.tx.ring.used_idx() == end).then_some(()))
    })
}

fn stops(ctx: &Ctx) -> Result<()> {
    let vmm = long_ring(ctx)?;
    vmm.start_queue(TX)?;
    meanwhile(&vmm, || {
        vmm.stop_queue(TX)?;
        let base = vmm.base(TX)?;
        expect("packets fetched and used", vmm.tx.ring.used_idx(), base)?;
        vmm.start_queue(TX)?;
        Ok(base)
    })?;
    let end = vmm.tx.ring.avail_idx();
    poll::wait_for("the last packet", || {
        Ok((vmm.tx.ring.used_idx() == end).then_some(()))
    })
}
