// SPDX-License-Identifier: GPL-2.0

//! 32-bit callers: the same calls by the entry points that they use.

use std::arch::asm;
use std::os::fd::AsRawFd;

use anyhow::ensure;
use anyhow::Result;

use crate::case::Ctx;
use crate::case::Module;
use crate::case::Table;
use crate::device;
use crate::device::feature;
use crate::device::RX;
use crate::device::TX;
use crate::errno::Errno;
use crate::ioctl;
use crate::ioctl::Outcome;
use crate::traffic::expect;
use crate::vmm::Setup;
use crate::vmm::Vmm;

const READ: u32 = 3;
const WRITE: u32 = 4;
const IOCTL: u32 = 54;

pub(super) fn register(table: &mut Table) {
    table.add("compat32::device_set_up_by_them_carries_traffic", traffic);
    table.add("compat32::errors_are_the_same", errors);
    table.add("compat32::messages_of_version_2_work", messages);
}

/// A system call as i386 programs make it.
fn int80(number: u32, a: u32, b: u32, c: u32) -> Outcome {
    let rc: i32;
    // SAFETY: The kernel saves all registers but those named; what it reads and
    // writes is memory of [`Low`], or nothing.
    unsafe {
        asm!(
            "xchg {a}, rbx",
            "int 0x80",
            "xchg {a}, rbx",
            a = inout(reg) u64::from(a) => _,
            inlateout("eax") number as i32 => rc,
            in("ecx") b,
            in("edx") c,
            out("r8") _, out("r9") _, out("r10") _, out("r11") _,
        );
    }
    if rc < 0 {
        Err(Errno(-rc))
    } else {
        Ok(rc)
    }
}

/// A page that they can name.
struct Low(u32);

impl Low {
    fn new() -> Result<Self> {
        // SAFETY: Maps fresh memory at an address of the kernel's choice.
        let at = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                4096,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_32BIT,
                -1,
                0,
            )
        };
        ensure!(at != libc::MAP_FAILED, "no memory below 4 GiB");
        Ok(Self(at as u32))
    }

    fn put(&self, words: &[u32]) -> u32 {
        for (i, word) in words.iter().enumerate() {
            // SAFETY: The page is ours and larger than any argument.
            unsafe { *(self.0 as *mut u32).add(i) = *word };
        }
        self.0
    }

    fn get(&self, index: usize) -> u32 {
        // SAFETY: The page is ours and larger than any argument.
        unsafe { *(self.0 as *const u32).add(index) }
    }

    fn ioctl(&self, fd: i32, number: libc::c_ulong, words: &[u32]) -> Outcome {
        int80(IOCTL, fd as u32, number as u32, self.put(words))
    }
}

/// A 64-bit field.
fn halves(value: u64) -> [u32; 2] {
    [value as u32, (value >> 32) as u32]
}

fn set_up(module: Module, low: &Low, vmm: &Vmm) -> Result<()> {
    let fd = vmm.vhost.as_raw_fd();
    let done = |what: &str, seen| expect(what, seen, Ok(0));
    done("RESET_OWNER", low.ioctl(fd, ioctl::RESET_OWNER(), &[]))?;
    done("SET_OWNER", low.ioctl(fd, ioctl::SET_OWNER(), &[]))?;
    done("GET_FEATURES", low.ioctl(fd, ioctl::GET_FEATURES(), &[]))?;
    expect(
        "features",
        [low.get(0), low.get(1)],
        halves(feature::offered(module)[0]),
    )?;
    let bits = halves(feature::VERSION_1);
    done("SET_FEATURES", low.ioctl(fd, ioctl::SET_FEATURES(), &bits))?;
    let regions = vmm.mem.regions()?;
    let mut table = vec![regions.len() as u32, 0];
    for region in &regions {
        for field in [
            region.guest_phys_addr,
            region.memory_size,
            region.userspace_addr,
            0,
        ] {
            table.extend(halves(field));
        }
    }
    done(
        "SET_MEM_TABLE",
        low.ioctl(fd, ioctl::SET_MEM_TABLE(), &table),
    )?;
    for index in [RX, TX] {
        let queue = vmm.queue(index);
        let addr = vmm.vring_addr(index)?;
        let number = index as u32;
        done(
            "SET_VRING_NUM",
            low.ioctl(fd, ioctl::SET_VRING_NUM(), &[number, 256]),
        )?;
        done(
            "SET_VRING_BASE",
            low.ioctl(fd, ioctl::SET_VRING_BASE(), &[number, 0]),
        )?;
        let mut words = vec![number, 0];
        for field in [addr.desc, addr.used, addr.avail, 0] {
            words.extend(halves(field));
        }
        done(
            "SET_VRING_ADDR",
            low.ioctl(fd, ioctl::SET_VRING_ADDR(), &words),
        )?;
        for (number, event) in [
            (ioctl::SET_VRING_KICK(), &queue.kick),
            (ioctl::SET_VRING_CALL(), &queue.call),
            (ioctl::SET_VRING_ERR(), &queue.err),
        ] {
            let words = [index as u32, event.as_raw_fd() as u32];
            done("eventfd", low.ioctl(fd, number, &words))?;
        }
        let words = [number, vmm.tap.as_raw_fd() as u32];
        done(
            "SET_BACKEND",
            low.ioctl(fd, ioctl::NET_SET_BACKEND(), &words),
        )?;
    }
    Ok(())
}

