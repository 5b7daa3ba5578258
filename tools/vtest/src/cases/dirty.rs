// SPDX-License-Identifier: GPL-2.0

//! The dirty log where it is hard: other logs, aliases, rings in order, bits
//! that are cleared meanwhile, and memory compared with the log.

use std::collections::BTreeSet;
use std::os::fd::AsRawFd;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::sync::Arc;
use std::thread;

use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::eventfd::EFD_NONBLOCK;

use super::iotlb::translated;
use super::iotlb::update_all;
use super::log::alive_with_log_at;
use super::log::log_all;
use super::log::log_ring;
use super::log::pages;
use super::log::receive_at;
use super::log::Log;
use crate::better;
use crate::case::Ctx;
use crate::case::Module;
use crate::case::Table;
use crate::device::feature;
use crate::device::RX;
use crate::device::TX;
use crate::errno::Errno;
use crate::frame::NetHdr;
use crate::ioctl;
use crate::ioctl::MemoryRegion;
use crate::mem::Access;
use crate::mem::END;
use crate::mem::PAGE;
use crate::poll;
use crate::traffic::expect;
use crate::traffic::Split;
use crate::virtqueue::Seg;
use crate::vmm::Setup;
use crate::vmm::Vmm;

const KERNEL: u64 = 0xffff_8880_0000_0000;
const EFAULT: ioctl::Outcome = Err(Errno(libc::EFAULT));
const EINVAL: ioctl::Outcome = Err(Errno(libc::EINVAL));

pub(super) fn register(table: &mut Table) {
    table.add("log::base_beyond_user_space_is_efault_while_running", base);
    table.add("log::base_beyond_user_space_fails_at_start", base_at_start);
    table.add("log::bad_base_keeps_log_all_from_being_acked", base_first);
    table.add("log::ring_log_beyond_user_space_is_einval", ring_address);
    table.add("log::new_base_takes_all_bits", moved);
    table.add("log::read_only_log_does_not_stop_traffic", read_only);
    table.add("log::log_fd_is_signalled_by_packets", packets_signal);
    table.add("log::avail_event_is_logged", avail_event);
    table.add("log::empty_and_indirect_descriptors_are_harmless", odd);
    table.add("log::bits_cleared_meanwhile_are_not_lost", cleared);
    table.add("log::aliases_are_marked_with_translation", aliases);
    table.add("log::pages_that_changed_are_marked_when_toggled", toggled);
    table.add_better("log::base_bad_for_one_queue", better::LOG_BASE_HALF, half);
    table.add_better(
        "log::used_ring_in_order_across_its_end",
        better::LOG_IN_ORDER,
        in_order,
    );
}

fn set_base(vmm: &Vmm, base: u64) -> ioctl::Outcome {
    vmm.vhost.raw().put(ioctl::SET_LOG_BASE(), &base)
}

fn base(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new().build(ctx)?;
    let mut log = Log::new(&vmm)?;
    log_all(&vmm, true)?;
    for bad in [KERNEL, u64::MAX, u64::MAX - PAGE] {
        expect("SET_LOG_BASE", set_base(&vmm, bad), EFAULT)?;
    }
    // The old one is still in use.
    let buffer = vmm.mem.rx_buffer(20_000)?;
    receive_at(&mut vmm, buffer, 60)?;
    expect("pages", log.take(), pages(buffer, 72))
}

fn base_at_start(ctx: &Ctx) -> Result<()> {
    let vmm = Setup::new()
        .features(feature::VERSION_1 | feature::LOG_ALL)
        .stopped()
        .build(ctx)?;
    let raw = vmm.vhost.raw();
    expect("SET_LOG_BASE", set_base(&vmm, KERNEL), Ok(0))?;
    expect(
        "SET_BACKEND",
        raw.set_backend(0, vmm.tap.as_raw_fd()),
        EFAULT,
    )?;
    expect("SET_BACKEND -1", raw.set_backend(0, -1), EFAULT)?;
    let _log = Log::new(&vmm)?;
    vmm.start()
}

