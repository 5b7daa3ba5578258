// SPDX-License-Identifier: GPL-2.0

//! Address translation by messages: misses, updates, invalidations.

use std::io::Read;
use std::io::Write;

use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;

use crate::better;
use crate::case::Ctx;
use crate::case::Module;
use crate::case::Table;
use crate::device;
use crate::device::feature;
use crate::device::RX;
use crate::device::TX;
use crate::errno::Errno;
use crate::frame::NetHdr;
use crate::ioctl::VringAddr;
use crate::mem::BOUNDARY;
use crate::mem::END;
use crate::poll;
use crate::traffic::expect;
use crate::traffic::Split;
use crate::vmm::Setup;
use crate::vmm::Vmm;

pub(super) const MESSAGE: usize = 72;
pub(super) const MISS: u8 = 1;
pub(super) const UPDATE: u8 = 2;
pub(super) const INVALIDATE: u8 = 3;
pub(super) const RO: u8 = 1;
pub(super) const WO: u8 = 2;
pub(super) const RW: u8 = 3;

pub(super) fn register(table: &mut Table) {
    table.add("iotlb::read_without_translation", read_without);
    table.add("iotlb::write_checks", write_checks);
    table.add("iotlb::mapped_memory_carries_traffic", mapped);
    table.add(
        "iotlb::mapped_memory_carries_traffic_v1_messages",
        mapped_v1,
    );
    table.add(
        "iotlb::start_without_mapping_fails_with_a_miss",
        start_unmapped,
    );
    table.add(
        "iotlb::miss_of_a_buffer_is_answered_and_traffic_goes_on",
        buffer_miss,
    );
    table.add("iotlb::invalidated_ring_stalls_until_updated", invalidated);
    table.add("iotlb::address_space_number_is_ignored", address_space);
    table.add("iotlb::memory_table_is_needed_too", no_table);
    table.add("iotlb::turning_it_off_forgets_ring_addresses", turned_off);
    table.add_better(
        "iotlb::unanswered_miss_is_not_repeated_without_end",
        better::MISS_REPEATED,
        repeated,
    );
}

/// One IOTLB message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) iova: u64,
    pub(super) size: u64,
    pub(super) uaddr: u64,
    pub(super) perm: u8,
    pub(super) kind: u8,
}

impl Message {
    pub(super) fn bytes(&self, version: u32) -> Vec<u8> {
        let mut bytes = version.to_ne_bytes().to_vec();
        bytes.resize(8, 0);
        for field in [self.iova, self.size, self.uaddr] {
            bytes.extend(field.to_ne_bytes());
        }
        bytes.extend([self.perm, self.kind]);
        bytes.resize(MESSAGE, 0);
        bytes
    }

    fn parse(bytes: &[u8; MESSAGE]) -> Self {
        let field =
            |at: usize| <[u8; 8]>::try_from(&bytes[at..at + 8]).map_or(0, u64::from_ne_bytes);
        Self {
            iova: field(8),
            size: field(16),
            uaddr: field(24),
            perm: bytes[32],
            kind: bytes[33],
        }
    }
}

pub(super) fn write(vmm: &Vmm, bytes: &[u8]) -> Result<usize, Errno> {
    vmm.vhost
        .file()
        .write(bytes)
        .map_err(|error| Errno(error.raw_os_error().unwrap_or(0)))
}

pub(super) fn update(vmm: &Vmm, from: u64, to: u64) -> Result<()> {
    map(vmm, from, to - from, vmm.mem.host(from)? as u64, RW)
}

/// Adds any mapping.
pub(super) fn map(vmm: &Vmm, iova: u64, size: u64, uaddr: u64, perm: u8) -> Result<()> {
    let message = Message {
        iova,
        size,
        uaddr,
        perm,
        kind: UPDATE,
    };
    expect("UPDATE", write(vmm, &message.bytes(2)), Ok(MESSAGE))
}

/// Removes what touches a range.
pub(super) fn invalidate(vmm: &Vmm, iova: u64, size: u64) -> Result<()> {
    let message = Message {
        iova,
        size,
        uaddr: 0,
        perm: 0,
        kind: INVALIDATE,
    };
    expect("INVALIDATE", write(vmm, &message.bytes(2)), Ok(MESSAGE))
}

