// SPDX-License-Identifier: GPL-2.0

//! Busy polling (VHOST_SET_VRING_BUSYLOOP_TIMEOUT): it saves kicks, and lets
//! everybody else do their work.

use std::time::Duration;
use std::time::Instant;

use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;

use crate::better;
use crate::case::Ctx;
use crate::case::Module;
use crate::case::Table;
use crate::device;
use crate::device::RX;
use crate::device::TX;
use crate::frame::NetHdr;
use crate::ioctl;
use crate::ioctl::Raw;
use crate::ioctl::VringState;
use crate::poll;
use crate::traffic::expect;
use crate::traffic::Split;
use crate::vmm::Setup;
use crate::vmm::Vmm;

pub(super) fn register(table: &mut Table) {
    table.add("busy::get_returns_what_was_set", get);
    table.add("busy::packet_without_a_kick_is_seen", kickless);
    table.add("busy::packet_without_a_kick_waits_if_it_is_off", off);
    for (name, timeout) in [("short", 20), ("long", 2000)] {
        table.add(
            format!("busy::traffic_both_ways_with_a_{name}_timeout"),
            move |ctx| traffic(ctx, timeout),
        );
    }
    table.add("busy::two_devices_poll_and_share_the_cpus", two);
    table.add("busy::turned_on_and_off_under_traffic", toggled);
    table.add_better(
        "busy::control_call_while_polling",
        better::BUSY_YIELDS,
        control,
    );
}

/// Units of 1,024 ns.
pub(super) fn set(raw: Raw, index: usize, timeout: u32) -> Result<()> {
    let state = VringState {
        index: index as u32,
        num: timeout,
    };
    let seen = raw.put(ioctl::SET_VRING_BUSYLOOP_TIMEOUT(), &state);
    expect("SET_VRING_BUSYLOOP_TIMEOUT", seen, Ok(0))
}

pub(super) fn set_both(vmm: &Vmm, timeout: u32) -> Result<()> {
    for index in [RX, TX] {
        set(vmm.vhost.raw(), index, timeout)?;
    }
    Ok(())
}

fn get(ctx: &Ctx) -> Result<()> {
    let file = device::open(&ctx.device)?;
    let raw = Raw::of(&file);
    expect("SET_OWNER", raw.set_owner(), Ok(0))?;
    for timeout in [0, 1, 50, u32::MAX, 7] {
        for index in [RX, TX] {
            set(raw, index, timeout + index as u32 / 2)?;
            let mut state = VringState {
                index: index as u32,
                num: 99,
            };
            let seen = raw.get(ioctl::GET_VRING_BUSYLOOP_TIMEOUT(), &mut state);
            expect("GET_VRING_BUSYLOOP_TIMEOUT", seen, Ok(0))?;
            expect(
                "what it says",
                (state.index, state.num),
                (index as u32, timeout),
            )?;
        }
    }
    expect("RESET_OWNER", raw.reset_owner(), Ok(0))?;
    expect("SET_OWNER", raw.set_owner(), Ok(0))?;
    let mut state = VringState { index: 0, num: 99 };
    let seen = raw.get(ioctl::GET_VRING_BUSYLOOP_TIMEOUT(), &mut state);
    expect("GET_VRING_BUSYLOOP_TIMEOUT", (seen, state.num), (Ok(0), 0))
}

/// Publishes a packet without a kick; whether it was sent soon.
fn sent_without_kick(vmm: &mut Vmm) -> Result<bool> {
    let frame = vmm.tx_frames.plain(60);
    vmm.queue_tx(&NetHdr::default(), &frame, &Split::Whole)?;
    vmm.tx.publish();
    let sent = poll::readable(&vmm.wire, Duration::from_millis(20))?;
    vmm.tx.kick()?;
    vmm.expect_on_wire(&frame)?;
    vmm.tx.wait_used()?;
    Ok(sent)
}

/// Polling ends early where somebody else wants the CPU: once is enough.
fn kickless(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new().build(ctx)?;
    set(vmm.vhost.raw(), TX, 1_000_000)?;
    let mut seen = 0;
    for _ in 0..50 {
        seen += u32::from(sent_without_kick(&mut vmm)?);
        if seen == 3 {
            break;
        }
    }
    set(vmm.vhost.raw(), TX, 0)?;
    ensure!(seen > 0, "no packet of 50 was seen without a kick");
    vmm.check_alive()
}

/// The end of a pass may still see what is published then: not each time.
fn off(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new().build(ctx)?;
    let mut seen = 0;
    for _ in 0..20 {
        seen += u32::from(sent_without_kick(&mut vmm)?);
    }
    ensure!(seen < 20, "20 packets of 20 were sent without a kick");
    vmm.check_alive()
}

fn traffic(ctx: &Ctx, timeout: u32) -> Result<()> {
    let mut vmm = Setup::new().build(ctx)?;
    set_both(&vmm, timeout)?;
    vmm.post_rx(50, &[2048])?;
    for round in 0..50 {
        vmm.check_alive()
            .with_context(|| format!("round {round}"))?;
    }
    vmm.check_quiet()
}

fn two(ctx: &Ctx) -> Result<()> {
    let mut one = Setup::new().build(ctx)?;
    let mut two = Setup::new().tap_name("vt1").build(ctx)?;
    for vmm in [&mut one, &mut two] {
        set_both(vmm, 2000)?;
        vmm.post_rx(20, &[2048])?;
    }
    for _ in 0..20 {
        one.check_alive()?;
        two.check_alive()?;
    }
    Ok(())
}

fn toggled(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new().build(ctx)?;
    vmm.post_rx(50, &[2048])?;
    for round in 0..50 {
        set_both(&vmm, if round % 2 == 0 { 100 } else { 0 })?;
        vmm.check_alive()
            .with_context(|| format!("round {round}"))?;
    }
    vmm.check_quiet()
}

fn control(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new().build(ctx)?;
    vmm.post_rx(10, &[2048])?;
    // C must be waited for.
    let timeout = match ctx.module {
        Module::C => 300_000,
        Module::Rust => u32::MAX,
    };
    for _ in 0..3 {
        set_both(&vmm, timeout)?;
        let start = Instant::now();
        vmm.check_alive()?;
        vmm.fence(RX)?;
        vmm.fence(TX)?;
        vmm.base(TX)?;
        vmm.stop()?;
        vmm.start()?;
        set_both(&vmm, 0)?;
        let took = start.elapsed();
        ensure!(took < poll::PATIENCE, "the calls took {took:?}");
    }
    vmm.check_alive()
}