fn base_first(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new().build(ctx)?;
    expect("SET_LOG_BASE", set_base(&vmm, KERNEL), Ok(0))?;
    let raw = vmm.vhost.raw();
    let bits = feature::VERSION_1 | feature::LOG_ALL;
    expect("SET_FEATURES", raw.set_features(bits), EFAULT)?;
    expect("SET_FEATURES", raw.set_features(feature::LOG_ALL), EFAULT)?;
    // Nothing has changed, the header's length neither.
    vmm.check_alive()?;
    let _log = Log::new(&vmm)?;
    expect("SET_FEATURES", raw.set_features(bits), Ok(0))?;
    vmm.check_alive()
}

fn ring_address(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new().build(ctx)?;
    expect("SET_LOG_BASE", set_base(&vmm, KERNEL), Ok(0))?;
    let mut addr = vmm.vring_addr(TX)?;
    addr.flags = 1;
    let raw = vmm.vhost.raw();
    expect("SET_VRING_ADDR", raw.set_vring_addr(&addr), EINVAL)?;
    // Without the flag it is not looked at.
    addr.flags = 0;
    expect("SET_VRING_ADDR", raw.set_vring_addr(&addr), Ok(0))?;
    vmm.check_alive()
}

/// QEMU makes the log larger when memory is plugged.
fn moved(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new().build(ctx)?;
    let mut logs = [Log::new(&vmm)?, Log::new(&vmm)?];
    log_all(&vmm, true)?;
    log_ring(&vmm, RX, true)?;
    let buffer = vmm.mem.rx_buffer(20_000)?;
    for round in 0..6 {
        logs.swap(0, 1);
        logs[0].use_for(&vmm)?;
        logs[1].take();
        receive_at(&mut vmm, buffer, 60)?;
        let mut wanted = pages(buffer, 72);
        wanted.extend(pages(vmm.rx.ring.layout().used, 4));
        expect(&format!("round {round}"), logs[0].take(), wanted)?;
        expect("pages in the old log", logs[1].take(), BTreeSet::new())?;
    }
    Ok(())
}

fn read_only(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new().build(ctx)?;
    vmm.post_rx(20, &[2048])?;
    // Some guest memory that nothing else uses.
    let at = vmm.mem.alloc(16 * PAGE, PAGE)?;
    vmm.mem.protect(at, 16 * PAGE, Access::ReadOnly)?;
    let base = vmm.mem.host(at)? as u64;
    alive_with_log_at(&mut vmm, base)?;
    let bytes = vmm.mem.read(at, 16 * PAGE as usize)?;
    ensure!(bytes.iter().all(|byte| *byte == 0), "the log was written");
    Ok(())
}

fn packets_signal(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new().build(ctx)?;
    let _log = Log::new(&vmm)?;
    let event = EventFd::new(EFD_NONBLOCK).context("eventfd")?;
    let fd = event.as_raw_fd();
    let raw = vmm.vhost.raw();
    expect("SET_LOG_FD", raw.put(ioctl::SET_LOG_FD(), &fd), Ok(0))?;
    let buffer = vmm.mem.rx_buffer(20_000)?;
    receive_at(&mut vmm, buffer, 60)?;
    expect("signals without a log", poll::take_signals(&event), 0)?;
    log_all(&vmm, true)?;
    receive_at(&mut vmm, buffer, 60)?;
    poll::wait_signal(&event, "the log eventfd")?;
    expect("SET_LOG_FD", raw.put(ioctl::SET_LOG_FD(), &-1i32), Ok(0))?;
    receive_at(&mut vmm, buffer, 60)?;
    expect("signals when unbound", poll::take_signals(&event), 0)
}

