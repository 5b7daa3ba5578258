// SPDX-License-Identifier: GPL-2.0

//! The counters in `/proc/<pid>/fdinfo/<fd>`, against what was really done.

use std::os::fd::AsRawFd;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;

use super::iotlb::translated;
use super::iotlb::update;
use super::log::log_all;
use super::log::receive_at;
use super::log::Log;
use crate::case::skip;
use crate::case::Ctx;
use crate::case::Module;
use crate::case::Table;
use crate::device;
use crate::device::feature;
use crate::device::RX;
use crate::device::TX;
use crate::errno::Errno;
use crate::fdinfo::Fdinfo;
use crate::frame::NetHdr;
use crate::ioctl;
use crate::ioctl::CpuSet;
use crate::ioctl::Raw;
use crate::ioctl::VringState;
use crate::late::Late;
use crate::mem::BOUNDARY;
use crate::mem::PAGE;
use crate::poll;
use crate::tap::Tap;
use crate::tap::TapOptions;
use crate::traffic::expect;
use crate::traffic::Split;
use crate::vmm::Setup;
use crate::vmm::Vmm;
use crate::wire::Wire;

/// Names of single values, and what they begin with.
type Values<'a> = &'a [(&'a str, u64)];

pub(super) fn register(table: &mut Table) {
    let mut add = |name: &str, body: fn(&Ctx) -> Result<()>| {
        table.add(format!("stats::{name}"), move |ctx| match ctx.module {
            Module::C => skip("C vhost_net counts nothing"),
            Module::Rust => body(ctx),
        });
    };
    add("device_without_owner_shows_itself_only", ownerless);
    add("names_and_units_are_those_of_the_interface", names);
    add("tx_packets_bytes_kicks_and_calls_add_up", tx);
    add("rx_packets_and_bytes_add_up", rx);
    add("batches_are_counted_by_size", sizes);
    add("drops_are_counted_by_reason", drops);
    add("refused_chains_and_broken_rings_are_counted", errors);
    add("buffers_that_lack_are_starvation_and_no_drop", starved);
    add("dirty_pages_are_counted", dirty);
    add("iotlb_misses_are_counted", misses);
    add("polls_won_and_lost_are_counted", polls);
    add("backend_is_shown_by_kind_and_name", backends);
    add("thread_is_shown_with_its_cpu_time", threads);
    add("restart_keeps_them_and_reset_owner_does_not", restart);
    add("readers_under_load_see_them_grow_only", readers);
    add("reading_waits_for_no_queue", held);
    add("threads_run_where_the_owner_says", placed);
}

/// RVHOST_NET_SET_CPUS.
fn placed(ctx: &Ctx) -> Result<()> {
    let vmm = Setup::new().features(feature::VERSION_1).build(ctx)?;
    let raw = vmm.vhost.raw();
    let set = |queue: u32, bytes: u32, words: &[u64]| {
        let mask = words.as_ptr() as u64;
        let cpus = CpuSet { queue, bytes, mask };
        raw.put(ioctl::RVHOST_NET_SET_CPUS(), &cpus)
    };
    let allowed = |queue: &str| -> Result<String> {
        let thread = look(&vmm)?.number(&format!("{queue}-thread"))?;
        let status = std::fs::read_to_string(format!("/proc/{thread}/status"))?;
        let mut lines = status.lines();
        let list = lines.find_map(|line| line.strip_prefix("Cpus_allowed_list:"));
        Ok(list.context("no list of CPUs")?.trim().to_owned())
    };
    let all = allowed("rx")?;
    ensure!(all != "0", "there is one CPU only");
    expect("CPU 0 for RX", set(0, 8, &[1]), Ok(0))?;
    expect("CPU 1 for TX", set(1, 16, &[2, 0]), Ok(0))?;
    expect("CPUs of RX", allowed("rx")?.as_str(), "0")?;
    expect("CPUs of TX", allowed("tx")?.as_str(), "1")?;
    expect("all CPUs for TX", set(1, 0, &[]), Ok(0))?;
    expect("CPUs of TX then", allowed("tx")?, all)?;
    for (what, seen, wanted) in [
        ("none", set(0, 8, &[0]), Err(Errno(libc::EINVAL))),
        (
            "CPUs that are not there",
            set(0, 16, &[0, 1]),
            Err(Errno(libc::EINVAL)),
        ),
        ("half a word", set(0, 4, &[1]), Err(Errno(libc::EINVAL))),
        (
            "too many words",
            set(0, 1032, &[1; 129]),
            Err(Errno(libc::EINVAL)),
        ),
        (
            "a queue that is not there",
            set(2, 8, &[1]),
            Err(Errno(libc::ENOBUFS)),
        ),
    ] {
        expect(what, seen, wanted)?;
    }
    let nowhere = CpuSet {
        queue: 0,
        bytes: 8,
        mask: 8,
    };
    let seen = raw.put(ioctl::RVHOST_NET_SET_CPUS(), &nowhere);
    expect("no memory", seen, Err(Errno(libc::EFAULT)))?;
    expect("CPUs of RX in the end", allowed("rx")?.as_str(), "0")?;
    Ok(())
}

fn look(vmm: &Vmm) -> Result<Fdinfo> {
    vmm.fence(RX)?;
    vmm.fence(TX)?;
    Fdinfo::of(&vmm.vhost)
}

fn check(info: &Fdinfo, values: Values<'_>) -> Result<()> {
    for (name, value) in values {
        expect(name, info.number(name)?, *value)?;
    }
    Ok(())
}

fn ownerless(ctx: &Ctx) -> Result<()> {
    let file = device::open(&ctx.device)?;
    let info = Fdinfo::of(&file)?;
    expect("rvhost", info.text("rvhost"), Some("1"))?;
    info.number("device")?;
    expect("features", info.text("features"), Some("0x0 0x0"))?;
    ensure!(
        !info.names().any(|name| name.starts_with("rx-")),
        "a device without an owner has queues"
    );
    expect("SET_OWNER", Raw::of(&file).set_owner(), Ok(0))?;
    let info = Fdinfo::of(&file)?;
    for queue in ["rx", "tx"] {
        let state = format!("{queue}-state");
        expect(&state, info.text(&state), Some("stopped"))?;
        check(&info, &[(&format!("{queue}-packets"), 0)])?;
    }
    Ok(())
}

fn names(ctx: &Ctx) -> Result<()> {
    let vmm = Setup::new()
        .features(feature::VERSION_1 | feature::EVENT_IDX)
        .build(ctx)?;
    let info = look(&vmm)?;
    // Features of the first word come last, as digits of one number do.
    expect("features", info.text("features"), Some("0x0 0x120000000"))?;
    let (mut seen, mut wanted) = (Vec::new(), Vec::new());
    for name in info.names() {
        if let Some(name) = name.strip_prefix("tx-") {
            seen.push(name.to_owned());
        }
    }
    for name in [
        "state",
        "backend",
        "netdev",
        "thread",
        "cpu-time",
        "ring-size",
        "ring-fill",
        "packets",
        "bytes",
        "batches",
        "batches-1",
        "batches-2-3",
        "batches-4-7",
        "batches-8-15",
        "batches-16-31",
        "batches-32-63",
        "batches-64-",
        "kicks",
        "calls",
        "calls-suppressed",
        "polls-won",
        "polls-lost",
        "sleeps",
        "starved",
        "drops",
        "errors",
        "iotlb-misses",
        "dirty-pages",
        "memory",
    ] {
        wanted.push(name.to_owned());
    }
    wanted.sort();
    expect("names", seen, wanted)?;
    for (name, unit) in [("tx-cpu-time", " ns"), ("tx-memory", " B")] {
        let value = info.text(name).context(name)?;
        ensure!(value.ends_with(unit), "{name} is {value}");
    }
    ensure!(info.number("tx-memory")? > 1000, "a queue in no memory");
    check(&info, &[("tx-ring-size", 256), ("rx-ring-size", 256)])
}

/// Waits until the device wants a kick: the next one is a kick of its own.
fn settled(vmm: &Vmm, index: usize) -> Result<()> {
    poll::wait_for("the device to want a kick", || {
        Ok((vmm.queue(index).ring.used_flags() == 0).then_some(()))
    })
}

fn tx(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new().build(ctx)?;
    let (mut packets, mut bytes) = (0, 0);
    settled(&vmm, TX)?;
    let before = look(&vmm)?;
    poll::take_signals(&vmm.tx.call);
    for round in 0..2u64 {
        for len in [14, 60, 61, 1000, 1514] {
            match round {
                0 => vmm.tx.enable_calls(),
                _ => vmm.tx.disable_calls(),
            }
            settled(&vmm, TX)?;
            let frame = vmm.tx_frames.plain(len);
            vmm.queue_tx(&NetHdr::default(), &frame, &Split::HeaderAlone)?;
            vmm.tx.flush_and_kick()?;
            vmm.tx.spin_used()?;
            vmm.expect_on_wire(&frame)?;
            packets += 1;
            bytes += (len + vmm.hdr_len) as u64;
        }
    }
    settled(&vmm, TX)?;
    let info = look(&vmm)?;
    let calls = poll::take_signals(&vmm.tx.call);
    expect("calls that came", calls, 5)?;
    check(
        &info,
        &[
            ("tx-packets", packets),
            ("tx-bytes", bytes),
            ("tx-batches", packets),
            ("tx-batches-1", packets),
            ("tx-calls", calls),
            ("tx-calls-suppressed", 5),
            ("tx-kicks", before.number("tx-kicks")? + packets),
            ("tx-drops", 0),
            ("tx-errors", 0),
            // What the last pass found.
            ("tx-ring-fill", 1),
            ("rx-packets", 0),
        ],
    )?;
    ensure!(info.number("tx-sleeps")? > 0, "it never slept");
    Ok(())
}

fn rx(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new()
        .features(feature::VERSION_1 | feature::MRG_RXBUF)
        .build(ctx)?;
    vmm.post_rx(100, &[256])?;
    let (mut packets, mut bytes, mut chains) = (0, 0, 0);
    for len in [60, 200, 244, 245, 1000, 1514] {
        let received = vmm.check_rx(len)?;
        packets += 1;
        bytes += (len + vmm.hdr_len) as u64;
        chains += received.chains.len() as u64;
    }
    check(
        &look(&vmm)?,
        &[
            ("rx-packets", packets),
            ("rx-bytes", bytes),
            ("rx-drops", 0),
            ("rx-errors", 0),
            ("rx-starved", 0),
            ("rx-ring-fill", 100 - chains),
            ("tx-packets", 0),
        ],
    )
}

fn sizes(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new().build(ctx)?;
    for n in [1, 2, 3, 5, 20, 40, 64, 1] {
        vmm.stop_queue(TX)?;
        for _ in 0..n {
            let frame = vmm.tx_frames.plain(60);
            vmm.queue_tx(&NetHdr::default(), &frame, &Split::Whole)?;
        }
        vmm.tx.publish();
        vmm.start_queue(TX)?;
        expect("chains used", vmm.tx.drain()?.len(), n)?;
    }
    let info = look(&vmm)?;
    check(
        &info,
        &[
            ("tx-packets", 136),
            ("tx-batches", 8),
            ("tx-batches-1", 2),
            ("tx-batches-2-3", 2),
            ("tx-batches-4-7", 1),
            ("tx-batches-8-15", 0),
            ("tx-batches-16-31", 1),
            ("tx-batches-32-63", 1),
            ("tx-batches-64-", 1),
        ],
    )
}

fn drops(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new().build(ctx)?;
    for len in [0, 1, 13] {
        let frame = vec![0x55; len];
        vmm.queue_tx(&NetHdr::default(), &frame, &Split::Whole)?;
    }
    vmm.tx.flush_and_kick()?;
    vmm.tx.drain()?;
    // One that does not fit its buffer, and one that does.
    vmm.post_rx(1, &[500])?;
    vmm.send_rx(1000)?;
    vmm.check_rx(60)?;
    let info = look(&vmm)?;
    check(
        &info,
        &[
            ("tx-packets", 3),
            ("tx-drops", 3),
            ("tx-drops-short", 3),
            ("tx-errors", 0),
            ("rx-packets", 1),
            ("rx-drops", 1),
            ("rx-drops-too_small", 1),
            ("rx-errors", 0),
        ],
    )?;
    for queue in ["rx", "tx"] {
        let by_reason = info.numbers(&format!("{queue}-drops-"))?;
        let sum: u64 = by_reason.iter().map(|(_, n)| n).sum();
        expect(
            "sum of the reasons",
            sum,
            info.number(&format!("{queue}-drops"))?,
        )?;
    }
    Ok(())
}

fn errors(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new().build(ctx)?;
    // A chain of the wrong direction is refused, and the queue goes on.
    for _ in 0..2 {
        let segs = vmm.rx_segs(&[100])?;
        vmm.tx.add(&[], &segs)?;
    }
    vmm.tx.flush_and_kick()?;
    vmm.tx.drain()?;
    check(
        &look(&vmm)?,
        &[
            ("tx-errors", 2),
            ("tx-errors-wrong_direction", 2),
            ("tx-drops", 0),
        ],
    )?;
    // A head beyond the ring stops it.
    vmm.tx.push_head(300);
    poll::take_signals(&vmm.tx.err);
    vmm.tx.flush_and_kick()?;
    poll::wait_signal(&vmm.tx.err, "the error")?;
    let info = look(&vmm)?;
    // A kick that is seen late has it look again.
    let n = info.number("tx-errors-bad_head")?;
    ensure!((1..=2).contains(&n), "bad_head was counted {n} times");
    check(&info, &[("tx-errors", 2 + n), ("rx-errors", 0)])
}

fn starved(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new().build(ctx)?;
    let frame = vmm.send_rx(60)?;
    poll::wait_for("the queue to starve", || {
        Ok((Fdinfo::of(&vmm.vhost)?.number("rx-starved")? > 0).then_some(()))
    })?;
    check(&look(&vmm)?, &[("rx-packets", 0), ("rx-drops", 0)])?;
    vmm.post_rx(1, &[2048])?;
    vmm.expect_in_guest(&frame)?;
    check(&look(&vmm)?, &[("rx-packets", 1), ("rx-drops", 0)])
}

fn dirty(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new().build(ctx)?;
    let mut log = Log::new(&vmm)?;
    log_all(&vmm, true)?;
    for (len, marked) in [(60, 1), (1514, 2), (PAGE as usize - 12, 3)] {
        let buffer = vmm.mem.rx_buffer(20_000 + PAGE)?.next_multiple_of(PAGE);
        // The first lies in one page, the others cross into the next.
        let at = if len == 60 {
            buffer
        } else {
            buffer + PAGE - 100
        };
        receive_at(&mut vmm, at, len)?;
        expect("pages in the log", log.take().len() as u64, marked.min(2))?;
        let sum = [1, 3, 5][usize::from(len > 60) + usize::from(len > 1514)];
        check(
            &look(&vmm)?,
            &[("rx-dirty-pages", sum), ("tx-dirty-pages", 0)],
        )?;
    }
    Ok(())
}

fn misses(ctx: &Ctx) -> Result<()> {
    let mut vmm = translated(ctx)?;
    update(&vmm, 0, BOUNDARY)?;
    vmm.start()?;
    let frame = vmm.tx_frames.plain(500);
    vmm.queue_tx(&NetHdr::default(), &frame, &Split::Whole)?;
    vmm.tx.flush_and_kick()?;
    ensure!(
        poll::readable(&vmm.vhost, poll::PATIENCE)?,
        "no message came"
    );
    let info = look(&vmm)?;
    let n = info.number("tx-iotlb-misses")?;
    // A kick that is seen late, and each look here, have it try again.
    ensure!((1..=4).contains(&n), "{n} misses");
    check(&info, &[("tx-errors", 0), ("tx-packets", 0)])
}

fn polls(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new().build(ctx)?;
    vmm.check_tx(60, &Split::Whole)?;
    check(&look(&vmm)?, &[("tx-polls-won", 0), ("tx-polls-lost", 0)])?;
    let set = |vmm: &Vmm, timeout| {
        let state = VringState {
            index: TX as u32,
            num: timeout,
        };
        let seen = vmm
            .vhost
            .raw()
            .put(ioctl::SET_VRING_BUSYLOOP_TIMEOUT(), &state);
        expect("SET_VRING_BUSYLOOP_TIMEOUT", seen, Ok(0))
    };
    // Nothing comes.
    set(&vmm, 10)?;
    poll::wait_for("a lost poll", || {
        Ok((Fdinfo::of(&vmm.vhost)?.number("tx-polls-lost")? > 0).then_some(()))
    })?;
    // Something comes while it looks: unless somebody else wants the CPU just then.
    set(&vmm, 1_000_000)?;
    let mut packets = 0;
    while Fdinfo::of(&vmm.vhost)?.number("tx-polls-won")? == 0 {
        ensure!(
            packets < 50,
            "{packets} packets came while the queue polled, and no poll was won"
        );
        vmm.check_tx(60, &Split::Whole)?;
        packets += 1;
    }
    // With no timeout it looks now and then, whether that would pay.
    set(&vmm, 0)?;
    let looks = |vmm: &Vmm| -> Result<u64> {
        let info = look(vmm)?;
        Ok(info.number("tx-polls-won")? + info.number("tx-polls-lost")?)
    };
    let (before, sleeps) = (looks(&vmm)?, look(&vmm)?.number("tx-sleeps")?);
    for _ in 0..200 {
        vmm.check_tx(60, &Split::Whole)?;
    }
    let sleeps = look(&vmm)?.number("tx-sleeps")? - sleeps;
    ensure!(
        looks(&vmm)? > before,
        "it went to sleep {sleeps} times and never looked"
    );
    Ok(())
}

fn backends(ctx: &Ctx) -> Result<()> {
    let vmm = Setup::new().tap_name("shown").build(ctx)?;
    let shown = |queue: &str, kind, name| {
        let info = Fdinfo::of(&vmm.vhost)?;
        let state = if kind == "none" { "stopped" } else { "running" };
        for (line, value) in [
            ("state", Some(state)),
            ("backend", Some(kind)),
            ("netdev", name),
        ] {
            let line = format!("{queue}-{line}");
            expect(&line, info.text(&line), value)?;
        }
        anyhow::Ok(())
    };
    shown("rx", "tap", Some("shown"))?;
    shown("tx", "tap", Some("shown"))?;
    vmm.stop_queue(TX)?;
    shown("rx", "tap", Some("shown"))?;
    shown("tx", "none", None)?;
    let wire = Wire::headerless("shown")?;
    let raw = vmm.vhost.raw();
    expect("packet socket", raw.set_backend(1, wire.as_raw_fd()), Ok(0))?;
    shown("tx", "packet", Some("shown"))?;
    vmm.stop_queue(TX)?;
    let macvtap = Tap::open_vtap(
        crate::net::Vtap::Mac,
        "above",
        "shown",
        &TapOptions {
            header: vmm.hdr_len,
            ..TapOptions::default()
        },
    )?;
    vmm.set_backend(TX, Some(macvtap.file()))?;
    shown("tx", "macvtap", Some("above"))?;
    vmm.stop()?;
    shown("rx", "none", None)
}

fn threads(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new().build(ctx)?;
    for _ in 0..20 {
        vmm.check_tx(60, &Split::Whole)?;
    }
    let info = look(&vmm)?;
    for queue in ["rx", "tx"] {
        let id = info.number(&format!("{queue}-thread"))?;
        let name = std::fs::read_to_string(format!("/proc/{id}/comm"))?;
        let wanted = format!("vhost-{}-{queue}", std::process::id());
        // Names of threads have 15 characters.
        expect("name", name.trim(), &wanted[..wanted.len().min(15)])?;
    }
    let cpu = info.number("tx-cpu-time")?;
    ensure!(
        (1..3_600_000_000_000).contains(&cpu),
        "the thread ran for {cpu} ns"
    );
    Ok(())
}

fn restart(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new().build(ctx)?;
    vmm.check_tx(60, &Split::Whole)?;
    vmm.stop()?;
    let info = look(&vmm)?;
    check(&info, &[("tx-packets", 1), ("tx-bytes", 72)])?;
    vmm.start()?;
    vmm.check_tx(60, &Split::Whole)?;
    check(&look(&vmm)?, &[("tx-packets", 2), ("tx-bytes", 144)])?;
    vmm.stop()?;
    let raw = vmm.vhost.raw();
    expect("RESET_OWNER", raw.reset_owner(), Ok(0))?;
    let info = Fdinfo::of(&vmm.vhost)?;
    expect("tx-packets", info.text("tx-packets"), None)?;
    expect("features", info.text("features"), Some("0x0 0x0"))?;
    expect("SET_OWNER", raw.set_owner(), Ok(0))?;
    let info = Fdinfo::of(&vmm.vhost)?;
    check(
        &info,
        &[("tx-packets", 0), ("tx-bytes", 0), ("tx-kicks", 0)],
    )
}

fn readers(ctx: &Ctx) -> Result<()> {
    const GROWING: [&str; 6] = [
        "tx-packets",
        "tx-bytes",
        "tx-batches",
        "tx-kicks",
        "tx-calls",
        "tx-sleeps",
    ];
    let mut vmm = Setup::new().build(ctx)?;
    let file = vmm.vhost.file().try_clone()?;
    let done = AtomicBool::new(false);
    let (sent, looks) = thread::scope(|scope| {
        let readers: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| {
                    let (mut last, mut looks) = ([0; GROWING.len()], 0u64);
                    while !done.load(Ordering::Relaxed) {
                        let info = Fdinfo::of(&file)?;
                        for (name, last) in GROWING.iter().zip(&mut last) {
                            let now = info.number(name)?;
                            ensure!(now >= *last, "{name} went from {last} to {now}");
                            *last = now;
                        }
                        looks += 1;
                    }
                    anyhow::Ok(looks)
                })
            })
            .collect();
        let sent = (|| {
            let end = Instant::now() + Duration::from_secs(2);
            let mut sent = 0;
            while sent < 1000 || Instant::now() < end {
                for _ in 0..32 {
                    let frame = vmm.tx_frames.plain(60);
                    vmm.queue_tx(&NetHdr::default(), &frame, &Split::Whole)?;
                    sent += 1;
                }
                vmm.tx.flush()?;
                vmm.tx.drain()?;
                vmm.wire.drain()?;
            }
            anyhow::Ok(sent)
        })();
        done.store(true, Ordering::Relaxed);
        let mut looks = Vec::new();
        for reader in readers {
            looks.push(reader.join().expect("a reader panicked")?);
        }
        Ok::<_, anyhow::Error>((sent?, looks))
    })?;
    ensure!(
        looks.iter().all(|&n| n > 10),
        "readers looked {looks:?} times"
    );
    check(
        &look(&vmm)?,
        &[("tx-packets", sent), ("tx-bytes", 72 * sent)],
    )
}

