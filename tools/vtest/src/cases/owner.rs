// SPDX-License-Identifier: GPL-2.0

//! Ownership: who may call what, and what unknown ioctls return.

use anyhow::ensure;
use anyhow::Result;
use vhost::VhostBackend;

use crate::case::Ctx;
use crate::case::Table;
use crate::device;
use crate::device::feature;
use crate::device::VhostNet;
use crate::device::RX;
use crate::device::TX;
use crate::errno::Errno;
use crate::frame::compare;
use crate::frame::NetHdr;
use crate::ioctl;
use crate::ioctl::Raw;
use crate::mem::Memory;
use crate::process;
use crate::traffic::expect;
use crate::traffic::Split;
use crate::vmm::Setup;
use crate::vmm::Vmm;

const EPERM: Errno = Errno(libc::EPERM);
const EBUSY: Errno = Errno(libc::EBUSY);
const EFAULT: Errno = Errno(libc::EFAULT);
const ENOBUFS: Errno = Errno(libc::ENOBUFS);
const ENOTTY: Errno = Errno(libc::ENOTTY);

pub(super) fn register(table: &mut Table) {
    table.add("owner::set_twice_is_ebusy", twice);
    table.add("owner::set_by_child_of_owner_is_ebusy", child_set);
    table.add("owner::set_by_parent_of_owner_is_ebusy", parent_set);
    table.add("owner::set_after_owner_died_is_ebusy", after_death);
    table.add("owner::ioctls_without_owner_are_eperm", without);
    table.add("owner::ioctls_of_a_child_are_eperm", of_child);
    table.add("owner::thread_of_owner_may_call", of_thread);
    table.add("owner::reset_without_owner_is_eperm", reset_without);
    table.add("owner::reset_returns_to_the_initial_state", reset_state);
    table.add(
        "owner::reset_under_traffic_then_set_up_again_works",
        reset_traffic,
    );
    table.add(
        "owner::unknown_ioctl_tells_owner_pointer_index_then_enotty",
        unknown,
    );
    table.add("owner::worker_ioctls_do_not_exist", workers);
    table.add(
        "owner::argument_of_set_and_reset_is_ignored",
        ignored_argument,
    );
}

fn twice(ctx: &Ctx) -> Result<()> {
    let file = device::owned(&ctx.device)?;
    expect("second SET_OWNER", Raw::of(&file).set_owner(), Err(EBUSY))
}

fn child_set(ctx: &Ctx) -> Result<()> {
    let file = device::owned(&ctx.device)?;
    process::in_child(|| expect("SET_OWNER", Raw::of(&file).set_owner(), Err(EBUSY)))
}

fn parent_set(ctx: &Ctx) -> Result<()> {
    let file = device::open(&ctx.device)?;
    let child = process::Child::spawn(|child| {
        expect("SET_OWNER in the child", Raw::of(&file).set_owner(), Ok(0))?;
        child.ready()?;
        child.wait()
    })?;
    child.wait_ready()?;
    expect(
        "SET_OWNER in the parent",
        Raw::of(&file).set_owner(),
        Err(EBUSY),
    )?;
    expect(
        "RESET_OWNER in the parent",
        Raw::of(&file).reset_owner(),
        Err(EPERM),
    )?;
    child.finish()
}

fn after_death(ctx: &Ctx) -> Result<()> {
    let file = device::open(&ctx.device)?;
    process::in_child(|| expect("SET_OWNER in the child", Raw::of(&file).set_owner(), Ok(0)))?;
    let raw = Raw::of(&file);
    expect("SET_OWNER", raw.set_owner(), Err(EBUSY))?;
    expect("RESET_OWNER", raw.reset_owner(), Err(EPERM))?;
    expect("SET_BACKEND", raw.set_backend(0, -1), Err(EPERM))?;
    ensure!(raw.features().is_ok(), "GET_FEATURES fails");
    Ok(())
}