fn avail_event(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new()
        .features(feature::VERSION_1 | feature::EVENT_IDX)
        .size(1024)
        .build(ctx)?;
    let mut log = Log::new(&vmm)?;
    vmm.check_tx(60, &Split::Whole)?;
    vmm.fence(TX)?;
    log_ring(&vmm, TX, true)?;
    log.take();
    vmm.check_tx(60, &Split::Whole)?;
    let event = vmm.tx.ring.layout().used + 4 + 8 * 1024;
    let mut seen = BTreeSet::new();
    poll::wait_for("the page of avail_event in the log", || {
        seen.extend(log.take());
        Ok(seen.is_superset(&pages(event, 2)).then_some(()))
    })
}

/// Each descriptor of a chain may have an entry in the log, or none.
fn odd(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new()
        .features(feature::VERSION_1 | feature::INDIRECT_DESC)
        .build(ctx)?;
    let mut log = Log::new(&vmm)?;
    log_all(&vmm, true)?;
    let start = vmm.mem.rx_buffer(64 * PAGE)?.next_multiple_of(PAGE);
    // A page is written in part, then a page not at all, and so on.
    let seg = |page: u64, len: u32| Seg {
        addr: start + page * PAGE,
        len,
    };
    let segs: Vec<Seg> = (0..40)
        .flat_map(|i| [seg(2 * i % 50, 0), seg(i, 16), seg(51, 0)])
        .collect();
    vmm.rx.add(&[], &segs)?;
    vmm.rx.flush()?;
    vmm.check_rx(60)?;
    vmm.fence(RX)?;
    // 72 bytes, 16 a page.
    expect("pages", log.take(), pages(start, 5 * PAGE))
}

/// User space takes bits while the device sets others of the same words.
fn cleared(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new().build(ctx)?;
    let mut log = Log::new(&vmm)?;
    log_all(&vmm, true)?;
    let stop = Arc::new(AtomicBool::new(false));
    let taker = {
        let stop = stop.clone();
        thread::spawn(move || {
            let mut all = BTreeSet::new();
            while !stop.load(Ordering::Relaxed) {
                all.extend(log.take());
            }
            all.extend(log.take());
            all
        })
    };
    let mut wanted = BTreeSet::new();
    for _ in 0..ctx.rounds(2, 20) {
        vmm.post_rx(200, &[2048])?;
        for _ in 0..200 {
            let received = vmm.check_rx(60)?;
            wanted.extend(pages(received.chains[0].segs[0].addr, 72));
        }
    }
    vmm.stop()?;
    stop.store(true, Ordering::Relaxed);
    let all = taker.join();
    expect("pages", all.ok(), Some(wanted))
}

/// Two guest addresses for one page of ours.
fn aliases(ctx: &Ctx) -> Result<()> {
    const ALIAS: u64 = END;
    let mut vmm = translated(ctx)?;
    let mut table = vmm.regions()?;
    let buffer = vmm.mem.rx_buffer(4 * PAGE)?.next_multiple_of(PAGE);
    let uaddr = vmm.mem.host(buffer)? as u64;
    table.push(MemoryRegion::new(ALIAS, PAGE, uaddr));
    expect(
        "SET_MEM_TABLE",
        vmm.vhost.raw().set_mem_table(0, &table),
        Ok(0),
    )?;
    let mut log = Log::larger(&vmm, ALIAS + PAGE)?;
    vmm.set_features(vmm.features | feature::LOG_ALL)?;
    update_all(&vmm)?;
    vmm.start()?;
    vmm.rx.add(
        &[],
        &[Seg {
            addr: buffer,
            len: 200,
        }],
    )?;
    vmm.rx.flush()?;
    vmm.check_rx(60)?;
    vmm.stop()?;
    let mut wanted = pages(buffer, 72);
    wanted.extend(pages(ALIAS, 72));
    expect("pages", log.take(), wanted)
}

