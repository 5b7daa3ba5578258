// SPDX-License-Identifier: GPL-2.0

//! What a device loses to another one that breaks all rules as fast as it can,
//! compared with what it loses to one that is as busy and keeps them.

use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;

use super::guest_load::endless;
use super::guest_load::fill_tx;
use super::guest_load::spoil_tx;
use crate::case::skip;
use crate::case::Ctx;
use crate::case::Module;
use crate::case::Table;
use crate::device::feature;
use crate::frame::NetHdr;
use crate::ioctl::Raw;
use crate::net;
use crate::ring::Desc;
use crate::ring::F_INDIRECT;
use crate::ring::F_NEXT;
use crate::traffic::Split;
use crate::vmm::Setup;
use crate::vmm::Vmm;

/// What the other device's guest, or its VMM, does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Packets without end: what the others are compared with.
    Busy,
    /// The same, and its VMM has something to do as well.
    BusyVmm,
    /// Wild addresses, loops, heads beyond the ring.
    Broken,
    /// Each chain is as long as the ring and leads back into itself.
    Loops,
    /// Each chain is a table of 4096 empty buffers.
    Tables,
    /// Each packet is one that must be dropped.
    Dropped,
    /// Packets without end, and the VMM changes everything all the time.
    Calls,
}

/// As long as one of them is beside the measured device at a time.
const SLICE: Duration = Duration::from_millis(250);
/// As long as the scheduler may let one thread run where another waits: not a delay to speak of.
const TURN: Duration = Duration::from_millis(3);
/// Slices of each kind before a verdict, and at most.
const LEAST: usize = 6;
const MOST: usize = 30;

pub(super) fn register(table: &mut Table) {
    for (name, kind) in [
        ("broken_rings", Kind::Broken),
        ("loops", Kind::Loops),
        ("endless_tables", Kind::Tables),
        ("packets_to_drop", Kind::Dropped),
        ("calls_without_end", Kind::Calls),
    ] {
        table.add_long(
            format!("isolation::neighbour_of_{name}_loses_no_more"),
            Duration::from_secs(180),
            move |ctx| compare(ctx, kind),
        );
    }
}

/// Round trips of the measured device in slices beside one kind of other.
#[derive(Default)]
struct Seen {
    trips: Vec<usize>,
    times: Vec<Duration>,
}

impl Seen {
    fn median(&mut self) -> usize {
        self.trips.sort_unstable();
        self.trips[self.trips.len() / 2]
    }

    fn p99(&mut self) -> Duration {
        self.times.sort_unstable();
        self.times[self.times.len() * 99 / 100]
    }
}

fn spoil(vmm: &Vmm, kind: Kind) -> Result<()> {
    match kind {
        Kind::Busy | Kind::BusyVmm | Kind::Calls => {}
        Kind::Broken => spoil_tx(vmm),
        Kind::Loops => {
            for slot in 0..256 {
                let desc = Desc {
                    addr: 0x2000,
                    len: 1,
                    flags: F_NEXT,
                    next: (slot + 1) % 256,
                };
                vmm.tx.ring.set_desc(slot, desc);
            }
        }
        Kind::Tables => {
            let table = vmm.mem.alloc(16 * 4096, 4096)?;
            for entry in 0..4096u16 {
                let desc = Desc {
                    addr: 0x2000,
                    len: 0,
                    flags: F_NEXT,
                    next: (entry + 1) % 4096,
                };
                vmm.mem
                    .write(table + 16 * u64::from(entry), &desc.bytes())?;
            }
            for slot in 0..256 {
                let desc = Desc {
                    addr: table,
                    len: 16 * 4096,
                    flags: F_INDIRECT,
                    next: 0,
                };
                vmm.tx.ring.set_desc(slot, desc);
            }
        }
        Kind::Dropped => {
            let header = NetHdr {
                flags: crate::frame::NEEDS_CSUM,
                csum_start: 60_000,
                csum_offset: 60,
                ..NetHdr::default()
            };
            let frame = vec![2; 1000];
            let segs = vmm.tx_segs(&header, &frame, &Split::Whole)?;
            for slot in 0..256 {
                let desc = Desc {
                    addr: segs[0].addr,
                    len: segs[0].len,
                    flags: 0,
                    next: 0,
                };
                vmm.tx.ring.set_desc(slot, desc);
            }
        }
    }
    Ok(())
}

