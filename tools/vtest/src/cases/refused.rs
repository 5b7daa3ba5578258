// SPDX-License-Identifier: GPL-2.0

//! A packet for a ring of nothing but chains that no packet can go to: whoever
//! wants the queue for something else gets it before the device is through.

use std::fs;
use std::sync::atomic::AtomicU16;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;

use super::lifetime::beside;
use super::processes::threads;
use super::worker::owned;
use super::worker::KERNEL;
use super::worker::OWNER;
use crate::case::Ctx;
use crate::case::Table;
use crate::device::RX;
use crate::net;
use crate::poll;
use crate::process::Child;
use crate::ring::Desc;
use crate::ring::F_INDIRECT;
use crate::ring::F_NEXT;
use crate::ring::F_WRITE;
use crate::virtqueue::Mode;
use crate::virtqueue::Virtqueue;
use crate::vmm::Setup;
use crate::vmm::Vmm;

/// How long a call may take.
const SOON: Duration = Duration::from_secs(2);
/// Entries of an indirect table: of two of them a chain is looked at in milliseconds, and the
/// largest ring in a minute.
const ENTRIES: u32 = 8192;
/// The largest ring.
const LARGEST: u16 = 32_768;

pub(super) fn register(table: &mut Table) {
    table.add(
        "bad_rx::ring_of_refused_chains_lets_the_base_be_read",
        |ctx| full(ctx, "GET_VRING_BASE", |vmm| vmm.base(RX).map(|_| ())),
    );
    table.add(
        "bad_rx::ring_of_refused_chains_lets_the_queue_stop",
        |ctx| full(ctx, "SET_BACKEND -1", |vmm| vmm.stop_queue(RX)),
    );
    table.add(
        "bad_rx::ring_of_refused_chains_lets_the_device_close",
        close,
    );
    table.add(
        "bad_rx::refused_chains_without_end_let_the_queue_stop",
        endless,
    );
    for (name, fork) in [("owner", OWNER), ("kernel", KERNEL)] {
        table.add(
            format!("bad_rx::ring_of_refused_chains_owner_of_{name}_threads_can_be_killed"),
            move |ctx| killed(ctx, fork),
        );
    }
    table.add(
        "bad_rx::ring_of_refused_chains_owners_threads_can_be_stopped",
        stopped,
    );
}

/// Does what must not be held up.
fn soon(what: &str, call: impl FnOnce() -> Result<()>) -> Result<()> {
    let start = Instant::now();
    call()?;
    let took = start.elapsed();
    ensure!(took < SOON, "{what} took {took:?}");
    Ok(())
}

/// Makes every entry of the RX ring one and the same chain of two tables of
/// empty descriptors.
fn fill(vmm: &mut Vmm) -> Result<()> {
    let len = 16 * ENTRIES;
    let table = vmm.mem.alloc(len.into(), 16)?;
    let mut entries = Vec::with_capacity(len as usize);
    for i in 1..=ENTRIES {
        let last = i == ENTRIES;
        let desc = Desc {
            addr: table,
            len: 0,
            flags: if last { F_WRITE } else { F_WRITE | F_NEXT },
            next: if last { 0 } else { i as u16 },
        };
        entries.extend(desc.bytes());
    }
    vmm.mem.write(table, &entries)?;
    let ring = &vmm.rx.ring;
    for (i, flags) in [(0, F_INDIRECT | F_NEXT), (1, F_INDIRECT)] {
        ring.set_desc(
            i,
            Desc {
                addr: table,
                len,
                flags,
                next: 1,
            },
        );
    }
    let size = ring.layout().size;
    for slot in 0..size {
        ring.set_avail(slot, 0);
    }
    ring.set_avail_idx(size);
    Ok(())
}

/// Sends a packet to a ring that [`fill`] has filled, and waits until the
/// first chain is refused.
fn at_work(vmm: &mut Vmm) -> Result<Vec<u8>> {
    let frame = vmm.send_rx(60)?;
    poll::wait_signal(&vmm.rx.err, "an err signal")?;
    Ok(frame)
}

