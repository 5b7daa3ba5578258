// SPDX-License-Identifier: GPL-2.0

//! Driver and device take turns, a batch or a packet at a time. [`run`] is made for
//! one CPU whose clock counts instructions: nothing is ever idle, and all that the
//! machine does between two looks at the clock is counted.

use std::time::Duration;
use std::time::Instant;

use anyhow::ensure;
use anyhow::Result;

use crate::bench::path::Path;
use crate::bench::rig::Patience;
use crate::bench::rig::Rig;
use crate::bench::rig::OFFLOADS;
use crate::bench::threads::Threads;
use crate::bench::Times;
use crate::bench::Way;
use crate::net;
use crate::tap::Tap;
use crate::tap::TapOptions;

/// What was measured.
pub(crate) struct Cost {
    pub(crate) packets: u64,
    /// CPU time of the device's threads.
    pub(crate) worker: Duration,
    /// From before the driver's kick, or the source's system call, until the
    /// driver sees the batch used.
    pub(crate) section: Duration,
    /// What the source's system calls take with nobody to wake.
    pub(crate) source: Duration,
    pub(crate) kicks: u64,
}

/// Runs `rounds` batches in one direction. With `marks`, a system call that
/// nobody else uses stands at each end of what is measured (scripts/bench/profile
/// counts between them).
pub(crate) fn run(
    rig: &mut Rig,
    threads: &Threads,
    way: Way,
    batch: u16,
    rounds: u32,
    marks: bool,
) -> Result<Cost> {
    ensure!(way != Way::Both, "in lockstep packets go one way");
    let mut patience = Patience::new();
    let one = |rig: &mut Rig, patience: &mut Patience, marks| match way {
        Way::Tx => tx(rig, patience, batch, marks),
        _ => rx(rig, patience, batch, marks),
    };
    if way == Way::Rx {
        rig.publish_rx(rig.buffers)?;
    }
    for _ in 0..50 {
        one(rig, &mut patience, false)?;
    }
    let kicks = rig.kicks;
    let before = threads.cpu_ns()?;
    let mut section = Duration::ZERO;
    for _ in 0..rounds {
        section += one(rig, &mut patience, marks)?;
    }
    let worker = Duration::from_nanos(threads.cpu_ns()? - before);
    let source = match way {
        Way::Rx => silent_source(rig, batch, rounds)?,
        _ => Duration::ZERO,
    };
    Ok(Cost {
        packets: u64::from(batch) * u64::from(rounds),
        worker,
        section,
        source,
        kicks: rig.kicks - kicks,
    })
}

/// How long the device is left alone before each packet, so that it sleeps.
const REST: Duration = Duration::from_micros(100);

/// How long packets take, one at a time: from before the kick, or the source's
/// system call, until the driver, which polls, sees the chain used.
pub(crate) fn latency(rig: &mut Rig, way: Way, count: usize) -> Result<Times> {
    ensure!(way != Way::Both, "one packet goes one way");
    let mut patience = Patience::new();
    if way == Way::Rx {
        rig.publish_rx(rig.buffers)?;
    }
    let mut times = Vec::with_capacity(count);
    for round in 0..count + 100 {
        let start = Instant::now();
        while start.elapsed() < REST {}
        let time = match way {
            Way::Tx => tx(rig, &mut patience, 1, false)?,
            _ => rx(rig, &mut patience, 1, false)?,
        };
        if round >= 100 {
            times.push(time);
        }
    }
    Ok(Times::new(times))
}

fn mark(marks: bool) {
    if marks {
        let mut value = libc::itimerval {
            it_interval: libc::timeval {
                tv_sec: 0,
                tv_usec: 0,
            },
            it_value: libc::timeval {
                tv_sec: 0,
                tv_usec: 0,
            },
        };
        // SAFETY: `value` is a valid itimerval.
        unsafe { libc::syscall(libc::SYS_getitimer, libc::ITIMER_REAL, &mut value) };
    }
}

/// Sends a batch.
fn tx(rig: &mut Rig, patience: &mut Patience, batch: u16, marks: bool) -> Result<Duration> {
    patience.renew();
    mark(marks);
    let start = Instant::now();
    rig.publish_tx(batch)?;
    while rig.tx_in_flight() != 0 {
        patience.wait("TX")?;
    }
    let time = start.elapsed();
    mark(marks);
    Ok(time)
}

/// Receives a batch.
fn rx(rig: &mut Rig, patience: &mut Patience, batch: u16, marks: bool) -> Result<Duration> {
    patience.renew();
    mark(marks);
    let start = Instant::now();
    rig.source.send(batch.into())?;
    let mut left = u64::from(batch);
    loop {
        left -= rig.take_rx()?;
        if left == 0 {
            break;
        }
        patience.wait("RX")?;
    }
    rig.repost(batch)?;
    let time = start.elapsed();
    mark(marks);
    Ok(time)
}

/// What it costs to send the same batches to a TAP that nobody waits for, or, where there is a card,
/// to one that drops them.
fn silent_source(rig: &Rig, batch: u16, rounds: u32) -> Result<Duration> {
    let mut time = Duration::ZERO;
    if rig.path != Path::Tap {
        net::add_dummy("silent")?;
        net::set_up("silent", true)?;
        let source = rig.source.on("silent")?;
        for _ in 0..rounds {
            let start = Instant::now();
            source.send(batch.into())?;
            time += start.elapsed();
        }
        return Ok(time);
    }
    let tap = Tap::open(
        "silent",
        &TapOptions {
            offloads: OFFLOADS,
            ..TapOptions::default()
        },
    )?;
    let source = rig.source.on(tap.name())?;
    for _ in 0..rounds {
        let start = Instant::now();
        source.send(batch.into())?;
        time += start.elapsed();
        for _ in 0..batch {
            ensure!(tap.read()?.is_some(), "the silent TAP lost a packet");
        }
    }
    Ok(time)
}
