// SPDX-License-Identifier: GPL-2.0

//! Which chains a device takes, and how it gives them back, where driver and
//! device may both know that without looking: IN_ORDER, indirect tables.

use anyhow::ensure;
use anyhow::Result;

use crate::better;
use crate::case::Ctx;
use crate::case::Module;
use crate::case::Table;
use crate::device::feature;
use crate::device::TX;
use crate::frame::compare;
use crate::frame::NetHdr;
use crate::poll;
use crate::ring::Desc;
use crate::ring::F_INDIRECT;
use crate::ring::F_NEXT;
use crate::traffic::expect;
use crate::traffic::Split;
use crate::vmm::Setup;
use crate::vmm::Vmm;

const IN_ORDER: u64 = feature::VERSION_1 | feature::IN_ORDER;

pub(super) fn register(table: &mut Table) {
    table.add("in_order::traffic_both_ways_over_the_ring_end", traffic);
    table.add(
        "in_order::stop_and_start_with_chains_of_one_descriptor",
        |ctx| restart(ctx, &Split::Whole, true),
    );
    table.add_better(
        "in_order::stop_and_start_with_chains_of_two_descriptors",
        better::IN_ORDER_HEADS,
        |ctx| restart(ctx, &Split::HeaderAlone, ctx.module == Module::Rust),
    );
    table.add_better(
        "in_order::head_that_is_not_the_next_descriptor",
        better::IN_ORDER_HEADS,
        head,
    );
    table.add_better(
        "in_order::used_elements_of_a_batch",
        better::IN_ORDER_HEADS,
        elements,
    );
    table.add_better(
        "in_order::indirect_table_out_of_sequence",
        better::INDIRECT_NEXT,
        indirect,
    );
}

fn traffic(ctx: &Ctx) -> Result<()> {
    for (name, bits) in [("vt0", 0), ("vt1", feature::EVENT_IDX)] {
        let mut vmm = Setup::new()
            .features(IN_ORDER | bits)
            .size(16)
            .base(65_530)
            .tap_name(name)
            .build(ctx)?;
        vmm.post_rx(8, &[2048])?;
        for _ in 0..40 {
            vmm.check_alive()?;
        }
        for _ in 0..10 {
            let mut frames = Vec::new();
            for _ in 0..8 {
                let frame = vmm.tx_frames.plain(100);
                vmm.queue_tx(&NetHdr::default(), &frame, &Split::HeaderAlone)?;
                frames.push(frame);
            }
            vmm.tx.flush()?;
            for frame in &frames {
                vmm.expect_on_wire(frame)?;
            }
            vmm.tx.drain()?;
        }
        vmm.check_quiet()?;
    }
    Ok(())
}

fn restart(ctx: &Ctx, split: &Split, works: bool) -> Result<()> {
    let mut vmm = Setup::new().features(IN_ORDER).build(ctx)?;
    for _ in 0..5 {
        vmm.check_tx(100, split)?;
    }
    vmm.stop()?;
    let base = vmm.base(TX)?;
    expect("base", base, 5)?;
    vmm.configure_queue(TX, base)?;
    vmm.start_queue(TX)?;
    let frame = vmm.tx_frames.plain(100);
    vmm.queue_tx(&NetHdr::default(), &frame, split)?;
    vmm.tx.flush_and_kick()?;
    if works {
        vmm.expect_on_wire(&frame)?;
        vmm.tx.wait_used()?;
        return vmm.check_quiet();
    }
    // It takes the fifth descriptor, which was the payload of the third packet.
    vmm.fence(TX)?;
    while let Some((_, seen)) = vmm.wire.try_recv()? {
        ensure!(seen != frame, "the packet was sent");
    }
    vmm.stop()
}

/// A packet in memory, as one descriptor.
fn packet(vmm: &mut Vmm) -> Result<(Desc, Vec<u8>)> {
    let frame = vmm.tx_frames.plain(100);
    let segs = vmm.tx_segs(&NetHdr::default(), &frame, &Split::Whole)?;
    let desc = Desc {
        addr: segs[0].addr,
        len: segs[0].len,
        flags: 0,
        next: 0,
    };
    Ok((desc, frame))
}

fn head(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new().features(IN_ORDER).build(ctx)?;
    let (desc, frame) = packet(&mut vmm)?;
    vmm.tx.ring.set_desc(7, desc);
    vmm.tx.push_head(7);
    vmm.tx.flush_and_kick()?;
    match ctx.module {
        Module::C => {
            // Descriptor 0 is empty.
            poll::wait_signal(&vmm.tx.err, "err")?;
            vmm.wire.expect_silence()
        }
        Module::Rust => {
            vmm.expect_on_wire(&frame)?;
            poll::wait_for("the used index", || {
                Ok((vmm.tx.ring.used_idx() == 1).then_some(()))
            })?;
            expect("used element", vmm.tx.ring.used(0).id, 7)
        }
    }
}

fn elements(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new().features(IN_ORDER).build(ctx)?;
    let mut heads = Vec::new();
    for _ in 0..5 {
        let frame = vmm.tx_frames.plain(100);
        heads.push(u32::from(vmm.queue_tx(
            &NetHdr::default(),
            &frame,
            &Split::Whole,
        )?));
    }
    vmm.tx.flush_and_kick()?;
    poll::wait_for("the used index", || {
        Ok((vmm.tx.ring.used_idx() == 5).then_some(()))
    })?;
    let ids: Vec<u32> = (0..5).map(|slot| vmm.tx.ring.used(slot).id).collect();
    match ctx.module {
        // One for all, named after the last.
        Module::C => expect("id of the first element", ids[0], heads[4]),
        Module::Rust => expect("ids", ids, heads),
    }
}

fn indirect(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new()
        .features(feature::VERSION_1 | feature::INDIRECT_DESC)
        .build(ctx)?;
    let frames = [vmm.tx_frames.plain(100), vmm.tx_frames.plain(100)];
    let mut entries = Vec::new();
    for frame in &frames {
        let segs = vmm.tx_segs(&NetHdr::default(), frame, &Split::HeaderAlone)?;
        entries.push(segs);
    }
    let [header, decoy, real] = [entries[0][0], entries[0][1], entries[1][1]];
    // From the first entry to the third.
    let table = vmm.mem.alloc(48, 16)?;
    for (i, (seg, flags, next)) in [(header, F_NEXT, 2), (decoy, 0, 0), (real, 0, 0)]
        .into_iter()
        .enumerate()
    {
        let desc = Desc {
            addr: seg.addr,
            len: seg.len,
            flags,
            next,
        };
        vmm.mem.write(table + 16 * i as u64, &desc.bytes())?;
    }
    vmm.tx.ring.set_desc(
        0,
        Desc {
            addr: table,
            len: 48,
            flags: F_INDIRECT,
            next: 0,
        },
    );
    vmm.tx.push_head(0);
    vmm.tx.flush_and_kick()?;
    let (_, seen) = vmm.wire.recv()?;
    let wanted = match ctx.module {
        Module::C => &frames[0],
        Module::Rust => &frames[1],
    };
    compare("frame from the guest", &seen, wanted)
}
