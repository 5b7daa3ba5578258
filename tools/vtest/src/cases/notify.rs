// SPDX-License-Identifier: GPL-2.0

//! When the device calls, when it wants to be kicked, and what it does with
//! the eventfds.

use std::os::fd::AsRawFd;

use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::eventfd::EFD_NONBLOCK;

use crate::better;
use crate::case::Ctx;
use crate::case::Module;
use crate::case::Table;
use crate::device::feature;
use crate::device::RX;
use crate::device::TX;
use crate::errno::Errno;
use crate::frame::NetHdr;
use crate::ioctl;
use crate::poll;
use crate::ring::NO_NOTIFY;
use crate::traffic::expect;
use crate::traffic::Split;
use crate::vmm::Setup;
use crate::vmm::Vmm;

const EVENT_IDX: u64 = feature::VERSION_1 | feature::EVENT_IDX;

pub(super) fn register(table: &mut Table) {
    for (name, features) in [("flags", feature::VERSION_1), ("event_idx", EVENT_IDX)] {
        table.add(
            format!("notify::tx_suppressed_calls_do_not_come_{name}"),
            move |ctx| tx_suppressed(ctx, features),
        );
        table.add(
            format!("notify::rx_suppressed_calls_do_not_come_{name}"),
            move |ctx| rx_suppressed(ctx, features),
        );
        table.add(
            format!("notify::batch_has_fewer_calls_than_packets_{name}"),
            move |ctx| batch(ctx, features),
        );
        table.add(format!("notify::idle_tx_wants_kicks_{name}"), move |ctx| {
            idle_tx(ctx, features)
        });
        table.add(
            format!("notify::rx_without_buffers_wants_kicks_{name}"),
            move |ctx| rx_dry(ctx, features),
        );
        table.add(
            format!("notify::rx_with_buffers_wants_no_kicks_{name}"),
            move |ctx| rx_filled(ctx, features),
        );
        table.add(format!("notify::no_wakeup_is_lost_tx_{name}"), move |ctx| {
            no_lost_wakeup(ctx, features)
        });
        table.add(format!("notify::no_wakeup_is_lost_rx_{name}"), move |ctx| {
            no_lost_wakeup_rx(ctx, features)
        });
        table.add(
            format!("notify::on_empty_overrides_suppression_{name}"),
            move |ctx| on_empty(ctx, features | feature::NOTIFY_ON_EMPTY),
        );
    }
    table.add("notify::call_comes_when_used_event_is_crossed", crossed);
    table.add(
        "notify::call_comes_when_used_event_is_crossed_at_wrap",
        crossed_at_wrap,
    );
    table.add("notify::kick_counter_is_left_alone", kick_counter);
    table.add(
        "notify::kick_eventfd_replaced_old_one_is_ignored",
        kick_replaced,
    );
    table.add(
        "notify::kick_eventfd_with_pending_count_starts_a_pass",
        kick_pending,
    );
    table.add(
        "notify::kick_unbound_queue_still_runs_after_rebind",
        kick_unbound,
    );
    table.add(
        "notify::call_eventfd_replaced_new_one_gets_the_signals",
        call_replaced,
    );
    table.add("notify::eventfd_that_is_set_is_not_signalled", set_silently);
    table.add(
        "notify::call_swapped_under_traffic_loses_nothing",
        call_swapped,
    );
    table.add_better(
        "notify::kick_eventfd_that_is_full",
        better::KICK_FULL,
        kick_full,
    );
    table.add("notify::call_unbound_traffic_continues", call_unbound);
    table.add(
        "notify::call_counter_saturated_does_not_block",
        call_saturated,
    );
    table.add("notify::closed_eventfds_live_on_in_the_device", closed);
    table.add("notify::same_eventfd_as_kick_and_call_works", same_eventfd);
    table.add("notify::kick_storm_on_empty_ring_is_harmless", kick_storm);
}

/// The first used element after a start is always signalled: get it over with.
fn warm_up(vmm: &mut Vmm) -> Result<()> {
    vmm.check_tx(60, &Split::Whole)?;
    vmm.post_rx(1, &[2048])?;
    vmm.check_rx(60)?;
    for index in [RX, TX] {
        vmm.fence(index)?;
        poll::take_signals(&vmm.queue(index).call);
    }
    Ok(())
}