fn traffic(ctx: &Ctx) -> Result<()> {
    let low = Low::new()?;
    let mut vmm = Setup::new().stopped().build(ctx)?;
    set_up(ctx.module, &low, &vmm)?;
    vmm.post_rx(10, &[2048])?;
    for _ in 0..5 {
        vmm.check_alive()?;
    }
    let fd = vmm.vhost.as_raw_fd();
    let seen = low.ioctl(fd, ioctl::GET_VRING_BASE(), &[1, 99]);
    expect("GET_VRING_BASE", (seen, low.get(1)), (Ok(0), 5))?;
    let seen = low.ioctl(fd, ioctl::NET_SET_BACKEND(), &[1, u32::MAX]);
    expect("SET_BACKEND -1", seen, Ok(0))
}

fn errors(ctx: &Ctx) -> Result<()> {
    let low = Low::new()?;
    let file = device::open(&ctx.device)?;
    let fd = file.as_raw_fd();
    let fails = |errno| Err(Errno(errno));
    let num = ioctl::SET_VRING_NUM();
    let queue = low.ioctl(fd, num, &[0, 256]);
    expect("without owner", queue, fails(libc::EPERM))?;
    expect("SET_OWNER", low.ioctl(fd, ioctl::SET_OWNER(), &[]), Ok(0))?;
    let again = low.ioctl(fd, ioctl::SET_OWNER(), &[]);
    expect("SET_OWNER again", again, fails(libc::EBUSY))?;
    for (what, seen, errno) in [
        ("NULL", int80(IOCTL, fd as u32, num as u32, 0), libc::EFAULT),
        ("queue 2", low.ioctl(fd, num, &[2, 256]), libc::ENOBUFS),
        ("3 descriptors", low.ioctl(fd, num, &[0, 3]), libc::EINVAL),
        ("unknown", low.ioctl(fd, 0xaf7f, &[0, 0]), libc::ENOTTY),
        (
            "bit 0",
            low.ioctl(fd, ioctl::SET_FEATURES(), &[1, 0]),
            libc::EOPNOTSUPP,
        ),
        ("read", int80(READ, fd as u32, low.0, 72), libc::EAGAIN),
        ("write", int80(WRITE, fd as u32, low.0, 3), libc::EINVAL),
    ] {
        expect(what, seen, fails(errno))?;
    }
    Ok(())
}

/// Version 1 has its fields elsewhere for them, which no kernel makes good.
fn messages(ctx: &Ctx) -> Result<()> {
    let low = Low::new()?;
    let vmm = Setup::new()
        .features(feature::VERSION_1 | feature::ACCESS_PLATFORM)
        .stopped()
        .build(ctx)?;
    let fd = vmm.vhost.as_raw_fd() as u32;
    let mut words = vec![2, 0];
    for field in [0, 4096, vmm.mem.host(0)? as u64] {
        words.extend(halves(field));
    }
    // Permission RW, type UPDATE.
    words.push(3 | 2 << 8);
    let seen = int80(WRITE, fd, low.put(&words), 72);
    expect("UPDATE", seen, Ok(72))?;
    let bits = low.ioctl(fd as i32, ioctl::SET_BACKEND_FEATURES(), &[2, 0]);
    expect("SET_BACKEND_FEATURES", bits, Ok(0))?;
    // No ring is mapped, so there is something to ask for.
    let tap = [1, vmm.tap.as_raw_fd() as u32];
    let addr = vmm.vring_addr(TX)?;
    let mut ring = vec![1, 0];
    for field in [addr.desc, addr.used, addr.avail, 0] {
        ring.extend(halves(field));
    }
    let seen = low.ioctl(fd as i32, ioctl::SET_VRING_ADDR(), &ring);
    expect("SET_VRING_ADDR", seen, Ok(0))?;
    let seen = low.ioctl(fd as i32, ioctl::NET_SET_BACKEND(), &tap);
    expect("SET_BACKEND", seen, Err(Errno(libc::EFAULT)))?;
    low.put(&[0; 18]);
    expect("read", int80(READ, fd, low.0, 72), Ok(72))?;
    let iova = u64::from(low.get(2)) | u64::from(low.get(3)) << 32;
    expect("version and type", (low.get(0), low.get(8) >> 8), (2, 1))?;
    ensure!(
        (addr.used..addr.used + 4).contains(&iova),
        "the miss is at {iova:#x}, the used ring at {:#x}",
        addr.used
    );
    Ok(())
}
