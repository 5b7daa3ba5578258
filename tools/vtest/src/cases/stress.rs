// SPDX-License-Identifier: GPL-2.0

//! Control calls, the guest's writes and packets, all at the same time.

use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::eventfd::EFD_NONBLOCK;

use crate::case::Ctx;
use crate::case::Table;
use crate::device::feature;
use crate::device::RX;
use crate::device::TX;
use crate::errno::Errno;
use crate::frame::NetHdr;
use crate::frame::Rng;
use crate::ioctl;
use crate::net;
use crate::poll;
use crate::process::Child;
use crate::runner;
use crate::traffic::Split;
use crate::vmm::Setup;
use crate::vmm::Vmm;

/// Packets each way while the other thread does its worst: with a million
/// cycles, more than 10^9 bytes.
fn packets(ctx: &Ctx) -> usize {
    (ctx.cycles as usize).max(400) * 3 / 2
}

pub(super) fn register(table: &mut Table) {
    for (name, features) in [
        ("flags", feature::VERSION_1),
        ("event_idx", feature::VERSION_1 | feature::EVENT_IDX),
    ] {
        table.add(
            format!("stress::control_calls_during_traffic_{name}"),
            move |ctx| control(ctx, features),
        );
        table.add(
            format!("stress::stop_and_start_during_traffic_{name}"),
            move |ctx| stop_start(ctx, features),
        );
    }
    table.add(
        "stress::guest_rewrites_descriptors_and_buffers_in_use",
        rewrites,
    );
    table.add("stress::two_threads_set_different_backends", two_setters);
    table.add("stress::open_own_close_in_several_threads", open_close);
    table.add_long(
        "stress::backend_swapped_over_and_over",
        Duration::from_secs(300),
        swaps,
    );
    table.add_long(
        "stress::owner_killed_over_and_over",
        Duration::from_secs(300),
        kills,
    );
    table.add("stress::everything_changes_under_traffic", everything);
    table.add_long(
        "stress::many_polling_devices_all_go_on",
        Duration::from_secs(100),
        many,
    );
    table.add("stress::reset_owner_while_messages_come_and_go", resets);
}

/// Sends and receives packet by packet, in order, until enough have passed.
fn traffic(vmm: &mut Vmm, packets: usize) -> Result<()> {
    let mut out = std::collections::VecDeque::new();
    let mut coming = std::collections::VecDeque::new();
    for i in 0..packets {
        let frame = vmm.tx_frames.plain(60 + i % 1400);
        vmm.queue_tx(&NetHdr::default(), &frame, &Split::HeaderAlone)?;
        vmm.tx.flush()?;
        out.push_back(frame);
        coming.push_back(vmm.send_rx(60 + i % 1400)?);
        while out.len() > 30 || (i + 1 == packets && !out.is_empty()) {
            if let Some(frame) = out.pop_front() {
                vmm.expect_on_wire(&frame)
                    .with_context(|| format!("packet {i} sent"))?;
            }
            // Calls may be swapped away: look at the index.
            vmm.tx.spin_used()?;
        }
        while coming.len() > 30 || (i + 1 == packets && !coming.is_empty()) {
            let Some(frame) = coming.pop_front() else {
                break;
            };
            let received = vmm
                .expect_in_guest(&frame)
                .with_context(|| format!("packet {i} received"))?;
            vmm.repost(&received)?;
        }
    }
    Ok(())
}

/// Everything that may change while the queues run and changes nothing.
fn control(ctx: &Ctx, features: u64) -> Result<()> {
    let mut vmm = Setup::new().features(features).build(ctx)?;
    vmm.post_rx(200, &[2048])?;
    let raw = vmm.vhost.raw();
    let regions = vmm.regions()?;
    let addrs = [vmm.vring_addr(RX)?, vmm.vring_addr(TX)?];
    let err = [&vmm.rx.err, &vmm.tx.err].map(|event| event.try_clone());
    let fd = std::os::fd::AsRawFd::as_raw_fd(&vmm.tap);
    let done = AtomicBool::new(false);
    let (passed, changed) = thread::scope(|scope| {
        let changer = scope.spawn(|| -> Result<u32, (String, Errno)> {
            let mut rounds = 0;
            while !done.load(Ordering::Relaxed) {
                let check = |what: &str, seen: ioctl::Outcome| match seen {
                    Ok(_) => Ok(()),
                    Err(errno) => Err((what.to_owned(), errno)),
                };
                for (index, addr) in [0u32, 1].into_iter().zip(&addrs) {
                    check("VRING_ADDR", raw.set_vring_addr(addr))?;
                    if let Ok(err) = &err[index as usize] {
                        let fd = std::os::fd::AsRawFd::as_raw_fd(err);
                        check("ERR", raw.set_vring_file(ioctl::SET_VRING_ERR(), index, fd))?;
                    }
                    check("BACKEND", raw.set_backend(index, fd))?;
                    check("BASE", raw.vring_base(index).map(|_| 0))?;
                    match raw.set_vring_num(index, 256) {
                        Err(Errno(libc::EBUSY)) => {}
                        other => return Err((format!("NUM: {other:?}"), Errno(0))),
                    }
                }
                check("FEATURES", raw.set_features(features))?;
                check("MEM_TABLE", raw.set_mem_table(0, &regions))?;
                rounds += 1;
            }
            Ok(rounds)
        });
        let passed = traffic(&mut vmm, packets(ctx));
        done.store(true, Ordering::Relaxed);
        (passed, changer.join())
    });
    passed?;
    match changed {
        Ok(Ok(rounds)) => ensure!(rounds > 0, "no control call was made"),
        Ok(Err((what, errno))) => anyhow::bail!("{what} failed with {errno}"),
        Err(_) => anyhow::bail!("the calling thread panicked"),
    }
    vmm.check_alive()
}