/// Every ioctl that needs the owner, with an argument that is good otherwise.
fn owner_only(raw: Raw) -> Vec<(&'static str, ioctl::Outcome)> {
    let state = ioctl::VringState { index: 0, num: 256 };
    let addr = ioctl::VringAddr::default();
    let mut read = ioctl::VringState::default();
    vec![
        ("SET_MEM_TABLE", raw.set_mem_table(0, &[])),
        ("SET_VRING_NUM", raw.put(ioctl::SET_VRING_NUM(), &state)),
        ("SET_VRING_BASE", raw.put(ioctl::SET_VRING_BASE(), &state)),
        (
            "GET_VRING_BASE",
            raw.get(ioctl::GET_VRING_BASE(), &mut read),
        ),
        ("SET_VRING_ADDR", raw.set_vring_addr(&addr)),
        (
            "SET_VRING_KICK",
            raw.set_vring_file(ioctl::SET_VRING_KICK(), 0, -1),
        ),
        (
            "SET_VRING_CALL",
            raw.set_vring_file(ioctl::SET_VRING_CALL(), 0, -1),
        ),
        (
            "SET_VRING_ERR",
            raw.set_vring_file(ioctl::SET_VRING_ERR(), 0, -1),
        ),
        ("SET_BACKEND", raw.set_backend(0, -1)),
        ("SET_LOG_BASE", raw.put(ioctl::SET_LOG_BASE(), &0u64)),
        ("SET_LOG_FD", raw.put(ioctl::SET_LOG_FD(), &-1i32)),
        (
            "SET_VRING_BUSYLOOP_TIMEOUT",
            raw.put(
                ioctl::SET_VRING_BUSYLOOP_TIMEOUT(),
                &ioctl::VringState::default(),
            ),
        ),
        ("RESET_OWNER", raw.reset_owner()),
        ("unknown", raw.put(0xaf7f, &0u64)),
        ("not even vhost", raw.put(0x1234, &0u64)),
    ]
}

fn without(ctx: &Ctx) -> Result<()> {
    let file = device::open(&ctx.device)?;
    for (name, seen) in owner_only(Raw::of(&file)) {
        expect(name, seen, Err(EPERM))?;
    }
    Ok(())
}

fn of_child(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new().build(ctx)?;
    vmm.post_rx(4, &[2048])?;
    let raw = vmm.vhost.raw();
    process::in_child(|| {
        for (name, seen) in owner_only(raw) {
            expect(name, seen, Err(EPERM))?;
        }
        ensure!(raw.features().is_ok(), "GET_FEATURES fails in the child");
        expect(
            "SET_FEATURES in the child",
            raw.set_features(feature::VERSION_1),
            Ok(0),
        )
    })?;
    vmm.check_alive()
}

fn of_thread(ctx: &Ctx) -> Result<()> {
    let file = device::owned(&ctx.device)?;
    let raw = Raw::of(&file);
    let seen = std::thread::spawn(move || raw.set_vring_num(0, 128)).join();
    expect("SET_VRING_NUM", seen.ok(), Some(Ok(0)))
}

fn reset_without(ctx: &Ctx) -> Result<()> {
    let file = device::open(&ctx.device)?;
    expect("RESET_OWNER", Raw::of(&file).reset_owner(), Err(EPERM))
}

fn reset_state(ctx: &Ctx) -> Result<()> {
    let file = device::owned(&ctx.device)?;
    let raw = Raw::of(&file);
    expect("SET_VRING_BASE", raw.set_vring_base(0, 77), Ok(0))?;
    expect(
        "SET_BACKEND before a table",
        raw.set_backend(0, -1),
        Err(EFAULT),
    )?;
    expect("RESET_OWNER", raw.reset_owner(), Ok(0))?;
    expect("second RESET_OWNER", raw.reset_owner(), Err(EPERM))?;
    expect("SET_OWNER", raw.set_owner(), Ok(0))?;
    expect("base", raw.vring_base(0), Ok(0))?;
    // RESET_OWNER leaves an empty memory table, open does not.
    expect("SET_BACKEND -1", raw.set_backend(0, -1), Ok(0))
}

