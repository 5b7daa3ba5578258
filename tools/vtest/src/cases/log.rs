// SPDX-License-Identifier: GPL-2.0

//! Dirty page logging: exactly the pages that were written, no more, no fewer.

use std::collections::BTreeSet;

use anyhow::Context;
use anyhow::Result;
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::eventfd::EFD_NONBLOCK;

use crate::case::Ctx;
use crate::case::Table;
use crate::device::feature;
use crate::device::RX;
use crate::device::TX;
use crate::errno::Errno;
use crate::ioctl;
use crate::mem::END;
use crate::mem::PAGE;
use crate::traffic::expect;
use crate::traffic::Split;
use crate::virtqueue::Seg;
use crate::vmm::Setup;
use crate::vmm::Vmm;

pub(super) fn register(table: &mut Table) {
    table.add("log::nothing_is_logged_unless_asked", nothing);
    table.add("log::used_ring_only_with_the_vring_flag", used_ring);
    table.add("log::buffers_only_with_log_all", buffers);
    table.add("log::mergeable_buffers_only_as_far_as_written", mergeable);
    table.add("log::both_on_and_off_while_running", on_off);
    table.add("log::tx_buffers_are_not_written", tx_buffers);
    table.add("log::log_fd_is_signalled_by_used_ring_writes", log_fd);
    table.add("log::unmapped_log_does_not_stop_traffic", unmapped);
    table.add("log::log_fd_checks", log_fd_checks);
}

/// A bitmap for all guest memory.
pub(super) struct Log {
    words: Vec<u64>,
}

impl Log {
    pub(super) fn new(vmm: &Vmm) -> Result<Self> {
        Self::larger(vmm, END)
    }

    /// One for guest addresses below `end`.
    pub(super) fn larger(vmm: &Vmm, end: u64) -> Result<Self> {
        let log = Self {
            words: vec![0; (end / PAGE / 64 + 1) as usize],
        };
        log.use_for(vmm)?;
        Ok(log)
    }

    /// Makes it the one that the device writes.
    pub(super) fn use_for(&self, vmm: &Vmm) -> Result<()> {
        let base = self.words.as_ptr() as u64;
        let seen = vmm.vhost.raw().put(ioctl::SET_LOG_BASE(), &base);
        expect("SET_LOG_BASE", seen, Ok(0))
    }

    /// The pages marked since the last look; clears them.
    pub(super) fn take(&mut self) -> BTreeSet<u64> {
        let mut pages = BTreeSet::new();
        for (i, word) in self.words.iter_mut().enumerate() {
            // SAFETY: The word is ours; the device sets bits in it atomically.
            let bits = unsafe { std::sync::atomic::AtomicU64::from_ptr(word) }
                .swap(0, std::sync::atomic::Ordering::SeqCst);
            pages.extend(
                (0..64)
                    .filter(|bit| bits >> bit & 1 != 0)
                    .map(|bit| 64 * i as u64 + bit),
            );
        }
        pages
    }
}

pub(super) fn pages(addr: u64, len: u64) -> BTreeSet<u64> {
    (addr / PAGE..=(addr + len - 1) / PAGE).collect()
}

/// Turns logging of the used ring on or off.
pub(super) fn log_ring(vmm: &Vmm, index: usize, on: bool) -> Result<()> {
    let mut addr = vmm.vring_addr(index)?;
    addr.flags = u32::from(on);
    addr.log = vmm.queue(index).ring.layout().used;
    expect(
        "SET_VRING_ADDR",
        vmm.vhost.raw().set_vring_addr(&addr),
        Ok(0),
    )
}

/// Traffic goes on while all that there is is logged at `base`.
pub(super) fn alive_with_log_at(vmm: &mut Vmm, base: u64) -> Result<()> {
    let seen = vmm.vhost.raw().put(ioctl::SET_LOG_BASE(), &base);
    expect("SET_LOG_BASE", seen, Ok(0))?;
    log_all(vmm, true)?;
    for index in [RX, TX] {
        log_ring(vmm, index, true)?;
    }
    for _ in 0..5 {
        vmm.check_alive()?;
    }
    Ok(())
}

pub(super) fn log_all(vmm: &Vmm, on: bool) -> Result<()> {
    vmm.set_features(vmm.features | if on { feature::LOG_ALL } else { 0 })
}

/// Receives one packet into a buffer at `addr`.
pub(super) fn receive_at(vmm: &mut Vmm, addr: u64, len: usize) -> Result<()> {
    vmm.rx.add(&[], &[Seg { addr, len: 20_000 }])?;
    vmm.rx.flush()?;
    vmm.check_rx(len)?;
    vmm.fence(RX)
}

fn nothing(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new().build(ctx)?;
    let mut log = Log::new(&vmm)?;
    vmm.post_rx(10, &[2048])?;
    vmm.check_alive()?;
    vmm.fence(RX)?;
    expect("pages", log.take(), BTreeSet::new())
}

