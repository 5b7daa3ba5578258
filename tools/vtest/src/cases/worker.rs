// SPDX-License-Identifier: GPL-2.0

//! The device's threads: whose they are (VHOST_SET_FORK_FROM_OWNER), and what
//! stops and ends them.

use std::fs;
use std::mem::size_of;
use std::os::fd::AsRawFd;
use std::time::Duration;
use std::time::Instant;

use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;
use vhost::VhostBackend;
use vmm_sys_util::eventfd::EventFd;

use super::busy;
use super::processes::expect_foreign;
use super::processes::threads;
use super::processes::threads_named;
use super::processes::Cgroup;
use crate::better;
use crate::case::Ctx;
use crate::case::Module;
use crate::case::Table;
use crate::device;
use crate::device::VhostNet;
use crate::device::RX;
use crate::errno::Errno;
use crate::frame::NetHdr;
use crate::ioctl;
use crate::ioctl::Outcome;
use crate::ioctl::Raw;
use crate::mem::Memory;
use crate::net;
use crate::poll;
use crate::process::Child;
use crate::traffic::expect;
use crate::vmm::Setup;
use crate::vmm::Vmm;
use crate::wire::Wire;

const ENOMEM: Outcome = Err(Errno(libc::ENOMEM));
/// Whose threads: the kernel's, the owner's.
pub(super) const KERNEL: u8 = 0;
pub(super) const OWNER: u8 = 1;
/// Long enough for a packet that is not held up.
const MOMENT: Duration = Duration::from_millis(500);

pub(super) fn register(table: &mut Table) {
    table.add("worker::default_is_the_parameter", default);
    table.add("worker::owners_threads_are_in_its_process", in_process);
    table.add("worker::kernel_threads_are_not", not_in_process);
    table.add("worker::reset_owner_brings_the_default_back", reset);
    for (name, fork) in [("owner", OWNER), ("kernel", KERNEL)] {
        table.add(
            format!("worker::{name}_threads_carry_traffic"),
            move |ctx| traffic(ctx, fork),
        );
        table.add(
            format!("worker::{name}_threads_end_with_close_and_reset"),
            move |ctx| ends(ctx, fork),
        );
        table.add(
            format!("worker::owner_killed_under_traffic_with_{name}_threads"),
            move |ctx| killed(ctx, fork),
        );
        table.add(
            format!("worker::owner_of_{name}_threads_executes_another_program"),
            move |ctx| executes(ctx, fork),
        );
        table.add(
            format!("worker::owner_stopped_and_continued_with_{name}_threads"),
            move |ctx| stopped(ctx, fork),
        );
        table.add(
            format!("worker::owner_frozen_and_thawed_with_{name}_threads"),
            move |ctx| frozen(ctx, fork),
        );
    }
    table.add(
        "worker::owner_stopped_and_continued_while_its_threads_poll",
        stopped_polling,
    );
    table.add(
        "worker::owner_killed_while_its_threads_poll",
        killed_polling,
    );
    table.add(
        "worker::owner_frozen_and_thawed_while_its_threads_poll",
        frozen_polling,
    );
    table.add("worker::owners_threads_nice_and_cpus", |ctx| {
        inherited(ctx, OWNER, true)
    });
    table.add_better(
        "worker::kernel_threads_nice_and_cpus",
        better::KERNEL_SCHED,
        |ctx| inherited(ctx, KERNEL, ctx.module == Module::Rust),
    );
    table.add("worker::at_the_limit_owners_threads_are_enomem", |ctx| {
        limit(ctx, Some(OWNER), ENOMEM)
    });
    table.add("worker::at_the_limit_kernel_threads_are_made", |ctx| {
        limit(ctx, Some(KERNEL), Ok(0))
    });
    table.add_better(
        "worker::at_the_limit_by_default",
        better::OWNER_LIMIT,
        |ctx| match ctx.module {
            Module::C => limit(ctx, None, ENOMEM),
            Module::Rust => limit(ctx, None, Ok(0)),
        },
    );
    table.add_better(
        "worker::set_owner_while_signals_come",
        better::OWNER_SIGNAL,
        signals,
    );
}

fn set(raw: Raw, fork: u8) -> Result<()> {
    let seen = raw.put(ioctl::SET_FORK_FROM_OWNER(), &fork);
    expect("SET_FORK_FROM_OWNER", seen, Ok(0))
}