pub(super) fn update_all(vmm: &Vmm) -> Result<()> {
    update(vmm, 0, BOUNDARY)?;
    update(vmm, BOUNDARY, END)
}

/// Maps all of guest memory by messages of any form.
fn update_all_by(vmm: &Vmm, form: impl Fn(&Message) -> Vec<u8>) -> Result<()> {
    for (from, to) in [(0, BOUNDARY), (BOUNDARY, END)] {
        let message = Message {
            iova: from,
            size: to - from,
            uaddr: vmm.mem.host(from)? as u64,
            perm: RW,
            kind: UPDATE,
        };
        expect("UPDATE", write(vmm, &form(&message)), Ok(MESSAGE))?;
    }
    Ok(())
}

/// Takes a message; none if there is none.
pub(super) fn read(vmm: &Vmm) -> Result<Option<Message>> {
    let mut bytes = [0xa5; MESSAGE];
    match vmm.vhost.file().read(&mut bytes) {
        Ok(len) => {
            expect("length of a message", len, MESSAGE)?;
            expect("padding", bytes[34..].iter().all(|byte| *byte == 0), true)?;
            Ok(Some(Message::parse(&bytes)))
        }
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error).context("reading a message"),
    }
}

/// Waits for a message.
pub(super) fn wait_miss(vmm: &Vmm) -> Result<Message> {
    ensure!(
        poll::readable(&vmm.vhost, poll::PATIENCE)?,
        "no message came"
    );
    let message = read(vmm)?.context("readable, but there is no message")?;
    expect("type", message.kind, MISS)?;
    expect("size and address", (message.size, message.uaddr), (0, 0))?;
    Ok(message)
}

/// A stopped device whose ring addresses are I/O virtual ones, equal to
/// guest-physical ones.
pub(super) fn translated(ctx: &Ctx) -> Result<Vmm> {
    let vmm = translating().build(ctx)?;
    translate(&vmm)?;
    Ok(vmm)
}

/// What [`translated`] is built from; [`translate`] does the rest.
pub(super) fn translating() -> Setup {
    Setup::new()
        .features(feature::VERSION_1 | feature::ACCESS_PLATFORM)
        .stopped()
}

pub(super) fn translate(vmm: &Vmm) -> Result<()> {
    let raw = vmm.vhost.raw();
    expect(
        "SET_BACKEND_FEATURES",
        raw.put(crate::ioctl::SET_BACKEND_FEATURES(), &2u64),
        Ok(0),
    )?;
    for index in [RX, TX] {
        let layout = vmm.queue(index).ring.layout();
        let addr = VringAddr {
            index: index as u32,
            flags: 0,
            desc: layout.desc,
            used: layout.used,
            avail: layout.avail,
            log: 0,
        };
        expect("SET_VRING_ADDR", raw.set_vring_addr(&addr), Ok(0))?;
    }
    Ok(())
}

fn read_without(ctx: &Ctx) -> Result<()> {
    let mut file = device::open(&ctx.device)?;
    for len in [0, 1, 40, 71] {
        let mut bytes = vec![0; len];
        let seen = file.read(&mut bytes).map_err(|e| e.raw_os_error());
        expect(&format!("read of {len} bytes"), seen, Ok(0))?;
    }
    let mut bytes = [0; MESSAGE];
    let seen = file.read(&mut bytes).map_err(|e| e.raw_os_error());
    expect("read of 72 bytes", seen, Err(Some(libc::EAGAIN)))?;
    ensure!(
        !poll::readable(&file, std::time::Duration::ZERO)?,
        "readable without a message"
    );
    // SAFETY: Plain system call without pointers.
    unsafe { libc::fcntl(std::os::fd::AsRawFd::as_raw_fd(&file), libc::F_SETFL, 0) };
    let seen = file.read(&mut bytes).map_err(|e| e.raw_os_error());
    expect("blocking read", seen, Err(Some(libc::EBADFD)))
}

