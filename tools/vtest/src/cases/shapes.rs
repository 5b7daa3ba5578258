// SPDX-License-Identifier: GPL-2.0

//! Buffers cut in unusual but legal ways.

use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;

use crate::case::Ctx;
use crate::case::Table;
use crate::device::feature;
use crate::frame::compare;
use crate::frame::NetHdr;
use crate::mem::BOUNDARY;
use crate::ring::Desc;
use crate::ring::F_INDIRECT;
use crate::ring::F_NEXT;
use crate::ring::F_WRITE;
use crate::traffic::expect;
use crate::traffic::Split;
use crate::virtqueue::Seg;
use crate::vmm::Setup;
use crate::vmm::Vmm;

const MODERN: u64 = feature::VERSION_1;
const MERGEABLE: u64 = feature::VERSION_1 | feature::MRG_RXBUF;

pub(super) fn register(table: &mut Table) {
    for (name, bits) in [("direct", 0), ("indirect", feature::INDIRECT_DESC)] {
        table.add(
            format!("shapes::tx_header_cut_anywhere_{name}"),
            move |ctx| tx_cuts(ctx, MODERN | bits),
        );
        table.add(
            format!("shapes::tx_legacy_header_cut_anywhere_{name}"),
            move |ctx| tx_cuts(ctx, bits),
        );
        table.add(
            format!("shapes::tx_one_byte_descriptors_{name}"),
            move |ctx| tx_bytes(ctx, MODERN | bits),
        );
        table.add(
            format!("shapes::tx_of_1024_segments_passes_{name}"),
            move |ctx| tx_1024_segments(ctx, MODERN | bits),
        );
        table.add(
            format!("shapes::tx_across_memory_regions_{name}"),
            move |ctx| tx_crossing(ctx, MODERN | bits),
        );
        table.add(
            format!("shapes::rx_header_cut_anywhere_{name}"),
            move |ctx| rx_cuts(ctx, MODERN | bits),
        );
        table.add(
            format!("shapes::rx_mergeable_header_cut_anywhere_{name}"),
            move |ctx| rx_cuts(ctx, MERGEABLE | bits),
        );
        table.add(
            format!("shapes::rx_across_memory_regions_{name}"),
            move |ctx| rx_crossing(ctx, MODERN | bits),
        );
        table.add(
            format!("shapes::rx_one_byte_descriptors_{name}"),
            move |ctx| rx_bytes(ctx, MODERN | bits),
        );
    }
    table.add(
        "shapes::rx_one_byte_mergeable_buffers_all_count",
        rx_tiny_buffers,
    );
    table.add(
        "shapes::rx_mergeable_buffers_of_every_small_size",
        rx_small_buffers,
    );
    table.add(
        "shapes::rx_mergeable_exact_fit_uses_no_further_buffer",
        rx_exact_fit,
    );
    table.add("shapes::rx_packet_of_64k_in_1024_buffers", rx_1024_buffers);
    table.add("shapes::rx_writes_nothing_behind_the_packet", rx_bounds);
    table.add("shapes::tx_chain_of_whole_ring_passes", tx_whole_ring);
    table.add(
        "shapes::tx_zero_length_descriptors_are_ignored",
        tx_zero_length,
    );
    table.add(
        "shapes::tx_indirect_table_across_regions_and_unaligned",
        tx_table_crossing,
    );
    table.add(
        "shapes::tx_chain_goes_on_behind_an_indirect_table",
        table_and_more,
    );
    table.add(
        "shapes::tx_indirect_without_the_feature_is_followed",
        tx_unnegotiated_indirect,
    );
    table.add(
        "shapes::tx_random_splits_keep_order_and_contents",
        tx_random,
    );
    table.add(
        "shapes::rx_random_buffers_keep_order_and_contents",
        rx_random,
    );
}

fn tx_cuts(ctx: &Ctx, features: u64) -> Result<()> {
    let mut vmm = Setup::new().features(features).build(ctx)?;
    for len in [60, 1514, 9000] {
        for n in [1, 2, 13, 14, 15, 20, 34, 54] {
            vmm.check_tx(len, &Split::HeaderPlus(n))?;
        }
        for n in 1..=16 {
            vmm.check_tx(len, &Split::Bytes(n))?;
        }
    }
    vmm.check_quiet()
}

