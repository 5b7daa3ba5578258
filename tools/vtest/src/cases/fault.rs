// SPDX-License-Identifier: GPL-2.0

//! Allocations and copies that fail, each in turn: the kernel's fault injection
//! makes the n-th one of a task fail, for n = 1, 2, … until what the task does
//! gets by with fewer. Needs the debug kernel.

use std::fs;
use std::fs::File;
use std::fs::OpenOptions;
use std::io::Read;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::bail;
use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;

use crate::case::skip;
use crate::case::Ctx;
use crate::case::Table;
use crate::device;
use crate::device::feature;
use crate::device::RX;
use crate::device::TX;
use crate::errno::Errno;
use crate::frame::NetHdr;
use crate::ioctl;
use crate::ioctl::Outcome;
use crate::ioctl::Raw;
use crate::poll;
use crate::traffic::expect;
use crate::traffic::Split;
use crate::virtqueue::Used;
use crate::vmm::Setup;
use crate::vmm::Vmm;

/// What a call may return when something it needs is refused.
const ALLOWED: [i32; 5] = [
    libc::ENOMEM,
    libc::EFAULT,
    libc::ENFILE,
    libc::EAGAIN,
    libc::ENOBUFS,
];
/// One of the calls that are tried.
type Call<'a> = Box<dyn Fn() -> Outcome + 'a>;

/// More than any call needs.
const MOST: u32 = 300;

pub(super) fn register(table: &mut Table) {
    let limit = Duration::from_secs(900);
    table.add_long("fault::while_opening", limit, opening);
    table.add_long("fault::while_setting_up", limit, setting_up);
    table.add_long("fault::while_changing_a_running_device", limit, changing);
    table.add_long("fault::while_mapping_and_answering", limit, mapping);
    for (name, index) in [("sending", TX), ("receiving", RX)] {
        table.add_long(format!("fault::while_{name}"), limit, move |ctx| {
            let mut vmm = kernel_threads(ctx, |setup| setup)?;
            packets(&mut vmm, index, &[60, 1500, 20_000])
        });
    }
    table.add_long("fault::while_a_life_goes_by", limit, life);
}

/// The switch of one task.
pub(super) struct Faults(File);

impl Faults {
    /// Those of this thread.
    pub(super) fn here() -> Result<Self> {
        Self::of("/proc/thread-self".into())
    }

    fn of(task: PathBuf) -> Result<Self> {
        let path = task.join("fail-nth");
        if !path.exists() {
            return skip("the kernel has no fault injection");
        }
        // Allocations that may sleep are refused as well.
        for kind in ["failslab", "fail_page_alloc"] {
            let file = format!("/sys/kernel/debug/{kind}/ignore-gfp-wait");
            fs::write(&file, "N").context(file)?;
        }
        let _ = fs::write("/sys/kernel/debug/fail_page_alloc/min-order", "0");
        for kind in ["failslab", "fail_page_alloc", "fail_usercopy"] {
            let _ = fs::write(format!("/sys/kernel/debug/{kind}/verbose"), "0");
        }
        let file = OpenOptions::new().read(true).write(true).open(&path);
        Ok(Self(file.with_context(|| path.display().to_string())?))
    }

    fn fail(&self, n: u32) -> Result<()> {
        self.0
            .write_at(n.to_string().as_bytes(), 0)
            .context("fail-nth")?;
        Ok(())
    }

    /// Ends it; whether the n-th has come to pass. Looking may be the n-th.
    fn end(&self) -> Result<bool> {
        let mut text = [0; 16];
        let came = match self.0.read_at(&mut text, 0) {
            Ok(_) => text[0] == b'0',
            Err(_) => false,
        };
        if self.fail(0).is_err() {
            self.fail(0)?;
        }
        Ok(came)
    }
}

