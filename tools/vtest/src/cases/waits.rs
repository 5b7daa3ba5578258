// SPDX-License-Identifier: GPL-2.0

//! What an INVALIDATE waits for: whoever sends it may reuse the memory when
//! the call has returned.

use std::os::fd::AsRawFd;
use std::thread;
use std::thread::JoinHandle;

use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;

use super::iotlb::read;
use super::iotlb::translate;
use super::iotlb::translated;
use super::iotlb::translating;
use super::iotlb::update;
use super::iotlb::update_all;
use super::iotlb::Message;
use super::iotlb::INVALIDATE;
use super::iotlb::MESSAGE;
use super::memory::in_a_page;
use crate::case::Ctx;
use crate::case::Table;
use crate::device::TX;
use crate::frame::NetHdr;
use crate::ioctl::Outcome;
use crate::late::Late;
use crate::mem::END;
use crate::mem::PAGE;
use crate::poll;
use crate::traffic::expect;
use crate::traffic::Split;
use crate::virtqueue::Seg;
use crate::vmm::Setup;
use crate::vmm::Vmm;

pub(super) fn register(table: &mut Table) {
    table.add("iotlb::invalidate_waits_for_a_packet_under_way", packet);
    table.add("iotlb::invalidate_waits_for_a_start_under_way", start);
    table.add(
        "iotlb::page_of_the_used_ring_invalidated_under_a_pass_loses_nothing",
        used_page,
    );
}

/// Removes the mapping of a page, in a thread: what the write returned.
pub(super) fn remove(vmm: &Vmm, iova: u64) -> JoinHandle<Option<isize>> {
    let fd = vmm.vhost.as_raw_fd();
    let message = Message {
        iova,
        size: PAGE,
        uaddr: 0,
        perm: 0,
        kind: INVALIDATE,
    };
    thread::spawn(move || {
        let bytes = message.bytes(2);
        // SAFETY: The buffer is valid for its length.
        let written = unsafe { libc::write(fd, bytes.as_ptr().cast(), bytes.len()) };
        Some(written)
    })
}

/// Time enough for a call that does not wait: another device is set up, and
/// carries traffic.
pub(super) fn time_passes(ctx: &Ctx) -> Result<()> {
    Setup::new().tap_name("vt1").build(ctx)?.check_alive()
}

pub(super) fn returned<T: PartialEq + std::fmt::Debug>(
    what: &str,
    call: JoinHandle<T>,
    wanted: T,
) -> Result<()> {
    expect(what, call.join().ok(), Some(wanted))
}

fn packet(ctx: &Ctx) -> Result<()> {
    let mut vmm = translated(ctx)?;
    update_all(&vmm)?;
    vmm.start()?;
    vmm.check_tx(60, &Split::Whole)?;
    let (iova, bytes, frame) = in_a_page(&mut vmm)?;
    let at = vmm.mem.host(iova)?;
    let late = Late::page(at)?;
    vmm.tx.flush_and_kick()?;
    late.wait_touched()?;
    let removal = remove(&vmm, iova);
    time_passes(ctx)?;
    ensure!(!removal.is_finished(), "the page is still being read");
    late.provide(at, &bytes)?;
    returned("INVALIDATE", removal, Some(MESSAGE as isize))?;
    vmm.expect_on_wire(&frame)?;
    vmm.tx.wait_used()?;
    Ok(())
}

/// SET_BACKEND reads the used index.
fn start(ctx: &Ctx) -> Result<()> {
    let mut vmm = translated(ctx)?;
    update_all(&vmm)?;
    let used = vmm.tx.ring.layout().used;
    let bytes = vmm.mem.read(used, PAGE as usize)?;
    let at = vmm.mem.host(used)?;
    let late = Late::page(at)?;
    let (raw, tap) = (vmm.vhost.raw(), vmm.tap.as_raw_fd());
    let start: JoinHandle<Outcome> = thread::spawn(move || raw.set_backend(TX as u32, tap));
    late.wait_touched()?;
    let removal = remove(&vmm, used);
    time_passes(ctx)?;
    ensure!(!removal.is_finished(), "the page is still being read");
    late.provide(at, &bytes)?;
    returned("SET_BACKEND", start, Ok(0))?;
    returned("INVALIDATE", removal, Some(MESSAGE as isize))?;
    update_all(&vmm)?;
    vmm.tx.kick()?;
    vmm.check_tx(60, &Split::Whole)
}

/// A ring of more pages than a queue keeps mappings of, each mapped by itself.
/// The page of the next used elements goes while packets are sent.
fn used_page(ctx: &Ctx) -> Result<()> {
    const PACKETS: u64 = 24;
    // The first element in the second page of the used ring, and some more.
    let mut vmm = translating().size(4096).base(520).build(ctx)?;
    translate(&vmm)?;
    let pages = |from: u64, count: u64| (0..count).map(move |i| from + i * PAGE);
    let layout = vmm.tx.ring.layout();
    let buffers = vmm.mem.tx_buffer((PACKETS + 1) * PAGE)?;
    let buffers = buffers.next_multiple_of(PAGE);
    let mapped = pages(layout.desc, 16)
        .chain(pages(layout.avail, 3))
        .chain(pages(layout.used, 9))
        .chain(pages(buffers, PACKETS));
    for page in mapped {
        update(&vmm, page, page + PAGE)?;
    }
    update(&vmm, buffers + PACKETS * PAGE, END)?;
    vmm.start_queue(TX)?;
    let mut frames = Vec::new();
    let mut bytes = Vec::new();
    for page in pages(buffers, PACKETS) {
        let frame = vmm.tx_frames.plain(60);
        bytes = NetHdr::default().bytes(12);
        bytes.extend(&frame);
        vmm.mem.write(page, &bytes)?;
        let len = bytes.len() as u32;
        vmm.tx.add(&[Seg { addr: page, len }], &[])?;
        frames.push(frame);
    }
    let at = vmm.mem.host(buffers + (PACKETS - 1) * PAGE)?;
    let late = Late::page(at)?;
    vmm.tx.flush_and_kick()?;
    late.wait_touched()?;
    let removal = remove(&vmm, layout.used + PAGE);
    time_passes(ctx)?;
    ensure!(!removal.is_finished(), "the ring is in use");
    late.provide(at, &bytes)?;
    returned("INVALIDATE", removal, Some(MESSAGE as isize))?;
    let answer = |vmm: &Vmm| -> Result<()> {
        while let Some(miss) = read(vmm)? {
            let page = miss.iova / PAGE * PAGE;
            update(vmm, page, page + PAGE)?;
        }
        Ok(())
    };
    poll::wait_for("all packets to be used", || {
        answer(&vmm)?;
        vmm.tx.drain_some()?;
        Ok((vmm.tx.pending() == 0).then_some(()))
    })
    .with_context(|| vmm.tx.state())?;
    for frame in &frames {
        vmm.expect_on_wire(frame)?;
    }
    // Each of them once.
    vmm.wire.expect_silence()?;
    // What C has missed is asked for by the next packet.
    let frame = vmm.tx_frames.plain(60);
    vmm.queue_tx(&NetHdr::default(), &frame, &Split::Whole)?;
    vmm.tx.flush_and_kick()?;
    poll::wait_for("the next packet to be used", || {
        answer(&vmm)?;
        vmm.tx.drain_some()?;
        Ok((vmm.tx.pending() == 0).then_some(()))
    })?;
    vmm.expect_on_wire(&frame)
}
