// SPDX-License-Identifier: GPL-2.0

//! What a queue may run on: MacVTap, packet sockets, TAPs without a header;
//! and what happens to it meanwhile.

use std::os::fd::AsRawFd;
use std::time::Duration;
use std::time::Instant;

use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;
use vhost::net::VhostNet;

use super::netdev::tool;
use super::netdev_waits::arrive;
use crate::better;
use crate::case::skip;
use crate::case::Ctx;
use crate::case::Module;
use crate::case::Table;
use crate::device::feature;
use crate::device::RX;
use crate::device::TX;
use crate::frame::compare;
use crate::frame::NetHdr;
use crate::net;
use crate::net::Vtap;
use crate::poll;
use crate::tap::Tap;
use crate::tap::TapOptions;
use crate::traffic::expect;
use crate::traffic::Split;
use crate::virtqueue::Mode;
use crate::virtqueue::Virtqueue;
use crate::vmm::Setup;
use crate::vmm::Vmm;
use crate::wire::Wire;

const V1: u64 = feature::VERSION_1;
/// Our end of a pair of interfaces, and the far end.
const NEAR: &str = "near";
const FAR: &str = "far";

pub(super) fn register(table: &mut Table) {
    for (name, sndbuf) in [("", i32::MAX), ("_with_finite_sndbuf", 1 << 16)] {
        table.add(
            format!("backend::macvtap_carries_traffic{name}"),
            move |ctx| macvtap_traffic(ctx, sndbuf),
        );
    }
    table.add("backend::macvtap_legacy_header_carries_traffic", |ctx| {
        let mut vmm = on_macvtap(ctx, 0, i32::MAX)?;
        sizes(&mut vmm)
    });
    table.add("backend::ipvtap_carries_traffic", ipvtap);
    table.add("backend::macvtap_deleted_swallows_packets", macvtap_deleted);
    table.add("backend::macvtap_down_and_up_resumes", macvtap_down);
    for (name, bits) in [
        ("legacy", 0),
        ("version_1", V1),
        ("mergeable", V1 | feature::MRG_RXBUF),
    ] {
        table.add(
            format!("backend::packet_socket_without_header_{name}"),
            move |ctx| {
                let socket = |name: &str| Wire::headerless(name);
                on_socket(ctx, bits | feature::NET_HDR, socket)
            },
        );
        table.add(format!("backend::tap_without_header_{name}"), move |ctx| {
            let mut vmm = Setup::new().features(bits | feature::NET_HDR).build(ctx)?;
            sizes(&mut vmm)
        });
    }
    table.add("backend::packet_socket_with_legacy_header", |ctx| {
        on_socket(ctx, 0, Wire::open)
    });
    table.add("backend::rx_on_a_tap_and_tx_on_a_packet_socket", mixed);
    table.add(
        "backend::packet_socket_whose_device_is_full_sends_all",
        full_device,
    );
    table.add_better(
        "backend::packet_socket_behind_a_filter_that_drops_goes_on",
        better::TX_FILTERED,
        |ctx| match ctx.module {
            Module::C => skip(better::TX_FILTERED.c),
            Module::Rust => filtered(ctx),
        },
    );
    for (name, bits) in [("guest", 2), ("host", 8)] {
        table.add(
            format!("backend::tunnel_bit_of_the_{name}_makes_headers_24_bytes"),
            move |ctx| tunnel(ctx, V1, bits),
        );
    }
    table.add(
        "backend::tunnel_header_without_a_header_of_the_tap",
        |ctx| tunnel(ctx, V1 | feature::NET_HDR, 2 | 8),
    );
    table.add("backend::ring_reset_while_the_other_runs", ring_reset);
    table.add("backend::tap_ring_resized_under_traffic", resized);
}

/// Packets of all kinds of sizes, both ways.
fn sizes(vmm: &mut Vmm) -> Result<()> {
    vmm.post_rx(60, &[2048])?;
    for len in [60, 61, 1000, 1514] {
        vmm.check_tx(len, &Split::Whole)?;
        vmm.check_tx(len, &Split::HeaderAlone)?;
        let received = vmm.check_rx(len)?;
        vmm.repost(&received)?;
    }
    let mut frames = Vec::new();
    for _ in 0..100 {
        let frame = vmm.tx_frames.plain(300);
        vmm.queue_tx(&NetHdr::default(), &frame, &Split::Whole)?;
        frames.push(frame);
    }
    vmm.tx.flush()?;
    for frame in &frames {
        vmm.expect_on_wire(frame)?;
    }
    vmm.tx.drain()?;
    vmm.check_quiet()
}

/// A pair of interfaces that are up.
fn pair() -> Result<()> {
    net::add_veth(NEAR, FAR)?;
    net::set_up(NEAR, true)?;
    net::set_up(FAR, true)
}

