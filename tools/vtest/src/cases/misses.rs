// SPDX-License-Identifier: GPL-2.0

//! What the IOTLB asks for, who is told, and what becomes of the answers.

use std::io::Read;
use std::os::fd::AsRawFd;
use std::thread;
use std::time::Duration;

use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;

use super::iotlb::invalidate;
use super::iotlb::map;
use super::iotlb::read;
use super::iotlb::translated;
use super::iotlb::update;
use super::iotlb::update_all;
use super::iotlb::wait_miss;
use super::iotlb::write;
use super::iotlb::Message;
use super::iotlb::MESSAGE;
use super::iotlb::RO;
use super::iotlb::RW;
use super::iotlb::UPDATE;
use super::iotlb::WO;
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
use crate::ioctl::Outcome;
use crate::ioctl::Raw;
use crate::ioctl::VringAddr;
use crate::mem::BOUNDARY;
use crate::mem::END;
use crate::mem::PAGE;
use crate::poll;
use crate::process;
use crate::traffic::expect;
use crate::traffic::Split;
use crate::virtqueue::Seg;
use crate::vmm::Setup;
use crate::vmm::Vmm;

const PLATFORM: u64 = feature::VERSION_1 | feature::ACCESS_PLATFORM;
/// Addresses that are the IOTLB's only.
const FAR: u64 = 1 << 40;

pub(super) fn register(table: &mut Table) {
    table.add("iotlb::misses_have_the_version_that_was_acked", version);
    table.add("iotlb::read_too_short_keeps_the_message", short);
    table.add("iotlb::readable_until_the_message_is_read", pollable);
    table.add("iotlb::written_length_counts_as_72", lengths);
    table.add("iotlb::miss_of_a_receive_buffer_asks_to_write", write_miss);
    table.add("iotlb::update_of_a_part_leads_to_a_further_miss", part);
    table.add("iotlb::lowest_of_overlapping_mappings_counts", overlap);
    table.add("iotlb::oldest_of_2049_mappings_gives_way", capacity);
    table.add("iotlb::buffer_that_must_not_be_read_is_err", denied);
    table.add("iotlb::rings_at_zero_do_nothing", nowhere);
    table.add("iotlb::another_process_may_answer", foreign);
    table.add("iotlb::waiting_reader_gets_the_miss", reader_miss);
    table.add("iotlb::waiting_reader_learns_that_it_is_off", |ctx| {
        reader_off(ctx, |raw| raw.set_features(feature::VERSION_1))
    });
    table.add("iotlb::waiting_reader_learns_of_reset_owner", |ctx| {
        reader_off(ctx, Raw::reset_owner)
    });
    table.add("iotlb::waiting_reader_is_interrupted", interrupted);
    table.add("iotlb::two_readers_get_a_message_each", two_readers);
    table.add("iotlb::features_acked_again_empty_it", acked_again);
    table.add("iotlb::turning_it_on_forgets_ring_addresses", turned_on);
    table.add("iotlb::all_mappings_come_and_go_under_traffic", churn);
    table.add_better(
        "iotlb::update_before_the_miss_was_read",
        better::MISS_UNREAD,
        unread,
    );
    table.add_better(
        "iotlb::read_into_bad_memory",
        better::MISS_FAULT,
        read_fault,
    );
    table.add_better(
        "iotlb::stop_of_one_queue_while_the_other_waits",
        better::MISS_FORGOTTEN,
        forgotten,
    );
    table.add(
        "iotlb::invalidate_of_size_0_at_0_removes_everything",
        invalidate_everything,
    );
    table.add_better(
        "iotlb::descriptors_that_must_not_be_read",
        better::RING_DENIED,
        ring_denied,
    );
}

/// Runs; rings are mapped, buffers are not.
fn rings_only(ctx: &Ctx) -> Result<Vmm> {
    let vmm = translated(ctx)?;
    update(&vmm, 0, BOUNDARY)?;
    vmm.start()?;
    Ok(vmm)
}

