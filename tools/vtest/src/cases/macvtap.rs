// SPDX-License-Identifier: GPL-2.0

//! MacVTaps: whom their modes let a guest hear and be heard by, what they leave to the device
//! below, and what may happen meanwhile.

use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;

use super::netdev::same_offload;
use super::netdev::tool;
use crate::case::Ctx;
use crate::case::Module;
use crate::case::Table;
use crate::device::feature;
use crate::device::TX;
use crate::frame::compare;
use crate::frame::NetHdr;
use crate::frame::GUEST_MAC;
use crate::frame::NEEDS_CSUM;
use crate::net;
use crate::net::Mode;
use crate::net::Vtap;
use crate::poll;
use crate::tap::Tap;
use crate::tap::TapOptions;
use crate::traffic::expect;
use crate::traffic::Split;
use crate::vmm::Setup;
use crate::vmm::Vmm;
use crate::wire::Wire;

const V1: u64 = feature::VERSION_1;
/// The device below, and the far end of what it is connected to.
const NEAR: &str = "near";
const FAR: &str = "far";
/// The guest's device, and somebody else's on the same device.
const OURS: &str = "mvt";
const THEIRS: &str = "peer";
const THEIR_MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];
const EVERYBODY: [u8; 6] = [0xff; 6];
/// One that leaves packets no choice of ways, and one that may.
const BOTH: &[Mode] = &[Mode::Vepa, Mode::Bridge];

pub(super) fn register(table: &mut Table) {
    for mode in [Mode::Bridge, Mode::Vepa, Mode::Private, Mode::Passthru] {
        let name = format!("{mode:?}").to_lowercase();
        table.add(format!("macvtap::{name}_carries_traffic"), move |ctx| {
            let mut vmm = on(ctx, mode, V1)?;
            sizes(&mut vmm)
        });
        table.add(format!("macvtap::{name}_keeps_order"), move |ctx| {
            let mut vmm = on(ctx, mode, V1)?;
            order(&mut vmm)
        });
        table.add(
            format!("macvtap::{name}_leaves_offloads_as_they_are"),
            move |ctx| offloads(ctx, mode),
        );
        if mode != Mode::Passthru {
            table.add(format!("macvtap::{name}_is_heard_by"), move |ctx| {
                heard(ctx, mode)
            });
        }
    }
    table.add("macvtap::passthru_hears_all_there_is", passthru);
    table.add("macvtap::bridge_hears_what_it_sends_itself", to_itself);
    table.add("macvtap::ipvtap_keeps_order", |ctx| {
        order(&mut on_vtap(ctx, Vtap::Ip, V1)?)
    });
    for (name, qdisc) in [
        ("pfifo_fast", &["pfifo_fast"][..]),
        ("pfifo", &["pfifo", "limit", "5000"]),
    ] {
        table.add(format!("macvtap::order_behind_{name}"), move |ctx| {
            behind(ctx, qdisc)
        });
    }
    table.add("macvtap::shaping_below_is_obeyed", shaped);
    for name in [OURS, NEAR] {
        table.add(format!("macvtap::tc_on_{name}_is_obeyed"), move |ctx| {
            tc(ctx, name)
        });
    }
    table.add("macvtap::checksums_where_the_device_cannot", software);
    table.add("macvtap::malformed_headers_are_dropped", malformed);
    table.add("macvtap::counts_what_it_sends", counted);
    table.add("macvtap::deleted_under_load", deleted);
    table.add("macvtap::device_below_deleted_under_load", below_deleted);
    table.add("macvtap::mode_changed_under_load", changed);
}

/// A machine on a MacVTap of this mode; the wire is at the far end.
fn on(ctx: &Ctx, mode: Mode, features: u64) -> Result<Vmm> {
    on_vtap(ctx, Vtap::In(mode), features)
}

fn on_vtap(ctx: &Ctx, kind: Vtap, features: u64) -> Result<Vmm> {
    let mut vmm = Setup::new().features(features).stopped().build(ctx)?;
    again(&mut vmm, kind)?;
    Ok(vmm)
}

/// Does `f` on one of each of these modes.
fn each(ctx: &Ctx, modes: &[Mode], mut f: impl FnMut(&mut Vmm) -> Result<()>) -> Result<()> {
    let mut vmm = Setup::new().features(V1).stopped().build(ctx)?;
    for &mode in modes {
        again(&mut vmm, Vtap::In(mode))?;
        f(&mut vmm).with_context(|| format!("mode {mode:?}"))?;
        vmm.stop()?;
        net::delete(NEAR)?;
    }
    Ok(())
}

