// SPDX-License-Identifier: GPL-2.0

//! Memory of the owner that goes, comes back, is replaced, or takes its time.

use std::os::fd::AsRawFd;
use std::thread;

use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;

use crate::better;
use crate::case::skip;
use crate::case::Ctx;
use crate::case::Module;
use crate::case::Table;
use crate::device::RX;
use crate::device::TX;
use crate::errno::Errno;
use crate::frame::NetHdr;
use crate::ioctl;
use crate::ioctl::MemoryRegion;
use crate::ioctl::Outcome;
use crate::late::Late;
use crate::mem::Access;
use crate::mem::PAGE;
use crate::poll;
use crate::process::Child;
use crate::traffic::expect;
use crate::traffic::Split;
use crate::virtqueue::Seg;
use crate::vmm::Setup;
use crate::vmm::Vmm;

const E2BIG: Outcome = Err(Errno(libc::E2BIG));

pub(super) fn register(table: &mut Table) {
    table.add("memory::most_regions_are_as_many_as_the_parameter", most);
    table.add("memory::traffic_over_as_many_regions_as_allowed", many);
    table.add("memory::region_removed_stalls_until_it_is_back", removed);
    table.add("memory::other_pages_at_the_address_are_seen", remapped);
    table.add(
        "memory::available_ring_gone_stalls_until_it_is_back",
        |ctx| ring_gone(ctx, |vmm| vmm.tx.ring.layout().avail),
    );
    table.add(
        "memory::descriptors_gone_stall_until_they_are_back",
        |ctx| ring_gone(ctx, |vmm| vmm.tx.ring.layout().desc),
    );
    table.add("memory::used_ring_gone_is_err", used_gone);
    table.add("memory::late_page_holds_up_its_queue_only", late_page);
    table.add("memory::late_page_of_a_ring_is_waited_for", late_ring);
    table.add("memory::owner_dies_while_a_page_is_late", |ctx| {
        late_dies(ctx, 1)
    });
    table.add_better(
        "memory::owner_of_kernel_threads_dies_while_a_page_is_late",
        better::WAIT_KILLABLE,
        |ctx| match ctx.module {
            Module::C => skip(better::WAIT_KILLABLE.c),
            Module::Rust => late_dies(ctx, 0),
        },
    );
}

/// As many regions as `count`, all of one page, behind those of the machine.
fn table_of(vmm: &Vmm, count: usize) -> Result<Vec<MemoryRegion>> {
    let mut table = vmm.regions()?;
    let page = vmm.mem.host(0)? as u64;
    for i in table.len()..count {
        // Neither adjacent, nor in order.
        let gpa = (1 << 40) + 2 * PAGE * (i as u64 * 7919 % 65_536);
        table.push(MemoryRegion::new(gpa, PAGE, page));
    }
    Ok(table)
}

fn most_regions(ctx: &Ctx) -> Result<usize> {
    Ok(ctx.module.parameter("max_mem_regions")?.parse()?)
}

fn most(ctx: &Ctx) -> Result<()> {
    let vmm = Setup::new().stopped().build(ctx)?;
    let most = most_regions(ctx)?;
    ensure!(most >= 64, "{most} regions are too few");
    let raw = vmm.vhost.raw();
    for (count, wanted) in [(most, Ok(0)), (most + 1, E2BIG), (0, Ok(0)), (most, Ok(0))] {
        let table = match count {
            0 => Vec::new(),
            count => table_of(&vmm, count)?,
        };
        let what = format!("SET_MEM_TABLE of {count} regions");
        expect(&what, raw.set_mem_table(0, &table), wanted)?;
    }
    // The count is looked at before the regions are.
    let header = [most as u64 + 1];
    expect("E2BIG", raw.put(ioctl::SET_MEM_TABLE(), &header), E2BIG)
}

fn many(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new().build(ctx)?;
    let table = table_of(&vmm, most_regions(ctx)?)?;
    expect(
        "SET_MEM_TABLE",
        vmm.vhost.raw().set_mem_table(0, &table),
        Ok(0),
    )?;
    vmm.post_rx(50, &[2048])?;
    for _ in 0..50 {
        vmm.check_alive()?;
    }
    // From the last region, which shows the guest's first page.
    let last = table.last().context("no region")?.gpa;
    let frame = vmm.tx_frames.plain(60);
    let mut bytes = NetHdr::default().bytes(12);
    bytes.extend(&frame);
    vmm.mem.write(100, &bytes)?;
    let len = bytes.len() as u32;
    vmm.tx.add(
        &[Seg {
            addr: last + 100,
            len,
        }],
        &[],
    )?;
    vmm.tx.flush()?;
    vmm.expect_on_wire(&frame)?;
    vmm.tx.wait_used()?;
    vmm.check_quiet()
}

