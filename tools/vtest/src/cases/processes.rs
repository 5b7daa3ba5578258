// SPDX-License-Identifier: GPL-2.0

//! Owners that fork, die or are stopped, descriptors that outlive them, and
//! the module's own lifetime.

use std::fs;
use std::os::fd::AsRawFd;
use std::path::Path;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;
use vhost::VhostBackend;

use crate::case::Ctx;
use crate::case::Table;
use crate::device;
use crate::device::VhostNet;
use crate::errno::Errno;
use crate::frame::NetHdr;
use crate::ioctl::Raw;
use crate::mem::Memory;
use crate::net;
use crate::poll;
use crate::process;
use crate::process::Child;
use crate::runner;
use crate::traffic::expect;
use crate::traffic::Split;
use crate::vmm::Setup;

pub(super) fn register(table: &mut Table) {
    table.add("processes::threads_are_named_after_the_owner", names);
    table.add("processes::threads_end_with_reset_owner", reset_ends);
    table.add("processes::threads_join_the_owners_cgroup", cgroup);
    table.add("processes::idle_threads_do_not_wake", idle);
    table.add(
        "processes::close_in_the_owner_with_a_copy_in_a_child_keeps_running",
        copy,
    );
    table.add_long(
        "processes::killed_owner_under_traffic_lets_go_of_everything",
        Duration::from_secs(300),
        killed,
    );
    table.add(
        "processes::killed_owner_with_a_copy_elsewhere",
        killed_with_copy,
    );
    table.add(
        "processes::owner_that_executes_another_program_lets_go",
        executes,
    );
    table.add("processes::stopped_owner_is_continued", stopped);
    table.add("processes::module_in_use_cannot_be_unloaded", unload);
    table.add("processes::sixteen_devices_at_once", sixteen);
    table.add("processes::opened_by_one_owned_by_another", handed_over);
}

/// Names of this process's threads and of kernel threads that begin so.
pub(super) fn threads_named(prefix: &str) -> Result<Vec<String>> {
    Ok(threads(prefix)?.into_iter().map(|(name, _)| name).collect())
}

/// Names of those threads, and their folders in /proc.
pub(super) fn threads(prefix: &str) -> Result<Vec<(String, PathBuf)>> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc")? {
        let entry = entry?;
        // Not /proc/self and /proc/thread-self, which are links.
        if !entry.file_type()?.is_dir() {
            continue;
        }
        let Ok(tasks) = fs::read_dir(entry.path().join("task")) else {
            continue;
        };
        for task in tasks.flatten() {
            let name = fs::read_to_string(task.path().join("comm")).unwrap_or_default();
            if name.starts_with(prefix) {
                found.push((name.trim_end().to_owned(), task.path()));
            }
        }
    }
    Ok(found)
}

pub(super) fn own_prefix() -> String {
    format!("vhost-{}", std::process::id())
}

fn names(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new().build(ctx)?;
    vmm.post_rx(4, &[2048])?;
    vmm.check_alive()?;
    let names = threads_named(&own_prefix())?;
    ensure!(!names.is_empty(), "no thread is called {}", own_prefix());
    Ok(())
}

/// The device has an owner still, who is not the caller.
pub(super) fn expect_foreign(raw: Raw) -> Result<()> {
    expect("SET_OWNER", raw.set_owner(), Err(Errno(libc::EBUSY)))?;
    expect("RESET_OWNER", raw.reset_owner(), Err(Errno(libc::EPERM)))
}

/// A cgroup of its own for this process, as long as this lives.
pub(super) struct Cgroup {
    root: PathBuf,
    name: String,
}

impl Cgroup {
    pub(super) fn enter() -> Result<Self> {
        let name = format!("vtest-{}", std::process::id());
        let root = std::env::temp_dir().join(format!("{name}-cgroup2"));
        fs::create_dir_all(&root)?;
        run("mount", &["-t", "cgroup2", "none"], &root)?;
        let cgroup = Self { root, name };
        fs::create_dir(cgroup.root.join(&cgroup.name))?;
        fs::write(cgroup.root.join(&cgroup.name).join("cgroup.procs"), "0")?;
        Ok(cgroup)
    }

    /// Moves this process out of it; its children stay.
    pub(super) fn leave(&self) -> Result<()> {
        Ok(fs::write(self.root.join("cgroup.procs"), "0")?)
    }

    /// Freezes those who are in it, or thaws them.
    pub(super) fn freeze(&self, frozen: bool) -> Result<()> {
        let file = self.root.join(&self.name).join("cgroup.freeze");
        Ok(fs::write(file, if frozen { "1" } else { "0" })?)
    }