fn write_checks(ctx: &Ctx) -> Result<()> {
    let vmm = Setup::new().stopped().build(ctx)?;
    let good = Message {
        iova: 0,
        size: 4096,
        uaddr: vmm.mem.host(0)? as u64,
        perm: RW,
        kind: UPDATE,
    };
    expect(
        "without translation",
        write(&vmm, &good.bytes(2)),
        Err(Errno(libc::EFAULT)),
    )?;
    drop(vmm);
    let vmm = translated(ctx)?;
    let einval = Err(Errno(libc::EINVAL));
    let efault = Err(Errno(libc::EFAULT));
    for (name, message, wanted) in [
        ("good", good, Ok(MESSAGE)),
        ("size 0", Message { size: 0, ..good }, einval),
        (
            "wrapping",
            Message {
                iova: u64::MAX - 10,
                ..good
            },
            efault,
        ),
        (
            "kernel address",
            Message {
                uaddr: 1 << 63,
                ..good
            },
            efault,
        ),
        ("MISS", Message { kind: MISS, ..good }, efault),
        ("type 4", Message { kind: 4, ..good }, efault),
        ("type 9", Message { kind: 9, ..good }, efault),
        (
            "INVALIDATE",
            Message {
                kind: INVALIDATE,
                ..good
            },
            Ok(MESSAGE),
        ),
        (
            "INVALIDATE of nothing",
            Message {
                kind: INVALIDATE,
                iova: 4096,
                size: 0,
                ..good
            },
            Ok(MESSAGE),
        ),
    ] {
        for version in [1, 2] {
            expect(
                &format!("{name}, version {version}"),
                write(&vmm, &message.bytes(version)),
                wanted,
            )?;
        }
    }
    expect("version 3", write(&vmm, &good.bytes(3)), einval)?;
    expect("3 bytes", write(&vmm, &good.bytes(2)[..3]), einval)?;
    expect("39 bytes", write(&vmm, &good.bytes(2)[..39]), einval)?;
    expect("40 bytes", write(&vmm, &good.bytes(2)[..40]), Ok(MESSAGE))
}

fn mapped(ctx: &Ctx) -> Result<()> {
    let mut vmm = translated(ctx)?;
    update_all(&vmm)?;
    vmm.start()?;
    vmm.post_rx(20, &[2048])?;
    for _ in 0..10 {
        vmm.check_alive()?;
    }
    vmm.check_tx(60_000, &Split::Every(4096))?;
    ensure!(read(&vmm)?.is_none(), "a miss though all is mapped");
    vmm.check_quiet()
}

fn mapped_v1(ctx: &Ctx) -> Result<()> {
    let mut vmm = translated(ctx)?;
    update_all_by(&vmm, |message| message.bytes(1))?;
    vmm.start()?;
    vmm.post_rx(20, &[2048])?;
    vmm.check_alive()
}

fn start_unmapped(ctx: &Ctx) -> Result<()> {
    let mut vmm = translated(ctx)?;
    let fd = std::os::fd::AsRawFd::as_raw_fd(&vmm.tap);
    expect(
        "SET_BACKEND",
        vmm.vhost.raw().set_backend(1, fd),
        Err(Errno(libc::EFAULT)),
    )?;
    let miss = wait_miss(&vmm)?;
    let used = vmm.tx.ring.layout().used;
    ensure!(
        (used..used + 4).contains(&miss.iova),
        "the miss is at {:#x}, the used ring at {used:#x}",
        miss.iova
    );
    update_all(&vmm)?;
    vmm.start()?;
    poll::take_signals(&vmm.tx.err);
    vmm.post_rx(20, &[2048])?;
    vmm.check_alive()
}

fn buffer_miss(ctx: &Ctx) -> Result<()> {
    let mut vmm = translated(ctx)?;
    update(&vmm, 0, BOUNDARY)?;
    vmm.start()?;
    for round in 0..5 {
        let frame = vmm.tx_frames.plain(500);
        let segs = vmm.tx_segs(&NetHdr::default(), &frame, &Split::Whole)?;
        vmm.tx.add(&segs, &[])?;
        vmm.tx.flush_and_kick()?;
        // C may have said more than once what the last round's miss was.
        let mut miss = wait_miss(&vmm).with_context(|| format!("round {round}"))?;
        while miss.iova < segs[0].addr {
            miss = wait_miss(&vmm).with_context(|| format!("round {round}"))?;
        }
        expect("address", (miss.iova, miss.perm), (segs[0].addr, RO))?;
        expect("err signals", poll::take_signals(&vmm.tx.err), 0)?;
        update(&vmm, BOUNDARY, END)?;
        vmm.expect_on_wire(&frame)?;
        vmm.tx.wait_used()?;
        invalidate(&vmm, BOUNDARY, END - BOUNDARY)?;
    }
    Ok(())
}