/// Puts the machine on a new one.
fn again(vmm: &mut Vmm, kind: Vtap) -> Result<()> {
    net::add_veth(NEAR, FAR)?;
    for name in [NEAR, FAR] {
        net::set_mtu(name, 9000)?;
        net::set_up(name, true)?;
    }
    let options = TapOptions {
        header: vmm.hdr_len,
        ..TapOptions::default()
    };
    vmm.tap = Tap::open_vtap(kind, OURS, NEAR, &options)?;
    vmm.wire = Wire::open(FAR)?;
    vmm.start()
}

fn sizes(vmm: &mut Vmm) -> Result<()> {
    vmm.post_rx(64, &[9100])?;
    for len in [14, 15, 60, 61, 64, 65, 1000, 1514, 3300, 4084, 5000, 9014] {
        for split in [Split::Whole, Split::HeaderAlone, Split::Every(700)] {
            vmm.check_tx(len, &split)?;
        }
        let received = vmm.check_rx(len)?;
        vmm.repost(&received)?;
    }
    vmm.stop()?;
    vmm.start()?;
    vmm.check_alive()?;
    vmm.check_quiet()
}

/// Frames of all kinds, those for a batch and those that go alone.
fn order(vmm: &mut Vmm) -> Result<()> {
    for round in 0..5 {
        let mut frames = Vec::new();
        for i in 0..120 {
            let (hdr, frame) = match i % 8 {
                3 => vmm.tx_frames.tcp4(200 + 8 * i, 0),
                5 => vmm.tx_frames.tcp4(3000, 1448),
                6 if i % 3 == 0 => (NetHdr::default(), vmm.tx_frames.plain(5000)),
                7 => (NetHdr::default(), vmm.tx_frames.udp4(100, 7, 9)),
                _ => (NetHdr::default(), vmm.tx_frames.plain(60 + 8 * i)),
            };
            vmm.queue_tx(&hdr, &frame, &Split::HeaderAlone)?;
            frames.push(frame);
        }
        vmm.tx.flush()?;
        for (i, frame) in frames.iter().enumerate() {
            let (_, seen) = vmm.wire.recv()?;
            compare(&format!("frame {i} of round {round}"), &seen, frame)?;
        }
        expect("chains given back", vmm.tx.drain()?.len(), frames.len())?;
    }
    vmm.check_quiet()
}

fn behind(ctx: &Ctx, qdisc: &[&str]) -> Result<()> {
    each(ctx, BOTH, |vmm| {
        let replace = ["qdisc", "replace", "dev", NEAR, "root"];
        tool("tc", &[&replace, qdisc].concat())?;
        order(vmm)?;
        tool("tc", &["qdisc", "del", "dev", NEAR, "root"])?;
        order(vmm)
    })
}

fn send(vmm: &mut Vmm, frame: &[u8]) -> Result<()> {
    vmm.queue_tx(&NetHdr::default(), frame, &Split::HeaderAlone)?;
    vmm.tx.flush()?;
    vmm.tx.wait_used()?;
    Ok(())
}

/// The next frame that is heard is this one.
fn hears(who: &str, wire: &Wire, frame: &[u8]) -> Result<()> {
    let (_, seen) = wire.recv().with_context(|| who.to_owned())?;
    compare(&format!("what {who} heard"), &seen, frame)
}

fn to(mac: [u8; 6], mut frame: Vec<u8>) -> Vec<u8> {
    frame[..6].copy_from_slice(&mac);
    frame
}

