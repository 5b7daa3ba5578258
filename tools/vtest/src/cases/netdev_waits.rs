// SPDX-License-Identifier: GPL-2.0

//! Devices slower than the guest: with a limit to what is in flight the guest waits, and nothing is
//! lost.

use std::collections::HashSet;
use std::time::Duration;
use std::time::Instant;

use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;

use super::netdev;
use super::netdev::tool;
use super::netdev::FAR;
use super::netdev::NEAR;
use super::netdev::V1;
use super::netdev_changes;
use crate::case::Ctx;
use crate::case::Table;
use crate::errno::Errno;
use crate::frame::NetHdr;
use crate::front;
use crate::front::tun;
use crate::ioctl::Netdev;
use crate::ioctl::Raw;
use crate::net;
use crate::poll;
use crate::traffic::expect;
use crate::traffic::Split;
use crate::vmm::Vmm;
use crate::wire::Wire;

/// Bytes that may be in flight.
const LIMIT: u32 = 20_000;
/// Packets of a thousand bytes, which 1 Mbit/s lets through in eight tenths of a second.
const COUNT: usize = 100;

pub(super) fn register(table: &mut Table) {
    table.add("netdev::full_device_makes_the_guest_wait", waits);
    table.add("netdev::full_device_drops_without_a_limit", drops);
    table.add("netdev::others_go_on_while_one_waits", others);
    table.add("netdev::stopped_while_it_waits", stopped);
    table.add("netdev::down_while_it_waits", down);
    table.add("netdev::deleted_while_it_waits", deleted);
    table.add("netdev::limit_is_checked", refused);
    table.add("front::sndbuf_makes_the_guest_wait", by_front);
}

fn limited(limit: u32) -> Result<Netdev> {
    Ok(Netdev {
        sndbuf: limit,
        ..netdev::wanted(NEAR)?
    })
}

/// On a device that lets out so much, of which up to 50 kB wait beside what the queue may have.
fn on(ctx: &Ctx, limit: u32, rate: &str) -> Result<Vmm> {
    let mut vmm = netdev::stopped(ctx, V1, "vt0")?;
    netdev::pair()?;
    vmm.wire = Wire::open(FAR)?;
    shape(rate)?;
    netdev::bind(&vmm, &limited(limit)?)?;
    Ok(vmm)
}

fn shape(rate: &str) -> Result<()> {
    let shape = [
        "qdisc", "replace", "dev", NEAR, "root", "tbf", "rate", rate, "burst", "5k", "limit", "50k",
    ];
    tool("tc", &shape)
}

fn send(vmm: &mut Vmm) -> Result<Vec<Vec<u8>>> {
    let mut frames = Vec::new();
    for _ in 0..COUNT {
        let frame = vmm.tx_frames.plain(1000);
        vmm.queue_tx(&NetHdr::default(), &frame, &Split::HeaderAlone)?;
        frames.push(frame);
    }
    vmm.tx.flush()?;
    Ok(frames)
}

/// Some of what was sent is not taken yet.
fn is_waiting(vmm: &mut Vmm) -> Result<()> {
    vmm.tx.wait_used()?;
    std::thread::sleep(Duration::from_millis(50));
    let used = vmm.tx.ring.used_idx();
    ensure!(
        usize::from(used) < COUNT - 10,
        "{used} of {COUNT} were taken at once"
    );
    Ok(())
}

/// Each frame arrives once. Not always in order: the discipline sends from more than one CPU, and each
/// has a queue of its own for what the veth pair receives.
fn all_arrive(vmm: &mut Vmm, frames: &[Vec<u8>]) -> Result<()> {
    arrive(&vmm.wire, frames.iter().map(Vec::as_slice).collect())?;
    poll::wait_for("all chains", || {
        vmm.tx.drain_some()?;
        Ok((vmm.tx.pending() == 0).then_some(()))
    })
}

/// These arrive, each once, and no others before the last of them.
pub(super) fn arrive(wire: &Wire, mut missing: HashSet<&[u8]>) -> Result<()> {
    while !missing.is_empty() {
        let (_, frame) = wire
            .recv()
            .with_context(|| format!("{} frames are missing", missing.len()))?;
        ensure!(missing.remove(frame.as_slice()), "an unknown frame");
    }
    Ok(())
}

fn waits(ctx: &Ctx) -> Result<()> {
    let mut vmm = on(ctx, LIMIT, "1mbit")?;
    vmm.post_rx(8, &[2048])?;
    let began = Instant::now();
    let frames = send(&mut vmm)?;
    is_waiting(&mut vmm)?;
    // The other direction goes on.
    vmm.check_rx(100)?;
    all_arrive(&mut vmm, &frames)?;
    let took = began.elapsed();
    ensure!(
        took > Duration::from_millis(600),
        "it took no more than {took:?}"
    );
    expect("dropped by the device", net::counters(NEAR)?.tx_dropped, 0)?;
    vmm.check_quiet()
}

fn drops(ctx: &Ctx) -> Result<()> {
    let mut vmm = on(ctx, 0, "200kbit")?;
    send(&mut vmm)?;
    vmm.tx.drain()?;
    let mut passed = 0;
    while poll::readable(&vmm.wire, Duration::from_millis(300))? {
        vmm.wire.recv()?;
        passed += 1;
    }
    ensure!(
        (10..COUNT - 10).contains(&passed),
        "{passed} of {COUNT} passed"
    );
    Ok(())
}

