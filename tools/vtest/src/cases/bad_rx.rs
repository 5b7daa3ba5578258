// SPDX-License-Identifier: GPL-2.0

//! Receive buffers that do not suit the packet, or are not there.

use anyhow::bail;
use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;

use crate::better;
use crate::case::Ctx;
use crate::case::Module;
use crate::case::Table;
use crate::device::feature;
use crate::device::RX;
use crate::frame::compare;
use crate::mem::Access;
use crate::mem::PAGE;
use crate::poll;
use crate::ring::Desc;
use crate::ring::F_WRITE;
use crate::ring::NO_NOTIFY;
use crate::traffic::expect;
use crate::virtqueue::Seg;
use crate::vmm::Setup;
use crate::vmm::Vmm;

const MERGEABLE: u64 = feature::VERSION_1 | feature::MRG_RXBUF;

pub(super) fn register(table: &mut Table) {
    table.add_better(
        "bad_rx::readable_chain_is_refused",
        better::RX_LEAK,
        readable,
    );
    table.add_better(
        "bad_rx::readable_before_writable_is_refused",
        better::RX_LEAK,
        readable_first,
    );
    table.add_better(
        "bad_rx::chain_of_zero_length_descriptors_is_refused",
        better::RX_LEAK,
        zero_lengths,
    );
    table.add_better(
        "bad_rx::readable_third_of_three_buffers_rewinds_to_the_first",
        better::RX_REWIND,
        rewinds,
    );
    table.add("bad_rx::no_buffer_keeps_the_packet", no_buffer);
    table.add("bad_rx::too_few_mergeable_buffers_are_put_back", too_few);
    table.add(
        "bad_rx::buffer_too_short_drops_the_packet_and_stays",
        too_short,
    );
    table.add(
        "bad_rx::buffer_of_one_byte_drops_the_packet_and_stays",
        tiny,
    );
    table.add(
        "bad_rx::mergeable_1024_buffers_too_few_drops_the_packet",
        capacity,
    );
    table.add(
        "bad_rx::unwritable_buffer_drops_the_packet_and_stays",
        |ctx| gone(ctx, Access::None),
    );
    table.add(
        "bad_rx::read_only_buffer_drops_the_packet_and_stays",
        |ctx| gone(ctx, Access::ReadOnly),
    );
    table.add_better(
        "bad_rx::unwritable_payload_page",
        better::RX_PAYLOAD,
        payload_gone,
    );
    table.add_better(
        "bad_rx::tap_header_size_differs_from_that_of_the_features",
        better::HEADER_SIZE,
        header_size,
    );
}

/// `head` was posted first and is bad, a good chain follows: the bad one is
/// leaked by C, given back or left in place by the replacement.
fn refused(ctx: &Ctx, vmm: &mut Vmm, head: u16) -> Result<()> {
    let start = vmm.rx.next_avail().wrapping_sub(1);
    let good = vmm.queue_rx(&[2048])?;
    vmm.rx.flush()?;
    let frame = vmm.send_rx(60)?;
    poll::wait_signal(&vmm.rx.err, "an err signal")?;
    vmm.fence(RX)?;
    vmm.rx.kick()?;
    match ctx.module {
        Module::C => {
            vmm.rx.forget(head)?;
            let received = vmm.expect_in_guest(&frame)?;
            expect("chain of the packet", received.chains[0].head, good)?;
            expect("chains fetched", vmm.base(RX)?.wrapping_sub(start), 2)?;
        }
        Module::Rust => {
            let first = vmm.rx.wait_used()?;
            expect("first chain given back", (first.head, first.len), (head, 0))?;
            let received = vmm.expect_in_guest(&frame)?;
            expect("chain of the packet", received.chains[0].head, good)?;
        }
    }
    vmm.fence(RX)?;
    poll::take_signals(&vmm.rx.err);
    vmm.post_rx(2, &[2048])?;
    vmm.check_rx(60)?;
    Ok(())
}

fn readable(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new().build(ctx)?;
    vmm.post_rx(1, &[2048])?;
    vmm.check_rx(60)?;
    let segs = vmm.rx_segs(&[2048])?;
    let head = vmm.rx.add(&segs, &[])?;
    refused(ctx, &mut vmm, head)
}

