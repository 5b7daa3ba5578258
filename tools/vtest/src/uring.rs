// SPDX-License-Identifier: GPL-2.0

//! Just enough of io_uring(7) for one read or write at a time, done by a worker
//! of the kernel's.

use std::io;
use std::os::fd::AsRawFd;
use std::os::fd::FromRawFd;
use std::os::fd::OwnedFd;
use std::os::fd::RawFd;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering;

use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;

use crate::case::skip;

const READ: u8 = 22;
const WRITE: u8 = 23;
/// `IOSQE_ASYNC`: by a worker at once, not by the caller.
const ASYNC: u8 = 1 << 4;
/// `IORING_ENTER_GETEVENTS`
const GETEVENTS: libc::c_uint = 1;
const ENTRIES: u32 = 1;

/// `struct io_uring_params`, of which the offsets are read.
#[repr(C)]
#[derive(Default)]
struct Params {
    sq_entries: u32,
    cq_entries: u32,
    flags: u32,
    ignored: [u32; 7],
    /// Head, tail, mask, entries, flags, dropped, array, reserved, address.
    sq: [u32; 10],
    /// Head, tail, mask, entries, overflow, completions, flags, reserved, address.
    cq: [u32; 10],
}

/// One of the areas that are shared with the kernel.
struct Area {
    at: *mut u8,
    len: usize,
}

impl Area {
    fn map(fd: &OwnedFd, len: usize, offset: libc::off_t) -> Result<Self> {
        let (prot, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_SHARED);
        let null = std::ptr::null_mut();
        // SAFETY: Maps fresh memory at an address of the kernel's choice.
        let at = unsafe { libc::mmap(null, len, prot, flags, fd.as_raw_fd(), offset) };
        ensure!(at != libc::MAP_FAILED, "mmap of an io_uring");
        Ok(Self { at: at.cast(), len })
    }

    fn number(&self, offset: u32) -> &AtomicU32 {
        // SAFETY: The kernel's offsets are of aligned numbers within the area,
        // which both sides access as such.
        unsafe { &*self.at.add(offset as usize).cast() }
    }
}

impl Drop for Area {
    fn drop(&mut self) {
        // SAFETY: Mapped by `map`; nothing refers to it any more.
        unsafe { libc::munmap(self.at.cast(), self.len) };
    }
}

/// A ring of one entry.
pub(crate) struct Uring {
    fd: OwnedFd,
    params: Params,
    submissions: Area,
    completions: Area,
    entries: Area,
}

impl Uring {
    pub(crate) fn new() -> Result<Self> {
        let mut params = Params::default();
        // SAFETY: `params` is valid, and all zero but for what the kernel writes.
        let fd = unsafe { libc::syscall(libc::SYS_io_uring_setup, ENTRIES, &mut params) };
        if fd < 0 {
            return skip("the kernel has no io_uring");
        }
        // SAFETY: It was just opened and belongs to nobody else.
        let fd = unsafe { OwnedFd::from_raw_fd(fd as RawFd) };
        let submissions = params.sq[6] as usize + 4 * params.sq_entries as usize;
        let completions = params.cq[5] as usize + 16 * params.cq_entries as usize;
        Ok(Self {
            submissions: Area::map(&fd, submissions, 0)?,
            completions: Area::map(&fd, completions, 0x800_0000)?,
            entries: Area::map(&fd, 64 * params.sq_entries as usize, 0x1000_0000)?,
            fd,
            params,
        })
    }

    /// Has `code` done with these bytes, and waits until it is. Returns how many
    /// bytes went, or the error.
    fn one(&self, code: u8, fd: RawFd, at: u64, len: usize) -> Result<io::Result<usize>> {
        let mut entry = [0u8; 64];
        entry[0] = code;
        entry[1] = ASYNC;
        entry[4..8].copy_from_slice(&fd.to_ne_bytes());
        // From where the file is, as read(2) and write(2) do.
        entry[8..16].copy_from_slice(&u64::MAX.to_ne_bytes());
        entry[16..24].copy_from_slice(&at.to_ne_bytes());
        entry[24..28].copy_from_slice(&(len as u32).to_ne_bytes());
        let tail = self.submissions.number(self.params.sq[1]);
        let slot = tail.load(Ordering::Relaxed) & (self.params.sq_entries - 1);
        // SAFETY: There is room for `sq_entries`, and none is under way.
        unsafe {
            let place = self.entries.at.add(64 * slot as usize);
            place.copy_from_nonoverlapping(entry.as_ptr(), entry.len());
        }
        self.submissions
            .number(self.params.sq[6] + 4 * slot)
            .store(slot, Ordering::Relaxed);
        tail.fetch_add(1, Ordering::Release);
        let none = std::ptr::null::<libc::sigset_t>();
        // SAFETY: Plain system call; there is no set of signals.
        let rc = unsafe {
            let number = libc::SYS_io_uring_enter;
            libc::syscall(number, self.fd.as_raw_fd(), 1, 1, GETEVENTS, none, 0)
        };
        ensure!(rc == 1, "io_uring_enter: {}", io::Error::last_os_error());
        let head = self.completions.number(self.params.cq[0]);
        let slot = head.load(Ordering::Relaxed) & (self.params.cq_entries - 1);
        let result = self
            .completions
            .number(self.params.cq[5] + 16 * slot + 8)
            .load(Ordering::Acquire) as i32;
        head.fetch_add(1, Ordering::Release);
        Ok(usize::try_from(result).map_err(|_| io::Error::from_raw_os_error(-result)))
    }

    /// As write(2).
    pub(crate) fn write(&self, file: &impl AsRawFd, bytes: &[u8]) -> Result<io::Result<usize>> {
        let at = bytes.as_ptr() as u64;
        self.one(WRITE, file.as_raw_fd(), at, bytes.len())
            .context("write by io_uring")
    }

    /// As read(2).
    pub(crate) fn read(&self, file: &impl AsRawFd, bytes: &mut [u8]) -> Result<io::Result<usize>> {
        let at = bytes.as_mut_ptr() as u64;
        self.one(READ, file.as_raw_fd(), at, bytes.len())
            .context("read by io_uring")
    }
}