/// Calls `body` again and again, one fault further on each time, until none
/// comes. Returns how many there were.
pub(super) fn each(what: &str, mut body: impl FnMut() -> Outcome) -> Result<u32> {
    let faults = Faults::here()?;
    for n in 1..=MOST {
        faults.fail(n)?;
        let outcome = body();
        let came = faults.end()?;
        match outcome {
            Ok(_) if !came => return Ok(n - 1),
            // It may have been something that can be done without.
            Ok(_) => {}
            Err(Errno(errno)) if came => ensure!(
                ALLOWED.contains(&errno),
                "{what} fails with {} when its fault {n} comes",
                Errno(errno)
            ),
            Err(errno) => bail!("{what} fails with {errno} without a fault, after {n}"),
        }
    }
    bail!("{what} has more than {MOST} places to fail at")
}

fn last_outcome(rc: libc::c_int) -> Outcome {
    if rc < 0 {
        Err(Errno::last())
    } else {
        Ok(rc)
    }
}

fn opening(ctx: &Ctx) -> Result<()> {
    Faults::here()?;
    let path = std::ffi::CString::new(ctx.device.as_os_str().as_encoded_bytes())?;
    let sites = each("open", || {
        // SAFETY: The path is a valid C string.
        let outcome = last_outcome(unsafe { libc::open(path.as_ptr(), libc::O_RDWR) });
        if let Ok(fd) = outcome {
            // SAFETY: It was just opened.
            unsafe { libc::close(fd) };
        }
        outcome
    })?;
    ensure!(sites > 1, "only {sites} places to fail at");
    println!("# open: {sites} faults");
    Setup::new().build(ctx)?.check_alive()
}

/// Each call of a set-up as often as it can fail, then once so that it does not.
fn setting_up(ctx: &Ctx) -> Result<()> {
    Faults::here()?;
    let mut vmm = {
        let mem = crate::mem::Memory::new()?;
        let vhost = device::VhostNet::open(&ctx.device, &mem)?;
        let raw = vhost.raw();
        let sites = each("SET_OWNER", || {
            let outcome = raw.set_owner();
            // The fault may come here; there is one only.
            if outcome.is_ok() && raw.reset_owner().is_err() {
                raw.reset_owner()?;
            }
            outcome
        })?;
        println!("# SET_OWNER: {sites} faults");
        expect("SET_OWNER", raw.set_owner(), Ok(0))?;
        Setup::new().unconfigured().on(vhost, mem, ctx)?
    };
    let raw = vmm.vhost.raw();
    let regions = vmm.regions()?;
    let mut total = 0;
    let mut call = |what: &str, body: &mut dyn FnMut() -> Outcome| -> Result<()> {
        let sites = each(what, body)?;
        total += sites;
        println!("# {what}: {sites} faults");
        Ok(())
    };
    call("SET_FEATURES", &mut || raw.set_features(vmm.features))?;
    call("SET_MEM_TABLE", &mut || raw.set_mem_table(0, &regions))?;
    for index in [RX, TX] {
        let queue = vmm.queue(index);
        let number = index as u32;
        let addr = vmm.vring_addr(index)?;
        call("VRING_NUM", &mut || raw.set_vring_num(number, 256))?;
        call("VRING_BASE", &mut || raw.set_vring_base(number, 0))?;
        call("GET_BASE", &mut || {
            raw.vring_base(number).map(|base| base as i32)
        })?;
        call("VRING_ADDR", &mut || raw.set_vring_addr(&addr))?;
        for (what, which, event) in [
            ("KICK", ioctl::SET_VRING_KICK(), &queue.kick),
            ("CALL", ioctl::SET_VRING_CALL(), &queue.call),
            ("ERR", ioctl::SET_VRING_ERR(), &queue.err),
        ] {
            let fd = event.as_raw_fd();
            call(what, &mut || raw.set_vring_file(which, number, fd))?;
        }
    }
    for index in [RX, TX] {
        let fd = vmm.tap.as_raw_fd();
        call("SET_BACKEND", &mut || {
            let outcome = raw.set_backend(index as u32, fd);
            let _ = raw.set_backend(index as u32, -1);
            outcome
        })?;
    }
    ensure!(total > 20, "only {total} places to fail at");
    vmm.start()?;
    vmm.check_alive()
}