fn readable_first(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new().build(ctx)?;
    vmm.post_rx(1, &[2048])?;
    vmm.check_rx(60)?;
    let (read, write) = (vmm.rx_segs(&[100])?, vmm.rx_segs(&[2048])?);
    let head = vmm.rx.add(&read, &write)?;
    refused(ctx, &mut vmm, head)
}

fn zero_lengths(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new().build(ctx)?;
    vmm.post_rx(1, &[2048])?;
    vmm.check_rx(60)?;
    let empty = Desc {
        addr: 0x2000,
        len: 0,
        flags: F_WRITE,
        next: 0,
    };
    let seg = Seg {
        addr: 0x2000,
        len: 0,
    };
    let head = vmm.rx.add_descs(&[empty; 2], vec![seg; 2])?;
    refused(ctx, &mut vmm, head)
}

fn rewinds(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new().features(MERGEABLE).build(ctx)?;
    vmm.post_rx(4, &[100])?;
    vmm.check_rx(60)?;
    vmm.check_rx(200)?;
    expect("buffers left", vmm.rx.pending(), 0)?;
    let start = vmm.rx.next_avail();
    vmm.queue_rx(&[100])?;
    vmm.queue_rx(&[100])?;
    let segs = vmm.rx_segs(&[100])?;
    let bad = vmm.rx.add(&segs, &[])?;
    vmm.rx.flush()?;
    let frame = vmm.send_rx(250)?;
    poll::wait_signal(&vmm.rx.err, "an err signal")?;
    vmm.fence(RX)?;
    if ctx.module == Module::C {
        expect("used index", vmm.rx.ring.used_idx(), vmm.rx.used_seen())?;
        return expect("base", vmm.base(RX)?, start.wrapping_add(1));
    }
    // The guest repairs the ring: the packet comes into the three buffers.
    let desc = Desc {
        addr: segs[0].addr,
        len: segs[0].len,
        flags: F_WRITE,
        next: 0,
    };
    expect("used index", vmm.rx.ring.used_idx(), vmm.rx.used_seen())?;
    expect("base", vmm.base(RX)?, start)?;
    vmm.rx.ring.set_desc(bad, desc);
    vmm.rx.kick()?;
    let received = vmm.expect_in_guest(&frame)?;
    expect("buffers", received.chains.len(), 3)
}

fn no_buffer(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new().build(ctx)?;
    let frames = [vmm.send_rx(60)?, vmm.send_rx(61)?];
    vmm.fence(RX)?;
    for frame in &frames {
        vmm.post_rx(1, &[2048])?;
        vmm.expect_in_guest(frame)?;
    }
    vmm.check_quiet()
}

fn too_few(ctx: &Ctx) -> Result<()> {
    for (name, bits) in [("vt0", 0), ("vt1", feature::EVENT_IDX)] {
        let mut vmm = Setup::new()
            .features(MERGEABLE | bits)
            .tap_name(name)
            .build(ctx)?;
        vmm.post_rx(1, &[100])?;
        vmm.check_rx(60)?;
        vmm.post_rx(2, &[100])?;
        let frame = vmm.send_rx(250)?;
        poll::wait_for("the device to ask for more buffers", || {
            let wanted = if bits == 0 {
                vmm.rx.ring.used_flags() & NO_NOTIFY == 0
            } else {
                vmm.rx.ring.avail_event() == 3
            };
            Ok(wanted.then_some(()))
        })?;
        vmm.fence(RX)?;
        expect("base", vmm.base(RX)?, 1)?;
        expect("used index", vmm.rx.ring.used_idx(), 1)?;
        vmm.post_rx(1, &[100])?;
        let received = vmm.expect_in_guest(&frame)?;
        expect("buffers", received.chains.len(), 3)?;
        vmm.check_quiet()?;
    }
    Ok(())
}

fn too_short(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new().build(ctx)?;
    let segs = vmm.rx_segs(&[40])?;
    let head = vmm.rx.add(&[], &segs)?;
    vmm.rx.flush()?;
    vmm.send_rx(60)?;
    vmm.send_rx(29)?;
    // 28 bytes and the header fit exactly.
    let received = vmm.check_rx(28)?;
    expect("chain", received.chains[0].head, head)?;
    vmm.post_rx(1, &[2048])?;
    vmm.check_rx(60)?;
    vmm.check_quiet()
}