/// A machine on a MacVTap over one end of a pair; the wire is at the other.
fn on_macvtap(ctx: &Ctx, features: u64, sndbuf: i32) -> Result<Vmm> {
    on_vtap(ctx, Vtap::Mac, features, sndbuf)
}

fn on_vtap(ctx: &Ctx, kind: Vtap, features: u64, sndbuf: i32) -> Result<Vmm> {
    let mut vmm = Setup::new().features(features).stopped().build(ctx)?;
    pair()?;
    let options = TapOptions {
        header: vmm.hdr_len,
        sndbuf,
        ..TapOptions::default()
    };
    vmm.tap = Tap::open_vtap(kind, "mvt", NEAR, &options)?;
    vmm.wire = Wire::open(FAR)?;
    vmm.start()?;
    Ok(vmm)
}

fn macvtap_traffic(ctx: &Ctx, sndbuf: i32) -> Result<()> {
    let mut vmm = on_macvtap(ctx, V1, sndbuf)?;
    sizes(&mut vmm)?;
    vmm.stop()?;
    vmm.start()?;
    vmm.check_alive()
}

/// It forwards by IP addresses, of which our frames have none: those to
/// everybody come in.
fn ipvtap(ctx: &Ctx) -> Result<()> {
    let mut vmm = on_vtap(ctx, Vtap::Ip, V1, i32::MAX)?;
    vmm.post_rx(60, &[2048])?;
    for len in [60, 61, 1000, 1514] {
        vmm.check_tx(len, &Split::HeaderAlone)?;
        let mut frame = vmm.rx_frames.plain(len);
        frame[..6].fill(0xff);
        vmm.wire.send(&NetHdr::default(), &frame)?;
        let received = vmm.expect_in_guest(&frame)?;
        vmm.repost(&received)?;
    }
    vmm.stop()?;
    vmm.start()?;
    vmm.check_tx(60, &Split::Whole)?;
    vmm.check_quiet()
}

fn macvtap_deleted(ctx: &Ctx) -> Result<()> {
    let mut vmm = on_macvtap(ctx, V1, i32::MAX)?;
    vmm.post_rx(10, &[2048])?;
    vmm.check_alive()?;
    net::delete("mvt")?;
    for _ in 0..10 {
        let frame = vmm.tx_frames.plain(60);
        vmm.queue_tx(&NetHdr::default(), &frame, &Split::Whole)?;
    }
    vmm.tx.flush_and_kick()?;
    vmm.tx.drain()?;
    vmm.stop()?;
    vmm.wire.expect_silence()
}

fn macvtap_down(ctx: &Ctx) -> Result<()> {
    let mut vmm = on_macvtap(ctx, V1, i32::MAX)?;
    vmm.post_rx(20, &[2048])?;
    vmm.check_alive()?;
    net::set_up("mvt", false)?;
    let frame = vmm.tx_frames.plain(60);
    vmm.queue_tx(&NetHdr::default(), &frame, &Split::Whole)?;
    vmm.tx.flush_and_kick()?;
    net::set_up("mvt", true)?;
    vmm.tx.drain()?;
    while vmm.wire.try_recv()?.is_some() {}
    vmm.check_alive()
}

fn on_socket(ctx: &Ctx, features: u64, open: fn(&str) -> Result<Wire>) -> Result<()> {
    sizes(&mut on_pair(ctx, features, open)?)
}

/// Both queues on a packet socket on one end of a pair; the wire is the other end.
fn on_pair(ctx: &Ctx, features: u64, open: fn(&str) -> Result<Wire>) -> Result<Vmm> {
    let mut vmm = Setup::new().features(features).stopped().build(ctx)?;
    pair()?;
    let socket = open(NEAR)?;
    vmm.wire = Wire::open(FAR)?;
    let raw = vmm.vhost.raw();
    for index in [0, 1] {
        let seen = raw.set_backend(index, socket.as_raw_fd());
        expect("SET_BACKEND", seen, Ok(0))?;
    }
    Ok(vmm)
}

/// To a packet socket a filter says what a full device says. What it drops is not waited for, and
/// what comes when it is gone is sent.
fn filtered(ctx: &Ctx) -> Result<()> {
    let mut vmm = on_pair(ctx, V1 | feature::NET_HDR, Wire::headerless)?;
    tool("tc", &["qdisc", "add", "dev", NEAR, "clsact"])?;
    tool(
        "tc",
        &[
            "filter", "add", "dev", NEAR, "egress", "matchall", "action", "drop",
        ],
    )?;
    for _ in 0..20 {
        let dropped = vmm.tx_frames.plain(100);
        vmm.queue_tx(&NetHdr::default(), &dropped, &Split::Whole)?;
    }
    vmm.tx.flush()?;
    let mut used = 0;
    poll::wait_at_most(Duration::from_secs(20), "the chains", || {
        used += vmm.tx.drain()?.len();
        Ok((used == 20).then_some(()))
    })?;
    tool("tc", &["qdisc", "del", "dev", NEAR, "clsact"])?;
    for _ in 0..3 {
        vmm.check_tx(200, &Split::Whole)?;
    }
    vmm.post_rx(1, &[2048])?;
    vmm.check_rx(100)?;
    vmm.check_quiet()
}