fn stop_start(ctx: &Ctx, features: u64) -> Result<()> {
    let mut vmm = Setup::new().features(features).build(ctx)?;
    vmm.post_rx(200, &[2048])?;
    let raw = vmm.vhost.raw();
    let fd = std::os::fd::AsRawFd::as_raw_fd(&vmm.tap);
    let done = AtomicBool::new(false);
    let (passed, failures) = thread::scope(|scope| {
        let changer = scope.spawn(|| {
            let mut failures = 0;
            while !done.load(Ordering::Relaxed) {
                for index in [0, 1] {
                    failures += u32::from(raw.set_backend(index, -1).is_err());
                    failures += u32::from(raw.set_backend(index, fd).is_err());
                }
            }
            failures
        });
        let passed = traffic(&mut vmm, packets(ctx));
        done.store(true, Ordering::Relaxed);
        (passed, changer.join())
    });
    passed?;
    ensure!(failures.ok() == Some(0), "SET_BACKEND failed");
    vmm.check_alive()
}

/// What a VMM changes when a guest is stopped, migrated, or given memory, in any
/// order; not a byte is lost, repeated, or changed.
fn everything(ctx: &Ctx) -> Result<()> {
    let features = feature::VERSION_1 | feature::EVENT_IDX;
    let mut vmm = Setup::new().features(features).build(ctx)?;
    vmm.post_rx(200, &[2048])?;
    let raw = vmm.vhost.raw();
    let regions = vmm.regions()?;
    let fd = std::os::fd::AsRawFd::as_raw_fd(&vmm.tap);
    let log = vec![0u64; 1 << 12];
    raw.put(ioctl::SET_LOG_BASE(), &(log.as_ptr() as u64))
        .context("SET_LOG_BASE")?;
    let done = AtomicBool::new(false);
    let (passed, changed) = thread::scope(|scope| {
        let changer = scope.spawn(|| -> Result<u32, (&str, Errno)> {
            let mut rng = Rng::new(ctx.seed);
            let mut changes = 0;
            while !done.load(Ordering::Relaxed) {
                let index = rng.below(2) as u32;
                let (what, outcome) = match rng.below(4) {
                    0 => {
                        let stopped = raw.set_backend(index, -1);
                        if rng.below(2) == 0 {
                            thread::sleep(Duration::from_micros(rng.below(300)));
                        }
                        let started = raw.set_backend(index, fd);
                        ("SET_BACKEND", stopped.and(started))
                    }
                    1 => {
                        // The same memory, cut elsewhere, in another order.
                        let mut cut = regions.clone();
                        let mut tail = cut[1];
                        let at = (1 + rng.below(tail.size / 4096 - 1)) * 4096;
                        cut[1].size = at;
                        tail.gpa += at;
                        tail.uaddr += at;
                        tail.size -= at;
                        cut.insert(rng.below(3) as usize, tail);
                        ("SET_MEM_TABLE", raw.set_mem_table(0, &cut))
                    }
                    2 => {
                        let logs = raw.set_features(features | feature::LOG_ALL);
                        ("SET_FEATURES", logs.and(raw.set_features(features)))
                    }
                    _ => ("SET_BACKEND again", raw.set_backend(index, fd)),
                };
                outcome.map_err(|errno| (what, errno))?;
                changes += 1;
            }
            Ok(changes)
        });
        let passed = traffic(&mut vmm, packets(ctx));
        done.store(true, Ordering::Relaxed);
        (passed, changer.join())
    });
    let bytes: usize = (0..packets(ctx)).map(|i| 60 + i % 1400).sum();
    passed?;
    let changes = match changed {
        Ok(Ok(changes)) => changes,
        Ok(Err((what, errno))) => anyhow::bail!("{what} failed with {errno}"),
        Err(_) => anyhow::bail!("the calling thread panicked"),
    };
    println!("# {bytes} bytes each way, {changes} changes");
    ensure!(changes > 10, "hardly anything changed");
    vmm.check_alive()?;
    drop(log);
    Ok(())
}

