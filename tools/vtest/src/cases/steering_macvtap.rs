// SPDX-License-Identifier: GPL-2.0

//! Several queue pairs on the queues of one MacVTap, which are steered when somebody asks for it.

use std::time::Duration;

use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;

use super::netdev;
use super::netdev::tool;
use super::netdev::FAR;
use super::netdev::NEAR;
use super::steering::flow;
use super::steering::Port;
use crate::case::skip;
use crate::case::Ctx;
use crate::case::Module;
use crate::case::Table;
use crate::device::feature;
use crate::errno::Errno;
use crate::frame::NetHdr;
use crate::ioctl;
use crate::ioctl::Rss;
use crate::net;
use crate::net::Mode;
use crate::net::Vtap;
use crate::poll;
use crate::tap::Tap;
use crate::tap::TapOptions;
use crate::traffic::expect;
use crate::vmm::Setup;
use crate::vmm::Vmm;
use crate::wire::Wire;

const DEVICE: &str = "mvt";
const V1: u64 = feature::VERSION_1;

pub(super) fn register(table: &mut Table) {
    table.add("macvtap::distributes_itself_if_left_alone", left_alone);
    table.add(
        "steering::macvtap_is_steered_once_it_is_asked_for",
        asked_for,
    );
    table.add("steering::ipvtap_is_steered", |ctx| {
        let mut port = on(ctx, Vtap::Ip, 3, V1)?;
        // It receives what is for its address.
        tool("ip", &["address", "add", "192.0.2.1/32", "dev", DEVICE])?;
        steer(&port)?;
        spread_by(&mut port, &[2, 0, 1, 1])
    });
    table.add(
        "steering::macvtap_detached_queue_leaves_its_flows_to_others",
        detached,
    );
    table.add("steering::macvtap_reports_no_hash_of_others", unhashed);
    table.add("steering::macvtap_filters_come_first", filtered);
    table.add_long(
        "steering::macvtap_closed_under_load",
        Duration::from_secs(300),
        closed,
    );
    table.add("steering::macvtap_deleted_under_load", deleted);
}

/// Queue pairs that are steered, on a MacVTap whose readers take no offloads.
pub(super) fn steered(ctx: &Ctx, count: usize, features: u64) -> Result<Port> {
    let port = on(ctx, Vtap::In(Mode::Bridge), count, features)?;
    port.pairs[0].tap.set_offloads(0)?;
    steer(&port)?;
    Ok(port)
}

/// Asks for it, and changes nothing.
fn steer(port: &Port) -> Result<()> {
    port.set(|_| {}).context("RVHOST_NET_SET_RSS")?;
    Ok(())
}

fn on(ctx: &Ctx, kind: Vtap, count: usize, features: u64) -> Result<Port> {
    if ctx.module == Module::C {
        return skip("C vhost_net steers nothing");
    }
    on_any(ctx, kind, count, features)
}

/// Queue pairs on a MacVTap that distributes packets itself.
pub(super) fn unsteered(ctx: &Ctx, count: usize, features: u64) -> Result<Port> {
    on(ctx, Vtap::In(Mode::Bridge), count, features)
}

fn on_any(ctx: &Ctx, kind: Vtap, count: usize, features: u64) -> Result<Port> {
    let mut pairs = Vec::new();
    for i in 0..count {
        let mut vmm = Setup::new()
            .features(features)
            .tap_name(&format!("vt{i}"))
            .stopped()
            .build(ctx)?;
        if i == 0 {
            netdev::pair()?;
        }
        let options = TapOptions {
            header: vmm.hdr_len,
            ..TapOptions::default()
        };
        vmm.tap = match i {
            0 => Tap::open_vtap(kind, DEVICE, NEAR, &options)?,
            _ => Tap::open_vtap_queue(DEVICE, &options)?,
        };
        vmm.post_rx(250, &[256])?;
        vmm.start()?;
        pairs.push(vmm);
    }
    let far = Wire::open(FAR)?;
    Ok(Port { pairs, far })
}

