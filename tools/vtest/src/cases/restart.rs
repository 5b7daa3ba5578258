// SPDX-License-Identifier: GPL-2.0

//! Starting, stopping and changing backends: what carries over, what must not
//! happen after a stop.

use std::time::Duration;

use anyhow::bail;
use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;

use crate::better;
use crate::case::Ctx;
use crate::case::Module;
use crate::case::Table;
use crate::device::feature;
use crate::device::RX;
use crate::device::TX;
use crate::frame::compare;
use crate::frame::NetHdr;
use crate::net;
use crate::poll;
use crate::ring::Layout;
use crate::ring::Ring;
use crate::ring::NO_NOTIFY;
use crate::tap::Tap;
use crate::tap::TapOptions;
use crate::traffic::expect;
use crate::traffic::Split;
use crate::vmm::Setup;
use crate::vmm::Vmm;
use crate::wire::Wire;

pub(super) fn register(table: &mut Table) {
    table.add("restart::stop_and_start_with_base_continues", |ctx| {
        with_base(ctx, feature::VERSION_1)
    });
    table.add(
        "restart::stop_and_start_with_base_continues_event_idx",
        |ctx| with_base(ctx, feature::VERSION_1 | feature::EVENT_IDX),
    );
    table.add(
        "restart::stop_and_start_without_base_continues",
        without_base,
    );
    table.add("restart::one_queue_stops_while_the_other_runs", one_queue);
    table.add(
        "restart::start_without_kick_sends_what_is_available",
        no_kick,
    );
    table.add("restart::stopped_queue_writes_nothing", quiescent);
    table.add(
        "restart::stop_during_traffic_loses_and_repeats_nothing",
        during_traffic,
    );
    table.add(
        "restart::undelivered_packets_return_to_the_tap_in_order",
        |ctx| undelivered(ctx, 5, |vmm| vmm.stop_queue(RX)),
    );
    table.add(
        "restart::many_undelivered_packets_return_to_the_tap_in_order",
        |ctx| undelivered(ctx, 300, |vmm| vmm.stop_queue(RX)),
    );
    table.add(
        "restart::undelivered_packets_return_to_the_tap_with_reset_owner",
        |ctx| {
            undelivered(ctx, 100, |vmm| {
                expect("RESET_OWNER", vmm.vhost.raw().reset_owner(), Ok(0))?;
                expect("SET_OWNER", vmm.vhost.raw().set_owner(), Ok(0))?;
                vmm.set_features(vmm.features)?;
                vmm.configure([vmm.rx.used_seen(), vmm.tx.used_seen()])
            })
        },
    );
    table.add(
        "restart::undelivered_packets_come_after_the_next_start",
        redelivered,
    );
    table.add("restart::buffers_posted_late_lose_nothing", slow_consumer);
    table.add(
        "restart::buffers_posted_one_by_one_lose_nothing",
        one_by_one,
    );
    table.add("restart::full_tap_ring_drops_the_newest_only", overrun);
    table.add("restart::same_backend_again_changes_nothing", same_backend);
    table.add(
        "restart::backend_replaced_while_running_carries_on",
        replaced,
    );
    table.add("restart::rx_and_tx_on_different_taps", different_taps);
    table.add("restart::tap_closed_by_vmm_lives_on", tap_closed);
    table.add("restart::tap_down_and_up_resumes", down_up);
    table.add("restart::finite_sndbuf_sends_all_in_order", sndbuf);
    table.add(
        "restart::deleted_tap_leaves_rx_quiet_and_device_stoppable",
        deleted,
    );
    table.add_better(
        "restart::packets_for_a_deleted_tap",
        better::TAP_GONE,
        sent_to_deleted,
    );
    table.add("restart::ring_moved_while_stopped_is_used", moved_ring);
    table.add(
        "restart::ring_moved_while_running_is_used",
        moved_while_running,
    );
    table.add("restart::used_flags_are_written_at_start", used_flags);
    table.add_long(
        "restart::close_while_running_lets_go_of_the_tap",
        Duration::from_secs(300),
        close_running,
    );
    table.add_long(
        "restart::many_cycles_under_traffic_leave_nothing_behind",
        Duration::from_secs(900),
        super::leaks::cycles,
    );
}

fn with_base(ctx: &Ctx, features: u64) -> Result<()> {
    let mut vmm = Setup::new().features(features).base(65_530).build(ctx)?;
    vmm.post_rx(20, &[2048])?;
    for _ in 0..5 {
        vmm.check_alive()?;
        vmm.check_alive()?;
        vmm.stop()?;
        for index in [RX, TX] {
            let base = vmm.base(index)?;
            expect("base", base, vmm.queue(index).used_seen())?;
            vmm.configure_queue(index, base)?;
        }
        vmm.start()?;
    }
    vmm.check_alive()
}