/// Queues a packet whose buffer is not mapped and waits until that is noticed.
fn stall(vmm: &mut Vmm) -> Result<Vec<u8>> {
    let frame = vmm.tx_frames.plain(500);
    vmm.queue_tx(&NetHdr::default(), &frame, &Split::Whole)?;
    vmm.tx.flush_and_kick()?;
    ensure!(
        poll::readable(&vmm.vhost, poll::PATIENCE)?,
        "no message came"
    );
    Ok(frame)
}

fn went(vmm: &mut Vmm, frame: &[u8]) -> Result<()> {
    vmm.expect_on_wire(frame)?;
    vmm.tx.wait_used()?;
    Ok(())
}

/// Makes reads wait.
fn blocking(vmm: &Vmm) {
    // SAFETY: Plain system call without pointers.
    unsafe { libc::fcntl(vmm.vhost.as_raw_fd(), libc::F_SETFL, 0) };
}

fn read_into(raw: Raw, buffer: &mut [u8]) -> Outcome {
    // SAFETY: The buffer is valid for its length.
    let rc = unsafe { libc::read(raw.0, buffer.as_mut_ptr().cast(), buffer.len()) };
    if rc < 0 {
        Err(Errno::last())
    } else {
        Ok(rc as i32)
    }
}

fn version(ctx: &Ctx) -> Result<()> {
    let mut vmm = rings_only(ctx)?;
    for version in [2u32, 1, 2] {
        // C may have said something twice.
        while read(&vmm)?.is_some() {}
        let bits = u64::from(version) & 2;
        let raw = vmm.vhost.raw();
        expect("SET", raw.put(ioctl::SET_BACKEND_FEATURES(), &bits), Ok(0))?;
        let frame = stall(&mut vmm)?;
        let mut bytes = [0; MESSAGE];
        (&mut vmm.vhost.file()).read_exact(&mut bytes)?;
        expect("version", bytes[..4].to_vec(), version.to_ne_bytes().into())?;
        expect("padding", bytes[4..8].to_vec(), vec![0; 4])?;
        update(&vmm, BOUNDARY, END)?;
        went(&mut vmm, &frame)?;
        invalidate(&vmm, BOUNDARY, END - BOUNDARY)?;
    }
    Ok(())
}

fn short(ctx: &Ctx) -> Result<()> {
    let mut vmm = rings_only(ctx)?;
    let frame = stall(&mut vmm)?;
    for len in [0, 40, 71] {
        let seen = read_into(vmm.vhost.raw(), &mut vec![0; len]);
        expect(&format!("read of {len} bytes"), seen, Ok(0))?;
    }
    wait_miss(&vmm)?;
    update(&vmm, BOUNDARY, END)?;
    went(&mut vmm, &frame)
}

fn pollable(ctx: &Ctx) -> Result<()> {
    let mut vmm = rings_only(ctx)?;
    let readable = |vmm: &Vmm| poll::readable(&vmm.vhost, Duration::ZERO);
    expect("readable before", readable(&vmm)?, false)?;
    let frame = stall(&mut vmm)?;
    expect("readable with a message", readable(&vmm)?, true)?;
    // C may say it twice.
    while read(&vmm)?.is_some() {}
    expect("readable afterwards", readable(&vmm)?, false)?;
    update(&vmm, BOUNDARY, END)?;
    went(&mut vmm, &frame)
}

fn lengths(ctx: &Ctx) -> Result<()> {
    let vmm = translated(ctx)?;
    let message = Message {
        iova: 0,
        size: PAGE,
        uaddr: vmm.mem.host(0)? as u64,
        perm: RW,
        kind: UPDATE,
    };
    for version in [1, 2] {
        for len in [40, 71, 72, 144] {
            let mut bytes = message.bytes(version);
            bytes.resize(len, 0xff);
            expect(&format!("{len} bytes"), write(&vmm, &bytes), Ok(MESSAGE))?;
        }
    }
    Ok(())
}

fn write_miss(ctx: &Ctx) -> Result<()> {
    let mut vmm = rings_only(ctx)?;
    vmm.post_rx(4, &[2048])?;
    let frame = vmm.send_rx(500)?;
    let miss = wait_miss(&vmm)?;
    expect("permission", miss.perm, WO)?;
    update(&vmm, BOUNDARY, END)?;
    vmm.expect_in_guest(&frame)?;
    Ok(())
}