/// The same calls on a running device: it goes on, whatever fails.
fn changing(ctx: &Ctx) -> Result<()> {
    Faults::here()?;
    let mut vmm = Setup::new().build(ctx)?;
    vmm.post_rx(50, &[2048])?;
    vmm.check_alive()?;
    let raw = vmm.vhost.raw();
    let regions = vmm.regions()?;
    let base = vec![0u64; 1 << 12];
    let log = base.as_ptr() as u64;
    let other = crate::tap::Tap::open("vt1", &Default::default())?;
    let fds = [vmm.tap.as_raw_fd(), other.as_raw_fd()];
    let (kick, call, features) = (
        vmm.tx.kick.as_raw_fd(),
        vmm.tx.call.as_raw_fd(),
        vmm.features,
    );
    let timeout = [1u32, 0];
    let calls: [(&str, Call); 7] = [
        ("SET_MEM_TABLE", Box::new(|| raw.set_mem_table(0, &regions))),
        ("SET_FEATURES", Box::new(|| raw.set_features(features))),
        (
            "SET_LOG_BASE",
            Box::new(|| raw.put(ioctl::SET_LOG_BASE(), &log)),
        ),
        (
            "KICK",
            Box::new(|| raw.set_vring_file(ioctl::SET_VRING_KICK(), 1, kick)),
        ),
        (
            "CALL",
            Box::new(|| raw.set_vring_file(ioctl::SET_VRING_CALL(), 1, call)),
        ),
        (
            "BUSYLOOP",
            Box::new(|| raw.put(ioctl::SET_VRING_BUSYLOOP_TIMEOUT(), &timeout)),
        ),
        (
            "SET_BACKEND",
            Box::new(|| {
                let there = raw.set_backend(1, fds[1]);
                let back = raw.set_backend(1, fds[0]);
                there.and(back)
            }),
        ),
    ];
    for (what, body) in calls {
        let sites = each(what, body)?;
        println!("# {what} while running: {sites} faults");
        raw.set_backend(1, fds[0])
            .map_err(|errno| anyhow::anyhow!("SET_BACKEND: {errno}"))?;
        vmm.check_alive().with_context(|| what.to_owned())?;
    }
    vmm.check_quiet()
}

fn mapping(ctx: &Ctx) -> Result<()> {
    Faults::here()?;
    let vmm = super::iotlb::translated(ctx)?;
    let uaddr = vmm.mem.host(0)? as u64;
    for (what, iova, kind) in [
        ("UPDATE", 0u64, 2u8),
        ("INVALIDATE", 0, 3),
        ("UPDATE of what is there", 0, 2),
        ("UPDATE elsewhere", 1 << 40, 2),
    ] {
        let mut bytes = vec![2u8, 0, 0, 0, 0, 0, 0, 0];
        for word in [iova, 4096, uaddr] {
            bytes.extend(word.to_ne_bytes());
        }
        bytes.extend([3, kind]);
        bytes.resize(72, 0);
        let sites = each(what, || match vmm.vhost.file().write(&bytes) {
            Ok(len) => Ok(len as i32),
            // What cannot be read whole is no message, says either module.
            Err(e) if e.raw_os_error() == Some(libc::EINVAL) => Err(Errno(libc::EFAULT)),
            Err(error) => Err(Errno(error.raw_os_error().unwrap_or(0))),
        })?;
        println!("# {what}: {sites} faults");
    }
    // A MISS that cannot be made, and one that cannot be read, come later.
    let sites = each("read", || {
        let raw = vmm.vhost.raw();
        let _ = raw.set_backend(0, vmm.tap.as_raw_fd());
        match vmm.vhost.file().read(&mut [0; 72]) {
            Ok(len) => Ok(len as i32),
            // None could be made, or none was needed twice.
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => Ok(0),
            Err(error) => Err(Errno(error.raw_os_error().unwrap_or(0))),
        }
    })?;
    println!("# read: {sites} faults");
    drop(vmm);
    poll::wait_for("the interface to go", || {
        Ok(crate::net::index("vt0").is_err().then_some(()))
    })?;
    Setup::new().build(ctx)?.check_alive()
}

