// SPDX-License-Identifier: GPL-2.0

//! Ring sizes and index values: wrapping, any base, used index from memory.

use std::time::Duration;

use anyhow::Context;
use anyhow::Result;

use crate::case::Ctx;
use crate::case::Table;
use crate::device::feature;
use crate::device::RX;
use crate::device::TX;
use crate::frame::NetHdr;
use crate::traffic::expect;
use crate::traffic::Split;
use crate::vmm::Setup;

const SIZES: [u16; 6] = [1, 2, 4, 256, 1024, 32768];
const BASES: [u16; 4] = [1, 12_345, 65_531, 65_535];

pub(super) fn register(table: &mut Table) {
    for size in SIZES {
        for (name, bits) in [("flags", 0), ("event_idx", feature::EVENT_IDX)] {
            table.add(format!("index::ring_of_{size}_wraps_{name}"), move |ctx| {
                wraps(ctx, size, feature::VERSION_1 | bits)
            });
        }
    }
    for size in [1, 256, 1024, 32768] {
        // The largest takes its time on a debug kernel.
        let limit = Duration::from_secs(if size > 1024 { 300 } else { 60 });
        let name = format!("index::full_ring_of_{size}_at_once");
        table.add_long(format!("{name}_tx"), limit, move |ctx| full_tx(ctx, size));
        table.add_long(format!("{name}_rx"), limit, move |ctx| full_rx(ctx, size));
    }
    table.add("index::in_order_ring_wraps", |ctx| {
        wraps(ctx, 4, feature::VERSION_1 | feature::IN_ORDER)
    });
    table.add("index::used_index_is_taken_from_memory", used_preset);
    table.add("index::get_base_is_what_was_set", get_base);
    table.add("index::get_base_counts_fetched_chains", base_counts);
}

fn wraps(ctx: &Ctx, size: u16, features: u64) -> Result<()> {
    for base in BASES {
        let mut vmm = Setup::new()
            .features(features)
            .size(size)
            .base(base)
            .tap_name(&format!("vt{base}"))
            .build(ctx)?;
        for round in 0..20 {
            let context = || format!("size {size}, base {base}, round {round}");
            vmm.check_tx(60 + round, &Split::Whole)
                .with_context(context)?;
            vmm.post_rx(1, &[2048])?;
            vmm.check_rx(60 + round).with_context(context)?;
        }
        let end = base.wrapping_add(20);
        expect("base of TX", vmm.base(TX)?, end)?;
        expect("used index of RX", vmm.rx.ring.used_idx(), end)?;
        vmm.check_quiet()?;
    }
    Ok(())
}

/// The available index moves by the ring size: every entry is new.
fn full_tx(ctx: &Ctx, size: u16) -> Result<()> {
    let mut vmm = Setup::new()
        .features(feature::VERSION_1 | feature::EVENT_IDX)
        .size(size)
        .base(65_500)
        .build(ctx)?;
    let rounds = if size > 1024 { 1 } else { 3 };
    for _ in 0..rounds {
        let mut frames = Vec::new();
        for _ in 0..size {
            let frame = vmm.tx_frames.plain(60);
            vmm.queue_tx(&NetHdr::default(), &frame, &Split::Whole)?;
            frames.push(frame);
        }
        vmm.tx.flush()?;
        for (i, frame) in frames.iter().enumerate() {
            vmm.expect_on_wire(frame)
                .with_context(|| format!("packet {i} of {size}"))?;
        }
        expect(
            "chains given back",
            vmm.tx.drain()?.len(),
            usize::from(size),
        )?;
    }
    vmm.check_quiet()
}

fn full_rx(ctx: &Ctx, size: u16) -> Result<()> {
    let mut vmm = Setup::new()
        .features(feature::VERSION_1 | feature::EVENT_IDX)
        .size(size)
        .base(65_500)
        .build(ctx)?;
    vmm.post_rx(usize::from(size), &[100])?;
    let mut left = usize::from(size);
    while left > 0 {
        // Not more than the tap holds.
        let burst = left.min(400);
        let mut frames = Vec::new();
        for _ in 0..burst {
            frames.push(vmm.send_rx(60)?);
        }
        for frame in &frames {
            vmm.expect_in_guest(frame)
                .with_context(|| format!("{left} of {size} left"))?;
        }
        left -= burst;
    }
    expect("buffers left", vmm.rx.pending(), 0)?;
    vmm.check_quiet()
}

fn used_preset(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new().used_base(77).build(ctx)?;
    vmm.check_tx(60, &Split::Whole)?;
    expect("used index", vmm.tx.ring.used_idx(), 78)?;
    vmm.post_rx(1, &[2048])?;
    vmm.check_rx(60)?;
    expect("used index", vmm.rx.ring.used_idx(), 78)?;
    expect("length in slot 77", vmm.rx.ring.used(77).len, 72)?;
    expect("base", vmm.base(RX)?, 1)
}

fn get_base(ctx: &Ctx) -> Result<()> {
    let vmm = Setup::new().stopped().build(ctx)?;
    let raw = vmm.vhost.raw();
    for base in [0, 1, 255, 256, 65_535] {
        for index in [0, 1] {
            expect("SET_VRING_BASE", raw.set_vring_base(index, base), Ok(0))?;
            expect("GET_VRING_BASE", raw.vring_base(index), Ok(base))?;
        }
    }
    Ok(())
}

/// While it runs and after it has stopped.
fn base_counts(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new().build(ctx)?;
    for n in 1..=10 {
        vmm.check_tx(60, &Split::HeaderAlone)?;
        expect("base while running", vmm.base(TX)?, n)?;
    }
    vmm.stop()?;
    expect("base after stopping", vmm.base(TX)?, 10)
}