/// Memory before and after, as a migration would send it: what differs and is
/// not marked is lost.
fn toggled(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new()
        .features(feature::VERSION_1 | feature::MRG_RXBUF)
        .size(1024)
        .build(ctx)?;
    let mut log = Log::new(&vmm)?;
    let ring = vmm.rx.ring.layout();
    // All that the device may write: the rings, and what follows this buffer.
    let areas = [
        (ring.desc / PAGE, 256),
        (vmm.mem.rx_buffer(PAGE)? / PAGE, 1024),
    ];
    for round in 0..ctx.rounds(2, 10) {
        // Off: packets go to pages that nobody asks for.
        vmm.post_rx(40, &[3000])?;
        for _ in 0..20 {
            vmm.send_rx(1000)?;
        }
        log_all(&vmm, true)?;
        log_ring(&vmm, RX, true)?;
        log.take();
        let memory = |vmm: &Vmm| -> Result<Vec<(u64, Vec<u8>)>> {
            let pages = areas
                .iter()
                .flat_map(|(first, count)| *first..first + count);
            pages
                .map(|page| Ok((page, vmm.mem.read(page * PAGE, PAGE as usize)?)))
                .collect()
        };
        let before = memory(&vmm)?;
        for i in 0..20 {
            vmm.send_rx(1000 + 300 * i)?;
        }
        for _ in 0..40 {
            let received = vmm.recv()?;
            vmm.repost(&received)?;
        }
        // The last one may still be in the works of C.
        vmm.stop()?;
        let after = memory(&vmm)?;
        let marked = log.take();
        let ours: BTreeSet<u64> = pages(ring.desc, 16 * 1024)
            .into_iter()
            .chain(pages(ring.avail, 2054))
            .collect();
        for ((page, before), (_, after)) in before.iter().zip(&after) {
            ensure!(
                before == after || marked.contains(page) || ours.contains(page),
                "round {round}: page {page} has changed and is not marked"
            );
        }
        ensure!(!marked.is_empty(), "nothing is marked");
        log_all(&vmm, false)?;
        log_ring(&vmm, RX, false)?;
        vmm.start()?;
    }
    Ok(())
}

fn half(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new().build(ctx)?;
    let mut log = Log::new(&vmm)?;
    log_ring(&vmm, RX, true)?;
    expect("SET_LOG_BASE", set_base(&vmm, KERNEL), EFAULT)?;
    let mut addr = vmm.vring_addr(TX)?;
    (addr.flags, addr.log) = (1, vmm.tx.ring.layout().used);
    let seen = vmm.vhost.raw().set_vring_addr(&addr);
    if ctx.module == Module::C {
        // TX has the bad base.
        return expect("SET_VRING_ADDR", seen, EINVAL);
    }
    expect("SET_VRING_ADDR", seen, Ok(0))?;
    vmm.check_tx(60, &Split::Whole)?;
    vmm.fence(TX)?;
    let used = pages(vmm.tx.ring.layout().used, 4);
    ensure!(log.take().is_superset(&used), "TX does not log");
    Ok(())
}

fn in_order(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new()
        .features(feature::VERSION_1 | feature::IN_ORDER)
        .size(1024)
        .base(1000)
        .build(ctx)?;
    let mut log = Log::new(&vmm)?;
    vmm.fence(TX)?;
    log_ring(&vmm, TX, true)?;
    vmm.fence(TX)?;
    log.take();
    for _ in 0..40 {
        let frame = vmm.tx_frames.plain(60);
        vmm.queue_tx(&NetHdr::default(), &frame, &Split::Whole)?;
    }
    vmm.tx.flush()?;
    vmm.tx.drain()?;
    vmm.stop()?;
    let used = vmm.tx.ring.layout().used;
    // Slots 1000 to 1023, 0 to 15; flags and index.
    let mut wanted = pages(used + 4 + 8 * 1000, 8 * 24);
    wanted.extend(pages(used, 4 + 8 * 16));
    let seen = log.take();
    match ctx.module {
        Module::C => ensure!(seen.is_superset(&wanted), "saw {seen:?}, not {wanted:?}"),
        Module::Rust => expect("pages", seen, wanted)?,
    }
    Ok(())
}
