// SPDX-License-Identifier: GPL-2.0

//! What an owner can be subject to: a debugger, limits of its control group,
//! name spaces of its own, calls by a worker of io_uring; and what a TAP can
//! have that is not ours.

use std::io::Error;
use std::thread;
use std::time::Duration;

use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;
use vhost::VhostBackend;

use super::iotlb::translated;
use super::iotlb::Message;
use super::lifetime::busy;
use super::lifetime::interface_goes;
use super::lifetime::io;
use super::lifetime::more_packets;
use super::lifetime::no_packets;
use super::lifetime::Group;
use super::processes::threads;
use super::processes::threads_named;
use crate::bpf::SocketFilter;
use crate::case::Ctx;
use crate::case::Table;
use crate::device::VhostNet;
use crate::device::TX;
use crate::frame::compare;
use crate::ioctl;
use crate::mem::Memory;
use crate::mem::BOUNDARY;
use crate::mem::END;
use crate::poll;
use crate::process::Child;
use crate::traffic::expect;
use crate::traffic::Split;
use crate::uring::Uring;
use crate::vmm::Setup;

pub(super) fn register(table: &mut Table) {
    for (name, fork) in [("owner", 1), ("kernel", 0)] {
        table.add(
            format!("lifetime::cpu_limit_and_cpu_set_change_under_traffic_{name}_threads"),
            move |ctx| limits(ctx, fork),
        );
        table.add(
            format!("lifetime::owner_in_name_spaces_of_its_own_{name}_threads"),
            move |ctx| name_spaces(ctx, fork),
        );
    }
    table.add("lifetime::owners_threads_traced_and_stopped", traced);
    table.add("lifetime::owner_killed_while_its_thread_is_traced", killed);
    table.add("lifetime::messages_by_io_uring", messages);
    table.add("lifetime::tap_with_programs_of_bpf", programs);
}

/// A tenth of a CPU, one of two CPUs, and all of them again.
fn limits(ctx: &Ctx, fork: u8) -> Result<()> {
    let group = Group::new("+cpu +cpuset")?;
    let child = Child::spawn(|inside| {
        group.put("cgroup.procs", "0")?;
        busy(ctx, fork, inside)
    })?;
    child.wait_ready()?;
    for _ in 0..5 {
        for (file, value) in [
            ("cpu.max", "10000 100000"),
            ("cpuset.cpus", "0"),
            ("cpuset.cpus", "1"),
            ("cpu.max", "max"),
            ("cpuset.cpus", "0-1"),
        ] {
            group.put(file, value)?;
            more_packets().with_context(|| format!("{file} = {value}"))?;
        }
    }
    child.kill()?;
    interface_goes()
}

/// An owner with user and process ids of its own; its threads have the name that
/// the host sees.
fn name_spaces(ctx: &Ctx, fork: u8) -> Result<()> {
    let mem = Memory::new()?;
    let vhost = VhostNet::open(&ctx.device, &mem)?;
    let vmm = Setup::new().unconfigured().on(vhost, mem, ctx)?;
    crate::process::in_child(move || {
        // SAFETY: Plain system call.
        io("unshare", unsafe {
            libc::unshare(libc::CLONE_NEWUSER | libc::CLONE_NEWPID).into()
        })?;
        let owner = Child::spawn(|inside| {
            let mut vmm = vmm;
            expect("process id", std::process::id(), 1)?;
            let seen = vmm.vhost.raw().put(ioctl::SET_FORK_FROM_OWNER(), &fork);
            expect("SET_FORK_FROM_OWNER", seen, Ok(0))?;
            vmm.vhost.set_owner().context("SET_OWNER")?;
            vmm.configure([0; 2])?;
            vmm.start()?;
            vmm.post_rx(10, &[2048])?;
            inside.ready()?;
            inside.wait()?;
            for _ in 0..20 {
                vmm.check_alive()?;
            }
            vmm.check_quiet()
        })?;
        owner.wait_ready()?;
        let prefix = format!("vhost-{}", owner.pid());
        let names = threads_named(&prefix)?;
        ensure!(!names.is_empty(), "no thread is called {prefix}");
        owner.finish()
    })
}

/// `ptrace(2)`
fn ptrace(what: &str, request: libc::c_uint, thread: libc::pid_t) -> Result<()> {
    let null = std::ptr::null_mut::<libc::c_void>();
    // SAFETY: None of the requests used here has a pointer.
    io(what, unsafe { libc::ptrace(request, thread, null, null) })
}

/// Waits until a thread that is traced tells something; its wait status.
fn wait_traced(thread: libc::pid_t) -> Result<libc::c_int> {
    let mut status = 0;
    poll::wait_for(&format!("thread {thread} to stop or end"), || {
        // SAFETY: `status` is a valid int.
        let pid = unsafe { libc::waitpid(thread, &mut status, libc::WNOHANG | libc::__WALL) };
        ensure!(pid >= 0, "waitpid: {}", Error::last_os_error());
        Ok((pid == thread).then_some(()))
    })?;
    Ok(status)
}

/// Stops a thread as a debugger does.
fn interrupt(thread: libc::pid_t) -> Result<()> {
    ptrace("PTRACE_SEIZE", libc::PTRACE_SEIZE, thread)?;
    ptrace("PTRACE_INTERRUPT", libc::PTRACE_INTERRUPT, thread)?;
    let status = wait_traced(thread)?;
    ensure!(libc::WIFSTOPPED(status), "wait status {status:#x}");
    Ok(())
}