fn used_ring(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new().size(1024).base(500).build(ctx)?;
    let mut log = Log::new(&vmm)?;
    // One queue at a time: the other may write its flags whenever it likes.
    log_ring(&vmm, TX, true)?;
    vmm.fence(TX)?;
    log.take();
    // Element 500 lies on the ring's first page, the flags and index as well.
    vmm.check_tx(60, &Split::Whole)?;
    vmm.fence(TX)?;
    let used = vmm.tx.ring.layout().used;
    expect("pages of TX", log.take(), pages(used, 4))?;
    for _ in 0..20 {
        vmm.check_tx(60, &Split::Whole)?;
    }
    vmm.fence(TX)?;
    let mut wanted = pages(used, 4);
    wanted.extend(pages(used + 4 + 8 * 501, 8 * 20));
    expect("pages of TX further on", log.take(), wanted)?;
    log_ring(&vmm, TX, false)?;
    log_ring(&vmm, RX, true)?;
    log.take();
    let buffer = vmm.mem.rx_buffer(20_000)?;
    receive_at(&mut vmm, buffer, 60)?;
    let used = vmm.rx.ring.layout().used;
    expect("pages of RX", log.take(), pages(used, 4))
}

fn buffers(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new().build(ctx)?;
    let mut log = Log::new(&vmm)?;
    log_all(&vmm, true)?;
    let start = vmm.mem.rx_buffer(64 << 10)?.next_multiple_of(PAGE);
    for (offset, len) in [
        (0, 60),
        (PAGE - 72, 60),
        (PAGE - 71, 60),
        (PAGE - 12, 60),
        (PAGE - 1, 60),
        (100, 9000),
        (0, 3 * PAGE as usize - 12),
        (1, 3 * PAGE as usize - 12),
    ] {
        receive_at(&mut vmm, start + offset, len)?;
        expect(
            &format!("pages of {len} bytes at {offset}"),
            log.take(),
            pages(start + offset, len as u64 + 12),
        )?;
    }
    Ok(())
}

fn mergeable(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new()
        .features(feature::VERSION_1 | feature::MRG_RXBUF)
        .build(ctx)?;
    let mut log = Log::new(&vmm)?;
    log_all(&vmm, true)?;
    let start = vmm.mem.rx_buffer(256 << 10)?.next_multiple_of(PAGE);
    // Buffers of two pages, one page apart.
    for i in 0..8 {
        let addr = start + 3 * PAGE * i;
        vmm.rx.add(&[], &[Seg { addr, len: 8192 }])?;
    }
    vmm.rx.flush()?;
    vmm.check_rx(2 * 8192 + 100)?;
    vmm.fence(RX)?;
    let mut wanted = pages(start, 8192);
    wanted.extend(pages(start + 3 * PAGE, 8192));
    wanted.extend(pages(start + 6 * PAGE, 112));
    expect("pages", log.take(), wanted)
}

fn on_off(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new().build(ctx)?;
    let mut log = Log::new(&vmm)?;
    let buffer = vmm.mem.rx_buffer(20_000)?;
    for _ in 0..10 {
        log_all(&vmm, true)?;
        log_ring(&vmm, RX, true)?;
        log.take();
        receive_at(&mut vmm, buffer, 1000)?;
        let mut wanted = pages(buffer, 1012);
        wanted.extend(pages(vmm.rx.ring.layout().used, 4));
        expect("pages when on", log.take(), wanted)?;
        log_all(&vmm, false)?;
        log_ring(&vmm, RX, false)?;
        log.take();
        receive_at(&mut vmm, buffer, 1000)?;
        expect("pages when off", log.take(), BTreeSet::new())?;
    }
    Ok(())
}

fn tx_buffers(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new().build(ctx)?;
    let mut log = Log::new(&vmm)?;
    log_all(&vmm, true)?;
    for len in [60, 1514, 9000] {
        vmm.check_tx(len, &Split::HeaderAlone)?;
    }
    vmm.fence(TX)?;
    expect("pages", log.take(), BTreeSet::new())
}

fn log_fd(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new().build(ctx)?;
    let _log = Log::new(&vmm)?;
    let event = EventFd::new(EFD_NONBLOCK).context("eventfd")?;
    let fd = std::os::fd::AsRawFd::as_raw_fd(&event);
    expect(
        "SET_LOG_FD",
        vmm.vhost.raw().put(ioctl::SET_LOG_FD(), &fd),
        Ok(0),
    )?;
    log_ring(&vmm, TX, true)?;
    vmm.check_tx(60, &Split::Whole)?;
    crate::poll::wait_signal(&event, "the log eventfd")?;
    Ok(())
}

/// The log's memory is taken away: bits are lost, packets are not.
fn unmapped(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new().build(ctx)?;
    vmm.post_rx(20, &[2048])?;
    alive_with_log_at(&mut vmm, PAGE)
}

fn log_fd_checks(ctx: &Ctx) -> Result<()> {
    let vmm = Setup::new().stopped().build(ctx)?;
    let raw = vmm.vhost.raw();
    let event = EventFd::new(EFD_NONBLOCK).context("eventfd")?;
    let null = std::fs::File::open("/dev/null").context("/dev/null")?;
    for (fd, wanted) in [
        (999, Err(Errno(libc::EBADF))),
        (-2, Err(Errno(libc::EBADF))),
        (
            std::os::fd::AsRawFd::as_raw_fd(&null),
            Err(Errno(libc::EINVAL)),
        ),
        (std::os::fd::AsRawFd::as_raw_fd(&event), Ok(0)),
        (-1, Ok(0)),
    ] {
        expect(
            &format!("SET_LOG_FD {fd}"),
            raw.put(ioctl::SET_LOG_FD(), &fd),
            wanted,
        )?;
    }
    Ok(())
}