/// What arrives is not foretold, but the device survives and works afterwards.
fn rewrites(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new()
        .features(feature::VERSION_1 | feature::MRG_RXBUF)
        .build(ctx)?;
    let mut rng = Rng::new(ctx.seed);
    for _ in 0..3000 {
        for index in [RX, TX] {
            let base = vmm.queue(index).ring.used_idx();
            let ring = &vmm.queue(index).ring;
            for _ in 0..8 {
                let desc = crate::ring::Desc {
                    addr: 0x4_0000 + rng.below(0x8_0000),
                    len: rng.below(4000) as u32,
                    flags: (rng.below(16) / 10) as u16 | if index == RX { 2 } else { 0 },
                    next: rng.below(260) as u16,
                };
                ring.set_desc(rng.below(256) as u16, desc);
                ring.set_avail(rng.below(256) as u16, rng.below(257) as u16);
            }
            ring.set_avail_idx(base.wrapping_add(rng.below(257) as u16));
            ring.set_avail_flags(rng.below(2) as u16);
            vmm.queue(index).kick()?;
        }
        let frame = vmm.rx_frames.plain(60 + rng.below(1400) as usize);
        let _ = vmm.wire.send(&NetHdr::default(), &frame);
        vmm.wire.drain()?;
    }
    vmm.stop()?;
    vmm.wire.drain()?;
    while vmm.tap.read()?.is_some() {}
    vmm.rx = crate::virtqueue::Virtqueue::new(&vmm.mem, 256, Default::default(), 0, 0)?;
    vmm.tx = crate::virtqueue::Virtqueue::new(&vmm.mem, 256, Default::default(), 0, 0)?;
    vmm.configure([0; 2])?;
    vmm.start()?;
    vmm.check_alive()
}

fn two_setters(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new().build(ctx)?;
    let other = crate::tap::Tap::open("vt1", &Default::default())?;
    vmm.post_rx(100, &[2048])?;
    let raw = vmm.vhost.raw();
    let fds = [&vmm.tap, &other].map(std::os::fd::AsRawFd::as_raw_fd);
    let failures: u32 = thread::scope(|scope| {
        let threads = fds.map(|fd| {
            scope.spawn(move || {
                let mut failures = 0;
                for _ in 0..300 {
                    for index in [0, 1] {
                        failures += u32::from(raw.set_backend(index, fd).is_err());
                    }
                }
                failures
            })
        });
        threads.into_iter().map(|t| t.join().unwrap_or(1)).sum()
    });
    ensure!(failures == 0, "SET_BACKEND failed {failures} times");
    vmm.start()?;
    vmm.check_alive()
}

fn open_close(ctx: &Ctx) -> Result<()> {
    let results: Vec<_> = thread::scope(|scope| {
        let threads: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| -> Result<()> {
                    let event = EventFd::new(EFD_NONBLOCK).context("eventfd")?;
                    let fd = std::os::fd::AsRawFd::as_raw_fd(&event);
                    for _ in 0..50 {
                        let file = crate::device::open(&ctx.device)?;
                        let raw = ioctl::Raw::of(&file);
                        raw.set_owner().context("SET_OWNER")?;
                        raw.set_vring_file(ioctl::SET_VRING_KICK(), 0, fd)
                            .context("KICK")?;
                        event.write(1).context("kick")?;
                    }
                    Ok(())
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join()).collect()
    });
    for result in results {
        result.map_err(|_| anyhow::anyhow!("a thread panicked"))??;
    }
    Ok(())
}

/// Two TAPs take turns while packets are under way: each chain comes back, and
/// none of what the other TAP held is lost with it.
fn swaps(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new().build(ctx)?;
    let other = crate::tap::Tap::open("vt1", &Default::default())?;
    vmm.post_rx(100, &[2048])?;
    let raw = vmm.vhost.raw();
    let fds = [&vmm.tap, &other].map(std::os::fd::AsRawFd::as_raw_fd);
    let open = || std::fs::read_dir("/proc/self/fd").map_or(0, Iterator::count);
    let before = open();
    for i in 0..ctx.cycles as usize * 2 {
        if i % 8 == 0 {
            let frame = vmm.tx_frames.plain(200);
            vmm.queue_tx(&NetHdr::default(), &frame, &Split::Whole)?;
            vmm.tx.flush()?;
        }
        for index in [0, 1] {
            let seen = raw.set_backend(index, fds[(i + index as usize) % 2]);
            crate::traffic::expect("SET_BACKEND", seen, Ok(0))?;
        }
        if i % 8 == 7 {
            let used = vmm.tx.spin_used()?;
            crate::traffic::expect("length", used.len, 0)?;
            vmm.wire.drain()?;
        }
    }
    crate::traffic::expect("open descriptors", open(), before)?;
    vmm.start()?;
    vmm.wire.drain()?;
    vmm.check_alive()
}

