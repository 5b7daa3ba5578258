// SPDX-License-Identifier: GPL-2.0

//! Memory that comes late: whoever touches it waits until a case provides it.

use std::fs::File;
use std::io::Read;
use std::os::fd::FromRawFd;
use std::time::Duration;

use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;

use crate::errno::Errno;
use crate::ioctl::Outcome;
use crate::ioctl::Raw;
use crate::mem::PAGE;
use crate::poll;
use crate::traffic::expect;

/// A page of our memory that is provided when somebody has touched it.
pub(crate) struct Late {
    fd: File,
}

#[repr(C)]
struct UffdApi {
    api: u64,
    features: u64,
    ioctls: u64,
}

#[repr(C)]
struct UffdRegister {
    start: u64,
    len: u64,
    mode: u64,
    ioctls: u64,
}

#[repr(C)]
struct UffdCopy {
    dst: u64,
    src: u64,
    len: u64,
    mode: u64,
    copied: i64,
}

const UFFDIO_API: libc::c_ulong = 0xc018_aa3f;
const UFFDIO_REGISTER: libc::c_ulong = 0xc020_aa00;
const UFFDIO_COPY: libc::c_ulong = 0xc028_aa03;
/// Messages tell which thread waits.
const THREAD_ID: u64 = 1 << 8;

impl Late {
    /// Takes a page away; whoever touches it waits for [`Self::provide`].
    pub(crate) fn page(at: *mut u8) -> Result<Self> {
        Self::pages(at, PAGE)
    }

    /// Takes `len` bytes of pages away.
    pub(crate) fn pages(at: *mut u8, len: u64) -> Result<Self> {
        let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
        // SAFETY: Plain system call without pointers.
        let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, flags) };
        ensure!(fd >= 0, "userfaultfd: {}", Errno::last());
        // SAFETY: The descriptor was just opened and belongs to nobody else.
        let fd = unsafe { File::from_raw_fd(fd as i32) };
        let raw = Raw::of(&fd);
        let api = UffdApi {
            api: 0xaa,
            features: THREAD_ID,
            ioctls: 0,
        };
        expect("UFFDIO_API", raw.put(UFFDIO_API, &api), Ok(0))?;
        let register = UffdRegister {
            start: at as u64,
            len,
            mode: 1,
            ioctls: 0,
        };
        expect(
            "UFFDIO_REGISTER",
            raw.put(UFFDIO_REGISTER, &register),
            Ok(0),
        )?;
        // SAFETY: The pages are guest memory that only the case uses.
        let rc = unsafe { libc::madvise(at.cast(), len as usize, libc::MADV_DONTNEED) };
        ensure!(rc == 0, "madvise: {}", Errno::last());
        Ok(Self { fd })
    }

    /// Waits until somebody waits for the page.
    pub(crate) fn wait_touched(&self) -> Result<()> {
        ensure!(
            poll::readable(&self.fd, poll::PATIENCE)?,
            "nobody touches the page"
        );
        (&self.fd).read_exact(&mut [0; 32]).context("userfaultfd")
    }

    /// The page that somebody waits for, if anybody does within `limit`, and the thread that does.
    pub(crate) fn touched(&self, limit: Duration) -> Result<Option<(u64, u32)>> {
        if !poll::readable(&self.fd, limit)? {
            return Ok(None);
        }
        let mut message = [0; 32];
        (&self.fd).read_exact(&mut message).context("userfaultfd")?;
        let address = <[u8; 8]>::try_from(&message[16..24]).map_or(0, u64::from_ne_bytes);
        let thread = <[u8; 4]>::try_from(&message[24..28]).map_or(0, u32::from_ne_bytes);
        Ok(Some((address & !(PAGE - 1), thread)))
    }

    /// Provides the page, with these bytes at its start.
    pub(crate) fn provide(&self, at: *mut u8, bytes: &[u8]) -> Result<()> {
        expect("UFFDIO_COPY", self.copy(at as u64, bytes), Ok(0))
    }

    /// Provides a page, unless it is there already.
    pub(crate) fn copy(&self, at: u64, bytes: &[u8]) -> Outcome {
        let mut page = bytes.to_vec();
        page.resize(PAGE as usize, 0);
        let copy = UffdCopy {
            dst: at,
            src: page.as_ptr() as u64,
            len: PAGE,
            mode: 0,
            copied: 0,
        };
        Raw::of(&self.fd).put(UFFDIO_COPY, &copy)
    }
}
