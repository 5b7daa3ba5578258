// SPDX-License-Identifier: GPL-2.0

//! What the device uses goes away or changes under its hands: memory, the
//! owner, its control group, CPUs, the TAP.

use std::fs;
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::fd::FromRawFd;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;
use vhost::VhostBackend;

use super::log::log_all;
use super::log::log_ring;
use super::log::Log;
use crate::better;
use crate::case::skip;
use crate::case::Ctx;
use crate::case::Module;
use crate::case::Table;
use crate::device::VhostNet;
use crate::device::RX;
use crate::device::TX;
use crate::errno::Errno;
use crate::frame::NetHdr;
use crate::frame::Rng;
use crate::mem::Memory;
use crate::mem::PAGE;
use crate::net;
use crate::poll;
use crate::process::Child;
use crate::process::Inside;
use crate::tap::TapOptions;
use crate::traffic::expect;
use crate::traffic::Split;
use crate::virtqueue::Seg;
use crate::vmm::Setup;
use crate::vmm::Vmm;

pub(super) fn register(table: &mut Table) {
    table.add_better(
        "lifetime::file_truncated_under_a_buffer",
        better::TX_SPIN,
        truncated,
    );
    table.add("lifetime::protection_flaps_under_traffic", protection);
    table.add("lifetime::pages_move_under_traffic", pages_move);
    table.add("lifetime::log_is_not_touched_once_it_is_off", log_off);
    table.add("lifetime::namespace_of_the_tap_goes", namespace);
    table.add("lifetime::tap_with_napi_carries_traffic", napi);
    table.add("lifetime::tap_with_a_filter_that_drops", filter);
    for (name, fork) in [("owner", 1), ("kernel", 0)] {
        for (end, kill) in [("thawed", false), ("killed", true)] {
            table.add(
                format!("lifetime::control_group_frozen_and_{end}_{name}_threads"),
                move |ctx| frozen(ctx, fork, kill),
            );
        }
    }
    table.add("lifetime::cpu_goes_and_comes_under_traffic", cpu);
    table.add("lifetime::memory_limit_is_hit_under_traffic", memory_limit);
    table.add("lifetime::core_dump_under_traffic", core_dump);
    table.add("lifetime::unprivileged_owner_carries_traffic", unprivileged);
    table.add(
        "lifetime::descriptor_in_a_dead_sockets_queue_is_collected",
        dead_socket,
    );
}

pub(super) fn io(what: &str, rc: i64) -> Result<()> {
    ensure!(rc >= 0, "{what}: {}", Errno::last());
    Ok(())
}

/// Maps pages of a file over guest memory from `addr` on.
fn map_file(vmm: &Vmm, addr: u64, len: u64, file: &File) -> Result<()> {
    // SAFETY: Replaces a part of our guest memory, which only accessors that
    // copy touch.
    let at = unsafe {
        libc::mmap(
            vmm.mem.host(addr)?.cast(),
            len as usize,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_SHARED | libc::MAP_FIXED,
            file.as_raw_fd(),
            0,
        )
    };
    ensure!(at != libc::MAP_FAILED, "mmap: {}", Errno::last());
    Ok(())
}

fn memfd(len: u64) -> Result<File> {
    // SAFETY: The name is a valid C string; the descriptor is nobody else's.
    let file = unsafe { File::from_raw_fd(libc::memfd_create(c"guest".as_ptr(), 0)) };
    file.set_len(len).context("memfd")?;
    Ok(file)
}

fn truncated(ctx: &Ctx) -> Result<()> {
    if ctx.module == Module::C {
        return skip(better::TX_SPIN.c);
    }
    let mut vmm = Setup::new().build(ctx)?;
    vmm.check_alive()?;
    let at = vmm.mem.tx_buffer(4 * PAGE)?.next_multiple_of(PAGE);
    let file = memfd(2 * PAGE)?;
    map_file(&vmm, at, 2 * PAGE, &file)?;
    for round in 0..20 {
        let frame = vmm.tx_frames.plain(300);
        let mut bytes = NetHdr::default().bytes(12);
        bytes.extend(&frame);
        let len = bytes.len() as u32;
        vmm.mem.write(at, &bytes)?;
        let gone = round % 2 == 1;
        if gone {
            file.set_len(0).context("truncating")?;
        }
        let head = vmm.tx.add(&[Seg { addr: at, len }], &[])?;
        vmm.tx.flush()?;
        let used = vmm.tx.wait_used()?;
        expect("chain given back", (used.head, used.len), (head, 0))?;
        vmm.fence(TX)?;
        if gone {
            expect("err", poll::take_signals(&vmm.tx.err) > 0, true)?;
            vmm.wire.expect_silence()?;
            file.set_len(2 * PAGE).context("growing")?;
        } else {
            vmm.expect_on_wire(&frame)?;
            expect("err", poll::take_signals(&vmm.tx.err), 0)?;
        }
    }
    vmm.check_alive()
}