fn tiny(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new().build(ctx)?;
    vmm.post_rx(1, &[1])?;
    for _ in 0..100 {
        vmm.send_rx(60)?;
    }
    drained(&vmm)?;
    expect("base", vmm.base(RX)?, 0)?;
    expect("used index", vmm.rx.ring.used_idx(), 0)?;
    vmm.check_quiet()
}

/// Waits until the device has taken every packet from the tap and is done with
/// them.
fn drained(vmm: &Vmm) -> Result<()> {
    poll::wait_for("the tap to run empty", || {
        Ok((!poll::readable(&vmm.tap, std::time::Duration::ZERO)?).then_some(()))
    })?;
    vmm.fence(RX)
}

/// A packet may span 1024 chains and no more.
fn capacity(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new().features(MERGEABLE).size(2048).build(ctx)?;
    vmm.post_rx(1024, &[1])?;
    vmm.post_rx(1024, &[1])?;
    vmm.send_rx(1024 - 12 + 1)?;
    drained(&vmm)?;
    expect("base", vmm.base(RX)?, 0)?;
    let received = vmm.check_rx(1024 - 12)?;
    expect("buffers", received.chains.len(), 1024)?;
    vmm.check_quiet()
}

fn gone(ctx: &Ctx, access: Access) -> Result<()> {
    let mut vmm = Setup::new().build(ctx)?;
    vmm.post_rx(1, &[2048])?;
    vmm.check_rx(60)?;
    let addr = vmm.mem.rx_buffer(3 * PAGE)?.next_multiple_of(PAGE);
    vmm.rx.add(&[], &[Seg { addr, len: 2048 }])?;
    vmm.mem.protect(addr, PAGE, access)?;
    vmm.rx.flush()?;
    for _ in 0..3 {
        vmm.send_rx(60)?;
        drained(&vmm)?;
        expect("used index", vmm.rx.ring.used_idx(), 1)?;
    }
    expect("base", vmm.base(RX)?, 1)?;
    vmm.mem.protect(addr, PAGE, Access::ReadWrite)?;
    // One err signal is fine.
    poll::take_signals(&vmm.rx.err);
    vmm.check_rx(60).context("after the page came back")?;
    vmm.check_quiet()
}

fn payload_gone(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new().build(ctx)?;
    vmm.post_rx(1, &[2048])?;
    vmm.check_rx(60)?;
    let page = vmm.mem.rx_buffer(3 * PAGE)?.next_multiple_of(PAGE);
    let seg = Seg {
        addr: page + PAGE - 512,
        len: 2048,
    };
    vmm.rx.add(&[], &[seg])?;
    vmm.mem.protect(page + PAGE, PAGE, Access::None)?;
    vmm.rx.flush()?;
    let frame = vmm.send_rx(1500)?;
    drained(&vmm)?;
    vmm.mem.protect(page + PAGE, PAGE, Access::ReadWrite)?;
    match ctx.module {
        Module::C => {
            let received = vmm.recv()?;
            expect("length", received.frame.len(), frame.len())?;
            compare("first bytes", &received.frame[..500], &frame[..500])?;
            if received.frame == frame {
                bail!("the payload arrived though its page was gone");
            }
        }
        Module::Rust => {
            expect("used index", vmm.rx.ring.used_idx(), 1)?;
            poll::take_signals(&vmm.rx.err);
            vmm.check_rx(1500)?;
        }
    }
    vmm.check_quiet()
}

fn header_size(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new().header(10).build(ctx)?;
    vmm.post_rx(4, &[2048])?;
    if ctx.module == Module::Rust {
        vmm.check_rx(60)?;
        return vmm.check_quiet();
    }
    for _ in 0..10 {
        vmm.send_rx(60)?;
    }
    drained(&vmm)?;
    expect("used index", vmm.rx.ring.used_idx(), 0)?;
    vmm.tap.set_header(12)?;
    vmm.check_rx(60)?;
    ensure!(vmm.rx.pending() == 3, "buffers were lost");
    vmm.check_quiet()
}