fn removed(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new().build(ctx)?;
    vmm.check_tx(60, &Split::Whole)?;
    let whole = table_of(&vmm, 0)?;
    let raw = vmm.vhost.raw();
    // Buffers lie in the second region.
    expect("SET_MEM_TABLE", raw.set_mem_table(0, &whole[..1]), Ok(0))?;
    let frame = vmm.tx_frames.plain(60);
    vmm.queue_tx(&NetHdr::default(), &frame, &Split::Whole)?;
    vmm.tx.flush_and_kick()?;
    poll::wait_signal(&vmm.tx.err, "err")?;
    vmm.fence(TX)?;
    vmm.wire.expect_silence()?;
    expect("SET_MEM_TABLE", raw.set_mem_table(0, &whole), Ok(0))?;
    poll::take_signals(&vmm.tx.err);
    vmm.tx.kick()?;
    vmm.expect_on_wire(&frame)?;
    vmm.tx.wait_used()?;
    vmm.check_quiet()
}

/// Nothing is pinned: a page that is replaced is replaced for the device too.
fn remapped(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new().build(ctx)?;
    let start = vmm.mem.tx_buffer(3 * PAGE)?.next_multiple_of(PAGE);
    for round in 0..3 {
        let frame = vmm.tx_frames.plain(60 + round);
        let mut bytes = NetHdr::default().bytes(12);
        bytes.extend(&frame);
        let at = vmm.mem.host(start)?;
        // SAFETY: Replaces a page of guest memory that only this case uses.
        let rc = unsafe {
            libc::mmap(
                at.cast(),
                PAGE as usize,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED,
                -1,
                0,
            )
        };
        ensure!(rc != libc::MAP_FAILED, "mmap: {}", Errno::last());
        vmm.mem.write(start, &bytes)?;
        let len = bytes.len() as u32;
        vmm.tx.add(&[Seg { addr: start, len }], &[])?;
        vmm.tx.flush()?;
        vmm.expect_on_wire(&frame)?;
        vmm.tx.wait_used()?;
    }
    vmm.check_quiet()
}

/// A part of the ring cannot be read, and can again.
/// A machine whose TX looks at nothing until it is kicked: what it looked at
/// last could not be read.
fn stalled(ctx: &Ctx) -> Result<Vmm> {
    // Rings of a page at least, so that nothing else goes with one.
    let mut vmm = Setup::new().size(2048).build(ctx)?;
    vmm.check_tx(60, &Split::Whole)?;
    let page = vmm.tx.ring.layout().avail / PAGE * PAGE;
    vmm.mem.protect(page, PAGE, Access::None)?;
    let kicked = vmm.tx.kick();
    let err = poll::wait_signal(&vmm.tx.err, "err");
    let fence = vmm.fence(TX);
    vmm.mem.protect(page, PAGE, Access::ReadWrite)?;
    kicked?;
    err?;
    fence?;
    poll::take_signals(&vmm.tx.err);
    Ok(vmm)
}

fn ring_gone(ctx: &Ctx, part: fn(&Vmm) -> u64) -> Result<()> {
    let mut vmm = stalled(ctx)?;
    let frame = vmm.tx_frames.plain(60);
    vmm.queue_tx(&NetHdr::default(), &frame, &Split::Whole)?;
    vmm.tx.publish();
    let page = part(&vmm) / PAGE * PAGE;
    vmm.mem.protect(page, PAGE, Access::None)?;
    vmm.tx.kick()?;
    let err = poll::wait_signal(&vmm.tx.err, "err");
    let fence = vmm.fence(TX);
    vmm.mem.protect(page, PAGE, Access::ReadWrite)?;
    err?;
    fence?;
    vmm.wire.expect_silence()?;
    vmm.tx.kick()?;
    vmm.expect_on_wire(&frame)?;
    vmm.tx.wait_used()?;
    Ok(())
}