fn tx_bytes(ctx: &Ctx, features: u64) -> Result<()> {
    let mut vmm = Setup::new().features(features).size(1024).build(ctx)?;
    for len in [60, 65, 500, 1000] {
        vmm.check_tx(len, &Split::Every(1))?;
    }
    vmm.check_quiet()
}

fn tx_1024_segments(ctx: &Ctx, features: u64) -> Result<()> {
    let mut vmm = Setup::new().features(features).size(1024).build(ctx)?;
    vmm.check_tx(1024 - vmm.hdr_len, &Split::Every(1))?;
    vmm.check_tx(63 * 1024 - vmm.hdr_len, &Split::Every(63))?;
    vmm.check_quiet()
}

fn tx_crossing(ctx: &Ctx, features: u64) -> Result<()> {
    let mut vmm = Setup::new().features(features).build(ctx)?;
    for before in [1, 5, 11, 12, 13, 26, 40, 71] {
        let frame = vmm.tx_frames.plain(60);
        let mut bytes = NetHdr::default().bytes(vmm.hdr_len);
        bytes.extend(&frame);
        let seg = Vmm::crossing(before, bytes.len() as u32);
        vmm.mem.write(seg.addr, &bytes)?;
        vmm.tx.add(&[seg], &[])?;
        vmm.tx.flush()?;
        vmm.expect_on_wire(&frame)
            .with_context(|| format!("{before} bytes before the boundary"))?;
        vmm.tx.wait_used()?;
    }
    for len in [5000, 60_000] {
        let frame = vmm.tx_frames.plain(len);
        let mut bytes = NetHdr::default().bytes(vmm.hdr_len);
        bytes.extend(&frame);
        let seg = Vmm::crossing(len as u64 / 2, bytes.len() as u32);
        vmm.mem.write(seg.addr, &bytes)?;
        vmm.tx.add(&[seg], &[])?;
        vmm.tx.flush()?;
        vmm.expect_on_wire(&frame)?;
        vmm.tx.wait_used()?;
    }
    vmm.check_quiet()
}

fn rx_cuts(ctx: &Ctx, features: u64) -> Result<()> {
    let mut vmm = Setup::new().features(features).build(ctx)?;
    let shapes: &[&[u32]] = &[
        &[12, 2048],
        &[10, 2, 2048],
        &[1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 1, 2048],
        &[11, 1, 14, 46],
        &[13, 59],
        &[5, 6, 7, 100],
        &[26, 46],
        &[72],
    ];
    for shape in shapes {
        vmm.post_rx(1, shape)?;
        let received = vmm
            .check_rx(60)
            .with_context(|| format!("buffers {shape:?}"))?;
        expect("used length", received.chains[0].len, 72)?;
    }
    vmm.check_quiet()
}

fn rx_bytes(ctx: &Ctx, features: u64) -> Result<()> {
    let mut vmm = Setup::new().features(features).size(1024).build(ctx)?;
    for len in [60, 500, 1000] {
        vmm.post_rx(1, &vec![1; len + vmm.hdr_len])?;
        vmm.check_rx(len)?;
    }
    vmm.check_quiet()
}

fn rx_crossing(ctx: &Ctx, features: u64) -> Result<()> {
    let mut vmm = Setup::new().features(features).build(ctx)?;
    for before in [1, 5, 10, 11, 12, 13, 26, 40, 71] {
        vmm.rx.add(&[], &[Vmm::crossing(before, 2048)])?;
        vmm.rx.flush()?;
        vmm.check_rx(60)
            .with_context(|| format!("{before} bytes before the boundary"))?;
    }
    vmm.rx.add(&[], &[Vmm::crossing(30_000, 70_000)])?;
    vmm.rx.flush()?;
    vmm.check_rx(60_000)?;
    vmm.check_quiet()
}

/// Each buffer of a packet has a used element of its own, 72 for 72 bytes.
fn rx_tiny_buffers(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new().features(MERGEABLE).size(1024).build(ctx)?;
    vmm.post_rx(1024, &[1])?;
    for len in [60, 100, 200, 300] {
        let received = vmm.check_rx(len)?;
        expect("buffers", received.chains.len(), len + vmm.hdr_len)?;
    }
    vmm.check_quiet()
}