fn flows(count: u32) -> Vec<Vec<u8>> {
    (0..count).map(flow).collect()
}

/// Flows go where the table has them go.
fn spread_by(port: &mut Port, entries: &[u16]) -> Result<()> {
    port.set_table(entries)?;
    let at = port.carry(&flows(100))?;
    for &queue in entries {
        ensure!(
            at.contains(&usize::from(queue)),
            "queue {queue} had none of {at:?}"
        );
    }
    let carried: u64 = port.get()?.carried.iter().sum();
    ensure!(carried >= 100, "only {carried} packets were counted");
    Ok(())
}

fn left_alone(ctx: &Ctx) -> Result<()> {
    let mut port = on_any(ctx, Vtap::In(Mode::Bridge), 4, V1)?;
    let at = port.carry(&flows(200))?;
    expect(
        "queues the second time",
        port.carry(&flows(200))?,
        at.clone(),
    )?;
    for queue in 0..4 {
        ensure!(at.contains(&queue), "queue {queue} had none");
    }
    if ctx.module == Module::Rust {
        let nowhere = Err(Errno(libc::ENOTCONN));
        let raw = port.pairs[0].vhost.raw();
        let got = raw.get(ioctl::RVHOST_NET_GET_RSS(), &mut Rss::none());
        expect("RVHOST_NET_GET_RSS", got, nowhere)?;
        let moved = raw.put(ioctl::RVHOST_NET_REBALANCE(), &1u32);
        expect("RVHOST_NET_REBALANCE", moved, nowhere)?;
    }
    Ok(())
}

fn asked_for(ctx: &Ctx) -> Result<()> {
    let mut port = on(ctx, Vtap::In(Mode::Bridge), 4, V1)?;
    let bad = port.set(|rss| rss.reserved = 1);
    expect("a setting that is refused", bad, Err(Errno(libc::EINVAL)))?;
    let raw = port.pairs[0].vhost.raw();
    let moved = raw.put(ioctl::RVHOST_NET_REBALANCE(), &1u32);
    expect("still the device's", moved, Err(Errno(libc::ENOTCONN)))?;
    // What its own hash would never do.
    spread_by(&mut port, &[3])?;
    let at = port.carry(&flows(100))?;
    expect("queues", at, vec![3; 100])?;
    for (stopped, left) in [(3, 0), (0, 1)] {
        port.pairs[stopped].stop()?;
        expect("queues", port.carry(&flows(50))?, vec![left; 50])?;
    }
    // The last one that leaves leaves it to the device again.
    for vmm in &port.pairs {
        vmm.stop()?;
    }
    port.pairs[1].start()?;
    let raw = port.pairs[1].vhost.raw();
    let got = raw.get(ioctl::RVHOST_NET_GET_RSS(), &mut Rss::none());
    expect("settings", got, Err(Errno(libc::ENOTCONN)))
}

fn detached(ctx: &Ctx) -> Result<()> {
    let mut port = steered(ctx, 4, V1)?;
    port.set_table(&[2])?;
    expect("queues", port.carry(&flows(50))?, vec![2; 50])?;
    // The device numbers its queues anew.
    port.pairs[0].tap.attach(false)?;
    expect("queues", port.carry(&flows(50))?, vec![2; 50])?;
    port.pairs[2].tap.attach(false)?;
    expect("without it", port.carry(&flows(50))?, vec![1; 50])?;
    port.pairs[2].tap.attach(true)?;
    expect("with it", port.carry(&flows(50))?, vec![2; 50])
}

