// SPDX-License-Identifier: GPL-2.0

//! Ioctls that set a device up: checks, their order, errno.

use std::fs::File;
use std::net::TcpListener;
use std::os::fd::AsRawFd;

use anyhow::Context;
use anyhow::Result;
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::eventfd::EFD_NONBLOCK;

use crate::case::Ctx;
use crate::case::Table;
use crate::device;
use crate::device::RX;
use crate::device::TX;
use crate::errno::Errno;
use crate::frame::NetHdr;
use crate::ioctl;
use crate::ioctl::Outcome;
use crate::ioctl::Raw;
use crate::net;
use crate::tap::Tap;
use crate::traffic::expect;
use crate::traffic::Split;
use crate::vmm::Setup;
use crate::wire::Wire;

pub(super) const OK: Outcome = Ok(0);
const EBADF: Outcome = Err(Errno(libc::EBADF));
const EBUSY: Outcome = Err(Errno(libc::EBUSY));
pub(super) const EFAULT: Outcome = Err(Errno(libc::EFAULT));
const EINVAL: Outcome = Err(Errno(libc::EINVAL));
const ENOBUFS: Outcome = Err(Errno(libc::ENOBUFS));
const ENOTSOCK: Outcome = Err(Errno(libc::ENOTSOCK));
pub(super) const EOPNOTSUPP: Outcome = Err(Errno(libc::EOPNOTSUPP));
pub(super) const E2BIG: Outcome = Err(Errno(libc::E2BIG));

/// An address that is the kernel's.
pub(super) const KERNEL: u64 = 0xffff_8880_0000_0000;
/// An address in the first page, where nothing is mapped.
const BAD_POINTER: usize = 8;
/// A descriptor that is not open.
const CLOSED: i32 = 999;

pub(super) fn register(table: &mut Table) {
    table.add("control::bad_pointer_is_efault", bad_pointer);
    table.add("control::bad_queue_index_is_enobufs", bad_index);
    table.add("control::vring_num_checks", vring_num);
    table.add(
        "control::vring_num_and_base_while_running_are_ebusy",
        num_running,
    );
    table.add("control::vring_addr_checks", vring_addr);
    table.add(
        "control::vring_addr_kernel_range_fails_at_start",
        addr_kernel,
    );
    table.add(
        "control::vring_addr_kernel_range_while_running_is_einval",
        addr_running,
    );
    table.add(
        "control::descriptor_table_may_lie_anywhere",
        unaligned_table,
    );
    table.add("control::vring_base_checks", vring_base);
    table.add("control::eventfd_checks", eventfds);
    table.add("control::set_backend_checks_in_order", set_backend);
    table.add("control::set_backend_of_no_socket_is_enotsock", not_sockets);
    table.add(
        "control::set_backend_of_unattached_tun_is_einval",
        unattached,
    );
    table.add(
        "control::set_backend_failing_keeps_the_running_one",
        failing_keeps,
    );
    table.add(
        "control::set_backend_minus_one_without_table_is_efault",
        no_table,
    );
    table.add("control::set_backend_minus_one_twice_succeeds", stop_twice);
    table.add(
        "control::set_backend_of_packet_socket_succeeds",
        packet_socket,
    );
    table.add(
        "control::set_backend_with_unwritable_used_ring_is_efault",
        used_readonly,
    );
    table.add(
        "control::used_ring_area_not_mapped_is_efault_at_start",
        used_unmapped,
    );
    table.add("control::node_has_the_fixed_minor_number", node);
    table.add("control::two_opens_are_two_devices", two_opens);
    table.add("control::lseek_is_no_error", lseek);
    table.add("control::close_without_setup", |ctx| {
        drop(device::open(&ctx.device)?);
        Ok(())
    });
}

fn bad_pointer(ctx: &Ctx) -> Result<()> {
    let file = device::owned(&ctx.device)?;
    for (name, number) in [
        ("SET_MEM_TABLE", ioctl::SET_MEM_TABLE()),
        ("SET_VRING_NUM", ioctl::SET_VRING_NUM()),
        ("SET_VRING_BASE", ioctl::SET_VRING_BASE()),
        ("GET_VRING_BASE", ioctl::GET_VRING_BASE()),
        ("SET_VRING_ADDR", ioctl::SET_VRING_ADDR()),
        ("SET_VRING_KICK", ioctl::SET_VRING_KICK()),
        ("SET_VRING_CALL", ioctl::SET_VRING_CALL()),
        ("SET_VRING_ERR", ioctl::SET_VRING_ERR()),
        ("SET_BACKEND", ioctl::NET_SET_BACKEND()),
    ] {
        expect(name, Raw::of(&file).call(number, BAD_POINTER), EFAULT)?;
    }
    Ok(())
}