/// Who of a neighbour on the same device and the far end hears the guest, and whom the guest
/// hears. What is heard and should not be is noticed with the next frame.
fn heard(ctx: &Ctx, mode: Mode) -> Result<()> {
    let mut vmm = on(ctx, mode, V1)?;
    vmm.post_rx(64, &[2048])?;
    // Alone at first.
    for mac in [EVERYBODY, THEIR_MAC] {
        let frame = to(mac, vmm.tx_frames.plain(100));
        send(&mut vmm, &frame)?;
        hears("the far end", &vmm.wire, &frame)?;
    }
    net::add_macvlan_in(mode, NEAR, THEIRS, THEIR_MAC)?;
    net::set_up(THEIRS, true)?;
    let peer = Wire::open(THEIRS)?;
    for len in [60, 200, 1514] {
        let frame = to(THEIR_MAC, vmm.tx_frames.plain(len));
        send(&mut vmm, &frame)?;
        if mode == Mode::Bridge {
            hears("the neighbour", &peer, &frame)?;
        } else {
            hears("the far end", &vmm.wire, &frame)?;
        }
        let frame = to(EVERYBODY, vmm.tx_frames.plain(len));
        send(&mut vmm, &frame)?;
        hears("the far end", &vmm.wire, &frame)?;
        if mode == Mode::Bridge {
            hears("the neighbour", &peer, &frame)?;
        }
        // To whom nobody knows.
        vmm.check_tx(len, &Split::HeaderAlone)?;

        // The neighbour.
        let mut frame = vmm.rx_frames.plain(len);
        frame[6..12].copy_from_slice(&THEIR_MAC);
        peer.send(&NetHdr::default(), &frame)?;
        if mode == Mode::Bridge {
            vmm.expect_in_guest(&frame)?;
        } else {
            hears("the far end", &vmm.wire, &frame)?;
        }
        // The far end.
        vmm.check_rx(len)?;
        let frame = to(THEIR_MAC, vmm.rx_frames.plain(len));
        vmm.wire.send(&NetHdr::default(), &frame)?;
        hears("the neighbour", &peer, &frame)?;
        let frame = to(EVERYBODY, vmm.rx_frames.plain(len));
        vmm.wire.send(&NetHdr::default(), &frame)?;
        vmm.expect_in_guest(&frame)?;
        hears("the neighbour", &peer, &frame)?;
    }
    peer.expect_silence()?;
    vmm.check_quiet()
}

fn passthru(ctx: &Ctx) -> Result<()> {
    let mut vmm = on(ctx, Mode::Passthru, V1)?;
    vmm.post_rx(16, &[2048])?;
    ensure!(
        net::add_macvlan_in(Mode::Passthru, NEAR, THEIRS, THEIR_MAC).is_err(),
        "there are two"
    );
    for mac in [GUEST_MAC, THEIR_MAC, EVERYBODY] {
        let frame = to(mac, vmm.rx_frames.plain(300));
        vmm.wire.send(&NetHdr::default(), &frame)?;
        vmm.expect_in_guest(&frame)?;
        let frame = to(mac, vmm.tx_frames.plain(300));
        send(&mut vmm, &frame)?;
        hears("the far end", &vmm.wire, &frame)?;
    }
    vmm.check_quiet()
}

/// A frame to the guest's own address turns round at the device below.
fn to_itself(ctx: &Ctx) -> Result<()> {
    let mut vmm = on(ctx, Mode::Bridge, V1)?;
    vmm.post_rx(16, &[2048])?;
    for len in [60, 1514] {
        vmm.check_tx(len, &Split::HeaderAlone)?;
        let frame = to(GUEST_MAC, vmm.tx_frames.plain(len));
        send(&mut vmm, &frame)?;
        vmm.expect_in_guest(&frame)?;
        let (hdr, frame) = vmm.tx_frames.tcp4(len, 0);
        let frame = to(GUEST_MAC, frame);
        vmm.queue_tx(&hdr, &frame, &Split::HeaderAlone)?;
        vmm.tx.flush()?;
        vmm.tx.wait_used()?;
        compare("frame to itself", &vmm.recv()?.frame, &frame)?;
    }
    vmm.check_quiet()
}

/// Lengths and segment sizes; those up to a page go in batches.
const GSO: [(usize, u16); 6] = [
    (200, 0),
    (1514, 0),
    (2000, 1448),
    (3500, 500),
    (20_000, 1448),
    (65_000, 8948),
];

fn offloads(ctx: &Ctx, mode: Mode) -> Result<()> {
    let mut vmm = on(ctx, mode, V1 | feature::MRG_RXBUF)?;
    vmm.post_rx(100, &[4096])?;
    for (len, gso_size) in GSO {
        for split in [Split::Whole, Split::HeaderAlone] {
            let (hdr, frame) = vmm.tx_frames.tcp4(len, gso_size);
            vmm.queue_tx(&hdr, &frame, &split)?;
            vmm.tx.flush()?;
            let (seen, packet) = vmm.wire.recv()?;
            compare("frame from the guest", &packet, &frame)?;
            same_offload(&seen, &hdr).with_context(|| format!("from the guest, {len} bytes"))?;
            vmm.tx.wait_used()?;
        }
        let (hdr, frame) = vmm.rx_frames.tcp4(len, gso_size);
        vmm.wire.send(&hdr, &frame)?;
        let received = vmm.recv()?;
        compare("frame to the guest", &received.frame, &frame)?;
        same_offload(&received.hdr, &hdr).with_context(|| format!("to the guest, {len} bytes"))?;
        vmm.repost(&received)?;
    }
    vmm.check_quiet()
}