fn get(raw: Raw) -> Result<u8> {
    let mut fork = 0xffu8;
    let seen = raw.get(ioctl::GET_FORK_FROM_OWNER(), &mut fork);
    expect("GET_FORK_FROM_OWNER", seen, Ok(0))?;
    Ok(fork)
}

fn parameter(ctx: &Ctx) -> Result<u8> {
    let value = ctx.module.parameter("fork_from_owner_default")?;
    Ok(u8::from(value == "Y"))
}

/// A device of this process with such threads.
pub(super) fn owned(ctx: &Ctx, fork: u8) -> Result<(VhostNet, Memory)> {
    let mem = Memory::new()?;
    let vhost = VhostNet::open(&ctx.device, &mem)?;
    set(vhost.raw(), fork)?;
    vhost.set_owner().context("SET_OWNER")?;
    Ok((vhost, mem))
}

/// A machine on such a device.
pub(super) fn running(ctx: &Ctx, fork: u8) -> Result<Vmm> {
    let (vhost, mem) = owned(ctx, fork)?;
    let mut vmm = Setup::new().on(vhost, mem, ctx)?;
    vmm.post_rx(100, &[2048])?;
    Ok(vmm)
}

fn prefix() -> String {
    format!("vhost-{}", std::process::id())
}

/// How many of this process's own threads are the device's.
fn own_threads() -> Result<usize> {
    let mut count = 0;
    for task in fs::read_dir("/proc/self/task")? {
        let name = fs::read_to_string(task?.path().join("comm")).unwrap_or_default();
        count += usize::from(name.starts_with(&prefix()));
    }
    Ok(count)
}

fn wait_threads_gone(prefix: &str) -> Result<()> {
    poll::wait_for("the device's threads to end", || {
        Ok(threads_named(prefix)?.is_empty().then_some(()))
    })
}

fn default(ctx: &Ctx) -> Result<()> {
    let file = device::open(&ctx.device)?;
    expect("default", get(Raw::of(&file))?, parameter(ctx)?)?;
    for fork in [KERNEL, OWNER, KERNEL] {
        set(Raw::of(&file), fork)?;
        expect("what was set", get(Raw::of(&file))?, fork)?;
    }
    Ok(())
}

fn in_process(ctx: &Ctx) -> Result<()> {
    let _device = owned(ctx, OWNER)?;
    let all = threads_named(&prefix())?.len();
    ensure!(all > 0, "no thread is called {}", prefix());
    expect("threads of the process", own_threads()?, all)
}

fn not_in_process(ctx: &Ctx) -> Result<()> {
    let _device = owned(ctx, KERNEL)?;
    let all = threads(&prefix())?;
    ensure!(!all.is_empty(), "no thread is called {}", prefix());
    expect("threads of the process", own_threads()?, 0)?;
    for (name, folder) in all {
        let maps = fs::read_to_string(folder.join("cmdline"))?;
        ensure!(maps.is_empty(), "{name} has a command line: {maps:?}");
    }
    Ok(())
}

fn reset(ctx: &Ctx) -> Result<()> {
    let file = device::open(&ctx.device)?;
    let raw = Raw::of(&file);
    let default = parameter(ctx)?;
    set(raw, 1 - default)?;
    expect("SET_OWNER", raw.set_owner(), Ok(0))?;
    expect("with an owner", get(raw)?, 1 - default)?;
    expect("RESET_OWNER", raw.reset_owner(), Ok(0))?;
    expect("afterwards", get(raw)?, default)
}

fn traffic(ctx: &Ctx, fork: u8) -> Result<()> {
    let mut vmm = running(ctx, fork)?;
    for _ in 0..20 {
        vmm.check_alive()?;
    }
    vmm.stop()?;
    vmm.start()?;
    vmm.check_alive()?;
    vmm.check_quiet()
}

fn ends(ctx: &Ctx, fork: u8) -> Result<()> {
    let vmm = running(ctx, fork)?;
    expect("RESET_OWNER", vmm.vhost.raw().reset_owner(), Ok(0))?;
    wait_threads_gone(&prefix())?;
    drop(vmm);
    drop(running_on(ctx, fork, "vt1")?);
    wait_threads_gone(&prefix())
}

fn running_on(ctx: &Ctx, fork: u8, tap: &str) -> Result<Vmm> {
    let (vhost, mem) = owned(ctx, fork)?;
    Setup::new().tap_name(tap).on(vhost, mem, ctx)
}

