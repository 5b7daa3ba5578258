// SPDX-License-Identifier: GPL-2.0

//! The second process, and memory for arguments that both see.

use std::fs::File;
use std::io::Read;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::fd::FromRawFd;

use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;

use super::PAGE;
use crate::errno::Errno;
use crate::process;

/// Room for arguments.
const ROOM: usize = 16 * PAGE;

/// A system call to be made, and what it returned, in memory that both
/// processes share.
#[repr(C)]
pub(super) struct Request {
    call: [i64; 4],
    result: i64,
}

/// The second process: it has the descriptors of the first, but memory of its own.
pub(super) struct Other {
    pid: libc::pid_t,
    to: File,
    from: File,
    request: *mut Request,
}

/// Makes a system call; negative numbers are errors.
pub(super) fn system_call(call: [i64; 4]) -> i64 {
    let [number, a, b, c] = call;
    // SAFETY: What is called reads and writes memory that this file sets aside
    // for it, or fails.
    let rc = unsafe { libc::syscall(number, a, b, c) };
    if rc < 0 {
        -i64::from(Errno::last().0)
    } else {
        rc
    }
}

impl Other {
    pub(super) fn start() -> Result<Self> {
        let request = shared(PAGE)? as *mut Request;
        let (mut their_from, to) = process::pipe()?;
        let (from, mut their_to) = process::pipe()?;
        let flags = libc::CLONE_FILES | libc::SIGCHLD;
        // SAFETY: As fork, but for the descriptors, which nobody closes that the
        // other one needs; this process has a single thread.
        let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
        ensure!(pid >= 0, "clone: {}", Errno::last());
        if pid == 0 {
            // SAFETY: Plain system call without pointers.
            unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
            let mut byte = [0];
            while their_from.read_exact(&mut byte).is_ok() {
                // SAFETY: The first process waits for our answer meanwhile.
                unsafe { (*request).result = system_call((*request).call) };
                if their_to.write_all(&byte).is_err() {
                    break;
                }
            }
            // SAFETY: Ends the process without running exit handlers.
            unsafe { libc::_exit(0) };
        }
        // The descriptors are shared, so these must stay open here as well.
        std::mem::forget((their_from, their_to));
        Ok(Self {
            pid: pid as libc::pid_t,
            to,
            from,
            request,
        })
    }

    pub(super) fn call(&mut self, call: [i64; 4]) -> Result<i64> {
        // SAFETY: The other process waits for our byte.
        unsafe { (*self.request).call = call };
        self.to.write_all(&[0])?;
        self.from
            .read_exact(&mut [0])
            .context("the other process is gone")?;
        // SAFETY: It has answered, and waits again.
        Ok(unsafe { (*self.request).result })
    }
}

impl Drop for Other {
    fn drop(&mut self) {
        // SAFETY: Plain system calls; a null status pointer is allowed.
        unsafe {
            libc::kill(self.pid, libc::SIGKILL);
            libc::waitpid(self.pid, std::ptr::null_mut(), 0);
        }
    }
}

pub(super) fn map(len: usize, prot: i32, flags: i32, fd: i32) -> Result<u64> {
    // SAFETY: Maps fresh memory at an address of the kernel's choice.
    let at = unsafe { libc::mmap(std::ptr::null_mut(), len, prot, flags, fd, 0) };
    ensure!(at != libc::MAP_FAILED, "mmap: {}", Errno::last());
    Ok(at as u64)
}

/// Memory that both processes see at one address.
pub(super) fn shared(len: usize) -> Result<u64> {
    let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    map(len, libc::PROT_READ | libc::PROT_WRITE, flags, -1)
}

/// Room for an argument that ends where nothing is mapped any more.
pub(super) struct Room {
    end: u64,
    constant_end: u64,
}

impl Room {
    pub(super) fn new() -> Result<Self> {
        // SAFETY: The name is a valid C string; the descriptor is nobody else's.
        let file = unsafe { File::from_raw_fd(libc::memfd_create(c"args".as_ptr(), 0)) };
        file.set_len(ROOM as u64).context("memfd")?;
        let end = |prot: i32| -> Result<u64> {
            let anonymous = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            let at = map(ROOM + PAGE, libc::PROT_NONE, anonymous, -1)?;
            // SAFETY: Replaces a part of what was just mapped.
            let rc = unsafe {
                libc::mmap(
                    at as *mut libc::c_void,
                    ROOM,
                    prot,
                    libc::MAP_SHARED | libc::MAP_FIXED,
                    file.as_raw_fd(),
                    0,
                )
            };
            ensure!(rc != libc::MAP_FAILED, "mmap: {}", Errno::last());
            Ok(at + ROOM as u64)
        };
        Ok(Self {
            end: end(libc::PROT_READ | libc::PROT_WRITE)?,
            constant_end: end(libc::PROT_READ)?,
        })
    }

    /// Puts bytes at the end and returns their address as `writable` memory.
    pub(super) fn put(&self, bytes: &[u8], writable: bool) -> u64 {
        let at = self.end - bytes.len() as u64;
        // SAFETY: There is room, and no call is under way.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), at as *mut u8, bytes.len()) };
        if writable {
            at
        } else {
            self.constant_end - bytes.len() as u64
        }
    }

    pub(super) fn get(&self, len: usize) -> Vec<u8> {
        let at = (self.end - len as u64) as *const u8;
        // SAFETY: The room is larger, and no call is under way.
        unsafe { std::slice::from_raw_parts(at, len) }.to_vec()
    }
}