fn send_quietly(vmm: &mut Vmm) -> Result<()> {
    let frame = vmm.tx_frames.plain(60);
    vmm.queue_tx(&NetHdr::default(), &frame, &Split::Whole)?;
    vmm.tx.flush()?;
    vmm.expect_on_wire(&frame)?;
    vmm.tx.spin_used()?;
    vmm.fence(TX)
}

fn tx_suppressed(ctx: &Ctx, features: u64) -> Result<()> {
    let mut vmm = Setup::new().features(features).build(ctx)?;
    warm_up(&mut vmm)?;
    vmm.tx.disable_calls();
    for _ in 0..20 {
        send_quietly(&mut vmm)?;
    }
    expect(
        "calls while suppressed",
        poll::take_signals(&vmm.tx.call),
        0,
    )?;
    vmm.tx.enable_calls();
    send_quietly(&mut vmm)?;
    expect("calls when enabled", poll::take_signals(&vmm.tx.call), 1)
}

fn rx_suppressed(ctx: &Ctx, features: u64) -> Result<()> {
    let mut vmm = Setup::new().features(features).build(ctx)?;
    warm_up(&mut vmm)?;
    vmm.post_rx(30, &[2048])?;
    vmm.rx.disable_calls();
    for _ in 0..20 {
        vmm.send_rx(60)?;
        vmm.rx.spin_used()?;
        vmm.fence(RX)?;
    }
    expect(
        "calls while suppressed",
        poll::take_signals(&vmm.rx.call),
        0,
    )?;
    vmm.rx.enable_calls();
    vmm.send_rx(60)?;
    vmm.rx.spin_used()?;
    vmm.fence(RX)?;
    expect("calls when enabled", poll::take_signals(&vmm.rx.call), 1)
}

fn batch(ctx: &Ctx, features: u64) -> Result<()> {
    let mut vmm = Setup::new().features(features).build(ctx)?;
    warm_up(&mut vmm)?;
    for _ in 0..200 {
        let frame = vmm.tx_frames.plain(60);
        vmm.queue_tx(&NetHdr::default(), &frame, &Split::Whole)?;
    }
    vmm.tx.enable_calls();
    vmm.tx.flush()?;
    for _ in 0..200 {
        vmm.tx.spin_used()?;
    }
    vmm.fence(TX)?;
    let calls = poll::take_signals(&vmm.tx.call);
    ensure!(
        (1..=50).contains(&calls),
        "200 packets queued at once gave {calls} calls"
    );
    Ok(())
}

fn wants_kick(vmm: &Vmm, index: usize) -> bool {
    let queue = vmm.queue(index);
    if vmm.features & feature::EVENT_IDX != 0 {
        queue.ring.avail_event() == queue.next_avail()
    } else {
        queue.ring.used_flags() & NO_NOTIFY == 0
    }
}

fn wait_wants_kick(vmm: &Vmm, index: usize) -> Result<()> {
    poll::wait_for(
        &format!("the device to want kicks ({})", vmm.queue(index).state()),
        || Ok(wants_kick(vmm, index).then_some(())),
    )
}

fn idle_tx(ctx: &Ctx, features: u64) -> Result<()> {
    let mut vmm = Setup::new().features(features).build(ctx)?;
    for _ in 0..5 {
        vmm.check_tx(60, &Split::Whole)?;
        wait_wants_kick(&vmm, TX)?;
    }
    Ok(())
}

fn rx_dry(ctx: &Ctx, features: u64) -> Result<()> {
    let mut vmm = Setup::new().features(features).build(ctx)?;
    warm_up(&mut vmm)?;
    for _ in 0..5 {
        let frame = vmm.send_rx(60)?;
        wait_wants_kick(&vmm, RX)?;
        vmm.queue_rx(&[2048])?;
        ensure!(vmm.rx.flush()?, "the refill was not to be kicked");
        vmm.expect_in_guest(&frame)?;
    }
    Ok(())
}