/// An owner in a child process, with a device that both hold.
struct Elsewhere {
    owner: Child,
    copy: fs::File,
    /// What the device signals for RX.
    call: EventFd,
    wire: Wire,
}

impl Elsewhere {
    /// The child waits with buffers posted; it ends when told to.
    fn new(ctx: &Ctx, fork: u8) -> Result<Self> {
        Self::with(ctx, fork, 0)
    }

    /// As such, with threads of the owner's, of which one looks for packets without end, on a CPU
    /// that it has for itself.
    fn polling(ctx: &Ctx) -> Result<Self> {
        stay_on(1);
        Self::with(ctx, OWNER, u32::MAX)
    }

    fn with(ctx: &Ctx, fork: u8, busyloop: u32) -> Result<Self> {
        let mem = Memory::new()?;
        let vhost = VhostNet::open(&ctx.device, &mem)?;
        let copy = vhost.file().try_clone().context("dup")?;
        let call = EventFd::new(libc::EFD_NONBLOCK).context("eventfd")?;
        let theirs = call.try_clone().context("dup")?;
        let owner = Child::spawn(|inside| {
            if busyloop != 0 {
                stay_on(0);
            }
            set(vhost.raw(), fork)?;
            vhost.set_owner()?;
            let mut vmm = Setup::new().on(vhost, mem, ctx)?;
            vmm.rx.call = theirs;
            vmm.vhost.set_vring_call(0, &vmm.rx.call)?;
            vmm.post_rx(100, &[2048])?;
            busy::set(vmm.vhost.raw(), RX, busyloop)?;
            inside.ready()?;
            inside.wait()
        })?;
        owner.wait_ready()?;
        Ok(Self {
            owner,
            copy,
            call,
            wire: Wire::open("vt0")?,
        })
    }

    /// Sends a packet to the guest.
    fn send(&self) -> Result<()> {
        self.wire.send(&NetHdr::default(), &[0x55; 60])
    }

    /// Whether the device has delivered something since the last look.
    fn delivers(&self, limit: Duration) -> Result<bool> {
        let came = poll::readable(&self.call, limit)?;
        poll::take_signals(&self.call);
        Ok(came)
    }

    /// Has the device deliver something, after which it looks for more.
    fn carries(&self) -> Result<()> {
        self.send()?;
        expect("delivered", self.delivers(poll::PATIENCE)?, true)
    }

    /// The device delivers nothing.
    fn rests(&self) -> Result<()> {
        self.send()?;
        let came = self.delivers(Duration::from_millis(50))?;
        expect("delivered while it rests", came, false)
    }

    /// Waits until the device's threads, of which there are some, are in a state as /proc names it.
    fn wait_threads(&self, state: char) -> Result<()> {
        let prefix = format!("vhost-{}", self.owner.pid());
        poll::wait_at_most(MOMENT, &format!("threads in state {state}"), || {
            let all = threads(&prefix)?;
            let there = all.iter().all(|(_, folder)| {
                let stat = fs::read_to_string(folder.join("stat")).unwrap_or_default();
                let behind = stat.rsplit(')').next().unwrap_or("");
                behind.trim_start().starts_with(state)
            });
            Ok((there && !all.is_empty()).then_some(()))
        })
    }
}

/// Binds this process, and whom it makes from now on, to a CPU, if there is that one.
fn stay_on(cpu: usize) {
    // SAFETY: All zeroes are an empty set, which has room for the CPU; the call reads it.
    unsafe {
        let mut set: libc::cpu_set_t = std::mem::zeroed();
        libc::CPU_SET(cpu, &mut set);
        libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set);
    }
}

fn stopped(ctx: &Ctx, fork: u8) -> Result<()> {
    let there = Elsewhere::new(ctx, fork)?;
    there.send()?;
    expect("delivered", there.delivers(poll::PATIENCE)?, true)?;
    there.owner.signal(libc::SIGSTOP)?;
    there.owner.wait_state('T')?;
    there.send()?;
    // The owner's threads are stopped with it, the kernel's are not.
    let limit = if fork == OWNER {
        MOMENT
    } else {
        poll::PATIENCE
    };
    expect(
        "delivered while stopped",
        there.delivers(limit)?,
        fork == KERNEL,
    )?;
    there.owner.signal(libc::SIGCONT)?;
    if fork == OWNER {
        expect("delivered then", there.delivers(poll::PATIENCE)?, true)?;
    }
    there.owner.finish()
}