/// `kill -9` of an owner whose packets never end, each time at another moment.
fn kills(ctx: &Ctx) -> Result<()> {
    let before = runner::references(ctx);
    let mut rng = Rng::new(ctx.seed);
    for round in 0..ctx.cycles.div_ceil(100) {
        let child = Child::spawn(|inside| super::lifetime::busy(ctx, 0, inside))?;
        child.wait_ready()?;
        thread::sleep(Duration::from_micros(rng.below(20_000)));
        child.kill().with_context(|| format!("round {round}"))?;
        poll::wait_for("the interface to go", || {
            Ok(net::index("vt0").is_err().then_some(()))
        })?;
    }
    poll::wait_for("module references to return", || {
        Ok((runner::references(ctx) <= before).then_some(()))
    })
}

/// One thread gives the device up and takes it again, others write UPDATEs and
/// INVALIDATEs, read, and poll.
fn resets(ctx: &Ctx) -> Result<()> {
    use std::io::Read;
    use std::io::Write;
    let file = crate::device::open(&ctx.device)?;
    let raw = ioctl::Raw::of(&file);
    let features = feature::VERSION_1 | feature::ACCESS_PLATFORM;
    let done = AtomicBool::new(false);
    let mut memory = vec![0u8; 1 << 20];
    let at = memory.as_mut_ptr() as u64;
    let failed: Result<(), (&str, ioctl::Outcome)> = thread::scope(|scope| {
        for thread in 0..3 {
            let (file, done) = (&file, &done);
            scope.spawn(move || {
                let mut rng = Rng::new(thread);
                while !done.load(Ordering::Relaxed) {
                    let mut bytes = vec![2u8, 0, 0, 0, 0, 0, 0, 0];
                    for word in [rng.below(1 << 20), 4096, at] {
                        bytes.extend(word.to_ne_bytes());
                    }
                    bytes.extend([3, 2 + rng.below(2) as u8]);
                    bytes.resize(72, 0);
                    // Refused while translation is off.
                    let _ = (&*file).write(&bytes);
                    let _ = (&*file).read(&mut bytes);
                    let _ = poll::readable(file, Duration::ZERO);
                }
            });
        }
        let round = || {
            let check = |what, seen: ioctl::Outcome| match seen {
                Ok(_) => Ok(()),
                Err(_) => Err((what, seen)),
            };
            check("SET_OWNER", raw.set_owner())?;
            check("SET_FEATURES", raw.set_features(features))?;
            thread::sleep(Duration::from_micros(200));
            check("RESET_OWNER", raw.reset_owner())
        };
        let result = (0..60).try_for_each(|_| round());
        done.store(true, Ordering::Relaxed);
        result
    });
    drop(file);
    drop(memory);
    ensure!(failed.is_ok(), "{failed:?}");
    Setup::new().build(ctx)?.check_alive()
}

/// Far more busy-polling devices than CPUs: each packet of each arrives. 256 of
/// them with 25,600 cycles.
fn many(ctx: &Ctx) -> Result<()> {
    let most = libc::rlimit {
        rlim_cur: 8192,
        rlim_max: 8192,
    };
    // SAFETY: The limit is valid.
    let rc = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &most) };
    crate::traffic::expect("setrlimit", rc, 0)?;
    let mut all = Vec::new();
    for i in 0..(ctx.cycles / 100).clamp(32, 256) {
        let mut vmm = Setup::new()
            .size(8)
            .tap_name(&format!("vt{i}"))
            .build(ctx)?;
        super::busy::set_both(&vmm, 50)?;
        vmm.post_rx(4, &[2048])?;
        all.push(vmm);
    }
    // All at once, then what became of it.
    let mut sent = Vec::new();
    for vmm in &mut all {
        let frame = vmm.tx_frames.plain(500);
        vmm.queue_tx(&NetHdr::default(), &frame, &Split::Whole)?;
        vmm.tx.flush()?;
        sent.push((frame, vmm.send_rx(400)?));
    }
    for (i, (vmm, (out, coming))) in all.iter_mut().zip(&sent).enumerate() {
        let arrived = vmm
            .expect_on_wire(out)
            .and_then(|()| vmm.expect_in_guest(coming));
        arrived.with_context(|| format!("device {i}"))?;
        vmm.tx.wait_used()?;
        vmm.check_alive().with_context(|| format!("device {i}"))?;
    }
    Ok(())
}