fn rx_small_buffers(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new().features(MERGEABLE).size(1024).build(ctx)?;
    for size in [2, 3, 7, 9, 10, 11, 12, 13, 16, 24, 64, 100] {
        let need = (1514 + vmm.hdr_len).div_ceil(size as usize);
        vmm.post_rx(need, &[size])?;
        let received = vmm
            .check_rx(1514)
            .with_context(|| format!("buffers of {size}"))?;
        expect("buffers", received.chains.len(), need)?;
    }
    vmm.check_quiet()
}

fn rx_exact_fit(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new().features(MERGEABLE).build(ctx)?;
    vmm.post_rx(8, &[36])?;
    for (len, buffers, last) in [(60, 2, 36), (24, 1, 36), (61, 3, 1), (23, 1, 35)] {
        let received = vmm.check_rx(len)?;
        expect("buffers", received.chains.len(), buffers)?;
        expect("length of the last", received.chains[buffers - 1].len, last)?;
        vmm.repost(&received)?;
    }
    vmm.check_quiet()
}

fn rx_1024_buffers(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new().features(MERGEABLE).size(1024).build(ctx)?;
    vmm.post_rx(1024, &[64])?;
    let len = 1024 * 64 - vmm.hdr_len;
    let received = vmm.check_rx(len)?;
    expect("buffers", received.chains.len(), 1024)?;
    vmm.check_quiet()
}

fn rx_bounds(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new().build(ctx)?;
    let addr = vmm.mem.rx_buffer(4096)?;
    vmm.mem.write(addr, &[0xa5; 4096])?;
    let seg = Seg {
        addr: addr + 100,
        len: 2000,
    };
    vmm.rx.add(&[], &[seg])?;
    vmm.rx.flush()?;
    vmm.check_rx(333)?;
    vmm.check_quiet()?;
    compare("bytes before", &vmm.mem.read(addr, 100)?, &[0xa5; 100])?;
    let end = 100 + 12 + 333;
    compare(
        "bytes behind",
        &vmm.mem.read(addr + end, 4096 - end as usize)?,
        &vec![0xa5; 4096 - end as usize],
    )
}

fn tx_whole_ring(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new().features(MODERN).size(64).build(ctx)?;
    let len = 64 * 20 - vmm.hdr_len;
    for _ in 0..3 {
        vmm.check_tx(len, &Split::Every(20))?;
    }
    vmm.check_quiet()
}

/// Zero-length descriptors contribute nothing and their address is not looked at.
fn tx_zero_length(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new().features(MODERN).build(ctx)?;
    for indirect in [false, true] {
        vmm.tx.set_indirect(indirect);
        for place in 0..3 {
            let frame = vmm.tx_frames.plain(100);
            let mut segs = vmm.tx_segs(&NetHdr::default(), &frame, &Split::HeaderAlone)?;
            segs.insert(
                place,
                Seg {
                    addr: 0xdead_0000_0000,
                    len: 0,
                },
            );
            vmm.tx.add(&segs, &[])?;
            vmm.tx.flush()?;
            vmm.expect_on_wire(&frame)
                .with_context(|| format!("zero length at place {place}, indirect {indirect}"))?;
            vmm.tx.wait_used()?;
        }
    }
    vmm.check_quiet()
}

/// Sends through an indirect table that lies at `table`.
fn send_by_table(vmm: &mut Vmm, table: u64, pieces: usize) -> Result<()> {
    let frame = vmm.tx_frames.plain(100);
    let segs = vmm.tx_segs(&NetHdr::default(), &frame, &Split::Every(112 / pieces))?;
    for (i, seg) in segs.iter().enumerate() {
        let last = i + 1 == segs.len();
        let desc = Desc {
            addr: seg.addr,
            len: seg.len,
            flags: if last { 0 } else { F_NEXT },
            next: if last { 0 } else { i as u16 + 1 },
        };
        vmm.mem.write(table + 16 * i as u64, &desc.bytes())?;
    }
    let outer = Desc {
        addr: table,
        len: 16 * segs.len() as u32,
        flags: F_INDIRECT,
        next: 0,
    };
    vmm.tx.add_descs(&[outer], segs)?;
    vmm.tx.flush()?;
    vmm.expect_on_wire(&frame)
        .with_context(|| format!("table at {table:#x}"))?;
    vmm.tx.wait_used()?;
    Ok(())
}

