// SPDX-License-Identifier: GPL-2.0

//! Queues held by pages of the owner's that nobody provides: how long the end
//! of the device waits for them, and what one that ends late may still do.

use std::fs;
use std::thread;
use std::time::Duration;

use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;
use vhost::VhostBackend;

use super::iotlb::translate;
use super::iotlb::translated;
use super::iotlb::translating;
use super::iotlb::update_all;
use super::iotlb::MESSAGE;
use super::memory::in_a_page;
use super::processes::own_prefix;
use super::processes::threads_named;
use super::waits::remove;
use super::waits::returned;
use super::waits::time_passes;
use super::worker::owned;
use super::worker::KERNEL;
use super::worker::OWNER;
use crate::better;
use crate::case::skip;
use crate::case::Ctx;
use crate::case::Module;
use crate::case::Table;
use crate::device::RX;
use crate::device::TX;
use crate::late::Late;
use crate::mem::PAGE;
use crate::net;
use crate::poll;
use crate::process::Child;
use crate::traffic::expect;
use crate::virtqueue::Seg;
use crate::vmm::Setup;
use crate::vmm::Vmm;

/// How long the end of a device may take: five seconds, and what comes on top.
const END: Duration = Duration::from_secs(7);
/// How long the death of a process may take.
const DEATH: Duration = Duration::from_secs(2);

pub(super) fn register(table: &mut Table) {
    for (name, fork) in [("owner", OWNER), ("kernel", KERNEL)] {
        table.add_better(
            format!("lifetime::close_with_both_queues_held_{name}_threads"),
            better::WAIT_KILLABLE,
            move |ctx| close(ctx, fork),
        );
        table.add_better(
            format!("lifetime::reset_owner_with_both_queues_held_{name}_threads"),
            better::WAIT_KILLABLE,
            move |ctx| reset(ctx, fork),
        );
        table.add_better(
            format!("lifetime::reset_owner_with_both_queues_held_is_killed_{name}_threads"),
            better::WAIT_KILLABLE,
            move |ctx| killed(ctx, fork),
        );
    }
    for (name, index) in [("rx", RX), ("tx", TX)] {
        table.add_better(
            format!("iotlb::invalidate_waits_though_a_former_owners_{name}_queue_ends"),
            better::WAIT_KILLABLE,
            move |ctx| former(ctx, index),
        );
    }
}

/// A page of a buffer that a queue waits for.
struct Held {
    late: Late,
    at: *mut u8,
    bytes: Vec<u8>,
    iova: u64,
    frame: Vec<u8>,
}

impl Held {
    /// Has the queue wait for the page of its next buffer.
    fn new(vmm: &mut Vmm, index: usize) -> Result<Self> {
        let (iova, bytes, frame) = if index == TX {
            in_a_page(vmm)?
        } else {
            let addr = vmm.mem.rx_buffer(3 * PAGE)?.next_multiple_of(PAGE);
            vmm.rx.add(&[], &[Seg { addr, len: 2048 }])?;
            (addr, Vec::new(), Vec::new())
        };
        let at = vmm.mem.host(iova)?;
        let late = Late::page(at)?;
        let mut held = Self {
            late,
            at,
            bytes,
            iova,
            frame,
        };
        if index == TX {
            vmm.tx.flush_and_kick()?;
        } else {
            vmm.rx.flush_and_kick()?;
            held.frame = vmm.send_rx(60)?;
        }
        held.late.wait_touched()?;
        Ok(held)
    }

    /// Holds both queues; C has one thread for both, which one page holds.
    fn all(ctx: &Ctx, vmm: &mut Vmm) -> Result<Vec<Self>> {
        let mut held = vec![Self::new(vmm, RX)?];
        if ctx.module == Module::Rust {
            held.push(Self::new(vmm, TX)?);
        }
        Ok(held)
    }

    fn provide(&self) -> Result<()> {
        self.late.provide(self.at, &self.bytes)
    }
}

fn wait_threads(name: &str, count: usize) -> Result<()> {
    poll::wait_for(&format!("{count} threads {name}"), || {
        Ok((threads_named(name)?.len() == count).then_some(()))
    })
}