fn rx_filled(ctx: &Ctx, features: u64) -> Result<()> {
    let mut vmm = Setup::new().features(features).build(ctx)?;
    vmm.post_rx(100, &[2048])?;
    vmm.check_rx(60)?;
    vmm.fence(RX)?;
    for _ in 0..10 {
        vmm.queue_rx(&[2048])?;
        ensure!(
            !vmm.rx.flush()?,
            "a kick is wanted though buffers are there"
        );
        vmm.check_rx(60)?;
        vmm.fence(RX)?;
    }
    Ok(())
}

/// Kicks only where wanted, at all distances from the end of the last pass.
fn no_lost_wakeup(ctx: &Ctx, features: u64) -> Result<()> {
    let mut vmm = Setup::new().features(features).build(ctx)?;
    let mut rng = crate::frame::Rng::new(ctx.seed);
    for round in 0..2000 {
        let frame = vmm.tx_frames.plain(60);
        vmm.queue_tx(&NetHdr::default(), &frame, &Split::Whole)?;
        vmm.tx.flush()?;
        vmm.tx
            .wait_used()
            .with_context(|| format!("round {round}"))?;
        for _ in 0..rng.below(300) {
            std::hint::spin_loop();
        }
        while vmm.wire.try_recv()?.is_some() {}
    }
    Ok(())
}

/// The only buffer is posted anew at all distances from the next packet.
fn no_lost_wakeup_rx(ctx: &Ctx, features: u64) -> Result<()> {
    let mut vmm = Setup::new().features(features).build(ctx)?;
    let mut rng = crate::frame::Rng::new(ctx.seed);
    let mut waiting = std::collections::VecDeque::new();
    for round in 0..1000 {
        while waiting.len() < 3 {
            waiting.push_back(vmm.send_rx(60)?);
        }
        for _ in 0..rng.below(300) {
            std::hint::spin_loop();
        }
        vmm.post_rx(1, &[100])?;
        if let Some(frame) = waiting.pop_front() {
            vmm.expect_in_guest(&frame)
                .with_context(|| format!("round {round}"))?;
        }
    }
    Ok(())
}

fn on_empty(ctx: &Ctx, features: u64) -> Result<()> {
    let mut vmm = Setup::new().features(features).build(ctx)?;
    warm_up(&mut vmm)?;
    vmm.tx.disable_calls();
    send_quietly(&mut vmm)?;
    ensure!(
        poll::take_signals(&vmm.tx.call) >= 1,
        "no call though the ring is empty"
    );
    Ok(())
}

fn crossed(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new().features(EVENT_IDX).build(ctx)?;
    warm_up(&mut vmm)?;
    calls_at_fifth(&mut vmm)
}

fn crossed_at_wrap(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new().features(EVENT_IDX).base(65_532).build(ctx)?;
    warm_up(&mut vmm)?;
    calls_at_fifth(&mut vmm)
}

fn calls_at_fifth(vmm: &mut Vmm) -> Result<()> {
    for round in 0..3 {
        let event = vmm.tx.used_seen().wrapping_add(4);
        vmm.tx.ring.set_used_event(event);
        for _ in 0..4 {
            send_quietly(vmm)?;
        }
        let context = format!("round {round}: calls before used_event");
        expect(&context, poll::take_signals(&vmm.tx.call), 0)?;
        send_quietly(vmm)?;
        expect("calls at used_event", poll::take_signals(&vmm.tx.call), 1)?;
        send_quietly(vmm)?;
        expect(
            "calls behind used_event",
            poll::take_signals(&vmm.tx.call),
            0,
        )?;
    }
    Ok(())
}

fn event() -> Result<EventFd> {
    EventFd::new(EFD_NONBLOCK).context("eventfd")
}

/// Fills the ring with one packet and kicks nothing.
fn publish_one(vmm: &mut Vmm) -> Result<Vec<u8>> {
    let frame = vmm.tx_frames.plain(60);
    vmm.queue_tx(&NetHdr::default(), &frame, &Split::Whole)?;
    vmm.tx.publish();
    Ok(frame)
}

fn kick_counter(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new().build(ctx)?;
    for _ in 0..7 {
        let frame = publish_one(&mut vmm)?;
        vmm.tx.kick()?;
        vmm.expect_on_wire(&frame)?;
        vmm.tx.wait_used()?;
    }
    expect("kick counter", poll::take_signals(&vmm.tx.kick), 7)
}

