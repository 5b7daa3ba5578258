// SPDX-License-Identifier: GPL-2.0

//! Packets from the guest that cannot be sent as they are.

use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;

use crate::better;
use crate::case::skip;
use crate::case::Ctx;
use crate::case::Module;
use crate::case::Table;
use crate::device::feature;
use crate::device::TX;
use crate::frame::compare;
use crate::frame::NetHdr;
use crate::frame::NEEDS_CSUM;
use crate::mem::Access;
use crate::mem::PAGE;
use crate::poll;
use crate::ring::Desc;
use crate::ring::F_WRITE;
use crate::traffic::expect;
use crate::traffic::Split;
use crate::virtqueue::Seg;
use crate::vmm::Setup;
use crate::vmm::Vmm;

pub(super) fn register(table: &mut Table) {
    table.add_better(
        "bad_tx::writable_chain_is_refused",
        better::TX_LEAK,
        writable_only,
    );
    table.add_better(
        "bad_tx::writable_descriptor_last_is_refused",
        better::TX_LEAK,
        writable_last,
    );
    table.add_better(
        "bad_tx::chain_of_zero_length_descriptors_is_refused",
        better::TX_LEAK,
        zero_lengths,
    );
    table.add_better(
        "bad_tx::header_without_packet_is_refused_by_net_hdr",
        better::TX_LEAK,
        net_hdr_only,
    );
    table.add_better(
        "bad_tx::checksum_behind_the_packet_is_dropped",
        better::TX_SPIN,
        |ctx| {
            let hdr = NetHdr {
                flags: NEEDS_CSUM,
                csum_start: 50,
                csum_offset: 60,
                ..NetHdr::default()
            };
            dropped_better(ctx, |vmm| {
                let frame = vmm.tx_frames.plain(60);
                vmm.tx_segs(&hdr, &frame, &Split::Whole)
            })
        },
    );
    table.add_better(
        "bad_tx::shorter_than_the_header_is_dropped",
        better::TX_SPIN,
        |ctx| dropped_better(ctx, |vmm| buffer(vmm, 8)),
    );
    table.add_better("bad_tx::one_byte_is_dropped", better::TX_SPIN, |ctx| {
        dropped_better(ctx, |vmm| buffer(vmm, 1))
    });
    table.add_better(
        "bad_tx::packet_of_6_mib_is_dropped",
        better::TX_SPIN,
        |ctx| dropped_better(ctx, |vmm| buffer(vmm, 6 << 20)),
    );
    table.add_better(
        "bad_tx::unreadable_buffer_is_dropped",
        better::TX_SPIN,
        |ctx| unreadable(ctx, 1500, 0),
    );
    table.add_better(
        "bad_tx::unreadable_payload_is_dropped",
        better::TX_SPIN,
        |ctx| unreadable(ctx, 3000, PAGE),
    );
    table.add_better(
        "bad_tx::unreadable_payload_of_large_packet_is_dropped",
        better::TX_SPIN,
        |ctx| unreadable(ctx, 30_000, PAGE),
    );
    for (name, len) in [("no", 0), ("1", 1), ("10", 10), ("13", 13)] {
        table.add(
            format!("bad_tx::frame_of_{name}_bytes_is_dropped"),
            move |ctx| {
                dropped(ctx, move |vmm| {
                    let frame = vec![0x55; len];
                    vmm.tx_segs(&NetHdr::default(), &frame, &Split::HeaderAlone)
                })
            },
        );
    }
    table.add("bad_tx::frame_of_14_bytes_is_sent", |ctx| {
        let mut vmm = Setup::new().build(ctx)?;
        vmm.check_tx(14, &Split::Whole)?;
        vmm.check_tx(14, &Split::HeaderAlone)
    });
    let hdr = NetHdr::default();
    for (name, hdr) in [
        (
            "csum_start_that_wraps",
            NetHdr {
                flags: NEEDS_CSUM,
                csum_start: 0xffff,
                csum_offset: 2,
                ..hdr
            },
        ),
        (
            "unknown_gso_type",
            NetHdr {
                gso_type: 0x7f,
                ..hdr
            },
        ),
        (
            "gso_size_of_zero",
            NetHdr {
                gso_type: 1,
                gso_size: 0,
                ..hdr
            },
        ),
        (
            "udp_gso_without_checksum",
            NetHdr {
                gso_type: 5,
                gso_size: 1000,
                ..hdr
            },
        ),
        (
            "hdr_len_beyond_the_packet",
            NetHdr {
                hdr_len: 60_000,
                ..hdr
            },
        ),
    ] {
        for len in [60, 1514, 9000] {
            table.add(
                format!("bad_tx::{name}_in_{len}_bytes_gives_the_chain_back"),
                move |ctx| given_back(ctx, &hdr, len),
            );
        }
    }
    table.add("bad_tx::packet_of_70000_bytes_is_sent_or_dropped", |ctx| {
        huge(ctx, 70_000)
    });
    table.add("bad_tx::packet_of_500000_bytes_is_sent_or_dropped", |ctx| {
        huge(ctx, 500_000)
    });
    table.add("bad_tx::bad_packets_among_good_ones_disturb_nothing", mixed);
}