    /// Waits until the kernel says that all who are in it are frozen.
    pub(super) fn wait_frozen(&self, limit: Duration) -> Result<()> {
        let file = self.root.join(&self.name).join("cgroup.events");
        poll::wait_at_most(limit, "the control group to freeze", || {
            let events = fs::read_to_string(&file)?;
            Ok(events.contains("frozen 1").then_some(()))
        })
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = fs::write(self.root.join("cgroup.procs"), "0");
        let _ = fs::remove_dir(self.root.join(&self.name));
        let _ = run("umount", &[], &self.root);
        let _ = fs::remove_dir(&self.root);
    }
}

fn run(program: &str, args: &[&str], path: &Path) -> Result<()> {
    let status = std::process::Command::new(program)
        .args(args)
        .arg(path)
        .status()?;
    ensure!(status.success(), "{program} {}: {status}", path.display());
    Ok(())
}

fn cgroup(ctx: &Ctx) -> Result<()> {
    let cgroup = Cgroup::enter()?;
    let vmm = Setup::new().build(ctx)?;
    let threads = threads(&own_prefix())?;
    ensure!(!threads.is_empty(), "no thread is called {}", own_prefix());
    for (name, folder) in threads {
        let of_thread = fs::read_to_string(folder.join("cgroup"))?;
        ensure!(
            of_thread.contains(&format!("/{}\n", cgroup.name)),
            "{name} is in {of_thread:?}, not in {}",
            cgroup.name
        );
    }
    drop(vmm);
    // The group can be removed only when they have left it.
    poll::wait_for("the threads to end", || {
        Ok(threads_named(&own_prefix())?.is_empty().then_some(()))
    })
}

/// How often a thread gave up the CPU, or lost it.
fn switches(folder: &Path) -> Result<u64> {
    let status = fs::read_to_string(folder.join("status"))?;
    let count = |line: &str| line.split_whitespace().last()?.parse::<u64>().ok();
    Ok(status
        .lines()
        .filter(|line| line.contains("voluntary_ctxt_switches"))
        .filter_map(count)
        .sum())
}

fn idle(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new().build(ctx)?;
    vmm.post_rx(8, &[2048])?;
    vmm.check_alive()?;
    let threads = threads(&own_prefix())?;
    ensure!(!threads.is_empty(), "no thread is called {}", own_prefix());
    let count = || -> Result<Vec<u64>> { threads.iter().map(|(_, f)| switches(f)).collect() };
    // They come to rest first; then nothing wakes them.
    let mut before = count()?;
    poll::wait_for("the threads to rest", || {
        let now = count()?;
        let rests = now == before;
        before = now;
        thread::sleep(Duration::from_millis(50));
        Ok(rests.then_some(()))
    })?;
    thread::sleep(Duration::from_secs(1));
    let after = count()?;
    ensure!(
        after == before,
        "idle threads ran: {before:?} became {after:?}"
    );
    vmm.check_alive()
}

fn reset_ends(ctx: &Ctx) -> Result<()> {
    let file = device::open(&ctx.device)?;
    for _ in 0..5 {
        expect("SET_OWNER", Raw::of(&file).set_owner(), Ok(0))?;
        expect("RESET_OWNER", Raw::of(&file).reset_owner(), Ok(0))?;
    }
    poll::wait_for("the threads to end", || {
        Ok(threads_named(&own_prefix())?.is_empty().then_some(()))
    })
}

fn copy(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new().build(ctx)?;
    vmm.post_rx(10, &[2048])?;
    let child = Child::spawn(|child| {
        child.ready()?;
        child.wait()
    })?;
    child.wait_ready()?;
    vmm.check_alive()?;
    let name = vmm.tap.name().to_owned();
    drop(vmm);
    // The copy keeps device and tap alive.
    ensure!(net::index(&name).is_ok(), "{name} went with the first copy");
    child.finish()?;
    ensure!(net::index(&name).is_err(), "{name} outlives the last copy");
    Ok(())
}

/// Queues as much as fits in both directions and leaves it running.
fn busy_owner(ctx: &Ctx, inside: &process::Inside) -> Result<()> {
    let mut vmm = Setup::new().build(ctx)?;
    vmm.post_rx(256, &[2048])?;
    inside.ready()?;
    loop {
        for _ in 0..vmm.tx.free() {
            let frame = vmm.tx_frames.plain(200);
            vmm.queue_tx(&NetHdr::default(), &frame, &Split::Whole)?;
        }
        vmm.tx.flush()?;
        // The interface may drop what it has no room for.
        let frame = vmm.rx_frames.plain(200);
        let _ = vmm.wire.send(&NetHdr::default(), &frame);
        while vmm.tx.pop_used()?.is_some() {}
        while let Some(used) = vmm.rx.pop_used()? {
            vmm.rx.add(&[], &used.segs)?;
        }
        vmm.rx.flush()?;
        while vmm.wire.try_recv()?.is_some() {}
    }
}

