// SPDX-License-Identifier: GPL-2.0

//! What filters and observes packets on the network device that queues run on, or below it.

use anyhow::ensure;
use anyhow::Result;

use super::netdev::bind;
use super::netdev::on_veth;
use super::netdev::stopped;
use super::netdev::tool;
use super::netdev::wanted;
use super::netdev::FAR;
use super::netdev::NEAR;
use super::netdev::V1;
use crate::bpf::Action;
use crate::bpf::Xdp;
use crate::case::Ctx;
use crate::case::Table;
use crate::device::RX;
use crate::frame::compare;
use crate::frame::NetHdr;
use crate::frame::GUEST_MAC;
use crate::net;
use crate::nft::DropAll;
use crate::nft::Hook;
use crate::traffic::expect;
use crate::traffic::Split;
use crate::wire::Wire;

pub(super) fn register(table: &mut Table) {
    table.add("netdev::tc_filters_both_ways", tc_filter);
    table.add("netdev::tc_mirrors_both_ways", tc_mirror);
    table.add("netdev::tc_polices_what_arrives", tc_police);
    table.add("netdev::nftables_hooks_filter_both_ways", nftables);
    table.add("netdev::xdp_on_the_lower_device_is_obeyed", xdp_below);
}

/// Has tc do something to frames with the test's ethertype on their way in, or out.
fn tc(way: &str, action: &[&str]) -> Result<()> {
    let filter = [
        "filter", "add", "dev", NEAR, way, "protocol", "0x88b5", "matchall", "action",
    ];
    tool("tc", &[&filter, action].concat())
}

fn tc_filter(ctx: &Ctx) -> Result<()> {
    let mut vmm = on_veth(ctx, V1, 0)?;
    vmm.post_rx(16, &[2048])?;
    tool("tc", &["qdisc", "add", "dev", NEAR, "clsact"])?;
    for way in ["ingress", "egress"] {
        tc(way, &["drop"])?;
    }
    for _ in 0..10 {
        let dropped = vmm.tx_frames.plain(100);
        vmm.queue_tx(&NetHdr::default(), &dropped, &Split::HeaderAlone)?;
        vmm.send_rx(100)?;
    }
    // Others are let through.
    let out = vmm.tx_frames.udp4(100, 1, 2);
    vmm.queue_tx(&NetHdr::default(), &out, &Split::HeaderAlone)?;
    vmm.tx.flush()?;
    vmm.expect_on_wire(&out)?;
    expect("chains given back", vmm.tx.drain()?.len(), 11)?;
    let coming = vmm.rx_frames.udp4(100, 1, 2);
    vmm.wire.send(&NetHdr::default(), &coming)?;
    vmm.expect_in_guest(&coming)?;
    vmm.check_quiet()
}

fn tc_mirror(ctx: &Ctx) -> Result<()> {
    let mut vmm = on_veth(ctx, V1, 0)?;
    vmm.post_rx(16, &[2048])?;
    net::add_veth("mirror", "seen")?;
    net::set_up("mirror", true)?;
    net::set_up("seen", true)?;
    let mirror = Wire::open("seen")?;
    tool("tc", &["qdisc", "add", "dev", NEAR, "clsact"])?;
    for way in ["ingress", "egress"] {
        tc(way, &["mirred", "egress", "mirror", "dev", "mirror"])?;
    }
    for len in [60, 1000, 1514] {
        let out = vmm.tx_frames.plain(len);
        vmm.queue_tx(&NetHdr::default(), &out, &Split::HeaderAlone)?;
        vmm.tx.flush()?;
        vmm.expect_on_wire(&out)?;
        vmm.tx.wait_used()?;
        compare("copy of what was sent", &mirror.recv()?.1, &out)?;
        let received = vmm.check_rx(len)?;
        compare("copy of what came", &mirror.recv()?.1, &received.frame)?;
    }
    mirror.expect_silence()?;
    vmm.check_quiet()
}

fn tc_police(ctx: &Ctx) -> Result<()> {
    let mut vmm = on_veth(ctx, V1, 0)?;
    vmm.post_rx(200, &[2048])?;
    tool("tc", &["qdisc", "add", "dev", NEAR, "clsact"])?;
    // A burst of 20 kB, and then next to nothing.
    tc(
        "ingress",
        &["police", "rate", "8kbit", "burst", "20k", "drop"],
    )?;
    let len = 1000;
    for _ in 0..100 {
        vmm.send_rx(len)?;
    }
    let marker = vmm.rx_frames.udp4(100, 1, 2);
    vmm.wire.send(&NetHdr::default(), &marker)?;
    let mut passed = 0;
    while vmm.recv()?.frame != marker {
        passed += 1;
    }
    ensure!(
        (10..50).contains(&passed),
        "{passed} of 100 frames of {len} bytes passed"
    );
    vmm.check_quiet()
}

fn nftables(ctx: &Ctx) -> Result<()> {
    let mut vmm = on_veth(ctx, V1, 0)?;
    vmm.post_rx(32, &[2048])?;
    for _ in 0..2 {
        {
            let _all = DropAll::on(NEAR, Hook::Egress)?;
            for len in [60, 1514, 5000] {
                let frame = vmm.tx_frames.plain(len);
                vmm.queue_tx(&NetHdr::default(), &frame, &Split::HeaderAlone)?;
                vmm.tx.flush()?;
                vmm.tx.wait_used()?;
            }
            vmm.check_rx(100)?;
            vmm.check_quiet()?;
        }
        {
            let _all = DropAll::on(NEAR, Hook::Ingress)?;
            for len in [60, 1514] {
                vmm.send_rx(len)?;
            }
            vmm.check_tx(100, &Split::HeaderAlone)?;
            vmm.check_quiet()?;
        }
        vmm.check_alive()?;
    }
    vmm.check_quiet()
}

/// A program on the device below a MacVLAN sees what comes before the guest does.
fn xdp_below(ctx: &Ctx) -> Result<()> {
    let mut vmm = stopped(ctx, V1, "vt0")?;
    net::add_veth(NEAR, FAR)?;
    for name in [NEAR, FAR] {
        net::set_up(name, true)?;
    }
    net::add_macvlan(NEAR, "mv", GUEST_MAC)?;
    net::set_up("mv", true)?;
    vmm.wire = Wire::open(FAR)?;
    bind(&vmm, &wanted("mv")?)?;
    vmm.post_rx(16, &[2048])?;
    let near = net::index(NEAR)?;
    {
        let _xdp = Xdp::attach(near, Action::Drop)?;
        vmm.send_rx(100)?;
        vmm.send_rx(1514)?;
        vmm.check_tx(100, &Split::HeaderAlone)?;
        vmm.fence(RX)?;
        vmm.check_quiet()?;
    }
    {
        let _xdp = Xdp::attach(near, Action::Pass)?;
        for len in [60, 1000, 1514] {
            vmm.check_rx(len)?;
            vmm.check_tx(len, &Split::HeaderAlone)?;
        }
    }
    vmm.check_alive()?;
    vmm.check_quiet()
}