fn invalidated(ctx: &Ctx) -> Result<()> {
    let mut vmm = translated(ctx)?;
    update_all(&vmm)?;
    vmm.start()?;
    vmm.check_tx(60, &Split::Whole)?;
    let layout = vmm.tx.ring.layout();
    invalidate(&vmm, layout.desc, 16 * 256)?;
    let frame = vmm.tx_frames.plain(60);
    vmm.queue_tx(&NetHdr::default(), &frame, &Split::Whole)?;
    vmm.tx.flush_and_kick()?;
    // RX has lost its ring as well and may say so.
    while wait_miss(&vmm)?.iova != layout.desc {}
    vmm.wire.expect_silence()?;
    update_all(&vmm)?;
    vmm.expect_on_wire(&frame)?;
    vmm.tx.wait_used()?;
    Ok(())
}

/// The second word of a message of version 2.
fn address_space(ctx: &Ctx) -> Result<()> {
    let mut vmm = translated(ctx)?;
    update_all_by(&vmm, |message| {
        let mut bytes = message.bytes(2);
        bytes[4..8].copy_from_slice(&7u32.to_ne_bytes());
        bytes
    })?;
    vmm.start()?;
    vmm.check_tx(60, &Split::Whole)
}

/// Though nothing is looked up in it.
fn no_table(ctx: &Ctx) -> Result<()> {
    let file = crate::device::owned(&ctx.device)?;
    let raw = crate::ioctl::Raw::of(&file);
    let mut vmm = translated(ctx)?;
    let fd = std::os::fd::AsRawFd::as_raw_fd(&vmm.tap);
    expect(
        "SET_FEATURES",
        raw.set_features(feature::VERSION_1 | feature::ACCESS_PLATFORM),
        Ok(0),
    )?;
    expect(
        "SET_BACKEND without a table",
        raw.set_backend(1, fd),
        Err(Errno(libc::EFAULT)),
    )?;
    update_all(&vmm)?;
    let empty = vmm.vhost.raw().set_mem_table(0, &[]);
    expect("SET_MEM_TABLE of no region", empty, Ok(0))?;
    vmm.start()?;
    vmm.check_tx(60, &Split::Whole)
}

fn turned_off(ctx: &Ctx) -> Result<()> {
    let mut vmm = translated(ctx)?;
    update_all(&vmm)?;
    vmm.start()?;
    vmm.check_tx(60, &Split::Whole)?;
    vmm.set_features(feature::VERSION_1)?;
    // Nothing is done with a ring that is nowhere.
    let frame = vmm.tx_frames.plain(60);
    vmm.queue_tx(&NetHdr::default(), &frame, &Split::Whole)?;
    vmm.tx.flush_and_kick()?;
    vmm.fence(TX)?;
    vmm.stop()?;
    vmm.wire.expect_silence()?;
    for index in [RX, TX] {
        let base = vmm.base(index)?;
        vmm.configure_queue(index, base)?;
    }
    vmm.start()?;
    vmm.expect_on_wire(&frame)?;
    vmm.tx.wait_used()?;
    vmm.post_rx(4, &[2048])?;
    vmm.check_alive()
}

fn repeated(ctx: &Ctx) -> Result<()> {
    let mut vmm = translated(ctx)?;
    update(&vmm, 0, BOUNDARY)?;
    vmm.start()?;
    let frame = vmm.tx_frames.plain(500);
    vmm.queue_tx(&NetHdr::default(), &frame, &Split::Whole)?;
    vmm.tx.flush_and_kick()?;
    ensure!(
        poll::readable(&vmm.vhost, poll::PATIENCE)?,
        "no message came"
    );
    for _ in 0..20 {
        vmm.tx.kick()?;
        vmm.fence(TX)?;
    }
    let mut messages = 0;
    while read(&vmm)?.is_some() {
        messages += 1;
    }
    match ctx.module {
        Module::C => ensure!(messages >= 1, "{messages} messages"),
        Module::Rust => expect("messages", messages, 1)?,
    }
    update_all(&vmm)?;
    // C matches only misses that were read; a kick is what a guest would do.
    vmm.tx.kick()?;
    vmm.expect_on_wire(&frame)?;
    vmm.tx.wait_used()?;
    Ok(())
}