/// The switch of the thread that serves a queue, or both.
fn worker(index: usize) -> Result<Faults> {
    let prefix = format!("vhost-{}", std::process::id());
    let end = if index == RX { "-rx" } else { "-tx" };
    for entry in fs::read_dir("/proc")? {
        let path = entry?.path();
        let name = fs::read_to_string(path.join("comm")).unwrap_or_default();
        let name = name.trim_end();
        if name == prefix || name == format!("{prefix}{end}") {
            return Faults::of(path);
        }
    }
    bail!("no thread is called {prefix}")
}

/// A machine whose queues are served by kernel threads: these are found in /proc under either module.
pub(super) fn kernel_threads(ctx: &Ctx, with: fn(Setup) -> Setup) -> Result<Vmm> {
    Faults::here()?;
    let mem = crate::mem::Memory::new()?;
    let vhost = device::VhostNet::open(&ctx.device, &mem)?;
    let raw = vhost.raw();
    expect(
        "FORK_FROM_OWNER",
        raw.put(ioctl::SET_FORK_FROM_OWNER(), &0u8),
        Ok(0),
    )?;
    expect("SET_OWNER", raw.set_owner(), Ok(0))?;
    let setup = Setup::new().features(feature::VERSION_1 | feature::EVENT_IDX);
    with(setup).on(vhost, mem, ctx)
}

/// The packet during which something fails arrives or is dropped; its chain comes back or stays, and the
/// next one arrives. Packets to receive are short.
pub(super) fn packets(vmm: &mut Vmm, index: usize, lens: &[usize]) -> Result<()> {
    vmm.post_rx(100, &[2048])?;
    vmm.check_alive()?;
    let faults = worker(index)?;
    let mut came = 0;
    for &len in lens {
        if index == RX && len > 1500 {
            continue;
        }
        let mut calm = 0;
        for n in 1..=MOST {
            // Where a packet needs no more faults than the last, it is enough.
            if calm == 3 {
                break;
            }
            faults.fail(n)?;
            let dropped =
                one_packet(vmm, index, len).with_context(|| format!("{len} bytes, fault {n}"))?;
            if faults.end()? {
                came += 1;
                calm = 0;
            } else {
                calm += 1;
                ensure!(!dropped, "{len} bytes were dropped without a fault");
            }
            vmm.check_alive()
                .with_context(|| format!("after fault {n} with {len} bytes"))?;
        }
        ensure!(calm == 3, "{len} bytes: more than {MOST} faults");
    }
    println!("# packets: {came} faults");
    ensure!(came > 0, "nothing failed");
    Ok(())
}

/// The chain that comes back, if it does: a copy of the ring that fails is err,
/// and the queue waits for a kick.
fn tx_used(vmm: &mut Vmm) -> Result<Option<Used>> {
    let first = poll::wait_for("a chain or err", || {
        let used = vmm.tx.pop_used()?;
        let err = poll::readable(&vmm.tx.err, Duration::ZERO)?;
        Ok((used.is_some() || err).then_some(used))
    })?;
    if first.is_some() {
        return Ok(first);
    }
    for _ in 0..20 {
        vmm.tx.kick()?;
        std::thread::sleep(Duration::from_millis(5));
        vmm.fence(TX)?;
        if let Some(used) = vmm.tx.pop_used()? {
            return Ok(Some(used));
        }
    }
    Ok(None)
}