fn part(ctx: &Ctx) -> Result<()> {
    let mut vmm = rings_only(ctx)?;
    let start = vmm.mem.tx_buffer(8 * PAGE)?.next_multiple_of(PAGE);
    let frame = vmm.tx_frames.plain(3 * PAGE as usize - 12);
    let mut bytes = NetHdr::default().bytes(12);
    bytes.extend(&frame);
    vmm.mem.write(start, &bytes)?;
    let seg = Seg {
        addr: start,
        len: bytes.len() as u32,
    };
    vmm.tx.add(&[seg], &[])?;
    vmm.tx.flush_and_kick()?;
    for page in 0..3 {
        let at = start + page * PAGE;
        // C says what it missed before once more.
        while wait_miss(&vmm)?.iova != at {}
        update(&vmm, at, at + PAGE)?;
    }
    went(&mut vmm, &frame)
}

/// Sends a packet that lies at an address of the IOTLB's.
fn send_from(vmm: &mut Vmm, iova: u64, len: usize) -> Result<()> {
    let seg = Seg {
        addr: iova,
        len: len as u32 + 12,
    };
    vmm.tx.add(&[seg], &[])?;
    vmm.tx.flush_and_kick()
}

fn overlap(ctx: &Ctx) -> Result<()> {
    let mut vmm = rings_only(ctx)?;
    let mut frames = Vec::new();
    let mut buffers = Vec::new();
    for _ in 0..2 {
        let at = vmm.mem.tx_buffer(4 * PAGE)?.next_multiple_of(PAGE);
        let frame = vmm.tx_frames.plain(60);
        let mut bytes = NetHdr::default().bytes(12);
        bytes.extend(&frame);
        // At the page that both mappings will have.
        vmm.mem.write(at + PAGE, &bytes)?;
        buffers.push(vmm.mem.host(at)? as u64);
        frames.push(frame);
    }
    // The later one starts at the page itself, the lower one a page before.
    map(&vmm, FAR + PAGE, PAGE, buffers[1] + PAGE, RW)?;
    map(&vmm, FAR, 2 * PAGE, buffers[0], RW)?;
    send_from(&mut vmm, FAR + PAGE, 60)?;
    went(&mut vmm, &frames[0])?;
    invalidate(&vmm, FAR, 1)?;
    send_from(&mut vmm, FAR + PAGE, 60)?;
    went(&mut vmm, &frames[1])?;
    invalidate(&vmm, FAR + PAGE + 5, 1)?;
    send_from(&mut vmm, FAR + PAGE, 60)?;
    expect("address of the miss", wait_miss(&vmm)?.iova, FAR + PAGE)
}

fn capacity(ctx: &Ctx) -> Result<()> {
    let mut vmm = translated(ctx)?;
    let frame = vmm.tx_frames.plain(60);
    let segs = vmm.tx_segs(&NetHdr::default(), &frame, &Split::Whole)?;
    let uaddr = vmm.mem.host(segs[0].addr)? as u64;
    // The first mapping, then that of the rings, then what fills the table.
    map(&vmm, FAR, PAGE, uaddr, RW)?;
    update(&vmm, 0, BOUNDARY)?;
    for i in 1..2047 {
        map(&vmm, FAR + i * PAGE, PAGE, uaddr, RW)?;
    }
    vmm.start()?;
    for i in [0, 1, 2046] {
        send_from(&mut vmm, FAR + i * PAGE, 60)?;
        went(&mut vmm, &frame).with_context(|| format!("mapping {i}"))?;
    }
    map(&vmm, FAR + 2047 * PAGE, PAGE, uaddr, RW)?;
    for i in [1, 2047] {
        send_from(&mut vmm, FAR + i * PAGE, 60)?;
        went(&mut vmm, &frame).with_context(|| format!("mapping {i} of 2049"))?;
    }
    send_from(&mut vmm, FAR, 60)?;
    expect("address of the miss", wait_miss(&vmm)?.iova, FAR)
}

