// SPDX-License-Identifier: GPL-2.0

//! VHOST_SET_MEM_TABLE: what it takes, what it checks, and when.

use std::os::fd::AsRawFd;

use anyhow::Result;

use super::control::E2BIG;
use super::control::EFAULT;
use super::control::EOPNOTSUPP;
use super::control::KERNEL;
use super::control::OK;
use crate::better;
use crate::case::Ctx;
use crate::case::Module;
use crate::case::Table;
use crate::device;
use crate::ioctl;
use crate::ioctl::MemoryRegion;
use crate::ioctl::Raw;
use crate::mem::PAGE;
use crate::traffic::expect;
use crate::vmm::Setup;

pub(super) fn register(table: &mut Table) {
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
    table.add(
        "control::mem_table_region_hidden_under_another_is_checked",
        hidden,
    );
    table.add(
        "control::mem_table_without_the_rings_leaves_them_running",
        without_rings,
    );
}

fn mem_table(ctx: &Ctx) -> Result<()> {
    let file = device::owned(&ctx.device)?;
    let raw = Raw::of(&file);
    let good = MemoryRegion::new(0, 4096, 0x10_0000);
    expect("no region", raw.set_mem_table(0, &[]), OK)?;
    expect("padding", raw.set_mem_table(1, &[good]), EOPNOTSUPP)?;
    expect("one region", raw.set_mem_table(0, &[good]), OK)?;
    let many: Vec<_> = (0..65)
        .map(|i| MemoryRegion::new(i << 20, 4096, 0x10_0000 + (i << 20)))
        .collect();
    expect("64 regions", raw.set_mem_table(0, &many[..64]), OK)?;
    expect(
        "size 0 at 4096",
        raw.set_mem_table(0, &[MemoryRegion::new(4096, 0, 0)]),
        EFAULT,
    )?;
    let wrapping = MemoryRegion::new(u64::MAX - 4095, 8192, 0);
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
    let file = device::owned(&ctx.device)?;
    let raw = Raw::of(&file);
    let flagged = MemoryRegion {
        flags_padding: 7,
        ..MemoryRegion::new(0, 4096, 0x10_0000)
    };
    for (name, regions) in [
        ("flags", vec![flagged]),
        ("unaligned", vec![MemoryRegion::new(3, 5, 7)]),
        (
            "up to the end",
            vec![MemoryRegion::new(u64::MAX - 4095, 4096, 0)],
        ),
        (
            "overlapping",
            vec![
                MemoryRegion::new(0, 8192, 0x10_0000),
                MemoryRegion::new(4096, 8192, 0x20_0000),
            ],
        ),
        (
            "twice the same",
            vec![
                MemoryRegion::new(0, 8192, 0x10_0000),
                MemoryRegion::new(0, 8192, 0x10_0000),
            ],
        ),
    ] {
        expect(name, raw.set_mem_table(0, &regions), OK)?;
    }
    Ok(())
}

fn zero_region(ctx: &Ctx) -> Result<()> {
    let file = device::owned(&ctx.device)?;
    let wanted = match ctx.module {
        Module::C => OK,
        Module::Rust => EFAULT,
    };
    expect(
        "SET_MEM_TABLE",
        Raw::of(&file).set_mem_table(0, &[MemoryRegion::new(0, 0, 0)]),
        wanted,
    )
}

fn kernel_region(ctx: &Ctx) -> Result<()> {
    let vmm = Setup::new().stopped().build(ctx)?;
    let raw = vmm.vhost.raw();
    let fd = vmm.tap.as_raw_fd();
    let bad = [MemoryRegion::new(0, 4096, KERNEL)];
    expect("SET_MEM_TABLE", raw.set_mem_table(0, &bad), OK)?;
    expect("SET_BACKEND", raw.set_backend(0, fd), EFAULT)?;
    expect("SET_BACKEND -1", raw.set_backend(0, -1), EFAULT)
}

fn kernel_running(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new().build(ctx)?;
    vmm.post_rx(10, &[2048])?;
    vmm.check_alive()?;
    let raw = vmm.vhost.raw();
    expect(
        "SET_MEM_TABLE while running",
        raw.set_mem_table(0, &[MemoryRegion::new(0, 4096, KERNEL)]),
        EFAULT,
    )?;
    vmm.check_alive()?;
    vmm.check_alive()
}

fn table_replaced(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new().build(ctx)?;
    vmm.post_rx(100, &[2048])?;
    let good = vmm.regions()?;
    let mut more = good.clone();
    more.push(MemoryRegion::new(1 << 40, 1 << 20, good[0].uaddr));
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
    let mut regions = vmm.regions()?;
    regions.push(MemoryRegion::new(1 << 40, SIZE as u64, area as u64));
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

/// What no lookup would ever find counts as well.
fn hidden(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new().build(ctx)?;
    vmm.post_rx(10, &[2048])?;
    let raw = vmm.vhost.raw();
    let fd = vmm.tap.as_raw_fd();
    let good = vmm.regions()?;
    // Of the same size, and within another; before it and behind it.
    for bad in [
        MemoryRegion::new(good[0].gpa, good[0].size, KERNEL),
        MemoryRegion::new(good[0].gpa + PAGE, PAGE, KERNEL),
    ] {
        for at in [0, good.len()] {
            let mut table = good.clone();
            table.insert(at, bad);
            let what = format!("{:#x} bytes at place {at}", bad.size);
            expect(&what, raw.set_mem_table(0, &table), EFAULT)?;
            vmm.check_alive()?;
            vmm.stop()?;
            expect(&what, raw.set_mem_table(0, &table), OK)?;
            expect("SET_BACKEND", raw.set_backend(0, fd), EFAULT)?;
            expect("SET_MEM_TABLE", raw.set_mem_table(0, &good), OK)?;
            vmm.start()?;
            vmm.check_alive()?;
        }
    }
    Ok(())
}

/// Rings have addresses of the owner's: the table is for buffers.
fn without_rings(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new().build(ctx)?;
    vmm.post_rx(20, &[2048])?;
    vmm.check_alive()?;
    // Rings are in the first region, buffers in the second.
    let buffers = vmm.regions()?.split_off(1);
    let seen = vmm.vhost.raw().set_mem_table(0, &buffers);
    expect("SET_MEM_TABLE", seen, OK)?;
    for _ in 0..5 {
        vmm.check_alive()?;
    }
    vmm.stop()?;
    vmm.start()?;
    vmm.check_alive()
}