/// The table's descriptor has a next one, and a flag that means nothing there.
fn table_and_more(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new()
        .features(MODERN | feature::INDIRECT_DESC)
        .build(ctx)?;
    vmm.tx.set_indirect(false);
    for more in [0, F_WRITE] {
        let frame = vmm.tx_frames.plain(100);
        let segs = vmm.tx_segs(&NetHdr::default(), &frame, &Split::HeaderPlus(20))?;
        let desc = |seg: &Seg| Desc {
            addr: seg.addr,
            len: seg.len,
            flags: 0,
            next: 0,
        };
        let table = vmm.mem.alloc(16, 16)?;
        vmm.mem.write(table, &desc(&segs[0]).bytes())?;
        let outer = Desc {
            addr: table,
            len: 16,
            flags: F_INDIRECT | more,
            next: 0,
        };
        vmm.tx.add_descs(&[outer, desc(&segs[1])], segs)?;
        vmm.tx.flush()?;
        vmm.expect_on_wire(&frame)?;
        vmm.tx.wait_used()?;
    }
    vmm.check_quiet()
}

fn tx_table_crossing(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new()
        .features(MODERN | feature::INDIRECT_DESC)
        .build(ctx)?;
    vmm.tx.set_indirect(false);
    for table in [
        BOUNDARY - 16,
        BOUNDARY - 8,
        BOUNDARY - 33,
        BOUNDARY - 4097,
        0x1001,
    ] {
        send_by_table(&mut vmm, table, 4)?;
    }
    vmm.check_quiet()
}

fn tx_unnegotiated_indirect(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new().features(MODERN).build(ctx)?;
    let table = vmm.mem.alloc(256, 16)?;
    send_by_table(&mut vmm, table, 4)?;
    vmm.check_quiet()
}

fn tx_random(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new()
        .features(MODERN | feature::INDIRECT_DESC | feature::EVENT_IDX)
        .build(ctx)?;
    let mut rng = crate::frame::Rng::new(ctx.seed);
    for round in 0..60 {
        let mut frames = Vec::new();
        for _ in 0..=rng.below(80) {
            vmm.tx.set_indirect(rng.below(2) == 0);
            let limit = if rng.below(8) == 0 { 20_000 } else { 2000 };
            let len = 14 + rng.below(limit) as usize;
            let split = match rng.below(5) {
                0 => Split::Whole,
                1 => Split::HeaderAlone,
                2 => Split::HeaderPlus(rng.below(60) as usize),
                3 => Split::Bytes(rng.below(30) as usize),
                _ => Split::Every(len / (1 + rng.below(12) as usize) + 1),
            };
            if vmm.tx.free() < 64 {
                break;
            }
            let frame = vmm.tx_frames.plain(len);
            vmm.queue_tx(&NetHdr::default(), &frame, &split)?;
            if rng.below(3) == 0 {
                vmm.tx.flush()?;
            }
            frames.push(frame);
        }
        vmm.tx.flush()?;
        for frame in &frames {
            vmm.expect_on_wire(frame)
                .with_context(|| format!("round {round}"))?;
        }
        vmm.tx.drain()?;
    }
    vmm.check_quiet()
}

fn rx_random(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new()
        .features(MERGEABLE | feature::INDIRECT_DESC | feature::EVENT_IDX)
        .build(ctx)?;
    let mut rng = crate::frame::Rng::new(ctx.seed);
    for round in 0..60 {
        let mut frames = Vec::new();
        for _ in 0..=rng.below(60) {
            let limit = if rng.below(8) == 0 { 20_000 } else { 2000 };
            frames.push(vmm.send_rx(14 + rng.below(limit) as usize)?);
        }
        for frame in &frames {
            // Buffers come in small numbers: the device runs dry in between.
            let mut capacity = vmm.rx.pending_bytes();
            while capacity < frame.len() + vmm.hdr_len {
                vmm.rx.set_indirect(rng.below(2) == 0);
                let shape: Vec<u32> = (0..=rng.below(3))
                    .map(|_| 1 + rng.below(3000) as u32)
                    .collect();
                capacity += shape.iter().map(|len| *len as usize).sum::<usize>();
                vmm.post_rx(1, &shape)?;
            }
            vmm.expect_in_guest(frame)
                .with_context(|| format!("round {round}"))?;
        }
    }
    ensure!(vmm.tx.pending() == 0, "TX was not used");
    vmm.check_quiet()
}