/// Threads of the owner's look out for what becomes of it.
fn stopped_polling(ctx: &Ctx) -> Result<()> {
    let there = Elsewhere::polling(ctx)?;
    for _ in 0..5 {
        there.carries()?;
        there.owner.signal(libc::SIGSTOP)?;
        there.wait_threads('T')?;
        there.rests()?;
        there.owner.signal(libc::SIGCONT)?;
        expect("delivered then", there.delivers(poll::PATIENCE)?, true)?;
    }
    there.owner.finish()
}

fn killed_polling(ctx: &Ctx) -> Result<()> {
    for _ in 0..3 {
        let there = Elsewhere::polling(ctx)?;
        there.carries()?;
        there.owner.signal(libc::SIGKILL)?;
        let prefix = format!("vhost-{}", there.owner.pid());
        poll::wait_at_most(MOMENT, "the threads to end", || {
            Ok(threads_named(&prefix)?.is_empty().then_some(()))
        })?;
        there.owner.wait_state('Z')?;
        there.rests()?;
        expect_foreign(Raw::of(&there.copy))?;
        drop(there);
        net::wait_gone("vt0")?;
    }
    Ok(())
}

fn frozen_polling(ctx: &Ctx) -> Result<()> {
    let cgroup = Cgroup::enter()?;
    let there = Elsewhere::polling(ctx)?;
    cgroup.leave()?;
    for _ in 0..5 {
        there.carries()?;
        cgroup.freeze(true)?;
        cgroup.wait_frozen(MOMENT)?;
        there.rests()?;
        cgroup.freeze(false)?;
        expect("delivered then", there.delivers(poll::PATIENCE)?, true)?;
    }
    there.owner.finish()
}

/// A control group of its own, with all that is made for it, stands still.
fn frozen(ctx: &Ctx, fork: u8) -> Result<()> {
    let cgroup = Cgroup::enter()?;
    let there = Elsewhere::new(ctx, fork)?;
    cgroup.leave()?;
    there.send()?;
    expect("delivered", there.delivers(poll::PATIENCE)?, true)?;
    cgroup.freeze(true)?;
    there.owner.wait_frozen()?;
    there.send()?;
    let limit = if fork == OWNER {
        MOMENT
    } else {
        poll::PATIENCE
    };
    let delivered = there.delivers(limit)?;
    cgroup.freeze(false)?;
    expect("delivered while frozen", delivered, fork == KERNEL)?;
    if fork == OWNER {
        expect("delivered then", there.delivers(poll::PATIENCE)?, true)?;
    }
    there.owner.finish()
}

/// Whether the device's threads have both from the owner.
fn inherited(ctx: &Ctx, fork: u8, wanted: bool) -> Result<()> {
    crate::process::in_child(|| {
        // SAFETY: All zeroes are an empty set, which has room for CPU 0.
        let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
        // SAFETY: As above; the other calls read the set, or have no pointers.
        let rc = unsafe {
            libc::CPU_SET(0, &mut set);
            libc::setpriority(libc::PRIO_PROCESS, 0, 5)
                + libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), &set)
        };
        expect("nice and CPUs", rc, 0)?;
        let _device = owned(ctx, fork)?;
        let all = threads(&prefix())?;
        ensure!(!all.is_empty(), "no thread is called {}", prefix());
        for (name, folder) in all {
            let stat = fs::read_to_string(folder.join("stat"))?;
            let behind = stat.rsplit(')').next().unwrap_or("");
            // The state is the third field, the nice value the nineteenth.
            let nice = behind.split_whitespace().nth(16);
            let same = if wanted { "5" } else { "0" };
            expect(&format!("nice of {name}"), nice, Some(same))?;
            let status = fs::read_to_string(folder.join("status"))?;
            let cpus = status
                .lines()
                .find_map(|line| line.strip_prefix("Cpus_allowed_list:"))
                .context("no list of CPUs")?;
            let bound = cpus.trim() == "0";
            expect(&format!("{name} is bound"), bound, wanted)?;
        }
        Ok(())
    })
}

