// SPDX-License-Identifier: GPL-2.0

//! Ioctls that set a device up: checks, their order, errno.

use std::fs::File;
use std::net::TcpListener;
use std::os::fd::AsRawFd;

use anyhow::Context;
use anyhow::Result;
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::eventfd::EFD_NONBLOCK;

use crate::better;
use crate::case::Ctx;
use crate::case::Module;
use crate::case::Table;
use crate::device;
use crate::device::RX;
use crate::errno::Errno;
use crate::ioctl;
use crate::ioctl::MemoryRegion;
use crate::ioctl::Outcome;
use crate::ioctl::Raw;
use crate::net;
use crate::tap::Tap;
use crate::traffic::expect;
use crate::vmm::Setup;
use crate::wire::Wire;

const OK: Outcome = Ok(0);
const EBADF: Outcome = Err(Errno(libc::EBADF));
const EBUSY: Outcome = Err(Errno(libc::EBUSY));
const EFAULT: Outcome = Err(Errno(libc::EFAULT));
const EINVAL: Outcome = Err(Errno(libc::EINVAL));
const ENOBUFS: Outcome = Err(Errno(libc::ENOBUFS));
const ENOTSOCK: Outcome = Err(Errno(libc::ENOTSOCK));
const EOPNOTSUPP: Outcome = Err(Errno(libc::EOPNOTSUPP));
const E2BIG: Outcome = Err(Errno(libc::E2BIG));

/// An address that is the kernel's.
const KERNEL: u64 = 0xffff_8880_0000_0000;
/// An address in the first page, where nothing is mapped.
const BAD_POINTER: usize = 8;
/// A descriptor that is not open.
const CLOSED: i32 = 999;