fn killed(ctx: &Ctx) -> Result<()> {
    let before = runner::references(ctx);
    for round in 0..10 {
        let child = Child::spawn(|inside| busy_owner(ctx, inside))?;
        child.wait_ready()?;
        // Some traffic, and different each time.
        let (_, first) = (round, net::counters("vt0")?.rx_packets);
        poll::wait_for("traffic", || {
            Ok((net::counters("vt0")?.rx_packets > first + 100 * round).then_some(()))
        })?;
        child.kill()?;
        net::wait_gone("vt0")?;
    }
    poll::wait_for("module references to return", || {
        Ok((runner::references(ctx) <= before).then_some(()))
    })
}

/// Another holder of a dead owner's device can close it, and little else.
fn killed_with_copy(ctx: &Ctx) -> Result<()> {
    let mem = Memory::new()?;
    let vhost = VhostNet::open(&ctx.device, &mem)?;
    let copy = vhost.file().try_clone().context("dup")?;
    let child = Child::spawn(|inside| {
        vhost.set_owner()?;
        let mut vmm = Setup::new().on(vhost, mem, ctx)?;
        vmm.post_rx(10, &[2048])?;
        vmm.check_alive()?;
        inside.ready()?;
        inside.wait()
    })?;
    child.wait_ready()?;
    child.kill()?;
    let raw = Raw::of(&copy);
    expect_foreign(raw)?;
    expect(
        "SET_BACKEND",
        raw.set_backend(0, -1),
        Err(Errno(libc::EPERM)),
    )?;
    ensure!(
        net::index("vt0").is_ok(),
        "the tap went though the device holds it"
    );
    drop(copy);
    net::wait_gone("vt0")
}

fn executes(ctx: &Ctx) -> Result<()> {
    let file = device::open(&ctx.device)?;
    let fd = file.as_raw_fd();
    // SAFETY: Plain system call; the descriptor is to survive exec.
    unsafe { libc::fcntl(fd, libc::F_SETFD, 0) };
    let child = Child::spawn(|_| {
        expect("SET_OWNER", Raw::of(&file).set_owner(), Ok(0))?;
        crate::process::execute_another()
    })?;
    // It ends without a verdict of ours.
    let _ = child.finish();
    let raw = Raw::of(&file);
    expect_foreign(raw)
}

fn stopped(ctx: &Ctx) -> Result<()> {
    let child = Child::spawn(|inside| {
        let mut vmm = Setup::new().build(ctx)?;
        vmm.post_rx(100, &[2048])?;
        vmm.check_alive()?;
        inside.ready()?;
        inside.wait()?;
        for _ in 0..20 {
            let received = vmm.check_rx(60)?;
            vmm.repost(&received)?;
        }
        vmm.check_alive()
    })?;
    child.wait_ready()?;
    child.signal(libc::SIGSTOP)?;
    child.wait_state('T')?;
    child.signal(libc::SIGCONT)?;
    child.finish()
}

fn unload(ctx: &Ctx) -> Result<()> {
    let _file = device::open(&ctx.device)?;
    let name = std::ffi::CString::new(ctx.module.kernel_name())?;
    // SAFETY: The name is a valid C string.
    let rc = unsafe { libc::syscall(libc::SYS_delete_module, name.as_ptr(), libc::O_NONBLOCK) };
    let errno = Errno::last();
    ensure!(rc != 0, "the module was unloaded while its device is open");
    if errno == Errno(libc::ENOENT) {
        return crate::case::skip("the module is built in");
    }
    expect("delete_module", errno, Errno(libc::EAGAIN))
}

fn sixteen(ctx: &Ctx) -> Result<()> {
    let mut all = Vec::new();
    for i in 0..16 {
        let mut vmm = Setup::new().tap_name(&format!("vt{i}")).build(ctx)?;
        vmm.post_rx(10, &[2048])?;
        all.push(vmm);
    }
    for _ in 0..3 {
        for vmm in &mut all {
            vmm.check_alive()?;
        }
    }
    Ok(())
}

/// libvirt opens, QEMU owns.
fn handed_over(ctx: &Ctx) -> Result<()> {
    let mem = Memory::new()?;
    let vhost = VhostNet::open(&ctx.device, &mem)?;
    process::in_child(move || {
        vhost.set_owner()?;
        let mut vmm = Setup::new().on(vhost, mem, ctx)?;
        vmm.post_rx(10, &[2048])?;
        vmm.check_alive()
    })
}