/// Whoever cannot sum or cut has it done before.
fn software(ctx: &Ctx) -> Result<()> {
    each(ctx, BOTH, |vmm| {
        tool("ethtool", &["-K", NEAR, "tx", "off", "tso", "off"])?;
        for _ in 0..3 {
            let (hdr, frame) = vmm.tx_frames.tcp4(1514, 0);
            vmm.queue_tx(&hdr, &frame, &Split::HeaderAlone)?;
            let (cut, big) = vmm.tx_frames.tcp4(54 + 2 * 1000, 1000);
            vmm.queue_tx(&cut, &big, &Split::HeaderAlone)?;
            vmm.tx.flush()?;
            let (seen, packet) = vmm.wire.recv()?;
            expect("left to be summed", seen.flags & NEEDS_CSUM, 0)?;
            compare("what is not summed", &packet[..50], &frame[..50])?;
            compare("payload", &packet[54..], &frame[54..])?;
            ensure!(packet[50..52] != frame[50..52], "the sum is as it was");
            for segment in 0..2 {
                let (seen, packet) = vmm.wire.recv()?;
                expect("left to be cut", seen.gso_type, 0)?;
                let from = 54 + 1000 * segment;
                compare("segment", &packet[54..], &big[from..from + 1000])?;
            }
            expect("chains given back", vmm.tx.drain()?.len(), 2)?;
        }
        vmm.check_quiet()
    })
}

fn malformed(ctx: &Ctx) -> Result<()> {
    each(ctx, BOTH, |vmm| {
        for len in [60, 2000] {
            let (good, frame) = vmm.tx_frames.tcp4(len, 1000);
            for hdr in [
                NetHdr {
                    gso_type: 0x55,
                    ..good
                },
                NetHdr {
                    csum_start: 4000 + len as u16,
                    ..good
                },
                NetHdr {
                    flags: 0,
                    gso_type: 3,
                    ..good
                },
                NetHdr {
                    gso_size: 0,
                    ..good
                },
            ] {
                if ctx.module == Module::C && hdr.csum_start != good.csum_start {
                    // It tries that packet again and again.
                    continue;
                }
                // Among others that are good.
                let before = vmm.tx_frames.plain(100);
                vmm.queue_tx(&NetHdr::default(), &before, &Split::HeaderAlone)?;
                vmm.queue_tx(&hdr, &frame, &Split::HeaderAlone)?;
                let after = vmm.tx_frames.plain(100);
                vmm.queue_tx(&NetHdr::default(), &after, &Split::HeaderAlone)?;
                vmm.tx.flush()?;
                expect("chains given back", vmm.tx.drain()?.len(), 3)?;
                vmm.expect_on_wire(&before)?;
                // Some make sense to the stack after all.
                while vmm.wire.recv()?.1 != after {}
            }
        }
        poll::take_signals(&vmm.tx.err);
        vmm.check_alive()
    })
}

/// Lets out no more than 1 Mbit/s, and 5 kB at once.
fn shaped(ctx: &Ctx) -> Result<()> {
    let mut vmm = on(ctx, Mode::Vepa, V1)?;
    let shape = [
        "qdisc", "replace", "dev", NEAR, "root", "tbf", "rate", "1mbit", "burst", "5k", "limit",
        "20k",
    ];
    tool("tc", &shape)?;
    for _ in 0..100 {
        let frame = vmm.tx_frames.plain(1000);
        vmm.queue_tx(&NetHdr::default(), &frame, &Split::HeaderAlone)?;
    }
    vmm.tx.flush()?;
    expect("chains given back", vmm.tx.drain()?.len(), 100)?;
    let mut passed = 0;
    while poll::readable(&vmm.wire, std::time::Duration::from_millis(300))? {
        vmm.wire.recv()?;
        passed += 1;
    }
    ensure!((10..60).contains(&passed), "{passed} of 100 frames passed");
    Ok(())
}