/// Runs `disturb` in a thread, round after round, while `body` runs.
pub(super) fn beside(
    disturb: impl Fn(&mut Rng) + Sync,
    seed: u64,
    body: impl FnOnce() -> Result<()>,
) -> Result<u64> {
    let done = AtomicBool::new(false);
    thread::scope(|scope| {
        let other = scope.spawn(|| {
            let (mut rounds, mut rng) = (0, Rng::new(seed));
            while !done.load(Ordering::Relaxed) {
                disturb(&mut rng);
                rounds += 1;
            }
            rounds
        });
        let result = body();
        done.store(true, Ordering::Relaxed);
        let rounds = other.join().unwrap_or(0);
        result.map(|()| rounds)
    })
}

/// What the guest gets is what was sent, whole, or nothing.
fn protection(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new().build(ctx)?;
    let start = vmm.mem.rx_buffer(66 * PAGE)?.next_multiple_of(PAGE);
    let host = vmm.mem.host(start)? as usize;
    for i in 0..64 {
        let seg = Seg {
            addr: start + i * PAGE,
            len: 2048,
        };
        vmm.rx.add(&[], &[seg])?;
    }
    vmm.rx.flush()?;
    let mut received = 0;
    let mut sent = std::collections::VecDeque::new();
    let flaps = beside(
        |rng| {
            let len = 64 * PAGE as usize;
            let at = host as *mut libc::c_void;
            let none = if rng.below(2) == 0 {
                libc::PROT_NONE
            } else {
                libc::PROT_READ
            };
            // SAFETY: The range is guest memory that nobody reads while it is so.
            unsafe {
                libc::mprotect(at, len, none);
                thread::yield_now();
                libc::mprotect(at, len, libc::PROT_READ | libc::PROT_WRITE);
            }
        },
        ctx.seed,
        || {
            for i in 0..1500 {
                sent.push_back(vmm.send_rx(60 + i % 1400)?);
                thread::yield_now();
            }
            Ok(())
        },
    )?;
    vmm.fence(RX)?;
    // Those that arrived are among those that were sent, in order; what C makes
    // of a page that goes in the middle is better::RX_PAYLOAD.
    while let Some(used) = vmm.rx.pop_used()? {
        received += 1;
        if ctx.module == Module::C {
            continue;
        }
        let bytes = used.bytes(&vmm.mem)?;
        let at = sent.iter().position(|frame| bytes[12..] == frame[..]);
        let at = at.with_context(|| format!("packet {received} is none that was sent"))?;
        sent.drain(..=at);
    }
    ensure!(flaps > 10, "{flaps} changes, {received} packets arrived");
    super::guest::fresh_start(&mut vmm)
}

/// Merged, collapsed, thrown away and reclaimed: contents stay, or are zero.
fn pages_move(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new().build(ctx)?;
    vmm.post_rx(200, &[2048])?;
    let base = vmm.mem.host(16 << 20)? as usize;
    // Memory that no packet of this case uses is thrown away, the rest is not.
    let unused = vmm.mem.host(120 << 20)? as usize;
    let advice = [
        libc::MADV_MERGEABLE,
        libc::MADV_UNMERGEABLE,
        libc::MADV_HUGEPAGE,
        libc::MADV_NOHUGEPAGE,
        libc::MADV_COLD,
        libc::MADV_PAGEOUT,
        25, // MADV_COLLAPSE
    ];
    let _ = fs::write("/sys/kernel/mm/ksm/run", "1");
    let result = beside(
        |rng| {
            let len = 32 << 20;
            let offset = rng.below(50) as usize * (1 << 20);
            let advice = advice[rng.below(advice.len() as u64) as usize];
            // SAFETY: None of these changes what the memory holds; what the last
            // one throws away nobody uses.
            unsafe {
                libc::madvise((base + offset) as *mut libc::c_void, len, advice);
                libc::madvise(unused as *mut libc::c_void, 1 << 20, libc::MADV_DONTNEED);
            }
        },
        ctx.seed,
        || {
            for i in 0..300 {
                vmm.check_tx(60 + i * 4, &Split::HeaderAlone)?;
                let received = vmm.check_rx(60 + i * 4)?;
                vmm.repost(&received)?;
            }
            Ok(())
        },
    );
    let _ = fs::write("/sys/kernel/mm/ksm/run", "2");
    ensure!(result? > 5, "nothing has moved");
    vmm.check_quiet()
}