fn killed(ctx: &Ctx, fork: u8) -> Result<()> {
    let there = Elsewhere::new(ctx, fork)?;
    there.send()?;
    expect("delivered", there.delivers(poll::PATIENCE)?, true)?;
    there.owner.signal(libc::SIGKILL)?;
    there.owner.wait_state('Z')?;
    there.send()?;
    let limit = if fork == OWNER {
        MOMENT
    } else {
        poll::PATIENCE
    };
    expect("delivered then", there.delivers(limit)?, fork == KERNEL)?;
    let raw = Raw::of(&there.copy);
    expect_foreign(raw)?;
    drop(there.copy);
    net::wait_gone("vt0")
}

fn executes(ctx: &Ctx, fork: u8) -> Result<()> {
    let mem = Memory::new()?;
    let vhost = VhostNet::open(&ctx.device, &mem)?;
    let copy = vhost.file().try_clone().context("dup")?;
    // SAFETY: Plain system call; the descriptor is to survive exec.
    unsafe { libc::fcntl(vhost.as_raw_fd(), libc::F_SETFD, 0) };
    let child = Child::spawn(|_| {
        set(vhost.raw(), fork)?;
        vhost.set_owner()?;
        let mut vmm = Setup::new().on(vhost, mem, ctx)?;
        vmm.post_rx(100, &[2048])?;
        for _ in 0..50 {
            vmm.send_rx(500)?;
        }
        crate::process::execute_another()
    })?;
    // It ends without a verdict of ours, but it ends.
    let _ = child.finish();
    let raw = Raw::of(&copy);
    expect_foreign(raw)?;
    drop(copy);
    net::wait_gone("vt0")
}

/// SET_OWNER by a user who may not have another process.
fn limit(ctx: &Ctx, fork: Option<u8>, wanted: Outcome) -> Result<()> {
    const NOBODY: libc::uid_t = 65_534;
    let file = device::open(&ctx.device)?;
    if let Some(fork) = fork {
        set(Raw::of(&file), fork)?;
    }
    crate::process::in_child(|| {
        let none = libc::rlimit {
            rlim_cur: 1,
            rlim_max: 1,
        };
        // SAFETY: The limit is valid, the other calls have no pointers.
        let rc = unsafe {
            libc::setrlimit(libc::RLIMIT_NPROC, &none)
                + libc::setgroups(0, std::ptr::null())
                + libc::setgid(NOBODY)
                + libc::setuid(NOBODY)
        };
        expect("becoming nobody", rc, 0)?;
        expect("SET_OWNER", Raw::of(&file).set_owner(), wanted)
    })
}

extern "C" fn nothing(_: libc::c_int) {}

fn signals(ctx: &Ctx) -> Result<()> {
    // SAFETY: The action is valid, and its handler does nothing.
    unsafe {
        let mut action: libc::sigaction = std::mem::zeroed();
        action.sa_sigaction = nothing as *const () as usize;
        libc::sigaction(libc::SIGALRM, &action, std::ptr::null_mut());
    }
    let interval = |micros: libc::suseconds_t| {
        let time = libc::timeval {
            tv_sec: 0,
            tv_usec: micros,
        };
        let timer = libc::itimerval {
            it_interval: time,
            it_value: time,
        };
        // SAFETY: The timer is valid; the old one is not asked for.
        unsafe { libc::setitimer(libc::ITIMER_REAL, &timer, std::ptr::null_mut()) };
    };
    // A call that is interrupted begins anew: there must be time for it between two signals.
    let quiet = Instant::now();
    drop(owned(ctx, OWNER)?);
    let between = quiet.elapsed().as_micros().clamp(1000, 100_000);
    let mut failed = 0;
    for fork in [OWNER, KERNEL] {
        for _ in 0..100 {
            let file = device::open(&ctx.device)?;
            let raw = Raw::of(&file);
            set(raw, fork)?;
            interval(between as libc::suseconds_t);
            let seen = raw.set_owner();
            interval(0);
            if seen == ENOMEM {
                failed += 1;
                // Nobody has become the owner.
                expect("RESET_OWNER", raw.reset_owner(), Err(Errno(libc::EPERM)))?;
                expect("SET_OWNER in peace", raw.set_owner(), Ok(0))?;
            } else {
                expect("SET_OWNER", seen, Ok(0))?;
            }
            expect("RESET_OWNER", raw.reset_owner(), Ok(0))?;
        }
    }
    match ctx.module {
        Module::C => Ok(()),
        Module::Rust => expect("failures", failed, 0),
    }
}