pub(super) fn register(table: &mut Table) {
    table.add("control::bad_pointer_is_efault", bad_pointer);
    table.add("control::bad_queue_index_is_enobufs", bad_index);
    table.add("control::mem_table_checks", mem_table);
    table.add("control::mem_table_odd_regions_are_accepted", odd_regions);
    table.add_better(
        "control::mem_table_region_of_no_size_at_zero",
        better::ZERO_REGION,
        zero_region,
    );
    table.add(
        "control::mem_table_kernel_address_without_backend_fails_at_start",
        kernel_region,
    );
    table.add(
        "control::mem_table_kernel_address_while_running_keeps_the_old",
        kernel_running,
    );
    table.add(
        "control::mem_table_replaced_while_running_carries_on",
        table_replaced,
    );
    table.add("control::mem_table_of_64_gib_reserved_is_free", reserved);
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

fn owned(ctx: &Ctx) -> Result<File> {
    let file = device::open(&ctx.device)?;
    expect("SET_OWNER", Raw::of(&file).set_owner(), OK)?;
    Ok(file)
}

fn bad_pointer(ctx: &Ctx) -> Result<()> {
    let file = owned(ctx)?;
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
    let file = owned(ctx)?;
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

fn region(gpa: u64, size: u64, uaddr: u64) -> MemoryRegion {
    MemoryRegion {
        gpa,
        size,
        uaddr,
        flags_padding: 0,
    }
}

fn mem_table(ctx: &Ctx) -> Result<()> {
    let file = owned(ctx)?;
    let raw = Raw::of(&file);
    let good = region(0, 4096, 0x10_0000);
    expect("no region", raw.set_mem_table(0, &[]), OK)?;
    expect("padding", raw.set_mem_table(1, &[good]), EOPNOTSUPP)?;
    expect("one region", raw.set_mem_table(0, &[good]), OK)?;
    let many: Vec<_> = (0..65)
        .map(|i| region(i << 20, 4096, 0x10_0000 + (i << 20)))
        .collect();
    expect("64 regions", raw.set_mem_table(0, &many[..64]), OK)?;
    expect(
        "size 0 at 4096",
        raw.set_mem_table(0, &[region(4096, 0, 0)]),
        EFAULT,
    )?;
    let wrapping = region(u64::MAX - 4095, 8192, 0);
    expect("wrapping", raw.set_mem_table(0, &[wrapping]), EFAULT)?;
    // A table whose regions lie in memory that is not there.
    let page = last_page()?;
    let header = page + 4096 - 8;
    // SAFETY: The header lies in the page that was just mapped for this.
    unsafe { std::ptr::write_volatile(header as *mut u64, 1) };
    expect(
        "regions not readable",
        raw.call(ioctl::SET_MEM_TABLE(), header),
        EFAULT,
    )?;
    // C takes 64; a replacement may take more, QEMU reads how many from sysfs.
    match ctx.module {
        Module::C => expect("65 regions", raw.set_mem_table(0, &many), E2BIG),
        Module::Rust => Ok(()),
    }
}

/// One readable page with nothing behind it.
fn last_page() -> Result<usize> {
    // SAFETY: Maps fresh memory at an address of the kernel's choice, then
    // takes its second page away again; nothing else refers to it.
    unsafe {
        let page = libc::mmap(
            std::ptr::null_mut(),
            8192,
            libc::PROT_READ | libc::PROT_WRITE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS,
            -1,
            0,
        );
        anyhow::ensure!(page != libc::MAP_FAILED, "mmap failed");
        libc::mprotect(page.byte_add(4096), 4096, libc::PROT_NONE);
        Ok(page as usize)
    }
}

fn odd_regions(ctx: &Ctx) -> Result<()> {
    let file = owned(ctx)?;
    let raw = Raw::of(&file);
    let flagged = MemoryRegion {
        flags_padding: 7,
        ..region(0, 4096, 0x10_0000)
    };
    for (name, regions) in [
        ("flags", vec![flagged]),
        ("unaligned", vec![region(3, 5, 7)]),
        ("up to the end", vec![region(u64::MAX - 4095, 4096, 0)]),
        (
            "overlapping",
            vec![region(0, 8192, 0x10_0000), region(4096, 8192, 0x20_0000)],
        ),
        (
            "twice the same",
            vec![region(0, 8192, 0x10_0000), region(0, 8192, 0x10_0000)],
        ),
    ] {
        expect(name, raw.set_mem_table(0, &regions), OK)?;
    }
    Ok(())
}

fn zero_region(ctx: &Ctx) -> Result<()> {
    let file = owned(ctx)?;
    let wanted = match ctx.module {
        Module::C => OK,
        Module::Rust => EFAULT,
    };
    expect(
        "SET_MEM_TABLE",
        Raw::of(&file).set_mem_table(0, &[region(0, 0, 0)]),
        wanted,
    )
}

fn kernel_region(ctx: &Ctx) -> Result<()> {
    let vmm = Setup::new().stopped().build(ctx)?;
    let raw = vmm.vhost.raw();
    let fd = vmm.tap.as_raw_fd();
    let bad = [region(0, 4096, KERNEL)];
    expect("SET_MEM_TABLE", raw.set_mem_table(0, &bad), OK)?;
    expect("SET_BACKEND", raw.set_backend(0, fd), EFAULT)?;
    expect("SET_BACKEND -1", raw.set_backend(0, -1), EFAULT)
}

fn good_regions(vmm: &crate::vmm::Vmm) -> Result<Vec<MemoryRegion>> {
    let regions = vmm.mem.regions()?;
    let regions = regions.iter();
    Ok(regions
        .map(|r| region(r.guest_phys_addr, r.memory_size, r.userspace_addr))
        .collect())
}

fn kernel_running(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new().build(ctx)?;
    vmm.post_rx(10, &[2048])?;
    vmm.check_alive()?;
    let raw = vmm.vhost.raw();
    expect(
        "SET_MEM_TABLE while running",
        raw.set_mem_table(0, &[region(0, 4096, KERNEL)]),
        EFAULT,
    )?;
    vmm.check_alive()?;
    vmm.check_alive()
}

fn table_replaced(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new().build(ctx)?;
    vmm.post_rx(100, &[2048])?;
    let good = good_regions(&vmm)?;
    let mut more = good.clone();
    more.push(region(1 << 40, 1 << 20, good[0].uaddr));
    for round in 0..200 {
        let now = if round % 2 == 0 { &more } else { &good };
        let frame = vmm.send_rx(500)?;
        expect("SET_MEM_TABLE", vmm.vhost.raw().set_mem_table(0, now), OK)?;
        let received = vmm.expect_in_guest(&frame)?;
        vmm.repost(&received)?;
    }
    vmm.check_alive()
}

/// DPDK registers what it has only reserved.
fn reserved(ctx: &Ctx) -> Result<()> {
    const SIZE: usize = 64 << 30;
    // SAFETY: Reserves address space at an address of the kernel's choice.
    let area = unsafe {
        libc::mmap(
            std::ptr::null_mut(),
            SIZE,
            libc::PROT_NONE,
            libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
            -1,
            0,
        )
    };
    anyhow::ensure!(area != libc::MAP_FAILED, "reserving 64 GiB failed");
    let mut vmm = Setup::new().build(ctx)?;
    let mut regions = good_regions(&vmm)?;
    regions.push(region(1 << 40, SIZE as u64, area as u64));
    let start = std::time::Instant::now();
    expect(
        "SET_MEM_TABLE",
        vmm.vhost.raw().set_mem_table(0, &regions),
        OK,
    )?;
    let took = start.elapsed();
    anyhow::ensure!(took.as_secs() < 2, "SET_MEM_TABLE took {took:?}");
    vmm.post_rx(10, &[2048])?;
    vmm.check_alive()
}

fn vring_num(ctx: &Ctx) -> Result<()> {
    let file = owned(ctx)?;
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

fn vring_base(ctx: &Ctx) -> Result<()> {
    let file = owned(ctx)?;
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
    let file = owned(ctx)?;
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
    let fresh = owned(ctx)?;
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
    let raw = vmm.vhost.raw();
    for index in [0, 1] {
        expect(
            "SET_BACKEND",
            raw.set_backend(index, tun.as_raw_fd()),
            EINVAL,
        )?;
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
    let file = owned(ctx)?;
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