/// What came by while nobody hashed has no hash, whatever else is in its place.
fn unhashed(ctx: &Ctx) -> Result<()> {
    let features = V1 | feature::HASH_REPORT;
    let mut port = on(ctx, Vtap::In(Mode::Bridge), 2, features)?;
    let vmm = &mut port.pairs[0];
    // Packets wait in the device's ring while the queues are stopped.
    vmm.stop()?;
    port.pairs[1].stop()?;
    let frame = port.pairs[0].rx_frames.plain(100);
    port.far.send(&NetHdr::default(), &frame)?;
    port.far.send(&NetHdr::default(), &flow(1))?;
    // From here on it is hashed, as the guest wants it reported.
    for vmm in &port.pairs {
        vmm.start()?;
    }
    port.far.send(&NetHdr::default(), &flow(1))?;
    let mut hashes = Vec::new();
    for _ in 0..3 {
        hashes.push(next_hash(&mut port.pairs)?);
    }
    let hashed = hashes.iter().filter(|hash| hash.1 == 3).count();
    let blank = hashes.iter().filter(|hash| **hash == (0, 0)).count();
    expect("packets with a hash, and without", (hashed, blank), (1, 2))
}

fn next_hash(pairs: &mut [Vmm]) -> Result<(u32, u16)> {
    poll::wait_for("a packet on any queue", || {
        for vmm in pairs.iter_mut() {
            if vmm.rx.ring.used_idx() != vmm.rx.used_seen() {
                return vmm.recv()?.hash.context("no hash").map(Some);
            }
        }
        Ok(None)
    })
}

/// tc and nftables still see all packets, and drop them first.
fn filtered(ctx: &Ctx) -> Result<()> {
    let mut port = steered(ctx, 2, V1)?;
    port.set_table(&[1])?;
    tool("tc", &["qdisc", "add", "dev", DEVICE, "clsact"])?;
    let drop = [
        "filter", "add", "dev", DEVICE, "ingress", "protocol", "0x88b5", "matchall", "action",
        "drop",
    ];
    tool("tc", &drop)?;
    let before: u64 = port.get()?.carried.iter().sum();
    let dropped = port.pairs[0].rx_frames.plain(100);
    port.far.send(&NetHdr::default(), &dropped)?;
    expect("queues", port.carry(&flows(20))?, vec![1; 20])?;
    let after: u64 = port.get()?.carried.iter().sum();
    expect("packets counted", after - before, 20)
}

/// Sends to all and does not look what becomes of it.
fn load(port: &Port, count: u32) {
    for frame in flows(count) {
        // The far end may have gone with the near one.
        let _ = port.far.send(&NetHdr::default(), &frame);
    }
}

/// Machines end, one by one, while packets come.
fn closed(ctx: &Ctx) -> Result<()> {
    for _ in 0..ctx.rounds(1, 10) {
        let mut port = steered(ctx, 4, V1)?;
        while let Some(vmm) = port.pairs.pop() {
            load(&port, 60);
            drop(vmm);
        }
        load(&port, 20);
        drop(port);
        // Nobody holds it.
        net::delete(NEAR)?;
    }
    Ok(())
}

/// The device goes while packets come and are steered; its queue pairs work on another one.
fn deleted(ctx: &Ctx) -> Result<()> {
    let mut port = steered(ctx, 2, V1)?;
    for round in 0..ctx.rounds(2, 10) {
        load(&port, 60);
        net::delete(if round % 2 == 0 { DEVICE } else { NEAR })?;
        load(&port, 20);
        let gone = port.set(|_| {});
        expect("settings", gone, Err(Errno(libc::EBADFD)))?;
        for vmm in &port.pairs {
            vmm.stop()?;
            poll::take_signals(&vmm.rx.err);
        }
        if round % 2 == 0 {
            net::delete(NEAR)?;
        }
        netdev::pair()?;
        for (i, vmm) in port.pairs.iter_mut().enumerate() {
            let options = TapOptions {
                header: vmm.hdr_len,
                ..TapOptions::default()
            };
            vmm.tap = match i {
                0 => Tap::open_vtap(Vtap::In(Mode::Bridge), DEVICE, NEAR, &options)?,
                _ => Tap::open_vtap_queue(DEVICE, &options)?,
            };
            let came = vmm.rx.drain_some()?;
            vmm.post_rx(came, &[256])?;
            vmm.start()?;
        }
        port.far = Wire::open(FAR)?;
        steer(&port)?;
        port.set_table(&[1])?;
        expect("queues", port.carry(&flows(20))?, vec![1; 20])?;
    }
    Ok(())
}