/// The discipline takes three packets, lets them out at 8 Mbit/s, and says ENOBUFS to others: these
/// are tried again. They come in any order, as it sends from more than one CPU.
fn full_device(ctx: &Ctx) -> Result<()> {
    let mut vmm = on_pair(ctx, V1 | feature::NET_HDR, Wire::headerless)?;
    let shape = [
        "qdisc", "replace", "dev", NEAR, "root", "tbf", "rate", "8mbit", "burst", "2k", "limit",
        "3500",
    ];
    tool("tc", &shape)?;
    vmm.post_rx(8, &[2048])?;
    let began = Instant::now();
    let mut frames = Vec::new();
    for _ in 0..60 {
        let frame = vmm.tx_frames.plain(1000);
        vmm.queue_tx(&NetHdr::default(), &frame, &Split::Whole)?;
        frames.push(frame);
    }
    vmm.tx.flush()?;
    // The other direction goes on.
    vmm.check_rx(100)?;
    arrive(&vmm.wire, frames.iter().map(Vec::as_slice).collect())?;
    let took = began.elapsed();
    ensure!(
        took > Duration::from_millis(40),
        "the device was never full: it took {took:?}"
    );
    expect("chains given back", vmm.tx.drain()?.len(), frames.len())?;
    vmm.check_quiet()
}

fn mixed(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new().features(feature::NET_HDR).build(ctx)?;
    pair()?;
    let socket = Wire::headerless(NEAR)?;
    let far = Wire::open(FAR)?;
    let seen = vmm.vhost.raw().set_backend(1, socket.as_raw_fd());
    expect("SET_BACKEND", seen, Ok(0))?;
    vmm.post_rx(20, &[2048])?;
    for _ in 0..10 {
        let received = vmm.check_rx(500)?;
        vmm.repost(&received)?;
        let frame = vmm.tx_frames.plain(500);
        vmm.queue_tx(&NetHdr::default(), &frame, &Split::HeaderAlone)?;
        vmm.tx.flush()?;
        let (_, seen) = far.recv()?;
        compare("frame of the socket", &seen, &frame)?;
        vmm.tx.wait_used()?;
    }
    vmm.check_quiet()
}

fn tunnel(ctx: &Ctx, features: u64, more: u64) -> Result<()> {
    let mut vmm = Setup::new()
        .features(features)
        .more_features(more)
        .build(ctx)?;
    expect("header", vmm.hdr_len, 24)?;
    sizes(&mut vmm)
}

/// What QEMU does for one queue of a guest that resets it (RING_RESET).
fn ring_reset(ctx: &Ctx) -> Result<()> {
    const RING_RESET: u64 = 1 << 40;
    for (name, index) in [("vt0", TX), ("vt1", RX)] {
        let mut vmm = Setup::new()
            .features(V1 | RING_RESET)
            .tap_name(name)
            .build(ctx)?;
        vmm.post_rx(20, &[2048])?;
        vmm.check_alive()?;
        for size in [16, 1024, 256] {
            vmm.stop_queue(index)?;
            vmm.base(index)?;
            // The other ring runs on.
            match index {
                TX => {
                    let received = vmm.check_rx(60)?;
                    vmm.repost(&received)?;
                }
                _ => vmm.check_tx(60, &Split::Whole)?,
            }
            let fresh = Virtqueue::new(&vmm.mem, size, Mode::default(), 0, 0)?;
            match index {
                TX => vmm.tx = fresh,
                _ => vmm.rx = fresh,
            }
            vmm.configure_queue(index, 0)?;
            let tap = vmm.tap.file();
            vmm.vhost.set_backend(index, Some(tap))?;
            if index == RX {
                vmm.post_rx(10, &[2048])?;
            }
            for _ in 0..20 {
                vmm.check_alive()
                    .with_context(|| format!("ring {index} of {size}"))?;
            }
        }
    }
    Ok(())
}

/// What is in the ring when it is resized stays in it, as far as there is room.
fn resized(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new().build(ctx)?;
    vmm.post_rx(200, &[2048])?;
    let name = vmm.tap.name().to_owned();
    for round in 0..30 {
        let mut frames = Vec::new();
        for i in 0..40 {
            frames.push(vmm.send_rx(100)?);
            if i % 10 == round % 10 {
                net::set_queue_len(&name, [100, 1000, 500][i as usize % 3])?;
            }
        }
        for frame in &frames {
            let received = vmm.expect_in_guest(frame)?;
            vmm.repost(&received)?;
        }
    }
    ensure!(poll::take_signals(&vmm.rx.err) == 0, "err was signalled");
    vmm.check_alive()
}