/// An owner whose packets never end, and its device's threads.
fn busy_owner(ctx: &Ctx) -> Result<(Child, Vec<libc::pid_t>)> {
    let child = Child::spawn(|inside| busy(ctx, 1, inside))?;
    child.wait_ready()?;
    more_packets()?;
    let mut found = Vec::new();
    for (_, folder) in threads(&format!("vhost-{}", child.pid()))? {
        let name = folder.file_name().context("a folder without a name")?;
        found.push(name.to_string_lossy().parse()?);
    }
    ensure!(!found.is_empty(), "the owner has no thread of the device");
    Ok((child, found))
}

fn traced(ctx: &Ctx) -> Result<()> {
    let (child, found) = busy_owner(ctx)?;
    for thread in found {
        interrupt(thread)?;
        no_packets()?;
        ptrace("PTRACE_DETACH", libc::PTRACE_DETACH, thread)?;
        more_packets()?;
        // One of its threads cannot be stopped alone.
        // SAFETY: Plain system call; the child is not reaped yet.
        io("tgkill", unsafe {
            libc::syscall(libc::SYS_tgkill, child.pid(), thread, libc::SIGSTOP)
        })?;
        child.wait_state('T')?;
        no_packets()?;
        child.signal(libc::SIGCONT)?;
        more_packets()?;
    }
    child.kill()?;
    interface_goes()
}

fn killed(ctx: &Ctx) -> Result<()> {
    let (child, found) = busy_owner(ctx)?;
    for thread in &found {
        interrupt(*thread)?;
    }
    child.signal(libc::SIGKILL)?;
    for thread in found {
        let status = wait_traced(thread)?;
        ensure!(!libc::WIFSTOPPED(status), "wait status {status:#x}");
    }
    child.kill()?;
    interface_goes()
}

/// A worker of io_uring has the owner's memory, and no other sign of it.
fn messages(ctx: &Ctx) -> Result<()> {
    const UPDATE: u8 = 2;
    const INVALIDATE: u8 = 3;
    const MISS: u8 = 1;
    let ring = Uring::new()?;
    let mut vmm = translated(ctx)?;
    let file = vmm.vhost.file().try_clone().context("dup")?;
    let send = |kind: u8, uaddr: u64, from: u64, to: u64| -> Result<()> {
        let message = Message {
            iova: from,
            size: to - from,
            uaddr,
            perm: 3,
            kind,
        };
        let written = ring.write(&file, &message.bytes(2))?;
        expect("bytes written", written.ok(), Some(72))
    };
    for (from, to) in [(0, BOUNDARY), (BOUNDARY, END)] {
        send(UPDATE, vmm.mem.host(from)? as u64, from, to)?;
    }
    vmm.start()?;
    vmm.post_rx(20, &[2048])?;
    vmm.check_alive()?;
    // What is sent next is missed.
    send(INVALIDATE, 0, BOUNDARY, END)?;
    let frame = vmm.tx_frames.plain(300);
    vmm.queue_tx(&Default::default(), &frame, &Split::Whole)?;
    vmm.tx.flush()?;
    ensure!(poll::readable(&file, poll::PATIENCE)?, "no MISS");
    let mut miss = [0; 72];
    let read = ring.read(&file, &mut miss)?;
    expect("bytes read", read.ok(), Some(72))?;
    expect("kind of message", miss[33], MISS)?;
    send(UPDATE, vmm.mem.host(BOUNDARY)? as u64, BOUNDARY, END)?;
    vmm.expect_on_wire(&frame)?;
    vmm.tx.wait_used()?;
    vmm.check_alive()
}

/// Steering that names no queue there is, and filters that drop and cut.
fn programs(ctx: &Ctx) -> Result<()> {
    const SHORT: usize = 40;
    let mut vmm = Setup::new().build(ctx)?;
    vmm.post_rx(100, &[2048])?;
    let seven = SocketFilter::returning(7)?;
    vmm.tap.steer(Some(&seven))?;
    for len in [60, 1514] {
        vmm.check_tx(len, &Split::HeaderAlone)?;
        let received = vmm.check_rx(len)?;
        vmm.repost(&received)?;
    }
    let (none, short, all) = (
        SocketFilter::returning(0)?,
        SocketFilter::returning(SHORT as i32)?,
        SocketFilter::returning(-1)?,
    );
    for _ in 0..5 {
        vmm.tap.filter(Some(&none))?;
        for _ in 0..20 {
            vmm.send_rx(100)?;
        }
        vmm.tap.filter(Some(&short))?;
        let frame = vmm.send_rx(300)?;
        let received = vmm.recv()?;
        compare("packet", &received.frame, &frame[..SHORT])?;
        vmm.repost(&received)?;
        vmm.tap.filter(Some(&all))?;
        let received = vmm.check_rx(300)?;
        vmm.repost(&received)?;
    }
    vmm.tap.filter(None)?;
    vmm.tap.steer(None)?;
    vmm.check_alive()?;
    vmm.fence(TX)?;
    // What lets go of programs does so later.
    thread::sleep(Duration::from_millis(20));
    vmm.check_quiet()
}