fn kick_replaced(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new().build(ctx)?;
    vmm.post_rx(20, &[2048])?;
    vmm.check_tx(60, &Split::Whole)?;
    let old = std::mem::replace(&mut vmm.tx.kick, event()?);
    set_file(&vmm, ioctl::SET_VRING_KICK(), TX, &vmm.tx.kick)?;
    // The other queue tells the time: a pass because of the change is over.
    for _ in 0..5 {
        vmm.check_rx(60)?;
    }
    let frame = publish_one(&mut vmm)?;
    old.write(1).context("kick")?;
    for _ in 0..5 {
        vmm.check_rx(60)?;
    }
    vmm.wire
        .expect_silence()
        .context("after a kick on the old eventfd")?;
    vmm.tx.kick()?;
    vmm.expect_on_wire(&frame)?;
    vmm.tx.wait_used()?;
    vmm.check_alive()
}

fn set_file(vmm: &Vmm, number: libc::c_ulong, index: usize, event: &EventFd) -> Result<()> {
    let fd = std::os::fd::AsRawFd::as_raw_fd(event);
    expect(
        "setting an eventfd",
        vmm.vhost.raw().set_vring_file(number, index as u32, fd),
        Ok(0),
    )
}

fn kick_pending(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new().build(ctx)?;
    vmm.check_tx(60, &Split::Whole)?;
    let frame = publish_one(&mut vmm)?;
    vmm.tx.kick = event()?;
    vmm.tx.kick()?;
    set_file(&vmm, ioctl::SET_VRING_KICK(), TX, &vmm.tx.kick)?;
    vmm.expect_on_wire(&frame)?;
    vmm.tx.wait_used()?;
    vmm.check_alive()
}

fn kick_unbound(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new().build(ctx)?;
    vmm.check_tx(60, &Split::Whole)?;
    let raw = vmm.vhost.raw();
    expect(
        "KICK -1",
        raw.set_vring_file(ioctl::SET_VRING_KICK(), 1, -1),
        Ok(0),
    )?;
    let frame = publish_one(&mut vmm)?;
    vmm.tx.kick()?;
    set_file(&vmm, ioctl::SET_VRING_KICK(), TX, &vmm.tx.kick)?;
    vmm.expect_on_wire(&frame)?;
    vmm.tx.wait_used()?;
    vmm.check_alive()
}

fn call_replaced(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new().build(ctx)?;
    warm_up(&mut vmm)?;
    let old = std::mem::replace(&mut vmm.tx.call, event()?);
    set_file(&vmm, ioctl::SET_VRING_CALL(), TX, &vmm.tx.call)?;
    expect("signals by the swap", poll::take_signals(&vmm.tx.call), 0)?;
    vmm.check_tx(60, &Split::Whole)?;
    expect("signals on the old eventfd", poll::take_signals(&old), 0)
}

fn set_silently(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new().build(ctx)?;
    warm_up(&mut vmm)?;
    let fresh = event()?;
    for number in [ioctl::SET_VRING_CALL(), ioctl::SET_VRING_ERR()] {
        for index in [RX, TX] {
            for _ in 0..2 {
                set_file(&vmm, number, index, &fresh)?;
                vmm.fence(RX)?;
                vmm.fence(TX)?;
                expect("signals", poll::take_signals(&fresh), 0)?;
            }
        }
    }
    Ok(())
}

/// As with MSI-X masking: whichever eventfd is set at the time gets the signal.
fn call_swapped(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new().build(ctx)?;
    warm_up(&mut vmm)?;
    let mut other = event()?;
    for round in 0..500 {
        let frame = publish_one(&mut vmm)?;
        vmm.tx.kick()?;
        std::mem::swap(&mut vmm.tx.call, &mut other);
        set_file(&vmm, ioctl::SET_VRING_CALL(), TX, &vmm.tx.call)?;
        vmm.tx.spin_used()?;
        vmm.fence(TX)?;
        let signals = poll::take_signals(&vmm.tx.call) + poll::take_signals(&other);
        ensure!(signals >= 1, "round {round}: no signal on either eventfd");
        vmm.expect_on_wire(&frame)?;
    }
    Ok(())
}