fn without_base(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new().build(ctx)?;
    vmm.post_rx(20, &[2048])?;
    for _ in 0..5 {
        vmm.check_alive()?;
        vmm.stop()?;
        vmm.start()?;
    }
    vmm.check_alive()
}

fn one_queue(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new().build(ctx)?;
    vmm.post_rx(50, &[2048])?;
    vmm.check_alive()?;
    vmm.stop_queue(TX)?;
    for _ in 0..20 {
        vmm.check_rx(200)?;
    }
    vmm.start_queue(TX)?;
    vmm.stop_queue(RX)?;
    for _ in 0..20 {
        vmm.check_tx(200, &Split::Whole)?;
    }
    vmm.start_queue(RX)?;
    vmm.check_alive()
}

fn no_kick(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new().stopped().build(ctx)?;
    let mut frames = Vec::new();
    for _ in 0..10 {
        let frame = vmm.tx_frames.plain(100);
        vmm.queue_tx(&NetHdr::default(), &frame, &Split::Whole)?;
        frames.push(frame);
    }
    vmm.queue_rx(&[2048])?;
    vmm.rx.publish();
    vmm.tx.publish();
    vmm.start()?;
    for frame in &frames {
        vmm.expect_on_wire(frame)?;
    }
    vmm.tx.drain()?;
    vmm.check_rx(60)?;
    Ok(())
}

fn quiescent(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new().build(ctx)?;
    vmm.post_rx(200, &[2048])?;
    for round in 0..20 {
        // A burst is under way when TX stops.
        for _ in 0..100 {
            let frame = vmm.tx_frames.plain(60);
            vmm.queue_tx(&NetHdr::default(), &frame, &Split::Whole)?;
        }
        vmm.tx.flush_and_kick()?;
        vmm.stop_queue(TX)?;
        let image = vmm.tx.ring.used_image(&vmm.mem)?;
        poll::take_signals(&vmm.tx.call);
        vmm.tx.kick()?;
        // The other queue tells the time.
        for _ in 0..5 {
            let received = vmm.check_rx(60)?;
            vmm.repost(&received)?;
        }
        compare(
            &format!("used ring in round {round}"),
            &vmm.tx.ring.used_image(&vmm.mem)?,
            &image,
        )?;
        expect("calls after the stop", poll::take_signals(&vmm.tx.call), 0)?;
        let base = vmm.base(TX)?;
        expect("chains fetched and used", base, vmm.tx.ring.used_idx())?;
        vmm.start_queue(TX)?;
        for _ in 0..100 {
            vmm.wire.recv()?;
        }
        vmm.tx.drain()?;
    }
    Ok(())
}

fn during_traffic(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new()
        .features(feature::VERSION_1 | feature::EVENT_IDX)
        .build(ctx)?;
    vmm.post_rx(100, &[2048])?;
    for round in 0..20 {
        let (mut out, mut coming) = (Vec::new(), Vec::new());
        for i in 0..80 {
            let frame = vmm.tx_frames.plain(60 + i);
            vmm.queue_tx(&NetHdr::default(), &frame, &Split::Whole)?;
            if i % 16 == 0 {
                vmm.tx.flush()?;
            }
            out.push(frame);
            coming.push(vmm.send_rx(60 + i)?);
            if i == 40 {
                vmm.tx.flush()?;
                vmm.stop()?;
                vmm.start()?;
            }
        }
        vmm.tx.flush()?;
        for (i, frame) in out.iter().enumerate() {
            vmm.expect_on_wire(frame)
                .with_context(|| format!("round {round}, packet {i}"))?;
        }
        vmm.tx.drain()?;
        for (i, frame) in coming.iter().enumerate() {
            let received = vmm
                .expect_in_guest(frame)
                .with_context(|| format!("round {round}, packet {i}"))?;
            vmm.repost(&received)?;
        }
    }
    vmm.check_quiet()
}

/// Sends packets for which there is no buffer and waits until the device has
/// looked at them.
fn send_without_buffers(vmm: &mut Vmm, count: usize) -> Result<Vec<Vec<u8>>> {
    let mut frames = Vec::new();
    for i in 0..count {
        frames.push(vmm.send_rx(60 + i)?);
    }
    poll::wait_for("the device to ask for buffers", || {
        Ok((vmm.rx.ring.used_flags() & NO_NOTIFY == 0).then_some(()))
    })?;
    vmm.fence(RX)?;
    Ok(frames)
}

