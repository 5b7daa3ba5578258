// SPDX-License-Identifier: GPL-2.0

//! XDP on the TAP: frames that come to the ring without an skb, and programs
//! that see what the guest sends.

use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;

use crate::bpf::Action;
use crate::bpf::Xdp;
use crate::case::Ctx;
use crate::case::Table;
use crate::device::feature;
use crate::device::TX;
use crate::frame::compare;
use crate::frame::NetHdr;
use crate::net;
use crate::traffic::expect;
use crate::traffic::Split;
use crate::vmm::Setup;
use crate::vmm::Vmm;

pub(super) fn register(table: &mut Table) {
    for (name, bits) in [("", 0), ("_mergeable", feature::MRG_RXBUF)] {
        table.add(
            format!("xdp::redirect_from_tap_to_tap_arrives{name}"),
            move |ctx| redirect(ctx, feature::VERSION_1 | bits),
        );
        table.add(
            format!("xdp::sent_back_arrives_in_the_guest{name}"),
            move |ctx| sent_back(ctx, feature::VERSION_1 | bits),
        );
    }
    table.add("xdp::legacy_header_sent_back_arrives", |ctx| {
        sent_back(ctx, 0)
    });
    table.add("xdp::pass_lets_all_sizes_through", pass);
    table.add("xdp::drop_gives_chains_back", dropped);
    table.add("xdp::attached_and_detached_under_traffic", under_traffic);
    table.add("xdp::undelivered_frames_survive_a_restart", survive);
}

/// A TAP with an XDP program takes frames of one page only.
fn setup(features: u64, name: &str) -> Setup {
    let options = crate::tap::TapOptions {
        mtu: None,
        ..Default::default()
    };
    Setup::new().features(features).tap(options).tap_name(name)
}

fn send(vmm: &mut Vmm, len: usize) -> Result<Vec<u8>> {
    let frame = vmm.tx_frames.plain(len);
    vmm.queue_tx(&NetHdr::default(), &frame, &Split::HeaderAlone)?;
    vmm.tx.flush()?;
    Ok(frame)
}

fn redirect(ctx: &Ctx, features: u64) -> Result<()> {
    let mut one = setup(features, "vt0").build(ctx)?;
    let mut two = setup(features, "vt1").build(ctx)?;
    two.post_rx(100, &[2048])?;
    let _pass = Xdp::attach(net::index("vt1")?, Action::Pass)?;
    let _xdp = Xdp::attach(net::index("vt0")?, Action::Redirect(net::index("vt1")?))?;
    for len in [14, 60, 64, 65, 1000, 1514] {
        let mut frames = Vec::new();
        for _ in 0..10 {
            frames.push(send(&mut one, len)?);
        }
        for frame in &frames {
            let received = two
                .expect_in_guest(frame)
                .with_context(|| format!("{len} bytes"))?;
            expect("header", received.hdr.without_buffers(), NetHdr::default())?;
            two.repost(&received)?;
        }
        one.tx.drain()?;
    }
    one.check_quiet()?;
    two.check_quiet()
}

fn sent_back(ctx: &Ctx, features: u64) -> Result<()> {
    let mut vmm = setup(features, "vt0").build(ctx)?;
    vmm.post_rx(100, &[2048])?;
    let _xdp = Xdp::attach(net::index("vt0")?, Action::Tx)?;
    for len in [60, 64, 65, 1000, 1514] {
        let frame = send(&mut vmm, len)?;
        let received = vmm
            .expect_in_guest(&frame)
            .with_context(|| format!("{len} bytes"))?;
        vmm.repost(&received)?;
        vmm.tx.wait_used()?;
    }
    vmm.check_quiet()
}

fn pass(ctx: &Ctx) -> Result<()> {
    let mut vmm = setup(feature::VERSION_1, "vt0").build(ctx)?;
    vmm.post_rx(10, &[2048])?;
    let _xdp = Xdp::attach(net::index("vt0")?, Action::Pass)?;
    for len in [14, 60, 1514, 3300, 3379, 3380, 3381, 3636, 9000, 60_000] {
        vmm.check_tx(len, &Split::HeaderAlone)?;
    }
    vmm.check_alive()?;
    vmm.check_quiet()
}

fn dropped(ctx: &Ctx) -> Result<()> {
    let mut vmm = setup(feature::VERSION_1, "vt0").build(ctx)?;
    for action in [Action::Drop, Action::Aborted] {
        let _xdp = Xdp::attach(net::index("vt0")?, action)?;
        for len in [60, 1514, 9000] {
            for _ in 0..100 {
                send(&mut vmm, len)?;
            }
            expect("chains given back", vmm.tx.drain()?.len(), 100)?;
        }
        vmm.fence(TX)?;
        vmm.wire.expect_silence()?;
    }
    vmm.post_rx(4, &[2048])?;
    vmm.check_alive()
}

fn under_traffic(ctx: &Ctx) -> Result<()> {
    let mut vmm = setup(feature::VERSION_1, "vt0").build(ctx)?;
    vmm.post_rx(100, &[2048])?;
    let index = net::index("vt0")?;
    let mut xdp = None;
    for round in 0..20 {
        let (mut out, mut coming) = (Vec::new(), Vec::new());
        for i in 0..60 {
            out.push(send(&mut vmm, 60 + 20 * i)?);
            coming.push(vmm.send_rx(60 + 20 * i)?);
            if i == 30 {
                xdp = match xdp.take() {
                    Some(_) => None,
                    None => Some(Xdp::attach(index, Action::Pass)?),
                };
            }
        }
        for frame in &out {
            let (_, seen) = vmm.wire.recv()?;
            compare(&format!("frame in round {round}"), &seen, frame)?;
        }
        vmm.tx.drain()?;
        for frame in &coming {
            let received = vmm
                .expect_in_guest(frame)
                .with_context(|| format!("round {round}"))?;
            vmm.repost(&received)?;
        }
    }
    vmm.check_quiet()
}

/// Frames without an skb go back to the ring and come out of it again.
fn survive(ctx: &Ctx) -> Result<()> {
    let mut vmm = setup(feature::VERSION_1, "vt0").build(ctx)?;
    let _xdp = Xdp::attach(net::index("vt0")?, Action::Tx)?;
    let mut frames = Vec::new();
    for i in 0..100 {
        frames.push(send(&mut vmm, 60 + i)?);
    }
    vmm.tx.drain()?;
    vmm.fence(crate::device::RX)?;
    vmm.stop_queue(crate::device::RX)?;
    let Some(packet) = vmm.tap.read()? else {
        anyhow::bail!("the tap is empty");
    };
    ensure!(packet.len() > 12, "packet of {} bytes", packet.len());
    compare("packet", &packet[12..], &frames[0])?;
    let base = vmm.base(crate::device::RX)?;
    vmm.configure_queue(crate::device::RX, base)?;
    vmm.start_queue(crate::device::RX)?;
    vmm.post_rx(128, &[2048])?;
    for frame in &frames[1..] {
        vmm.expect_in_guest(frame)?;
    }
    vmm.check_quiet()
}