fn denied(ctx: &Ctx) -> Result<()> {
    let mut vmm = rings_only(ctx)?;
    let uaddr = vmm.mem.host(BOUNDARY)? as u64;
    map(&vmm, BOUNDARY, END - BOUNDARY, uaddr, WO)?;
    let frame = vmm.tx_frames.plain(60);
    vmm.queue_tx(&NetHdr::default(), &frame, &Split::Whole)?;
    vmm.tx.flush_and_kick()?;
    poll::wait_signal(&vmm.tx.err, "err")?;
    ensure!(read(&vmm)?.is_none(), "a message came");
    invalidate(&vmm, BOUNDARY, END - BOUNDARY)?;
    update(&vmm, BOUNDARY, END)?;
    vmm.tx.kick()?;
    went(&mut vmm, &frame)
}

/// The ring addresses of both queues.
fn set_rings(vmm: &Vmm, at: impl Fn(usize) -> [u64; 3]) -> Result<()> {
    for index in [RX, TX] {
        let [desc, used, avail] = at(index);
        let addr = VringAddr {
            index: index as u32,
            flags: 0,
            desc,
            used,
            avail,
            log: 0,
        };
        expect(
            "SET_VRING_ADDR",
            vmm.vhost.raw().set_vring_addr(&addr),
            Ok(0),
        )?;
    }
    Ok(())
}

fn nowhere(ctx: &Ctx) -> Result<()> {
    let vmm = translated(ctx)?;
    set_rings(&vmm, |_| [0; 3])?;
    // Enough for SET_BACKEND, which reads the used index.
    map(&vmm, 0, 4, vmm.mem.host(0)? as u64, RW)?;
    vmm.start()?;
    for index in [RX, TX] {
        vmm.queue(index).kick()?;
        vmm.fence(index)?;
        let signals = poll::take_signals(&vmm.queue(index).err);
        expect("err signals", signals, 0)?;
    }
    ensure!(read(&vmm)?.is_none(), "a message came");
    vmm.stop()
}

fn foreign(ctx: &Ctx) -> Result<()> {
    let mut vmm = rings_only(ctx)?;
    let frame = stall(&mut vmm)?;
    process::in_child(|| {
        wait_miss(&vmm)?;
        update(&vmm, BOUNDARY, END)
    })?;
    went(&mut vmm, &frame)
}

/// Reads a message in a thread of its own, and waits until it waits for one.
fn reader(vmm: &Vmm) -> Result<thread::JoinHandle<Outcome>> {
    let raw = vmm.vhost.raw();
    let (send, receive) = std::sync::mpsc::channel();
    let reader = thread::spawn(move || {
        // SAFETY: Plain system call without pointers.
        let _ = send.send(unsafe { libc::gettid() });
        read_into(raw, &mut [0; MESSAGE])
    });
    let tid = receive.recv().context("the reader is gone")?;
    let path = format!("/proc/self/task/{tid}/syscall");
    poll::wait_for("the reader to wait", || {
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        let waits = text.split(' ').next() == Some("0");
        Ok(waits.then_some(()))
    })?;
    Ok(reader)
}

fn joined(reader: thread::JoinHandle<Outcome>) -> Result<Outcome> {
    poll::wait_for("the reader to return", || {
        Ok(reader.is_finished().then_some(()))
    })?;
    reader
        .join()
        .map_err(|_| anyhow::anyhow!("the reader panicked"))
}

fn reader_miss(ctx: &Ctx) -> Result<()> {
    let mut vmm = rings_only(ctx)?;
    blocking(&vmm);
    let reader = reader(&vmm)?;
    let frame = vmm.tx_frames.plain(500);
    vmm.queue_tx(&NetHdr::default(), &frame, &Split::Whole)?;
    vmm.tx.flush_and_kick()?;
    expect("read", joined(reader)?, Ok(MESSAGE as i32))?;
    update(&vmm, BOUNDARY, END)?;
    went(&mut vmm, &frame)
}

fn reader_off(ctx: &Ctx, off: fn(Raw) -> Outcome) -> Result<()> {
    let vmm = translated(ctx)?;
    blocking(&vmm);
    let reader = reader(&vmm)?;
    expect("the call that ends it", off(vmm.vhost.raw()), Ok(0))?;
    expect("read", joined(reader)?, Err(Errno(libc::EBADFD)))
}