fn reset_traffic(ctx: &Ctx) -> Result<()> {
    let mem = Memory::new()?;
    let vhost = VhostNet::open(&ctx.device, &mem)?;
    vhost.set_owner()?;
    let mut vmm = Setup::new()
        .features(feature::VERSION_1)
        .on(vhost, mem, ctx)?;
    vmm.post_rx(100, &[2048])?;
    vmm.check_alive()?;
    for _ in 0..50 {
        let frame = vmm.tx_frames.plain(1000);
        vmm.queue_tx(&NetHdr::default(), &frame, &Split::Whole)?;
        vmm.send_rx(1000)?;
    }
    vmm.tx.flush()?;
    let raw = vmm.vhost.raw();
    expect("RESET_OWNER", raw.reset_owner(), Ok(0))?;
    let (rx, tx) = (
        vmm.rx.ring.used_image(&vmm.mem)?,
        vmm.tx.ring.used_image(&vmm.mem)?,
    );
    vmm.tx.kick()?;
    expect("SET_OWNER", raw.set_owner(), Ok(0))?;
    expect("base of TX", raw.vring_base(1), Ok(0))?;
    for (index, image) in [(RX, rx), (TX, tx)] {
        let now = vmm.queue(index).ring.used_image(&vmm.mem)?;
        compare("used ring after RESET_OWNER", &now, &image)?;
    }
    let Vmm { vhost, mem, .. } = vmm;
    let mut vmm = Setup::new()
        .features(feature::VERSION_1 | feature::EVENT_IDX)
        .tap_name("vt1")
        .on(vhost, mem, ctx)?;
    vmm.post_rx(4, &[2048])?;
    vmm.check_alive()
}

fn unknown(ctx: &Ctx) -> Result<()> {
    let file = device::open(&ctx.device)?;
    let raw = Raw::of(&file);
    for number in [0xaf7f, 0x4008_af40, 0xc010_af99] {
        expect("unknown without owner", raw.call(number, 0), Err(EPERM))?;
    }
    expect("SET_OWNER", raw.set_owner(), Ok(0))?;
    for number in [0xaf7f, 0x4008_af40, 0xc010_af99] {
        expect("NULL argument", raw.call(number, 0), Err(EFAULT))?;
        expect("index 5", raw.put(number, &[5u32, 0]), Err(ENOBUFS))?;
        expect("index 2", raw.put(number, &[2u32, 0]), Err(ENOBUFS))?;
        expect("index 1", raw.put(number, &[1u32, 0]), Err(ENOTTY))?;
        expect("index 0", raw.put(number, &[0u32, 0]), Err(ENOTTY))?;
    }
    Ok(())
}

fn workers(ctx: &Ctx) -> Result<()> {
    let file = device::owned(&ctx.device)?;
    let raw = Raw::of(&file);
    for (name, number) in [
        ("NEW_WORKER", ioctl::NEW_WORKER()),
        ("FREE_WORKER", ioctl::FREE_WORKER()),
        ("ATTACH_VRING_WORKER", ioctl::ATTACH_VRING_WORKER()),
        ("GET_VRING_WORKER", ioctl::GET_VRING_WORKER()),
        ("SET_VRING_ENDIAN", ioctl::SET_VRING_ENDIAN()),
    ] {
        expect(name, raw.put(number, &[0u32, 0]), Err(ENOTTY))?;
        expect(name, raw.put(number, &[7u32, 0]), Err(ENOBUFS))?;
    }
    Ok(())
}

fn ignored_argument(ctx: &Ctx) -> Result<()> {
    let file = device::open(&ctx.device)?;
    let raw = Raw::of(&file);
    expect(
        "SET_OWNER with an argument",
        raw.call(ioctl::SET_OWNER(), 0xdead),
        Ok(0),
    )?;
    expect(
        "RESET_OWNER with an argument",
        raw.call(ioctl::RESET_OWNER(), 0xdead),
        Ok(0),
    )
}