/// A thread that hangs in a page fault, and a control call that waits for it, hold up nobody who
/// only looks.
fn held(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new().build(ctx)?;
    vmm.check_tx(60, &Split::Whole)?;
    let frame = vmm.tx_frames.plain(500);
    let buffer = vmm.mem.tx_buffer(2 * PAGE)?.next_multiple_of(PAGE);
    let mut bytes = NetHdr::default().bytes(vmm.hdr_len);
    bytes.extend(&frame);
    let at = vmm.mem.host(buffer)?;
    let late = Late::page(at)?;
    let seg = crate::virtqueue::Seg {
        addr: buffer,
        len: bytes.len() as u32,
    };
    vmm.tx.add(&[seg], &[])?;
    vmm.tx.flush_and_kick()?;
    late.wait_touched()?;
    let file = vmm.vhost.file().try_clone()?;
    let address = at as usize;
    thread::scope(|scope| {
        let call = scope.spawn(|| Raw::of(&file).vring_base(TX as u32));
        let start = Instant::now();
        for _ in 0..100 {
            let info = Fdinfo::of(&file)?;
            expect("tx-state", info.text("tx-state"), Some("running"))?;
            check(&info, &[("tx-packets", 1)])?;
        }
        let took = start.elapsed();
        ensure!(!call.is_finished(), "the queue was not held");
        ensure!(took < Duration::from_secs(5), "100 looks took {took:?}");
        late.provide(address as *mut u8, &bytes)?;
        let base = call.join().expect("the call panicked");
        expect("GET_VRING_BASE", base, Ok(2))
    })?;
    vmm.expect_on_wire(&frame)?;
    check(&look(&vmm)?, &[("tx-packets", 2)])
}