fn undelivered(ctx: &Ctx, count: usize, stop: fn(&Vmm) -> Result<()>) -> Result<()> {
    let mut vmm = Setup::new().build(ctx)?;
    vmm.post_rx(1, &[2048])?;
    vmm.check_rx(60)?;
    let frames = send_without_buffers(&mut vmm, count)?;
    stop(&vmm)?;
    for (i, frame) in frames.iter().enumerate() {
        let Some(packet) = vmm.tap.read()? else {
            bail!("the tap holds {i} of {count} packets");
        };
        ensure!(packet.len() > 12, "packet of {} bytes", packet.len());
        compare(&format!("packet {i}"), &packet[12..], frame)?;
    }
    ensure!(
        vmm.tap.read()?.is_none(),
        "the tap holds more than was sent"
    );
    vmm.start()?;
    vmm.check_alive()
}

fn redelivered(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new().build(ctx)?;
    vmm.post_rx(1, &[2048])?;
    vmm.check_rx(60)?;
    let mut frames = send_without_buffers(&mut vmm, 150)?;
    vmm.stop_queue(RX)?;
    frames.push(vmm.send_rx(999)?);
    let base = vmm.base(RX)?;
    vmm.configure_queue(RX, base)?;
    vmm.post_rx(200, &[2048])?;
    vmm.start_queue(RX)?;
    for (i, frame) in frames.iter().enumerate() {
        vmm.expect_in_guest(frame)
            .with_context(|| format!("packet {i}"))?;
    }
    vmm.check_quiet()
}

/// As many packets as the tap holds wait for buffers.
fn slow_consumer(ctx: &Ctx) -> Result<()> {
    for (name, bits) in [("vt0", 0), ("vt1", feature::EVENT_IDX)] {
        let mut vmm = Setup::new()
            .features(feature::VERSION_1 | bits)
            .size(1024)
            .tap_name(name)
            .build(ctx)?;
        let mut frames = Vec::new();
        for i in 0..900 {
            frames.push(vmm.send_rx(60 + i)?);
        }
        vmm.fence(RX)?;
        let mut rest = frames.as_slice();
        for burst in [1, 1, 2, 63, 64, 65, 200, 504] {
            vmm.post_rx(burst, &[2048])?;
            let (now, later) = rest.split_at(burst);
            for frame in now {
                vmm.expect_in_guest(frame)?;
            }
            rest = later;
        }
        ensure!(rest.is_empty(), "{} frames not expected", rest.len());
        vmm.check_quiet()?;
    }
    Ok(())
}

/// The device runs out of buffers after every packet.
fn one_by_one(ctx: &Ctx) -> Result<()> {
    for (name, bits) in [("vt0", 0), ("vt1", feature::EVENT_IDX)] {
        let mut vmm = Setup::new()
            .features(feature::VERSION_1 | bits)
            .tap_name(name)
            .build(ctx)?;
        let mut frames = Vec::new();
        for _ in 0..300 {
            frames.push(vmm.send_rx(60)?);
        }
        for (i, frame) in frames.iter().enumerate() {
            vmm.post_rx(1, &[2048])?;
            vmm.expect_in_guest(frame)
                .with_context(|| format!("packet {i}"))?;
        }
        vmm.check_quiet()?;
    }
    Ok(())
}

/// A full ring drops what comes last; what is in it arrives, in order.
fn overrun(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new().size(1024).build(ctx)?;
    let mut frames = Vec::new();
    for _ in 0..1500 {
        let frame = vmm.rx_frames.plain(60);
        // The interface may say that it dropped the frame.
        if vmm.wire.send(&NetHdr::default(), &frame).is_ok() {
            frames.push(frame);
        }
    }
    let dropped = net::counters(vmm.tap.name())?.tx_dropped;
    ensure!(dropped > 0, "nothing was dropped");
    vmm.post_rx(1000, &[100])?;
    // Up to 64 packets are in the device's own hands beside the ring's 1000.
    for frame in &frames[..1000] {
        vmm.expect_in_guest(frame)?;
    }
    Ok(())
}

fn same_backend(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new().build(ctx)?;
    vmm.post_rx(20, &[2048])?;
    for _ in 0..10 {
        vmm.check_alive()?;
        // A used index that is not read again: the device keeps its own.
        vmm.start()?;
    }
    let kept = vmm.tx.ring.used_idx();
    vmm.tx.ring.preset_used_idx(kept.wrapping_add(100));
    vmm.start_queue(TX)?;
    vmm.tx.ring.preset_used_idx(kept);
    vmm.check_alive()
}

