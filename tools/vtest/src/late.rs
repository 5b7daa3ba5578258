// SPDX-License-Identifier: GPL-2.0

//! Memory that comes late: whoever touches it waits until a case provides it.

use std::fs::File;
use std::io::Read;
use std::os::fd::FromRawFd;

use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;

use crate::errno::Errno;
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

impl Late {
    /// Takes a page away; whoever touches it waits for [`Self::provide`].
    pub(crate) fn page(at: *mut u8) -> Result<Self> {
        let flags = libc::O_CLOEXEC | libc::O_NONBLOCK;
        // SAFETY: Plain system call without pointers.
        let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, flags) };
        ensure!(fd >= 0, "userfaultfd: {}", Errno::last());
        // SAFETY: The descriptor was just opened and belongs to nobody else.
        let fd = unsafe { File::from_raw_fd(fd as i32) };
        let raw = Raw::of(&fd);
        let api = UffdApi {
            api: 0xaa,
            features: 0,
            ioctls: 0,
        };
        expect("UFFDIO_API", raw.put(UFFDIO_API, &api), Ok(0))?;
        let register = UffdRegister {
            start: at as u64,
            len: PAGE,
            mode: 1,
            ioctls: 0,
        };
        expect(
            "UFFDIO_REGISTER",
            raw.put(UFFDIO_REGISTER, &register),
            Ok(0),
        )?;
        // SAFETY: The page is guest memory that only the case uses.
        let rc = unsafe { libc::madvise(at.cast(), PAGE as usize, libc::MADV_DONTNEED) };
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

    /// Provides the page, with these bytes at its start.
    pub(crate) fn provide(&self, at: *mut u8, bytes: &[u8]) -> Result<()> {
        let mut page = bytes.to_vec();
        page.resize(PAGE as usize, 0);
        let copy = UffdCopy {
            dst: at as u64,
            src: page.as_ptr() as u64,
            len: PAGE,
            mode: 0,
            copied: 0,
        };
        expect(
            "UFFDIO_COPY",
            Raw::of(&self.fd).put(UFFDIO_COPY, &copy),
            Ok(0),
        )
    }
}