fn bad_index(ctx: &Ctx) -> Result<()> {
    let file = device::owned(&ctx.device)?;
    let raw = Raw::of(&file);
    for index in [2, 3, u32::MAX] {
        expect("SET_VRING_NUM", raw.set_vring_num(index, 256), ENOBUFS)?;
        expect("SET_VRING_BASE", raw.set_vring_base(index, 0), ENOBUFS)?;
        expect(
            "GET_VRING_BASE",
            raw.vring_base(index),
            Err(Errno(libc::ENOBUFS)),
        )?;
        let addr = ioctl::VringAddr {
            index,
            flags: 0xff,
            ..Default::default()
        };
        expect("SET_VRING_ADDR", raw.set_vring_addr(&addr), ENOBUFS)?;
        for number in [
            ioctl::SET_VRING_KICK(),
            ioctl::SET_VRING_CALL(),
            ioctl::SET_VRING_ERR(),
        ] {
            expect(
                "eventfd",
                raw.set_vring_file(number, index, CLOSED),
                ENOBUFS,
            )?;
        }
        expect("SET_BACKEND", raw.set_backend(index, CLOSED), ENOBUFS)?;
    }
    Ok(())
}

fn vring_num(ctx: &Ctx) -> Result<()> {
    let file = device::owned(&ctx.device)?;
    let raw = Raw::of(&file);
    for (num, wanted) in [
        (0, EINVAL),
        (1, OK),
        (2, OK),
        (3, EINVAL),
        (255, EINVAL),
        (256, OK),
        (32_768, OK),
        (65_535, EINVAL),
        (65_536, EINVAL),
        (1 << 31, EINVAL),
        (u32::MAX, EINVAL),
    ] {
        for index in [0, 1] {
            expect(
                &format!("SET_VRING_NUM {num}"),
                raw.set_vring_num(index, num),
                wanted,
            )?;
        }
    }
    Ok(())
}

fn num_running(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new().build(ctx)?;
    vmm.post_rx(10, &[2048])?;
    let raw = vmm.vhost.raw();
    for num in [256, 512, 0, 3] {
        expect(
            &format!("SET_VRING_NUM {num}"),
            raw.set_vring_num(0, num),
            EBUSY,
        )?;
    }
    for base in [0, 70_000] {
        expect(
            &format!("SET_VRING_BASE {base}"),
            raw.set_vring_base(1, base),
            EBUSY,
        )?;
    }
    vmm.check_alive()?;
    // Only the queue that runs is busy.
    vmm.stop_queue(RX)?;
    expect("SET_VRING_NUM when stopped", raw.set_vring_num(0, 256), OK)?;
    expect(
        "SET_VRING_NUM of the other",
        raw.set_vring_num(1, 256),
        EBUSY,
    )
}

fn vring_addr(ctx: &Ctx) -> Result<()> {
    let vmm = Setup::new().stopped().build(ctx)?;
    let raw = vmm.vhost.raw();
    let good = vmm.vring_addr(RX)?;
    type Change = fn(&mut ioctl::VringAddr);
    let cases: [(&str, Change, Outcome); 10] = [
        ("as it is", |_| (), OK),
        ("flag 2", |a| a.flags = 2, EOPNOTSUPP),
        ("all flags", |a| a.flags = u32::MAX, EOPNOTSUPP),
        ("flag 1", |a| a.flags = 1, OK),
        ("odd avail", |a| a.avail += 1, EINVAL),
        ("used at 2 mod 4", |a| a.used += 2, EINVAL),
        ("log at 1", |a| a.log = 1, EINVAL),
        ("log at 4", |a| a.log = 4, OK),
        ("odd desc", |a| a.desc += 1, OK),
        (
            "flag before alignment",
            |a| (a.flags, a.avail) = (4, 1),
            EOPNOTSUPP,
        ),
    ];
    for (name, change, wanted) in cases {
        let mut addr = good;
        change(&mut addr);
        expect(name, raw.set_vring_addr(&addr), wanted)?;
    }
    Ok(())
}

fn addr_kernel(ctx: &Ctx) -> Result<()> {
    let vmm = Setup::new().stopped().build(ctx)?;
    let raw = vmm.vhost.raw();
    let fd = vmm.tap.as_raw_fd();
    let good = vmm.vring_addr(RX)?;
    let mut spoiled = [good; 3];
    spoiled[0].desc = KERNEL;
    spoiled[1].avail = KERNEL;
    spoiled[2].used = KERNEL;
    for addr in spoiled {
        expect("SET_VRING_ADDR", raw.set_vring_addr(&addr), OK)?;
        expect("SET_BACKEND", raw.set_backend(0, fd), EFAULT)?;
    }
    expect("SET_VRING_ADDR", raw.set_vring_addr(&good), OK)?;
    expect("SET_BACKEND", raw.set_backend(0, fd), OK)
}