fn second_tap(name: &str) -> Result<(Tap, Wire)> {
    let tap = Tap::open(name, &TapOptions::default())?;
    let wire = Wire::open(name)?;
    Ok((tap, wire))
}

fn replaced(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new().build(ctx)?;
    let (mut tap, mut wire) = second_tap("vt1")?;
    vmm.post_rx(50, &[2048])?;
    for _ in 0..10 {
        vmm.check_alive()?;
        for _ in 0..20 {
            let frame = vmm.tx_frames.plain(60);
            vmm.queue_tx(&NetHdr::default(), &frame, &Split::Whole)?;
        }
        vmm.tx.flush()?;
        vmm.set_backend(RX, Some(tap.file()))?;
        vmm.set_backend(TX, Some(tap.file()))?;
        std::mem::swap(&mut tap, &mut vmm.tap);
        std::mem::swap(&mut wire, &mut vmm.wire);
        vmm.tx.drain()?;
        vmm.fence(TX)?;
        let mut arrived = 0;
        for end in [&wire, &vmm.wire] {
            while end.try_recv()?.is_some() {
                arrived += 1;
            }
        }
        expect("frames on both interfaces together", arrived, 20)?;
    }
    vmm.check_alive()
}

fn different_taps(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new().build(ctx)?;
    let (tap, wire) = second_tap("vt1")?;
    vmm.post_rx(50, &[2048])?;
    vmm.set_backend(TX, Some(tap.file()))?;
    for _ in 0..10 {
        vmm.check_rx(500)?;
        let frame = vmm.tx_frames.plain(500);
        vmm.queue_tx(&NetHdr::default(), &frame, &Split::HeaderAlone)?;
        vmm.tx.flush()?;
        let (_, seen) = wire.recv()?;
        compare("frame on the second tap", &seen, &frame)?;
        vmm.tx.wait_used()?;
    }
    vmm.check_quiet()
}

/// The device holds the tap: closing the VMM's descriptor changes nothing.
fn tap_closed(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new().build(ctx)?;
    vmm.post_rx(20, &[2048])?;
    vmm.check_alive()?;
    vmm.tap.close()?;
    vmm.check_alive()?;
    vmm.check_alive()?;
    vmm.stop_queue(RX)?;
    ensure!(
        net::index(vmm.tap.name()).is_ok(),
        "the interface went with the first queue"
    );
    vmm.stop_queue(TX)?;
    ensure!(
        net::index(vmm.tap.name()).is_err(),
        "the interface outlives its last holder"
    );
    Ok(())
}

fn down_up(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new().build(ctx)?;
    vmm.post_rx(20, &[2048])?;
    vmm.check_alive()?;
    for _ in 0..3 {
        net::set_up(vmm.tap.name(), false)?;
        for len in [60, 9000] {
            let frame = vmm.tx_frames.plain(len);
            vmm.queue_tx(&NetHdr::default(), &frame, &Split::Whole)?;
        }
        vmm.tx.flush_and_kick()?;
        // C gives them back while the interface is down or when it is up again.
        net::set_up(vmm.tap.name(), true)?;
        vmm.tx.drain()?;
        vmm.fence(TX)?;
        while vmm.wire.try_recv()?.is_some() {}
        vmm.check_alive()?;
    }
    Ok(())
}

/// With room for few packets the device waits for room and goes on.
fn sndbuf(ctx: &Ctx) -> Result<()> {
    let options = TapOptions {
        sndbuf: 4096,
        ..TapOptions::default()
    };
    let mut vmm = Setup::new().tap(options).build(ctx)?;
    for _ in 0..3 {
        let mut frames = Vec::new();
        for i in 0..200 {
            let frame = vmm.tx_frames.plain(60 + 5 * i);
            vmm.queue_tx(&NetHdr::default(), &frame, &Split::Whole)?;
            frames.push(frame);
        }
        vmm.tx.flush()?;
        for (i, frame) in frames.iter().enumerate() {
            vmm.expect_on_wire(frame)
                .with_context(|| format!("packet {i}"))?;
        }
        vmm.tx.drain()?;
    }
    vmm.check_quiet()
}

fn deleted(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new().build(ctx)?;
    vmm.post_rx(20, &[2048])?;
    vmm.check_alive()?;
    net::delete(vmm.tap.name())?;
    vmm.rx.kick()?;
    vmm.fence(RX)?;
    ensure!(
        vmm.rx.pop_used()?.is_none(),
        "RX used a buffer without a packet"
    );
    expect(
        "SET_BACKEND to the deleted tap after the stop",
        {
            vmm.stop()?;
            vmm.vhost
                .raw()
                .set_backend(0, std::os::fd::AsRawFd::as_raw_fd(&vmm.tap))
        },
        Err(crate::errno::Errno(libc::EINVAL)),
    )?;
    let (tap, wire) = second_tap("vt1")?;
    (vmm.tap, vmm.wire) = (tap, wire);
    vmm.start()?;
    vmm.check_alive()
}