fn tc(ctx: &Ctx, name: &str) -> Result<()> {
    each(ctx, BOTH, |vmm| {
        for _ in 0..2 {
            vmm.check_tx(100, &Split::HeaderAlone)?;
            tool("tc", &["qdisc", "add", "dev", name, "clsact"])?;
            let drop = [
                "filter", "add", "dev", name, "egress", "protocol", "0x88b5", "matchall", "action",
                "drop",
            ];
            tool("tc", &drop)?;
            for len in [60, 1000, 5000] {
                let frame = vmm.tx_frames.plain(len);
                send(vmm, &frame)?;
            }
            let frame = vmm.tx_frames.udp4(100, 1, 2);
            send(vmm, &frame)?;
            hears("the far end", &vmm.wire, &frame)?;
            tool("tc", &["qdisc", "del", "dev", name, "clsact"])?;
        }
        vmm.check_quiet()
    })
}

/// Each is counted by the MacVTap and by the device below, once.
fn counted(ctx: &Ctx) -> Result<()> {
    each(ctx, BOTH, |vmm| {
        let before = [net::counters(OURS)?, net::counters(NEAR)?];
        for i in 0..100 {
            let len = if i % 10 == 0 { 5000 } else { 100 };
            let frame = vmm.tx_frames.plain(len);
            vmm.queue_tx(&NetHdr::default(), &frame, &Split::HeaderAlone)?;
        }
        vmm.tx.flush()?;
        expect("chains given back", vmm.tx.drain()?.len(), 100)?;
        vmm.fence(TX)?;
        for (name, before) in [OURS, NEAR].into_iter().zip(before) {
            let now = net::counters(name)?;
            let sent = (
                now.tx_packets - before.tx_packets,
                now.tx_bytes - before.tx_bytes,
            );
            expect(name, sent, (100, 90 * 100 + 10 * 5000))?;
        }
        Ok(())
    })
}

fn load(vmm: &mut Vmm, count: usize) -> Result<()> {
    for i in 0..count {
        let frame = vmm.tx_frames.plain(60 + 10 * i);
        vmm.queue_tx(&NetHdr::default(), &frame, &Split::HeaderAlone)?;
        let frame = vmm.rx_frames.plain(100);
        // The far end may have gone with the near one.
        let _ = vmm.wire.send(&NetHdr::default(), &frame);
    }
    vmm.tx.flush_and_kick()
}

/// Deletes `name` while packets go both ways, again and again.
fn deleted_while(ctx: &Ctx, name: &str) -> Result<()> {
    let mut vmm = Setup::new().features(V1).stopped().build(ctx)?;
    let modes = [Mode::Bridge, Mode::Vepa, Mode::Passthru];
    for mode in modes.repeat(ctx.rounds(1, 5) as usize) {
        again(&mut vmm, Vtap::In(mode))?;
        vmm.rx.drain_some()?;
        vmm.post_rx(64 - vmm.rx.pending().min(64), &[2048])?;
        load(&mut vmm, 60)?;
        net::delete(name)?;
        load(&mut vmm, 60)?;
        expect("chains given back", vmm.tx.drain()?.len(), 120)?;
        vmm.stop()?;
        if name == OURS {
            net::delete(NEAR)?;
        }
    }
    poll::take_signals(&vmm.tx.err);
    poll::take_signals(&vmm.rx.err);
    again(&mut vmm, Vtap::In(Mode::Vepa))?;
    vmm.check_tx(60, &Split::Whole)
}

fn deleted(ctx: &Ctx) -> Result<()> {
    deleted_while(ctx, OURS)
}

fn below_deleted(ctx: &Ctx) -> Result<()> {
    deleted_while(ctx, NEAR)
}

/// Neighbours come and go, and modes change: no frame to the far end is lost or overtakes another.
fn changed(ctx: &Ctx) -> Result<()> {
    let mut vmm = on(ctx, Mode::Vepa, V1)?;
    let mut frames = Vec::new();
    for round in 0..10 {
        for i in 0..100 {
            let frame = vmm.tx_frames.plain(60 + i);
            vmm.queue_tx(&NetHdr::default(), &frame, &Split::HeaderAlone)?;
            frames.push(frame);
        }
        vmm.tx.flush()?;
        match round % 4 {
            0 => tool(
                "ip",
                &["link", "set", OURS, "type", "macvtap", "mode", "bridge"],
            )?,
            1 => net::add_macvlan_in(Mode::Bridge, NEAR, THEIRS, THEIR_MAC)?,
            2 => net::delete(THEIRS)?,
            _ => tool(
                "ip",
                &["link", "set", OURS, "type", "macvtap", "mode", "vepa"],
            )?,
        }
        for frame in frames.drain(..) {
            vmm.expect_on_wire(&frame)?;
        }
        expect("chains given back", vmm.tx.drain()?.len(), 100)?;
    }
    vmm.check_quiet()
}