/// Does what ends the device, in a thread: C waits for the pages.
fn ends(ctx: &Ctx, what: &str, held: &[Held], call: impl FnOnce() + Send + 'static) -> Result<()> {
    let call = thread::spawn(call);
    let ended = match ctx.module {
        Module::C => {
            Setup::new().tap_name("vt1").build(ctx)?.check_alive()?;
            ensure!(!call.is_finished(), "{what} has not waited for the pages");
            Ok(())
        }
        Module::Rust => poll::wait_at_most(END, what, || Ok(call.is_finished().then_some(()))),
    };
    for page in held {
        page.provide()?;
    }
    ended?;
    returned(what, call, ())
}

fn close(ctx: &Ctx, fork: u8) -> Result<()> {
    let (vhost, mem) = owned(ctx, fork)?;
    let mut vmm = Setup::new().on(vhost, mem, ctx)?;
    let held = Held::all(ctx, &mut vmm)?;
    let vhost = vmm.vhost;
    ends(ctx, "close", &held, move || drop(vhost))?;
    wait_threads(&own_prefix(), 0)
}

fn reset(ctx: &Ctx, fork: u8) -> Result<()> {
    let (vhost, mem) = owned(ctx, fork)?;
    let mut vmm = Setup::new().on(vhost, mem, ctx)?;
    let held = Held::all(ctx, &mut vmm)?;
    let raw = vmm.vhost.raw();
    ends(ctx, "RESET_OWNER", &held, move || {
        let _ = raw.reset_owner();
    })?;
    expect("RESET_OWNER again", raw.reset_owner().is_err(), true)?;
    wait_threads(&own_prefix(), 0)
}

fn killed(ctx: &Ctx, fork: u8) -> Result<()> {
    if (ctx.module, fork) == (Module::C, KERNEL) {
        return skip(better::WAIT_KILLABLE.c);
    }
    let child = Child::spawn(|inside| {
        let (vhost, mem) = owned(ctx, fork)?;
        let mut vmm = Setup::new().on(vhost, mem, ctx)?;
        let _held = Held::all(ctx, &mut vmm)?;
        inside.ready()?;
        expect("RESET_OWNER", vmm.vhost.raw().reset_owner(), Ok(0))
    })?;
    child.wait_ready()?;
    let path = format!("/proc/{}/syscall", child.pid());
    let number = format!("{} ", libc::SYS_ioctl);
    poll::wait_for("RESET_OWNER to wait", || {
        let text = fs::read_to_string(&path).context("the child is gone")?;
        Ok(text.starts_with(&number).then_some(()))
    })?;
    child.signal(libc::SIGKILL)?;
    child.wait_end(DEATH)?;
    net::wait_gone("vt0")
}

/// The queue of an owner that gave the device up ends when that of the next
/// one is under way: whoever removes a mapping still waits for the latter.
fn former(ctx: &Ctx, index: usize) -> Result<()> {
    if ctx.module == Module::C {
        return skip("RESET_OWNER waits for the page, so that there is no next owner");
    }
    let name = format!("{}-{}", own_prefix(), ["rx", "tx"][index]);
    let mut vmm = translated(ctx)?;
    update_all(&vmm)?;
    vmm.start()?;
    let old = Held::new(&mut vmm, index)?;
    expect("RESET_OWNER", vmm.vhost.raw().reset_owner(), Ok(0))?;
    vmm.vhost.set_owner().context("SET_OWNER")?;
    wait_threads(&name, 2)?;
    let mut next = translating()
        .tap_name("vt2")
        .on(vmm.vhost, vmm.mem.clone(), ctx)?;
    translate(&next)?;
    update_all(&next)?;
    next.start()?;
    let held = Held::new(&mut next, index)?;
    old.provide()?;
    wait_threads(&name, 1)?;
    let removal = remove(&next, held.iova);
    time_passes(ctx)?;
    let waits = !removal.is_finished();
    held.provide()?;
    returned("INVALIDATE", removal, Some(MESSAGE as isize))?;
    ensure!(waits, "the page was still in use");
    if index == RX {
        next.expect_in_guest(&held.frame)?;
    } else {
        next.expect_on_wire(&held.frame)?;
        next.tx.wait_used()?;
    }
    update_all(&next)?;
    next.post_rx(1, &[2048])?;
    next.check_alive()
}