fn sent_to_deleted(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new().build(ctx)?;
    vmm.check_tx(60, &Split::Whole)?;
    net::delete(vmm.tap.name())?;
    for _ in 0..10 {
        let frame = vmm.tx_frames.plain(60);
        vmm.queue_tx(&NetHdr::default(), &frame, &Split::Whole)?;
    }
    vmm.tx.flush_and_kick()?;
    poll::wait_signal(&vmm.tx.err, "err")?;
    match ctx.module {
        Module::C => {
            vmm.fence(TX)?;
            expect("base", vmm.base(TX)?, 11)?;
            ensure!(vmm.tx.pop_used()?.is_none(), "a chain came back");
        }
        Module::Rust => {
            vmm.tx.drain()?;
        }
    }
    vmm.stop()
}

/// Num, base and addresses may all change between two runs.
fn moved_ring(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new().build(ctx)?;
    vmm.post_rx(20, &[2048])?;
    vmm.check_alive()?;
    vmm.stop()?;
    for (size, base) in [(1024, 5), (16, 65_535), (256, 0)] {
        let mode = crate::virtqueue::Mode::default();
        vmm.rx = crate::virtqueue::Virtqueue::new(&vmm.mem, size, mode, base, base)?;
        vmm.tx = crate::virtqueue::Virtqueue::new(&vmm.mem, size, mode, base, base)?;
        vmm.configure([base; 2])?;
        vmm.start()?;
        for _ in 0..30 {
            vmm.check_alive()?;
        }
        vmm.stop()?;
    }
    Ok(())
}

/// To a copy of itself; the old place is not touched any more.
fn moved_while_running(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new().build(ctx)?;
    vmm.post_rx(20, &[2048])?;
    for _ in 0..5 {
        vmm.check_alive()?;
        let old = vmm.tx.ring.layout();
        let image = vmm.tx.ring.used_image(&vmm.mem)?;
        let new = Layout::alloc(&vmm.mem, old.size)?;
        let n = usize::from(old.size);
        for (from, to, len) in [
            (old.desc, new.desc, 16 * n),
            (old.avail, new.avail, 6 + 2 * n),
            (old.used, new.used, 6 + 8 * n),
        ] {
            vmm.mem.write(to, &vmm.mem.read(from, len)?)?;
        }
        vmm.tx.ring = Ring::new(&vmm.mem, new)?;
        let addr = vmm.vring_addr(TX)?;
        let seen = vmm.vhost.raw().set_vring_addr(&addr);
        expect("SET_VRING_ADDR", seen, Ok(0))?;
        vmm.tx.kick()?;
        vmm.check_alive()?;
        let now = vmm.mem.read(old.used, image.len())?;
        compare("the old used ring", &now, &image)?;
    }
    Ok(())
}

/// What they were when the queue stopped, whatever is there by now.
fn used_flags(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new().build(ctx)?;
    vmm.post_rx(20, &[2048])?;
    vmm.check_alive()?;
    vmm.stop()?;
    for index in [RX, TX] {
        let at = vmm.queue(index).ring.layout().used;
        let before = vmm.queue(index).ring.used_flags();
        vmm.mem.write(at, &0xabcdu16.to_le_bytes())?;
        vmm.start_queue(index)?;
        let after = vmm.queue(index).ring.used_flags();
        match index {
            // It has buffers, and no packet.
            RX => expect("flags of RX", after, before)?,
            // It looks for packets, and asks for kicks again.
            _ => ensure!(after <= NO_NOTIFY, "flags of TX: {after:#x}"),
        }
    }
    vmm.check_alive()
}

fn close_running(ctx: &Ctx) -> Result<()> {
    for round in 0..ctx.rounds(2, 10) {
        let name = format!("vt{round}");
        let mut vmm = Setup::new().tap_name(&name).build(ctx)?;
        vmm.post_rx(100, &[2048])?;
        for _ in 0..100 {
            let frame = vmm.tx_frames.plain(60);
            vmm.queue_tx(&NetHdr::default(), &frame, &Split::Whole)?;
            vmm.send_rx(60)?;
        }
        vmm.tx.flush_and_kick()?;
        drop(vmm);
        ensure!(
            net::index(&name).is_err(),
            "{name} still exists after the close"
        );
    }
    Ok(())
}