fn interrupted(ctx: &Ctx) -> Result<()> {
    extern "C" fn nothing(_: libc::c_int) {}
    let vmm = translated(ctx)?;
    blocking(&vmm);
    // SAFETY: The action is valid, and its handler does nothing.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = nothing as *const () as usize;
        libc::sigaction(libc::SIGUSR1, &action, std::ptr::null_mut());
    }
    let reader = reader(&vmm)?;
    // SAFETY: The thread is waiting, so it exists.
    unsafe {
        libc::pthread_kill(
            std::os::unix::thread::JoinHandleExt::as_pthread_t(&reader),
            libc::SIGUSR1,
        )
    };
    expect("read", joined(reader)?, Err(Errno(libc::EINTR)))
}

fn two_readers(ctx: &Ctx) -> Result<()> {
    let mut vmm = rings_only(ctx)?;
    blocking(&vmm);
    let readers = [reader(&vmm)?, reader(&vmm)?];
    vmm.post_rx(4, &[2048])?;
    let to_guest = vmm.send_rx(500)?;
    let frame = vmm.tx_frames.plain(500);
    vmm.queue_tx(&NetHdr::default(), &frame, &Split::Whole)?;
    vmm.tx.flush_and_kick()?;
    for reader in readers {
        expect("read", joined(reader)?, Ok(MESSAGE as i32))?;
    }
    update(&vmm, BOUNDARY, END)?;
    vmm.rx.kick()?;
    if ctx.module == Module::C {
        // Both messages may have been those of RX, which it says twice.
        vmm.tx.kick()?;
    }
    vmm.expect_in_guest(&to_guest)?;
    went(&mut vmm, &frame)
}

/// What QEMU does for migration.
fn acked_again(ctx: &Ctx) -> Result<()> {
    let mut vmm = translated(ctx)?;
    update_all(&vmm)?;
    vmm.start()?;
    vmm.check_tx(60, &Split::Whole)?;
    for bits in [PLATFORM | feature::LOG_ALL, PLATFORM] {
        vmm.set_features(bits)?;
        let frame = vmm.tx_frames.plain(60);
        vmm.queue_tx(&NetHdr::default(), &frame, &Split::Whole)?;
        vmm.tx.flush_and_kick()?;
        wait_miss(&vmm)?;
        update_all(&vmm)?;
        vmm.tx.kick()?;
        went(&mut vmm, &frame)?;
        while read(&vmm)?.is_some() {}
    }
    Ok(())
}

fn turned_on(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new().build(ctx)?;
    vmm.check_tx(60, &Split::Whole)?;
    vmm.set_features(PLATFORM)?;
    update_all(&vmm)?;
    let frame = vmm.tx_frames.plain(60);
    vmm.queue_tx(&NetHdr::default(), &frame, &Split::Whole)?;
    vmm.tx.flush_and_kick()?;
    vmm.fence(TX)?;
    vmm.stop()?;
    vmm.wire.expect_silence()?;
    set_rings(&vmm, |index| {
        let layout = vmm.queue(index).ring.layout();
        [layout.desc, layout.used, layout.avail]
    })?;
    vmm.start()?;
    went(&mut vmm, &frame)
}

/// A vIOMMU in strict mode: each packet's memory is mapped for it only.
fn churn(ctx: &Ctx) -> Result<()> {
    let mut vmm = rings_only(ctx)?;
    vmm.post_rx(100, &[2048])?;
    for round in 0..50 {
        let to_guest = vmm.send_rx(300)?;
        let frame = vmm.tx_frames.plain(300);
        vmm.queue_tx(&NetHdr::default(), &frame, &Split::HeaderAlone)?;
        vmm.tx.flush_and_kick()?;
        let before = vmm.rx.used_seen();
        poll::wait_for("both packets", || {
            while let Some(miss) = read(&vmm)? {
                let page = miss.iova / PAGE * PAGE;
                update(&vmm, page, page + PAGE)?;
            }
            let gone = vmm.tx.ring.used_idx() == vmm.tx.used_seen().wrapping_add(1);
            let came = vmm.rx.ring.used_idx() != before;
            Ok((gone && came).then_some(()))
        })
        .with_context(|| format!("round {round}"))?;
        went(&mut vmm, &frame)?;
        vmm.expect_in_guest(&to_guest)?;
        invalidate(&vmm, BOUNDARY, END - BOUNDARY)?;
    }
    Ok(())
}