fn log_off(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new().build(ctx)?;
    vmm.post_rx(200, &[2048])?;
    for round in 0..100 {
        let mut log = Log::new(&vmm)?;
        log_all(&vmm, true)?;
        log_ring(&vmm, RX, true)?;
        for _ in 0..10 {
            vmm.send_rx(200)?;
        }
        log_all(&vmm, false)?;
        log_ring(&vmm, RX, false)?;
        log.take();
        for _ in 0..10 {
            vmm.send_rx(200)?;
        }
        for _ in 0..20 {
            let received = vmm.recv()?;
            vmm.repost(&received)?;
        }
        vmm.fence(RX)?;
        let marked = log.take();
        ensure!(
            marked.is_empty(),
            "round {round}: {marked:?} were marked after it was off"
        );
        // What comes next at this place is not a log.
        drop(log);
    }
    vmm.check_alive()
}

fn namespace(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new().build(ctx)?;
    vmm.check_tx(60, &Split::Whole)?;
    let elsewhere = Child::spawn(|inside| {
        net::own_namespace()?;
        inside.ready()?;
        inside.wait()
    })?;
    elsewhere.wait_ready()?;
    net::move_to("vt0", elsewhere.pid())?;
    elsewhere.finish()?;
    // The namespace goes with its last process; the interface with it, in time.
    let mut chains = 0;
    poll::wait_at_most(Duration::from_secs(30), "err", || {
        let frame = vmm.tx_frames.plain(100);
        vmm.queue_tx(&NetHdr::default(), &frame, &Split::Whole)?;
        vmm.tx.flush_and_kick()?;
        vmm.fence(TX)?;
        chains += 1;
        while let Some(used) = vmm.tx.pop_used()? {
            expect("length", used.len, 0)?;
            chains -= 1;
        }
        thread::sleep(Duration::from_millis(20));
        let gone = poll::take_signals(&vmm.tx.err) > 0;
        Ok((gone || vmm.tx.free() < 8).then_some(()))
    })?;
    if ctx.module == Module::Rust {
        // A kick may have been waiting when the last ones were looked for.
        for _ in 0..chains {
            let used = vmm.tx.spin_used()?;
            expect("length", used.len, 0)?;
        }
    }
    vmm.stop()?;
    let tap = crate::tap::Tap::open("vt1", &TapOptions::default())?;
    vmm.set_backend(TX, Some(tap.file()))?;
    vmm.stop()
}

fn napi(ctx: &Ctx) -> Result<()> {
    let tap = TapOptions {
        napi: true,
        ..TapOptions::default()
    };
    let mut vmm = Setup::new().tap(tap).build(ctx)?;
    vmm.post_rx(100, &[2048])?;
    for len in [60, 200, 1514] {
        vmm.check_tx(len, &Split::Whole)?;
        vmm.check_tx(len, &Split::HeaderAlone)?;
        let received = vmm.check_rx(len)?;
        vmm.repost(&received)?;
    }
    vmm.check_quiet()
}

fn filter(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new().build(ctx)?;
    vmm.post_rx(100, &[2048])?;
    for _ in 0..5 {
        vmm.tap.filter_all(true)?;
        for _ in 0..20 {
            vmm.send_rx(100)?;
        }
        vmm.tap.filter_all(false)?;
        let received = vmm.check_rx(300)?;
        vmm.repost(&received)?;
    }
    vmm.check_quiet()
}

/// An owner whose packets never end.
pub(super) fn busy(ctx: &Ctx, fork: u8, inside: &Inside) -> Result<()> {
    let mut vmm = super::worker::running(ctx, fork)?;
    vmm.check_alive()?;
    inside.ready()?;
    loop {
        for _ in 0..20 {
            let frame = vmm.tx_frames.plain(500);
            vmm.queue_tx(&NetHdr::default(), &frame, &Split::Whole)?;
            vmm.send_rx(500)?;
        }
        vmm.tx.flush()?;
        vmm.tx.drain()?;
        vmm.wire.drain()?;
        for _ in 0..20 {
            let received = vmm.recv()?;
            vmm.repost(&received)?;
        }
    }
}

fn packets() -> Result<u64> {
    Ok(net::counters("vt0")?.rx_packets)
}