fn buffer(vmm: &mut Vmm, len: u32) -> Result<Vec<Seg>> {
    Ok(vec![Seg {
        addr: vmm.mem.tx_buffer(len.into())?,
        len,
    }])
}

/// A refused chain is leaked or given back, an err signal comes, and the next
/// chain is sent.
fn refused(ctx: &Ctx, vmm: &mut Vmm, head: u16) -> Result<()> {
    let frame = vmm.tx_frames.plain(100);
    vmm.queue_tx(&NetHdr::default(), &frame, &Split::Whole)?;
    vmm.tx.flush_and_kick()?;
    poll::wait_signal(&vmm.tx.err, "an err signal")?;
    vmm.fence(TX)?;
    // A device that stops at the bad chain goes on with a kick.
    vmm.tx.kick()?;
    vmm.expect_on_wire(&frame)?;
    let first = vmm.tx.wait_used()?;
    match ctx.module {
        Module::C => {
            ensure!(first.head != head, "the refused chain came back");
            vmm.tx.forget(head)?;
        }
        Module::Rust => {
            expect("first chain given back", first.head, head)?;
            expect("its length", first.len, 0)?;
            vmm.tx.wait_used()?;
        }
    }
    vmm.fence(TX)?;
    poll::take_signals(&vmm.tx.err);
    vmm.check_tx(1000, &Split::HeaderAlone)?;
    vmm.check_quiet()
}

fn writable_only(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new().build(ctx)?;
    vmm.check_tx(60, &Split::Whole)?;
    let segs = buffer(&mut vmm, 100)?;
    let head = vmm.tx.add(&[], &segs)?;
    refused(ctx, &mut vmm, head)
}

fn writable_last(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new().build(ctx)?;
    vmm.check_tx(60, &Split::Whole)?;
    let (read, write) = (buffer(&mut vmm, 100)?, buffer(&mut vmm, 100)?);
    let descs = [
        Desc {
            addr: read[0].addr,
            len: 100,
            ..Desc::default()
        },
        Desc {
            addr: write[0].addr,
            len: 100,
            flags: F_WRITE,
            ..Desc::default()
        },
    ];
    let head = vmm.tx.add_descs(&descs, read)?;
    refused(ctx, &mut vmm, head)
}

fn zero_lengths(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new().build(ctx)?;
    vmm.check_tx(60, &Split::Whole)?;
    let empty = Seg {
        addr: 0x2000,
        len: 0,
    };
    let head = vmm.tx.add(&[empty; 3], &[])?;
    refused(ctx, &mut vmm, head)
}

/// The device strips the header itself and nothing is left.
fn net_hdr_only(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new()
        .features(feature::VERSION_1 | feature::NET_HDR)
        .build(ctx)?;
    vmm.check_tx(60, &Split::Whole)?;
    let segs = buffer(&mut vmm, 12)?;
    let head = vmm.tx.add(&segs, &[])?;
    refused(ctx, &mut vmm, head)
}

/// The packet goes nowhere, its chain comes back, the next one is sent.
fn dropped(ctx: &Ctx, make: impl Fn(&mut Vmm) -> Result<Vec<Seg>>) -> Result<()> {
    let mut vmm = Setup::new().build(ctx)?;
    vmm.check_tx(60, &Split::Whole)?;
    for _ in 0..3 {
        let segs = make(&mut vmm)?;
        drop_one(&mut vmm, &segs)?;
    }
    vmm.fence(TX)?;
    vmm.wire.expect_silence()
}

