// SPDX-License-Identifier: GPL-2.0

//! Packets in both directions over the combinations of ring features, in all
//! sizes, with offload headers.

use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;

use crate::case::Ctx;
use crate::case::Table;
use crate::device::feature;
use crate::frame::compare;
use crate::frame::Direction;
use crate::frame::Frames;
use crate::frame::NetHdr;
use crate::frame::TCP4_HLEN;
use crate::net;
use crate::tap::TUN_F_CSUM;
use crate::tap::TUN_F_TSO4;
use crate::traffic::expect;
use crate::traffic::Split;
use crate::vmm::Setup;
use crate::wire::Wire;

/// Frame lengths: the smallest, around cache lines, pages, batches and 64 KiB.
const SIZES: [usize; 13] = [
    60, 64, 65, 128, 1500, 1514, 3635, 3636, 3637, 4096, 9000, 65_000, 65_535,
];

/// One way to use the ring.
struct Combination {
    name: &'static str,
    bits: u64,
}

const CHAINS: [Combination; 2] = [
    Combination {
        name: "direct",
        bits: 0,
    },
    Combination {
        name: "indirect",
        bits: feature::INDIRECT_DESC,
    },
];
const SUPPRESSION: [Combination; 2] = [
    Combination {
        name: "flags",
        bits: 0,
    },
    Combination {
        name: "event_idx",
        bits: feature::EVENT_IDX,
    },
];
const HEADERS: [Combination; 4] = [
    Combination {
        name: "legacy",
        bits: 0,
    },
    Combination {
        name: "legacy_mergeable",
        bits: feature::MRG_RXBUF,
    },
    Combination {
        name: "modern",
        bits: feature::VERSION_1,
    },
    Combination {
        name: "modern_mergeable",
        bits: feature::VERSION_1 | feature::MRG_RXBUF,
    },
];

pub(super) fn register(table: &mut Table) {
    for chains in &CHAINS {
        for suppression in &SUPPRESSION {
            for header in &HEADERS {
                for (order, order_bits) in [("", 0), ("_in_order", feature::IN_ORDER)] {
                    // IN_ORDER is a matter of the ring, not of the header.
                    if order_bits != 0 && !header.name.starts_with("modern") {
                        continue;
                    }
                    let bits = chains.bits | suppression.bits | header.bits | order_bits;
                    let name = format!(
                        "{}_{}_{}{order}",
                        chains.name, suppression.name, header.name
                    );
                    table.add(format!("data::tx_{name}_all_sizes"), move |ctx| {
                        tx_sizes(ctx, bits)
                    });
                    table.add(format!("data::rx_{name}_all_sizes"), move |ctx| {
                        rx_sizes(ctx, bits)
                    });
                    table.add(format!("data::both_{name}_batches"), move |ctx| {
                        both_batches(ctx, bits)
                    });
                }
            }
        }
    }
    for header in &HEADERS {
        let bits = header.bits;
        table.add(
            format!("data::tx_tso4_header_{}_reaches_the_network", header.name),
            move |ctx| tx_gso(ctx, bits),
        );
        table.add(
            format!("data::rx_tso4_header_{}_reaches_the_guest", header.name),
            move |ctx| rx_gso(ctx, bits),
        );
    }
    table.add("data::tx_checksum_header_reaches_the_network", tx_checksum);
    table.add("data::rx_without_offloads_is_segmented", rx_segmented);
    table.add("data::rx_vlan_tag_beside_the_packet_is_put_back", rx_vlan);
    for (name, bits) in [("", 0), ("_mergeable", feature::MRG_RXBUF)] {
        table.add(
            format!("data::tunnel_header_of_24_bytes{name}"),
            move |ctx| tunnel_header(ctx, feature::VERSION_1 | bits),
        );
    }
}

fn tx_sizes(ctx: &Ctx, features: u64) -> Result<()> {
    let mut vmm = Setup::new().features(features).build(ctx)?;
    for len in SIZES {
        for split in [Split::Whole, Split::HeaderAlone, Split::Every(4096)] {
            vmm.check_tx(len, &split)?;
        }
    }
    vmm.check_quiet()
}