fn addr_running(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new().build(ctx)?;
    vmm.post_rx(10, &[2048])?;
    vmm.check_alive()?;
    let raw = vmm.vhost.raw();
    for index in [0, 1] {
        let good = vmm.vring_addr(index)?;
        let mut spoiled = [good; 3];
        spoiled[0].desc = KERNEL;
        spoiled[1].avail = KERNEL;
        spoiled[2].used = KERNEL;
        for addr in spoiled {
            expect("SET_VRING_ADDR", raw.set_vring_addr(&addr), EINVAL)?;
        }
        expect("SET_VRING_ADDR as it is", raw.set_vring_addr(&good), OK)?;
    }
    vmm.check_alive()
}

/// Its alignment is never checked.
fn unaligned_table(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new().stopped().build(ctx)?;
    let frame = vmm.tx_frames.plain(60);
    vmm.queue_tx(&NetHdr::default(), &frame, &Split::HeaderAlone)?;
    vmm.tx.publish();
    let len = 16 * 256;
    let bytes = vmm.mem.read(vmm.tx.ring.layout().desc, len)?;
    let odd = vmm.mem.alloc(len as u64 + 1, 2)? + 1;
    vmm.mem.write(odd, &bytes)?;
    let mut addr = vmm.vring_addr(TX)?;
    addr.desc = vmm.mem.host(odd)? as u64;
    let seen = vmm.vhost.raw().set_vring_addr(&addr);
    expect("SET_VRING_ADDR", seen, OK)?;
    vmm.start()?;
    vmm.expect_on_wire(&frame)?;
    vmm.tx.wait_used()?;
    Ok(())
}

fn vring_base(ctx: &Ctx) -> Result<()> {
    let file = device::owned(&ctx.device)?;
    let raw = Raw::of(&file);
    for (base, wanted) in [(0, OK), (65_535, OK), (65_536, EINVAL), (u32::MAX, EINVAL)] {
        expect(
            &format!("SET_VRING_BASE {base}"),
            raw.set_vring_base(0, base),
            wanted,
        )?;
    }
    expect("GET_VRING_BASE", raw.vring_base(0), Ok(65_535))
}

fn eventfds(ctx: &Ctx) -> Result<()> {
    let file = device::owned(&ctx.device)?;
    let raw = Raw::of(&file);
    let event = EventFd::new(EFD_NONBLOCK).context("eventfd")?;
    let null = File::open("/dev/null").context("/dev/null")?;
    for (name, number) in [
        ("KICK", ioctl::SET_VRING_KICK()),
        ("CALL", ioctl::SET_VRING_CALL()),
        ("ERR", ioctl::SET_VRING_ERR()),
    ] {
        for (fd, wanted) in [
            (CLOSED, EBADF),
            (-2, EBADF),
            (null.as_raw_fd(), EINVAL),
            (event.as_raw_fd(), OK),
            (event.as_raw_fd(), OK),
            (-1, OK),
            (-1, OK),
        ] {
            expect(
                &format!("SET_VRING_{name} {fd}"),
                raw.set_vring_file(number, 0, fd),
                wanted,
            )?;
        }
    }
    Ok(())
}

fn set_backend(ctx: &Ctx) -> Result<()> {
    let vmm = Setup::new().stopped().build(ctx)?;
    let raw = vmm.vhost.raw();
    let fresh = device::owned(&ctx.device)?;
    // The ring check comes before the descriptor is looked at.
    expect(
        "no table, bad fd",
        Raw::of(&fresh).set_backend(0, CLOSED),
        EFAULT,
    )?;
    expect("bad fd", raw.set_backend(0, CLOSED), ENOTSOCK)?;
    expect("good fd", raw.set_backend(0, vmm.tap.as_raw_fd()), OK)
}

fn not_sockets(ctx: &Ctx) -> Result<()> {
    let vmm = Setup::new().stopped().build(ctx)?;
    let raw = vmm.vhost.raw();
    let null = File::open("/dev/null").context("/dev/null")?;
    net::set_up("lo", true)?;
    let tcp = TcpListener::bind("127.0.0.1:0").context("TCP socket")?;
    let event = EventFd::new(EFD_NONBLOCK).context("eventfd")?;
    for (name, fd) in [
        ("closed", CLOSED),
        ("-2", -2),
        ("/dev/null", null.as_raw_fd()),
        ("TCP", tcp.as_raw_fd()),
        ("eventfd", event.as_raw_fd()),
        ("itself", vmm.vhost.as_raw_fd()),
    ] {
        expect(name, raw.set_backend(0, fd), ENOTSOCK)?;
    }
    Ok(())
}