fn tc(object: &str, what: &str, rest: &str) -> Result<()> {
    let mut words = vec![object, what, "dev", NEAR];
    words.extend(rest.split(' '));
    tool("tc", &words)
}

/// Two queues of one device, which lets out the first one's packets at a trickle.
fn others(ctx: &Ctx) -> Result<()> {
    let mut vmm = netdev::stopped(ctx, V1, "vt0")?;
    let mut other = netdev::stopped(ctx, V1, "vt1")?;
    netdev::pair()?;
    let far = Wire::open(FAR)?;
    tc("qdisc", "add", "root handle 1: htb default 1")?;
    let class = |what, id, rate| {
        let rest = format!("parent 1: classid 1:{id} htb rate {rate} quantum 1514");
        tc("class", what, &rest)
    };
    class("add", 1, "8kbit")?;
    class("add", 2, "1gbit")?;
    tc(
        "filter",
        "add",
        "parent 1: protocol ip matchall classid 1:2",
    )?;
    for vmm in [&vmm, &other] {
        netdev::bind(vmm, &limited(LIMIT)?)?;
    }
    let slow = send(&mut vmm)?;
    is_waiting(&mut vmm)?;
    let mut missing: HashSet<&[u8]> = slow.iter().map(Vec::as_slice).collect();
    // More than its ring and its limit hold.
    for round in 0..10 {
        let mut fast = HashSet::new();
        for _ in 0..COUNT {
            let frame = other.tx_frames.udp4(1000, 1, 2);
            other.queue_tx(&NetHdr::default(), &frame, &Split::HeaderAlone)?;
            fast.insert(frame);
        }
        other.tx.flush()?;
        // Not always in order: see `all_arrive`.
        while !fast.is_empty() {
            let (_, frame) = far
                .recv()
                .with_context(|| format!("round {round}, {} to come", fast.len()))?;
            ensure!(
                fast.remove(&frame) || missing.remove(frame.as_slice()),
                "an unknown frame"
            );
        }
        other.tx.drain()?;
    }
    let used = usize::from(vmm.tx.ring.used_idx());
    ensure!(used < COUNT - 10, "{used} of {COUNT} were taken meanwhile");
    class("change", 1, "1gbit")?;
    arrive(&far, missing)?;
    vmm.tx.drain()?;
    expect("dropped by the device", net::counters(NEAR)?.tx_dropped, 0)
}

/// What was not taken yet is there for the next start.
fn stopped(ctx: &Ctx) -> Result<()> {
    let mut vmm = on(ctx, LIMIT, "1mbit")?;
    let frames = send(&mut vmm)?;
    is_waiting(&mut vmm)?;
    vmm.stop()?;
    netdev::bind(&vmm, &limited(LIMIT)?)?;
    all_arrive(&mut vmm, &frames)?;
    vmm.check_quiet()
}

/// A device that is down drops what it has, and all that comes.
fn down(ctx: &Ctx) -> Result<()> {
    let mut vmm = on(ctx, LIMIT, "8kbit")?;
    vmm.post_rx(8, &[2048])?;
    send(&mut vmm)?;
    is_waiting(&mut vmm)?;
    net::set_up(NEAR, false)?;
    vmm.tx.drain()?;
    tool("tc", &["qdisc", "del", "dev", NEAR, "root"])?;
    netdev_changes::up_again()?;
    vmm.wire.drain()?;
    vmm.check_alive()
}

fn deleted(ctx: &Ctx) -> Result<()> {
    let mut vmm = on(ctx, LIMIT, "8kbit")?;
    send(&mut vmm)?;
    is_waiting(&mut vmm)?;
    net::delete(NEAR)?;
    netdev::gone(&mut vmm)
}

fn refused(ctx: &Ctx) -> Result<()> {
    let vmm = on(ctx, 0, "1mbit")?;
    let bad = netdev::set(&vmm, &limited(1 << 31)?);
    expect("a limit of 2^31", bad, Err(Errno(libc::EINVAL)))
}

fn by_front(ctx: &Ctx) -> Result<()> {
    let mut vmm = netdev::stopped(ctx, V1, "vt0")?;
    netdev::pair()?;
    vmm.wire = Wire::open(FAR)?;
    shape("1mbit")?;
    let file = front::on(NEAR, front::ONE)?;
    Raw::of(&file)
        .put(tun::SETSNDBUF, &(LIMIT as i32))
        .context("TUNSETSNDBUF")?;
    vmm.set_backend(crate::device::RX, Some(&file))?;
    vmm.set_backend(crate::device::TX, Some(&file))?;
    let frames = send(&mut vmm)?;
    is_waiting(&mut vmm)?;
    all_arrive(&mut vmm, &frames)?;
    // Who waits hears of a limit that is lifted.
    shape("8kbit")?;
    send(&mut vmm)?;
    is_waiting_again(&mut vmm)?;
    Raw::of(&file)
        .put(tun::SETSNDBUF, &i32::MAX)
        .context("TUNSETSNDBUF")?;
    expect("chains given back", vmm.tx.drain()?.len() > 50, true)
}

/// The same when as many were sent before.
fn is_waiting_again(vmm: &mut Vmm) -> Result<()> {
    std::thread::sleep(Duration::from_millis(100));
    let used = usize::from(vmm.tx.ring.used_idx());
    ensure!(
        used < 2 * COUNT - 10,
        "{used} of {} were taken at once",
        2 * COUNT
    );
    Ok(())
}