fn rx_sizes(ctx: &Ctx, features: u64) -> Result<()> {
    let mut vmm = Setup::new().features(features).build(ctx)?;
    let shape: &[u32] = if vmm.mergeable {
        &[2048]
    } else {
        &[12, 14, 70_000]
    };
    vmm.post_rx(40, shape)?;
    for len in SIZES {
        let received = vmm.check_rx(len)?;
        if vmm.mergeable {
            let need = (len + vmm.hdr_len).div_ceil(2048);
            expect("buffers used", received.chains.len(), need)?;
        }
        vmm.repost(&received)?;
    }
    vmm.check_quiet()
}

/// Several batches each way at once, contents and order checked.
fn both_batches(ctx: &Ctx, features: u64) -> Result<()> {
    const PACKETS: usize = 200;
    let mut vmm = Setup::new().features(features).size(256).build(ctx)?;
    let shape: &[u32] = if features & feature::INDIRECT_DESC != 0 {
        &[12, 1600]
    } else {
        &[1612]
    };
    vmm.post_rx(256 / shape.len(), shape)?;
    for round in 0..3 {
        let mut sent = Vec::new();
        for i in 0..PACKETS.min(vmm.tx.free() / 2) {
            let frame = vmm.tx_frames.plain(60 + 7 * i);
            vmm.queue_tx(&NetHdr::default(), &frame, &Split::HeaderPlus(40))?;
            sent.push(frame);
        }
        let mut coming = Vec::new();
        for i in 0..PACKETS.min(vmm.rx.pending()) {
            coming.push(vmm.send_rx(60 + 7 * i)?);
        }
        vmm.tx.flush()?;
        for (i, frame) in sent.iter().enumerate() {
            vmm.expect_on_wire(frame)
                .with_context(|| format!("round {round}, packet {i} of {}", sent.len()))?;
        }
        let used = vmm.tx.drain()?;
        expect("chains sent and given back", used.len(), sent.len())?;
        for (i, frame) in coming.iter().enumerate() {
            let received = vmm
                .expect_in_guest(frame)
                .with_context(|| format!("round {round}, packet {i} of {}", coming.len()))?;
            vmm.repost(&received)?;
        }
    }
    vmm.check_quiet()
}

/// Lengths and segment sizes of frames to be segmented.
const GSO: [(usize, u16); 4] = [(2000, 1448), (9000, 1448), (65_226, 1448), (65_535, 8948)];

fn tx_gso(ctx: &Ctx, features: u64) -> Result<()> {
    let mut vmm = Setup::new()
        .features(features)
        .offloads(TUN_F_CSUM | TUN_F_TSO4)
        .build(ctx)?;
    for (len, gso_size) in GSO {
        for split in [Split::Whole, Split::HeaderAlone, Split::Every(4096)] {
            let (hdr, frame) = vmm.tx_frames.tcp4(len, gso_size);
            vmm.queue_tx(&hdr, &frame, &split)?;
            vmm.tx.flush()?;
            let (seen, packet) = vmm
                .wire
                .recv()
                .with_context(|| format!("TSO4 of {len} bytes as {split:?}"))?;
            compare("frame from the guest", &packet, &frame)?;
            same_offload(&seen, &hdr)?;
            vmm.tx.wait_used()?;
        }
    }
    vmm.check_quiet()
}

fn rx_gso(ctx: &Ctx, features: u64) -> Result<()> {
    let mut vmm = Setup::new()
        .features(features)
        .offloads(TUN_F_CSUM | TUN_F_TSO4)
        .build(ctx)?;
    let shape: &[u32] = if vmm.mergeable { &[4096] } else { &[70_000] };
    vmm.post_rx(64, shape)?;
    for (len, gso_size) in GSO {
        let (hdr, frame) = vmm.rx_frames.tcp4(len, gso_size);
        vmm.wire.send(&hdr, &frame)?;
        let received = vmm.recv()?;
        compare("frame to the guest", &received.frame, &frame)?;
        same_offload(&received.hdr, &hdr)?;
        vmm.repost(&received)?;
    }
    vmm.check_quiet()
}