pub(super) fn more_packets() -> Result<()> {
    let before = packets()?;
    poll::wait_for("more packets", || Ok((packets()? > before).then_some(())))
}

/// Waits until they cease, as far as 50 ms show it.
pub(super) fn no_packets() -> Result<()> {
    poll::wait_for("packets to cease", || {
        let before = packets()?;
        thread::sleep(Duration::from_millis(50));
        Ok((packets()? == before).then_some(()))
    })
}

pub(super) fn interface_goes() -> Result<()> {
    poll::wait_for("the interface to go", || {
        Ok(net::index("vt0").is_err().then_some(()))
    })
}

/// A control group of our own, gone when dropped.
pub(super) struct Group(PathBuf);

impl Group {
    pub(super) fn new(controllers: &str) -> Result<Self> {
        let top = PathBuf::from("/sys/fs/cgroup");
        if !controllers.is_empty() {
            let asked = fs::write(top.join("cgroup.subtree_control"), controllers);
            if asked.is_err() {
                return skip(&format!("no control group with {controllers}"));
            }
        }
        let path = top.join(format!("vtest-{}", std::process::id()));
        fs::create_dir(&path).with_context(|| path.display().to_string())?;
        Ok(Self(path))
    }

    pub(super) fn put(&self, file: &str, value: &str) -> Result<()> {
        fs::write(self.0.join(file), value).with_context(|| format!("{file} = {value}"))
    }

    fn get(&self, file: &str) -> Result<String> {
        fs::read_to_string(self.0.join(file)).with_context(|| file.to_owned())
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        let _ = poll::wait_for("the control group to be empty", || {
            Ok(fs::remove_dir(&self.0).is_ok().then_some(()))
        });
    }
}

/// The kernel freezes processes, and calls a group frozen that has no others:
/// threads of the owner's freeze with it. Kernel threads stay awake and have
/// nothing to do before long; a group that holds some is never called frozen.
fn frozen(ctx: &Ctx, fork: u8, kill: bool) -> Result<()> {
    let group = Group::new("")?;
    let child = Child::spawn(|inside| {
        group.put("cgroup.procs", "0")?;
        busy(ctx, fork, inside)
    })?;
    child.wait_ready()?;
    for _ in 0..if kill { 1 } else { 10 } {
        more_packets()?;
        group.put("cgroup.freeze", "1")?;
        if fork == 1 {
            poll::wait_for("the group to freeze", || {
                let events = group.get("cgroup.events")?;
                Ok(events.contains("frozen 1").then_some(()))
            })?;
        }
        no_packets()?;
        if kill {
            break;
        }
        group.put("cgroup.freeze", "0")?;
    }
    if !kill {
        more_packets()?;
    }
    child.kill()?;
    interface_goes()
}

fn cpu(ctx: &Ctx) -> Result<()> {
    const ONLINE: &str = "/sys/devices/system/cpu/cpu1/online";
    if fs::write(ONLINE, "1").is_err() {
        return skip("no CPU can be taken away");
    }
    let child = Child::spawn(|inside| busy(ctx, 0, inside))?;
    child.wait_ready()?;
    let mut result = Ok(());
    for _ in 0..5 {
        for state in ["0", "1"] {
            result = fs::write(ONLINE, state)
                .with_context(|| format!("online = {state}"))
                .and_then(|()| more_packets());
            if result.is_err() {
                break;
            }
        }
    }
    fs::write(ONLINE, "1").context("online = 1")?;
    result?;
    child.kill()?;
    interface_goes()
}

/// The owner uses more memory than it may while packets flow: it is killed, and
/// nothing of the device is left.
fn memory_limit(ctx: &Ctx) -> Result<()> {
    let group = Group::new("+memory")?;
    group.put("memory.max", "60M")?;
    let _ = group.put("memory.swap.max", "0");
    let child = Child::spawn(|inside| {
        group.put("cgroup.procs", "0")?;
        let mut vmm = Setup::new().build(ctx)?;
        vmm.post_rx(100, &[2048])?;
        inside.ready()?;
        for at in (0..100 << 20).step_by(64 << 10) {
            let addr = (17 << 20) + at;
            let mut bytes = vec![0x55; 64 << 10];
            bytes[..12].fill(0);
            vmm.mem.write(addr, &bytes)?;
            let len = 512;
            vmm.tx.add(&[Seg { addr, len }], &[])?;
            vmm.tx.flush()?;
            vmm.tx.wait_used()?;
            vmm.wire.drain()?;
        }
        Ok(())
    })?;
    child.wait_ready()?;
    // A thousand packets, one at a time, take the debug kernel a while.
    let ended = child.finish_within(Duration::from_secs(60));
    let events = group.get("memory.events")?;
    let killed = !events.contains("oom_kill 0");
    ensure!(
        killed && ended.is_err(),
        "not killed ({ended:?}), events {events}"
    );
    interface_goes()?;
    Setup::new().tap_name("vt1").build(ctx)?.check_alive()
}