/// What becomes of the chain is not the same in C and here; that err comes,
/// and that a new start makes all well again, is.
fn used_gone(ctx: &Ctx) -> Result<()> {
    let mut vmm = stalled(ctx)?;
    let frame = vmm.tx_frames.plain(60);
    vmm.queue_tx(&NetHdr::default(), &frame, &Split::Whole)?;
    vmm.tx.publish();
    let used = vmm.tx.ring.layout().used / PAGE * PAGE;
    vmm.mem.protect(used, PAGE, Access::None)?;
    vmm.tx.kick()?;
    let err = poll::wait_signal(&vmm.tx.err, "err");
    let stop = vmm.stop();
    vmm.mem.protect(used, PAGE, Access::ReadWrite)?;
    err?;
    stop?;
    let mode = crate::virtqueue::Mode::default();
    vmm.tx = crate::virtqueue::Virtqueue::new(&vmm.mem, 256, mode, 0, 0)?;
    vmm.configure_queue(TX, 0)?;
    while vmm.wire.try_recv()?.is_some() {}
    vmm.start()?;
    vmm.check_alive()
}

/// A packet in a page of its own; returns where that is, and what it holds.
pub(super) fn in_a_page(vmm: &mut Vmm) -> Result<(u64, Vec<u8>, Vec<u8>)> {
    let start = vmm.mem.tx_buffer(3 * PAGE)?.next_multiple_of(PAGE);
    let frame = vmm.tx_frames.plain(60);
    let mut bytes = NetHdr::default().bytes(12);
    bytes.extend(&frame);
    let len = bytes.len() as u32;
    vmm.tx.add(&[Seg { addr: start, len }], &[])?;
    Ok((start, bytes, frame))
}

fn late_page(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new().build(ctx)?;
    vmm.post_rx(20, &[2048])?;
    vmm.check_alive()?;
    let (start, bytes, frame) = in_a_page(&mut vmm)?;
    let at = vmm.mem.host(start)?;
    let late = Late::page(at)?;
    vmm.tx.flush_and_kick()?;
    late.wait_touched()?;
    // TX is held up, and a control call on it with it.
    let raw = vmm.vhost.raw();
    let err = vmm.tx.err.as_raw_fd();
    let call = thread::spawn(move || raw.set_vring_file(ioctl::SET_VRING_ERR(), TX as u32, err));
    // Features need no owner and no queue; another device nothing of this one.
    ensure!(raw.features().is_ok(), "GET_FEATURES fails");
    let mut other = Setup::new().tap_name("vt1").build(ctx)?;
    other.check_alive()?;
    vmm.wire.expect_silence()?;
    ensure!(!call.is_finished(), "the call has not waited");
    late.provide(at, &bytes)?;
    vmm.expect_on_wire(&frame)?;
    vmm.tx.wait_used()?;
    let seen = call.join();
    expect("SET_VRING_ERR", seen.ok(), Some(Ok(0)))?;
    vmm.fence(RX)?;
    vmm.check_alive()
}

fn late_ring(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new().size(2048).build(ctx)?;
    vmm.check_tx(60, &Split::Whole)?;
    vmm.stop()?;
    let (_, _, frame) = {
        let queued = in_a_page(&mut vmm)?;
        vmm.mem.write(queued.0, &queued.1)?;
        queued
    };
    vmm.tx.publish();
    // The page of the descriptor, of which there are no others in use.
    let page = vmm.tx.ring.layout().desc / PAGE * PAGE;
    let bytes = vmm.mem.read(page, PAGE as usize)?;
    let at = vmm.mem.host(page)?;
    let late = Late::page(at)?;
    vmm.start()?;
    late.wait_touched()?;
    vmm.wire.expect_silence()?;
    late.provide(at, &bytes)?;
    vmm.expect_on_wire(&frame)?;
    vmm.tx.wait_used()?;
    Ok(())
}

fn late_dies(ctx: &Ctx, fork: u8) -> Result<()> {
    let child = Child::spawn(|inside| {
        let mut vmm = super::worker::running(ctx, fork)?;
        let (start, _, _) = in_a_page(&mut vmm)?;
        let late = Late::page(vmm.mem.host(start)?)?;
        vmm.tx.flush_and_kick()?;
        late.wait_touched()?;
        inside.ready()?;
        // Waits for the queue, which waits for the page.
        vmm.fence(TX)
    })?;
    child.wait_ready()?;
    child.kill()?;
    crate::net::wait_gone("vt0")
}