/// The packet has waited for a better ring.
fn better_ring(vmm: &mut Vmm, frame: &[u8]) -> Result<()> {
    vmm.stop_queue(RX)?;
    vmm.rx = Virtqueue::new(&vmm.mem, 256, Mode::default(), 0, 0)?;
    vmm.configure_queue(RX, 0)?;
    vmm.post_rx(4, &[2048])?;
    vmm.start_queue(RX)?;
    vmm.expect_in_guest(frame)?;
    vmm.check_alive()
}

fn full(ctx: &Ctx, what: &str, call: fn(&Vmm) -> Result<()>) -> Result<()> {
    let mut vmm = Setup::new().size(LARGEST).build(ctx)?;
    fill(&mut vmm)?;
    let frame = at_work(&mut vmm)?;
    soon(what, || call(&vmm))?;
    soon("the rest", || better_ring(&mut vmm, &frame))
}

fn close(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new().size(LARGEST).build(ctx)?;
    fill(&mut vmm)?;
    at_work(&mut vmm)?;
    soon("close", || {
        drop(vmm);
        Ok(())
    })
}

/// The driver makes each chain that comes back available again, for a while.
fn endless(ctx: &Ctx) -> Result<()> {
    const SIZE: u16 = 256;
    const NONE: u32 = u32::MAX;
    let mut vmm = Setup::new().size(SIZE).build(ctx)?;
    fill(&mut vmm)?;
    let layout = vmm.rx.ring.layout();
    vmm.mem
        .write(layout.used + 4, &vec![0xff; 8 * usize::from(SIZE)])?;
    let used = vmm.mem.host(layout.used + 4)? as usize;
    let avail = vmm.mem.host(layout.avail + 2)? as usize;
    let seen = AtomicU16::new(0);
    let until = Instant::now() + 5 * SOON;
    let refill = || {
        let next = seen.load(Ordering::Relaxed);
        let slot = used + 8 * usize::from(next % SIZE);
        // SAFETY: Both lie in our guest memory, which outlives the thread, and
        // are aligned; we access them in no other way meanwhile.
        let (id, index) = unsafe {
            (
                AtomicU32::from_ptr(slot as *mut u32),
                AtomicU16::from_ptr(avail as *mut u16),
            )
        };
        if id.load(Ordering::Acquire) == NONE || Instant::now() > until {
            return thread::yield_now();
        }
        id.store(NONE, Ordering::Relaxed);
        let next = next.wrapping_add(1);
        seen.store(next, Ordering::Relaxed);
        index.store(next.wrapping_add(SIZE), Ordering::Release);
    };
    let mut frame = Vec::new();
    let body = || {
        frame = at_work(&mut vmm)?;
        soon("SET_BACKEND -1", || vmm.stop_queue(RX))
    };
    let result = beside(|_| refill(), ctx.seed, body);
    println!("# chains that came back: {}", seen.into_inner());
    result?;
    better_ring(&mut vmm, &frame)
}

/// An owner with such threads whose RX queue is at work.
fn owner(ctx: &Ctx, fork: u8) -> Result<Child> {
    let child = Child::spawn(|inside| {
        let (vhost, mem) = owned(ctx, fork)?;
        let mut vmm = Setup::new().size(LARGEST).on(vhost, mem, ctx)?;
        fill(&mut vmm)?;
        at_work(&mut vmm)?;
        inside.ready()?;
        inside.wait()
    })?;
    child.wait_ready()?;
    Ok(child)
}

fn killed(ctx: &Ctx, fork: u8) -> Result<()> {
    let child = owner(ctx, fork)?;
    child.signal(libc::SIGKILL)?;
    child.wait_end(SOON)?;
    net::wait_gone("vt0")
}

fn stopped(ctx: &Ctx) -> Result<()> {
    let child = owner(ctx, OWNER)?;
    let all = threads(&format!("vhost-{}", child.pid()))?;
    ensure!(!all.is_empty(), "the owner has no thread of the device");
    child.signal(libc::SIGSTOP)?;
    for (name, folder) in all {
        poll::wait_at_most(SOON, &format!("{name} to stop"), || {
            let stat = fs::read_to_string(folder.join("stat")).context("the thread is gone")?;
            let behind = stat.rsplit(')').next().unwrap_or("");
            Ok(behind.trim_start().starts_with('T').then_some(()))
        })?;
    }
    child.signal(libc::SIGCONT)?;
    child.kill()?;
    net::wait_gone("vt0")
}