fn core_dump(ctx: &Ctx) -> Result<()> {
    let folder = std::env::temp_dir().join(format!("vtest-core-{}", std::process::id()));
    fs::create_dir_all(&folder)?;
    let child = Child::spawn(|inside| {
        std::env::set_current_dir(&folder)?;
        let all = libc::rlimit {
            rlim_cur: libc::RLIM_INFINITY,
            rlim_max: libc::RLIM_INFINITY,
        };
        // SAFETY: The limit is valid.
        io("setrlimit", unsafe {
            libc::setrlimit(libc::RLIMIT_CORE, &all).into()
        })?;
        busy(ctx, 0, inside)
    })?;
    child.wait_ready()?;
    more_packets()?;
    child.signal(libc::SIGABRT)?;
    // Reading 128 MiB of memory takes its time.
    let ended = child.wait_end(Duration::from_secs(40));
    let _ = fs::remove_dir_all(&folder);
    let status = ended?;
    ensure!(
        libc::WIFSIGNALED(status) && libc::WCOREDUMP(status),
        "wait status {status:#x}"
    );
    interface_goes()
}

fn unprivileged(ctx: &Ctx) -> Result<()> {
    const NOBODY: libc::uid_t = 65_534;
    let mem = Memory::new()?;
    let vhost = VhostNet::open(&ctx.device, &mem)?;
    // The TAP is made and opened by somebody who may.
    let vmm = Setup::new().unconfigured().on(vhost, mem, ctx)?;
    crate::process::in_child(move || {
        // SAFETY: The calls have no pointers but a null one that is allowed.
        let rc = unsafe {
            libc::setgroups(0, std::ptr::null()) + libc::setgid(NOBODY) + libc::setuid(NOBODY)
        };
        expect("becoming nobody", rc, 0)?;
        let mut vmm = vmm;
        vmm.vhost.set_owner().context("SET_OWNER")?;
        vmm.configure([0; 2])?;
        vmm.start()?;
        vmm.post_rx(10, &[2048])?;
        for _ in 0..20 {
            vmm.check_alive()?;
        }
        vmm.check_quiet()
    })
}

/// Sends descriptors over a socket.
fn send_fds(socket: i32, fds: &[i32]) -> Result<()> {
    let mut byte = [0u8];
    let mut part = libc::iovec {
        iov_base: byte.as_mut_ptr().cast(),
        iov_len: 1,
    };
    let len = size_of_val(fds);
    let mut control = [0u64; 16];
    // SAFETY: All zeroes are a valid message; the buffers are valid for the
    // lengths that are filled in, and there is room for the descriptors.
    let rc = unsafe {
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_iov = &mut part;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = libc::CMSG_SPACE(len as u32) as usize;
        let header = libc::CMSG_FIRSTHDR(&message);
        (*header).cmsg_level = libc::SOL_SOCKET;
        (*header).cmsg_type = libc::SCM_RIGHTS;
        (*header).cmsg_len = libc::CMSG_LEN(len as u32) as usize;
        std::ptr::copy_nonoverlapping(fds.as_ptr().cast(), libc::CMSG_DATA(header), len);
        libc::sendmsg(socket, &message, 0)
    };
    io("sendmsg", rc as i64)
}

/// Two sockets hold each other, and the device, in their queues.
fn dead_socket(ctx: &Ctx) -> Result<()> {
    let child = Child::spawn(|inside| {
        let mut vmm = Setup::new().build(ctx)?;
        vmm.post_rx(10, &[2048])?;
        vmm.check_alive()?;
        let mut ends = [0; 2];
        // SAFETY: There is room for two descriptors.
        io("socketpair", unsafe {
            libc::socketpair(libc::AF_UNIX, libc::SOCK_STREAM, 0, ends.as_mut_ptr()).into()
        })?;
        send_fds(ends[0], &[vmm.vhost.as_raw_fd(), ends[0], ends[1]])?;
        send_fds(ends[1], &[vmm.vhost.as_raw_fd(), ends[0], ends[1]])?;
        inside.ready()?;
        inside.wait()
    })?;
    child.wait_ready()?;
    child.kill()?;
    interface_goes()
}