/// Whether it was dropped.
fn one_packet(vmm: &mut Vmm, index: usize, len: usize) -> Result<bool> {
    if index == TX {
        let frame = vmm.tx_frames.plain(len);
        let head = vmm.queue_tx(&NetHdr::default(), &frame, &Split::HeaderAlone)?;
        vmm.tx.flush()?;
        match tx_used(vmm)? {
            Some(used) => expect("chain given back", (used.head, used.len), (head, 0))?,
            // What says so could not be written: it is gone until the next start.
            None => vmm.tx.forget(head)?,
        }
        vmm.fence(TX)?;
        poll::take_signals(&vmm.tx.err);
        poll::take_signals(&vmm.tx.call);
        return match vmm.wire.try_recv()? {
            Some((_, seen)) => crate::frame::compare("packet", &seen, &frame).map(|()| false),
            None => Ok(true),
        };
    }
    let frame = vmm.send_rx(len)?;
    // One behind it shows whether the first one still comes.
    let next = vmm.send_rx(len)?;
    let mut dropped = false;
    let wait = |vmm: &mut Vmm, wanted: &[&Vec<u8>]| -> Result<usize> {
        let mut kicks = 0;
        let used = poll::wait_for("a packet", || {
            kicks += 1;
            if kicks % 100 == 0 {
                vmm.rx.kick()?;
            }
            vmm.rx.pop_used()
        })?;
        let bytes = used.bytes(&vmm.mem)?;
        let at = wanted.iter().position(|frame| bytes[12..] == frame[..]);
        vmm.rx.add(&[], &used.segs)?;
        vmm.rx.flush()?;
        at.context("a packet that was not sent, or not whole")
    };
    if wait(vmm, &[&frame, &next])? == 0 {
        // The second may be the one that is dropped.
        vmm.fence(RX)?;
        vmm.rx.kick()?;
        vmm.fence(RX)?;
        let last = vmm.send_rx(100)?;
        if wait(vmm, &[&next, &last])? == 0 {
            wait(vmm, &[&last])?;
        } else {
            dropped = true;
        }
    } else {
        dropped = true;
    }
    poll::take_signals(&vmm.rx.err);
    poll::take_signals(&vmm.rx.call);
    Ok(dropped)
}

/// From opening to closing, with the n-th fault somewhere in it.
fn life(ctx: &Ctx) -> Result<()> {
    let faults = Faults::here()?;
    let mem = crate::mem::Memory::new()?;
    let tap = crate::tap::Tap::open("vt0", &Default::default())?;
    let layout = crate::ring::Layout::alloc(&mem, 256)?;
    let mut failed = 0;
    for n in 1..=1000 {
        faults.fail(n)?;
        let done = one_life(ctx, &mem, layout, tap.as_raw_fd());
        if faults.end()? {
            failed += u32::from(done.is_err());
            continue;
        }
        done.map_err(|(what, errno)| anyhow::anyhow!("{what}: {errno} without a fault"))?;
        println!(
            "# lives: {} with a fault, {failed} of them ended early",
            n - 1
        );
        ensure!(failed > 10, "hardly anything failed");
        return Setup::new().tap_name("vt1").build(ctx)?.check_alive();
    }
    bail!("a life has more than 1000 places to fail at")
}

fn one_life(
    ctx: &Ctx,
    mem: &crate::mem::Memory,
    layout: crate::ring::Layout,
    tap: i32,
) -> Result<(), (&'static str, Errno)> {
    let fail = |what| move |errno: Errno| (what, errno);
    let file = device::open(&ctx.device).map_err(|_| ("open", Errno::last()))?;
    let raw = Raw::of(&file);
    raw.set_owner().map_err(fail("SET_OWNER"))?;
    let host = |addr: u64| mem.host(addr).map_or(0, |at| at as u64);
    let region = ioctl::MemoryRegion {
        gpa: 0,
        size: crate::mem::BOUNDARY,
        uaddr: host(0),
        flags_padding: 0,
    };
    raw.set_mem_table(0, &[region])
        .map_err(fail("SET_MEM_TABLE"))?;
    for index in [0, 1] {
        raw.set_vring_num(index, 256).map_err(fail("VRING_NUM"))?;
        let addr = ioctl::VringAddr {
            index,
            flags: 0,
            desc: host(layout.desc),
            used: host(layout.used),
            avail: host(layout.avail),
            log: 0,
        };
        raw.set_vring_addr(&addr).map_err(fail("VRING_ADDR"))?;
        raw.set_backend(index, tap).map_err(fail("SET_BACKEND"))?;
    }
    for index in [0, 1] {
        raw.set_backend(index, -1).map_err(fail("SET_BACKEND -1"))?;
    }
    drop(file);
    Ok(())
}