fn call_unbound(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new().build(ctx)?;
    warm_up(&mut vmm)?;
    let raw = vmm.vhost.raw();
    expect(
        "CALL -1",
        raw.set_vring_file(ioctl::SET_VRING_CALL(), 1, -1),
        Ok(0),
    )?;
    for _ in 0..10 {
        send_quietly(&mut vmm)?;
    }
    expect("signals when unbound", poll::take_signals(&vmm.tx.call), 0)?;
    set_file(&vmm, ioctl::SET_VRING_CALL(), TX, &vmm.tx.call)?;
    vmm.check_alive()
}

fn call_saturated(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new().build(ctx)?;
    warm_up(&mut vmm)?;
    vmm.tx
        .call
        .write(u64::MAX - 1)
        .context("saturating the call")?;
    for _ in 0..10 {
        send_quietly(&mut vmm)?;
    }
    poll::take_signals(&vmm.tx.call);
    vmm.check_tx(60, &Split::Whole)
}

fn closed(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new().build(ctx)?;
    warm_up(&mut vmm)?;
    let kick = vmm.tx.kick.try_clone().context("dup")?;
    let call = vmm.tx.call.try_clone().context("dup")?;
    vmm.tx.err = event()?;
    vmm.tx.kick = event()?;
    vmm.tx.call = event()?;
    let frame = publish_one(&mut vmm)?;
    kick.write(1).context("kick")?;
    poll::wait_signal(&call, "a call on the duplicate")?;
    vmm.expect_on_wire(&frame)
}

fn same_eventfd(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new().build(ctx)?;
    set_file(&vmm, ioctl::SET_VRING_CALL(), TX, &vmm.tx.kick)?;
    for _ in 0..10 {
        let frame = publish_one(&mut vmm)?;
        vmm.tx.kick()?;
        vmm.expect_on_wire(&frame)?;
        vmm.tx.spin_used()?;
    }
    Ok(())
}

fn kick_storm(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new().build(ctx)?;
    vmm.post_rx(10, &[2048])?;
    for _ in 0..20_000 {
        vmm.tx.kick()?;
        vmm.rx.kick()?;
    }
    vmm.check_alive()?;
    vmm.check_quiet()
}

/// An eventfd whose counter has no room left.
fn full(vmm: &mut Vmm) -> Result<EventFd> {
    let event = event()?;
    event.write(u64::MAX - 1).context("eventfd")?;
    let raw = vmm.vhost.raw();
    let number = ioctl::SET_VRING_CALL();
    let seen = raw.set_vring_file(number, TX as u32, event.as_raw_fd());
    expect("SET_VRING_CALL", seen, Ok(0))?;
    // The kernel may do what user space may not.
    let frame = publish_one(vmm)?;
    vmm.tx.enable_calls();
    vmm.tx.kick()?;
    vmm.expect_on_wire(&frame)?;
    vmm.tx.spin_used()?;
    vmm.fence(TX)?;
    let seen = raw.set_vring_file(number, TX as u32, vmm.tx.call.as_raw_fd());
    expect("SET_VRING_CALL", seen, Ok(0))?;
    let mut entry = libc::pollfd {
        fd: event.as_raw_fd(),
        events: 0,
        revents: 0,
    };
    // SAFETY: `entry` is one valid pollfd that outlives the call.
    unsafe { libc::poll(&mut entry, 1, 0) };
    expect("events of the eventfd", entry.revents, libc::POLLERR)?;
    Ok(event)
}

fn kick_full(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new().build(ctx)?;
    let event = full(&mut vmm)?;
    let raw = vmm.vhost.raw();
    let number = ioctl::SET_VRING_KICK();
    let seen = raw.set_vring_file(number, TX as u32, event.as_raw_fd());
    expect("SET_VRING_KICK", seen, Err(Errno(libc::EINVAL)))?;
    let frame = publish_one(&mut vmm)?;
    vmm.tx.kick()?;
    if ctx.module == Module::C {
        // Nobody hears the old one, until it is set again.
        vmm.fence(TX)?;
        vmm.wire.expect_silence()?;
        let seen = raw.set_vring_file(number, TX as u32, vmm.tx.kick.as_raw_fd());
        expect("SET_VRING_KICK", seen, Ok(0))?;
    }
    vmm.expect_on_wire(&frame)?;
    vmm.tx.wait_used()?;
    vmm.check_alive()
}