fn unattached(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new().stopped().build(ctx)?;
    let tun = Tap::open_unattached()?;
    let deleted = Tap::open("vt1", &Default::default())?;
    net::delete("vt1")?;
    let raw = vmm.vhost.raw();
    for index in [0, 1] {
        for fd in [tun.as_raw_fd(), deleted.as_raw_fd()] {
            expect("SET_BACKEND", raw.set_backend(index, fd), EINVAL)?;
        }
    }
    vmm.start()?;
    vmm.post_rx(10, &[2048])?;
    vmm.check_alive()
}

fn failing_keeps(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new().build(ctx)?;
    vmm.post_rx(20, &[2048])?;
    vmm.check_alive()?;
    let tun = Tap::open_unattached()?;
    let raw = vmm.vhost.raw();
    for index in [0, 1] {
        expect(
            "unattached",
            raw.set_backend(index, tun.as_raw_fd()),
            EINVAL,
        )?;
        expect("closed", raw.set_backend(index, CLOSED), ENOTSOCK)?;
        vmm.check_alive()?;
        vmm.check_alive()?;
    }
    Ok(())
}

fn no_table(ctx: &Ctx) -> Result<()> {
    let file = device::owned(&ctx.device)?;
    for index in [0, 1] {
        expect(
            "SET_BACKEND -1",
            Raw::of(&file).set_backend(index, -1),
            EFAULT,
        )?;
    }
    Ok(())
}

fn stop_twice(ctx: &Ctx) -> Result<()> {
    let vmm = Setup::new().build(ctx)?;
    for _ in 0..3 {
        vmm.stop()?;
    }
    Ok(())
}

fn packet_socket(ctx: &Ctx) -> Result<()> {
    let vmm = Setup::new().stopped().build(ctx)?;
    let socket = Wire::unbound()?;
    for index in [0, 1] {
        expect(
            "SET_BACKEND",
            vmm.vhost.raw().set_backend(index, socket.as_raw_fd()),
            OK,
        )?;
    }
    vmm.stop()
}

fn used_readonly(ctx: &Ctx) -> Result<()> {
    used_access(ctx, crate::mem::Access::ReadOnly)
}

fn used_unmapped(ctx: &Ctx) -> Result<()> {
    used_access(ctx, crate::mem::Access::None)
}

fn used_access(ctx: &Ctx, access: crate::mem::Access) -> Result<()> {
    let mut vmm = Setup::new().stopped().build(ctx)?;
    let used = vmm.tx.ring.layout().used;
    vmm.mem.protect(used, crate::mem::PAGE, access)?;
    // Without EVENT_IDX used->flags is written on start.
    let seen = vmm.vhost.raw().set_backend(1, vmm.tap.as_raw_fd());
    vmm.mem
        .protect(used, crate::mem::PAGE, crate::mem::Access::ReadWrite)?;
    expect("SET_BACKEND", seen, EFAULT)?;
    vmm.start()?;
    vmm.post_rx(10, &[2048])?;
    vmm.check_alive()
}

fn node(ctx: &Ctx) -> Result<()> {
    use std::os::unix::fs::FileTypeExt;
    use std::os::unix::fs::MetadataExt;
    let node = std::fs::metadata(&ctx.device)?;
    expect(
        "a character device",
        node.file_type().is_char_device(),
        true,
    )?;
    let number = (libc::major(node.rdev()), libc::minor(node.rdev()));
    expect("its number", number, (10, 238))?;
    let misc = std::fs::read_to_string("/sys/class/misc/vhost-net/dev")?;
    expect("number in sysfs", misc.trim_end(), "10:238")
}

fn two_opens(ctx: &Ctx) -> Result<()> {
    let mut one = Setup::new().build(ctx)?;
    let mut two = Setup::new().tap_name("vt1").build(ctx)?;
    one.post_rx(20, &[2048])?;
    two.post_rx(20, &[2048])?;
    for _ in 0..5 {
        one.check_alive()?;
        two.check_alive()?;
    }
    one.stop()?;
    two.check_alive()?;
    drop(one);
    two.check_alive()
}

fn lseek(ctx: &Ctx) -> Result<()> {
    let file = device::open(&ctx.device)?;
    // SAFETY: Plain system call without pointers.
    let offset = unsafe { libc::lseek(file.as_raw_fd(), 100, libc::SEEK_SET) };
    expect("lseek", offset, 0)?;
    Ok(())
}
