// SPDX-License-Identifier: GPL-2.0

//! Packets that wait for buffers of the guest: how they are counted, and what becomes of them when
//! their TAP is deleted.

use std::os::fd::AsRawFd;
use std::thread;
use std::time::Duration;

use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;

use crate::case::Ctx;
use crate::case::Table;
use crate::device::RX;
use crate::errno::Errno;
use crate::frame::compare;
use crate::net;
use crate::tap::Tap;
use crate::tap::TapOptions;
use crate::traffic::expect;
use crate::vmm::Setup;
use crate::vmm::Vmm;
use crate::wire::Wire;

/// More than are taken from the TAP at once.
const WAITING: usize = 100;

pub(super) fn register(table: &mut Table) {
    table.add("restart::packets_put_back_are_counted_once", counted);
    table.add(
        "restart::failing_start_with_packets_of_a_deleted_tap_harms_nothing",
        failing_start,
    );
    table.add(
        "restart::tap_made_again_with_packets_of_the_deleted_one_carries_on",
        made_again,
    );
}

/// Has the device take packets ahead of the guest's buffers, and deliver the first; returns the others.
fn take(vmm: &mut Vmm) -> Result<Vec<Vec<u8>>> {
    vmm.stop_queue(RX)?;
    let mut frames = Vec::new();
    for i in 0..WAITING {
        frames.push(vmm.send_rx(60 + i)?);
    }
    vmm.start_queue(RX)?;
    vmm.post_rx(1, &[2048])?;
    vmm.expect_in_guest(&frames.remove(0))?;
    Ok(frames)
}

/// Gives the device the time to take packets where it stands, which nobody sees.
fn pause(vmm: &Vmm) -> Result<()> {
    vmm.rx.kick()?;
    thread::sleep(Duration::from_millis(10));
    vmm.fence(RX)
}

/// Each round takes many and delivers one.
fn counted(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new().build(ctx)?;
    let mut frames = take(&mut vmm)?.into_iter();
    for _ in 0..20 {
        vmm.stop_queue(RX)?;
        vmm.start_queue(RX)?;
        vmm.post_rx(1, &[2048])?;
        let frame = frames.next().context("too few packets")?;
        vmm.expect_in_guest(&frame)?;
    }
    vmm.stop_queue(RX)?;
    for (i, frame) in frames.enumerate() {
        let packet = vmm.tap.read()?.with_context(|| format!("no packet {i}"))?;
        ensure!(packet.len() > 12, "packet of {} bytes", packet.len());
        compare(&format!("packet {i}"), &packet[12..], &frame)?;
    }
    let seen = net::counters(vmm.tap.name())?;
    let bytes = (0..WAITING as u64).map(|i| 60 + i).sum();
    expect("packets", seen.tx_packets, WAITING as u64)?;
    expect("bytes", seen.tx_bytes, bytes)?;
    expect("dropped", seen.tx_dropped, 0)
}

/// Receives up to `last`, which comes. What comes before it is the beginning of `waiting`: the packets
/// of a deleted TAP may be dropped. Returns how many came.
fn receive_until(vmm: &mut Vmm, last: &[u8], waiting: &[Vec<u8>]) -> Result<usize> {
    let mut waiting = waiting.iter();
    for came in 0.. {
        let received = vmm
            .recv()
            .with_context(|| format!("after {came} of those that waited"))?;
        if received.frame == last {
            return Ok(came);
        }
        let frame = waiting.next().context("more came than waited")?;
        compare("packet that waited", &received.frame, frame)?;
    }
    unreachable!()
}

/// The start fails, and the queue runs on the deleted TAP again.
fn failing_start(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new().build(ctx)?;
    let waiting = take(&mut vmm)?;
    net::delete(vmm.tap.name())?;
    let unattached = Tap::open_unattached()?;
    for _ in 0..5 {
        let seen = vmm.vhost.raw().set_backend(0, unattached.as_raw_fd());
        expect(
            "SET_BACKEND to no interface",
            seen,
            Err(Errno(libc::EINVAL)),
        )?;
        pause(&vmm)?;
    }
    vmm.post_rx(200, &[2048])?;
    pause(&vmm)?;
    vmm.tap = Tap::open("vt1", &TapOptions::default())?;
    vmm.wire = Wire::open("vt1")?;
    vmm.start()?;
    let last = vmm.send_rx(999)?;
    receive_until(&mut vmm, &last, &waiting)?;
    expect("counted", net::counters("vt1")?.tx_packets, 1)?;
    vmm.check_alive()?;
    vmm.check_quiet()
}

/// The file stays, and with it what was put back to it.
fn made_again(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new().build(ctx)?;
    let name = vmm.tap.name().to_owned();
    let waiting = take(&mut vmm)?;
    net::delete(&name)?;
    vmm.stop()?;
    vmm.tap.make(&TapOptions::default())?;
    vmm.wire = Wire::open(&name)?;
    for _ in 0..5 {
        vmm.start()?;
        pause(&vmm)?;
        vmm.stop()?;
    }
    vmm.start()?;
    vmm.post_rx(200, &[2048])?;
    let last = vmm.send_rx(999)?;
    let came = receive_until(&mut vmm, &last, &waiting)?;
    vmm.fence(RX)?;
    let counted = net::counters(&name)?.tx_packets;
    ensure!(
        (1..=came as u64 + 1).contains(&counted),
        "{counted} packets counted, where {came} came that had waited, and one more"
    );
    vmm.check_alive()?;
    vmm.check_quiet()
}