/// `hdr_len` is a hint that the stack sets to what it has in one piece.
fn same_offload(seen: &NetHdr, expected: &NetHdr) -> Result<()> {
    let of = |hdr: &NetHdr| {
        (
            hdr.flags,
            hdr.gso_type,
            hdr.gso_size,
            hdr.csum_start,
            hdr.csum_offset,
        )
    };
    expect(
        "flags, gso_type, gso_size, csum_start, csum_offset",
        of(seen),
        of(expected),
    )?;
    ensure!(
        usize::from(seen.hdr_len) >= TCP4_HLEN,
        "hdr_len {} does not cover the headers",
        seen.hdr_len
    );
    Ok(())
}

/// A checksum left to the network, on batched and unbatched sizes.
fn tx_checksum(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new().offloads(TUN_F_CSUM).build(ctx)?;
    for len in [60, 1514, 9000] {
        let (hdr, frame) = vmm.tx_frames.tcp4(len, 0);
        // The hint may be absent: the device must cover the checksum itself.
        let hdr = NetHdr { hdr_len: 0, ..hdr };
        vmm.queue_tx(&hdr, &frame, &Split::HeaderAlone)?;
        vmm.tx.flush()?;
        let (seen, packet) = vmm.wire.recv()?;
        compare("frame from the guest", &packet, &frame)?;
        expect(
            "flags, csum_start, csum_offset",
            (seen.flags, seen.csum_start, seen.csum_offset),
            (hdr.flags, hdr.csum_start, hdr.csum_offset),
        )?;
        vmm.tx.wait_used()?;
    }
    vmm.check_quiet()
}

/// A guest without offloads gets segments with complete checksums.
fn rx_segmented(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new().build(ctx)?;
    vmm.post_rx(16, &[2048])?;
    let mut frames = Frames::new(Direction::Rx, ctx.seed);
    let (hdr, frame) = frames.tcp4(TCP4_HLEN + 4 * 1000, 1000);
    vmm.wire.send(&hdr, &frame)?;
    for segment in 0..4 {
        let received = vmm.recv().with_context(|| format!("segment {segment}"))?;
        expect("length", received.frame.len(), TCP4_HLEN + 1000)?;
        expect("gso_type", received.hdr.gso_type, 0)?;
        let from = TCP4_HLEN + 1000 * segment;
        compare(
            "payload",
            &received.frame[TCP4_HLEN..],
            &frame[from..from + 1000],
        )?;
    }
    vmm.check_quiet()
}

/// The stack keeps a VLAN tag beside the packet: the guest gets it in its place.
fn rx_vlan(ctx: &Ctx) -> Result<()> {
    for (name, bits) in [("vt0", 0), ("vt1", feature::MRG_RXBUF)] {
        let mut vmm = Setup::new()
            .features(feature::VERSION_1 | bits)
            .tap_name(name)
            .build(ctx)?;
        vmm.post_rx(20, &[2048])?;
        let vlan = format!("{name}.7");
        net::add_vlan(vmm.tap.name(), &vlan, 7)?;
        net::set_up(&vlan, true)?;
        let wire = Wire::open(&vlan)?;
        for len in [60, 64, 1000, 1514] {
            let frame = vmm.rx_frames.plain(len);
            wire.send(&NetHdr::default(), &frame)?;
            let mut tagged = frame[..12].to_vec();
            tagged.extend([0x81, 0x00, 0, 7]);
            tagged.extend(&frame[12..]);
            let received = vmm.expect_in_guest(&tagged)?;
            expect("used length", received.chains[0].len as usize, len + 4 + 12)?;
        }
        vmm.check_quiet()?;
    }
    Ok(())
}

fn tunnel_header(ctx: &Ctx, features: u64) -> Result<()> {
    let mut vmm = Setup::new()
        .features(features)
        .more_features(feature::UDP_TUNNEL_GSO)
        .build(ctx)?;
    vmm.post_rx(40, &[24, 4096])?;
    for len in [60, 1514, 4000] {
        vmm.check_tx(len, &Split::HeaderAlone)?;
        vmm.check_tx(len, &Split::Whole)?;
        let received = vmm.check_rx(len)?;
        expect("num_buffers", received.hdr.num_buffers, 1)?;
        vmm.repost(&received)?;
    }
    vmm.check_quiet()
}