fn unread(ctx: &Ctx) -> Result<()> {
    let mut vmm = rings_only(ctx)?;
    let frame = stall(&mut vmm)?;
    update(&vmm, BOUNDARY, END)?;
    if ctx.module == Module::C {
        vmm.fence(TX)?;
        vmm.wire.expect_silence()?;
        vmm.tx.kick()?;
    }
    went(&mut vmm, &frame)
}

fn read_fault(ctx: &Ctx) -> Result<()> {
    let mut vmm = rings_only(ctx)?;
    let frame = stall(&mut vmm)?;
    // SAFETY: There is nothing at this address, which the kernel finds out.
    let rc = unsafe { libc::read(vmm.vhost.as_raw_fd(), 8 as *mut libc::c_void, MESSAGE) };
    let errno = Errno::last();
    match ctx.module {
        Module::C => {
            expect("read", rc, 0)?;
            // It may have been one of two.
            while read(&vmm)?.is_some() {}
            vmm.tx.kick()?;
        }
        Module::Rust => expect("read", (rc, errno), (-1, Errno(libc::EFAULT)))?,
    }
    wait_miss(&vmm)?;
    update(&vmm, BOUNDARY, END)?;
    went(&mut vmm, &frame)
}

fn forgotten(ctx: &Ctx) -> Result<()> {
    let mut vmm = rings_only(ctx)?;
    let frame = stall(&mut vmm)?;
    vmm.stop_queue(RX)?;
    if ctx.module == Module::C {
        ensure!(read(&vmm)?.is_none(), "the message is still there");
        vmm.tx.kick()?;
    }
    wait_miss(&vmm)?;
    vmm.stop_queue(RX)?;
    update(&vmm, BOUNDARY, END)?;
    if ctx.module == Module::C {
        vmm.tx.kick()?;
    }
    went(&mut vmm, &frame)
}

/// QEMU says so of the whole address space, whose size 64 bits do not hold.
fn invalidate_everything(ctx: &Ctx) -> Result<()> {
    let mut vmm = translated(ctx)?;
    update_all(&vmm)?;
    vmm.start()?;
    vmm.check_tx(60, &Split::Whole)?;
    // An empty range elsewhere touches nothing.
    invalidate(&vmm, BOUNDARY, 0)?;
    vmm.check_tx(60, &Split::Whole)?;
    ensure!(read(&vmm)?.is_none(), "a message came");
    invalidate(&vmm, 0, 0)?;
    let frame = vmm.tx_frames.plain(60);
    vmm.queue_tx(&NetHdr::default(), &frame, &Split::Whole)?;
    vmm.tx.flush_and_kick()?;
    wait_miss(&vmm)?;
    vmm.wire.expect_silence()
}

fn ring_denied(ctx: &Ctx) -> Result<()> {
    let mut vmm = translated(ctx)?;
    let layout = vmm.tx.ring.layout();
    // Of overlapping mappings the one with the lowest start counts: the
    // descriptors' comes alone, and everything else beside it.
    let (from, to) = (layout.desc, layout.desc + 16 * u64::from(layout.size));
    map(&vmm, from, to - from, vmm.mem.host(from)? as u64, WO)?;
    update(&vmm, 0, from)?;
    update(&vmm, to, BOUNDARY)?;
    update(&vmm, BOUNDARY, END)?;
    vmm.start()?;
    let frame = vmm.tx_frames.plain(60);
    vmm.queue_tx(&NetHdr::default(), &frame, &Split::Whole)?;
    vmm.tx.flush_and_kick()?;
    match ctx.module {
        Module::C => {
            vmm.fence(TX)?;
            expect("err signals", poll::take_signals(&vmm.tx.err), 0)?;
        }
        Module::Rust => {
            poll::wait_signal(&vmm.tx.err, "err")?;
        }
    }
    vmm.wire.expect_silence()?;
    ensure!(read(&vmm)?.is_none(), "a message came");
    invalidate(&vmm, from, to - from)?;
    map(&vmm, from, to - from, vmm.mem.host(from)? as u64, RO)?;
    vmm.tx.kick()?;
    went(&mut vmm, &frame)
}