fn drop_one(vmm: &mut Vmm, segs: &[Seg]) -> Result<()> {
    let head = vmm.tx.add(segs, &[])?;
    vmm.tx.flush()?;
    let used = vmm.tx.wait_used()?;
    expect("chain given back", (used.head, used.len), (head, 0))?;
    vmm.check_tx(200, &Split::HeaderAlone)
        .context("after the dropped packet")
}

fn dropped_better(ctx: &Ctx, make: impl Fn(&mut Vmm) -> Result<Vec<Seg>>) -> Result<()> {
    match ctx.module {
        Module::C => skip(better::TX_SPIN.c),
        Module::Rust => dropped(ctx, make),
    }
}

/// A packet of `len` bytes of which the pages from `offset` on are gone.
fn unreadable(ctx: &Ctx, len: u32, offset: u64) -> Result<()> {
    if ctx.module == Module::C {
        return skip(better::TX_SPIN.c);
    }
    let mut vmm = Setup::new().build(ctx)?;
    vmm.check_tx(60, &Split::Whole)?;
    let pages = u64::from(len).next_multiple_of(PAGE) + 2 * PAGE;
    let start = vmm.mem.tx_buffer(pages + PAGE)?.next_multiple_of(PAGE);
    // With an offset, the header and a part of the packet lie before it.
    let addr = if offset == 0 {
        start
    } else {
        start + PAGE - 200
    };
    vmm.mem
        .protect(start + offset, pages - offset, Access::None)?;
    let result = drop_one(&mut vmm, &[Seg { addr, len }]);
    vmm.mem.protect(start, pages, Access::ReadWrite)?;
    result?;
    vmm.check_tx(60, &Split::Whole)
}

/// Whether the stack takes such a header is its business; the chain comes back
/// and the next packet is sent.
fn given_back(ctx: &Ctx, hdr: &NetHdr, len: usize) -> Result<()> {
    let mut vmm = Setup::new().build(ctx)?;
    vmm.check_tx(60, &Split::Whole)?;
    for _ in 0..3 {
        let frame = vmm.tx_frames.plain(len);
        let head = vmm.queue_tx(hdr, &frame, &Split::HeaderAlone)?;
        vmm.tx.flush()?;
        let used = vmm.tx.wait_used()?;
        expect("chain given back", (used.head, used.len), (head, 0))?;
        vmm.fence(TX)?;
        while vmm.wire.try_recv()?.is_some() {}
        vmm.check_tx(200, &Split::HeaderAlone)?;
    }
    expect("err signals", poll::take_signals(&vmm.tx.err), 0)
}

fn huge(ctx: &Ctx, len: usize) -> Result<()> {
    let mut vmm = Setup::new().build(ctx)?;
    vmm.check_tx(60, &Split::Whole)?;
    let frame = vmm.tx_frames.plain(len);
    vmm.queue_tx(&NetHdr::default(), &frame, &Split::Every(32_768))?;
    vmm.tx.flush()?;
    vmm.tx.wait_used()?;
    vmm.fence(TX)?;
    // The socket takes no more than its buffer; a prefix will do.
    if let Some((_, seen)) = vmm.wire.try_recv()? {
        let shorter = seen.len().min(frame.len());
        compare("frame", &seen[..shorter], &frame[..shorter])?;
    }
    vmm.check_tx(200, &Split::HeaderAlone)?;
    vmm.check_quiet()
}

/// Short frames and bad offload headers between good packets of one batch.
fn mixed(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new().build(ctx)?;
    for _ in 0..5 {
        let mut good = Vec::new();
        for i in 0..120 {
            match i % 6 {
                1 => {
                    vmm.queue_tx(&NetHdr::default(), &[0x55; 10], &Split::HeaderAlone)?;
                }
                4 => {
                    let hdr = NetHdr {
                        gso_type: 0x7f,
                        ..NetHdr::default()
                    };
                    let frame = vmm.tx_frames.plain(100);
                    vmm.queue_tx(&hdr, &frame, &Split::Whole)?;
                }
                _ => {
                    let frame = vmm.tx_frames.plain(60 + 40 * i);
                    vmm.queue_tx(&NetHdr::default(), &frame, &Split::Whole)?;
                    good.push(frame);
                }
            }
        }
        vmm.tx.flush()?;
        for (i, frame) in good.iter().enumerate() {
            vmm.expect_on_wire(frame)
                .with_context(|| format!("good packet {i}"))?;
        }
        expect("chains given back", vmm.tx.drain()?.len(), 120)?;
    }
    vmm.check_quiet()
}