/// As much CPU time as [`change`] may take, for nothing.
fn while_not(done: &AtomicBool) {
    while !done.load(Ordering::Relaxed) {
        for _ in 0..1000 {
            std::hint::spin_loop();
        }
        thread::yield_now();
    }
}

/// Everything a VMM may change under way, over and over.
fn change(raw: Raw, vmm_regions: &[crate::ioctl::MemoryRegion], tap: i32, done: &AtomicBool) {
    while !done.load(Ordering::Relaxed) {
        let _ = raw.set_mem_table(0, vmm_regions);
        let _ = raw.set_backend(1, -1);
        let _ = raw.set_backend(1, tap);
        let _ = raw.set_features(feature::VERSION_1);
        thread::yield_now();
    }
}

fn slice(ctx: &Ctx, good: &mut Vmm, kind: Kind, seen: &mut Seen) -> Result<()> {
    let mut other = Setup::new().tap_name("vt1").build(ctx)?;
    let avail = fill_tx(&mut other)?;
    spoil(&other, kind)?;
    let kick = other.tx.kick.try_clone().context("dup")?;
    let (raw, regions) = (other.vhost.raw(), other.regions()?);
    let tap = std::os::fd::AsRawFd::as_raw_fd(&other.tap);
    let done = AtomicBool::new(false);
    let result = thread::scope(|scope| {
        scope.spawn(|| endless(avail, &kick, &done));
        match kind {
            Kind::Calls => {
                scope.spawn(|| change(raw, &regions, tap, &done));
            }
            Kind::BusyVmm => {
                scope.spawn(|| while_not(&done));
            }
            _ => {}
        }
        let mut measure = || -> Result<usize> {
            let start = Instant::now();
            let mut trips = 0;
            while start.elapsed() < SLICE {
                let trip = Instant::now();
                good.check_alive()?;
                seen.times.push(trip.elapsed());
                trips += 1;
            }
            Ok(trips)
        };
        let result = measure();
        done.store(true, Ordering::Relaxed);
        result
    });
    seen.trips.push(result?);
    other.stop()?;
    drop(other);
    net::wait_gone("vt1")
}

/// Throughput within 10 %, the 99th percentile of the round trips within twice
/// that beside a busy one. Slices take turns; where few of them do not say so
/// yet, more are taken: the machine may have other things to do.
fn compare(ctx: &Ctx, kind: Kind) -> Result<()> {
    if ctx.module == Module::C {
        return skip("what C makes of such guests is better::TX_SPIN");
    }
    let mut good = Setup::new().build(ctx)?;
    good.post_rx(100, &[2048])?;
    good.check_alive()?;
    let benign = if kind == Kind::Calls {
        Kind::BusyVmm
    } else {
        Kind::Busy
    };
    let (mut busy, mut bad) = (Seen::default(), Seen::default());
    for round in 1..=MOST {
        slice(ctx, &mut good, benign, &mut busy)?;
        slice(ctx, &mut good, kind, &mut bad)?;
        if round < LEAST {
            continue;
        }
        let (trips, late) = ([busy.median(), bad.median()], [busy.p99(), bad.p99()]);
        let holds = trips[1] * 10 >= trips[0] * 9 && late[1] <= (2 * late[0]).max(TURN);
        if holds || round == MOST {
            println!(
                "# beside a busy device and beside {kind:?}: {} and {} round trips in {SLICE:?}, \
                 p99 {:?} and {:?}, {round} slices of each",
                trips[0], trips[1], late[0], late[1]
            );
            ensure!(
                holds,
                "{trips:?} round trips, p99 {late:?}, beside a busy device and beside {kind:?}"
            );
            return good.check_alive();
        }
    }
    Ok(())
}
