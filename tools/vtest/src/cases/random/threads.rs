// SPDX-License-Identifier: GPL-2.0

//! Calls at random by several threads of two processes on the same devices, at
//! the same time. Nobody foretells what they return: that the kernel does not
//! complain, that all of them come back, and that the next device works, is all
//! that is asked for.

use std::os::fd::AsRawFd;
use std::os::fd::OwnedFd;
use std::os::fd::RawFd;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;

use super::calls::Calls;
use super::other::system_call;
use super::other::Room;
use super::rig::Rig;
use super::Step;
use crate::case::Ctx;
use crate::case::Table;
use crate::device;
use crate::frame::Rng;
use crate::model::Op;
use crate::process::Child;
use crate::vmm::Setup;

const DEVICES: usize = 3;
const THREADS: u64 = 3;

pub(super) fn register(table: &mut Table) {
    table.add_long(
        "random::calls_of_many_threads_and_processes",
        Duration::from_secs(600),
        many,
    );
}

/// Devices that are closed and opened anew under the same numbers.
struct Devices {
    path: std::path::PathBuf,
    files: Vec<OwnedFd>,
}

impl Devices {
    fn open(ctx: &Ctx) -> Result<Self> {
        let files = (0..DEVICES).map(|_| Ok(device::open(&ctx.device)?.into()));
        Ok(Self {
            path: ctx.device.clone(),
            files: files.collect::<Result<_>>()?,
        })
    }

    fn fd(&self, i: usize) -> RawFd {
        self.files[i].as_raw_fd()
    }

    /// Whoever uses the old one keeps it until its call returns.
    fn reopen(&self, i: usize) -> Result<()> {
        let fresh = device::open(&self.path)?;
        // SAFETY: Both descriptors are open; nobody else takes the number meanwhile.
        let rc = unsafe { libc::dup3(fresh.as_raw_fd(), self.fd(i), libc::O_CLOEXEC) };
        ensure!(rc >= 0, "dup3");
        Ok(())
    }
}

/// One system call; errors are as good as successes.
fn issue(fd: RawFd, op: &Op, room: &Room) -> i64 {
    let fd = i64::from(fd);
    match op {
        Op::Ioctl(number, None) => system_call([libc::SYS_ioctl, fd, *number as i64, 8]),
        Op::Ioctl(number, Some(arg)) => {
            let at = room.put(&arg.bytes, arg.writable);
            system_call([libc::SYS_ioctl, fd, *number as i64, at as i64])
        }
        Op::Read { len, .. } => {
            let at = room.put(&vec![0; *len], true);
            system_call([libc::SYS_read, fd, at as i64, *len as i64])
        }
        Op::Write(bytes) => {
            let at = room.put(bytes, false);
            system_call([libc::SYS_write, fd, at as i64, bytes.len() as i64])
        }
        Op::Poll => {
            let mut entry = (fd as i32).to_ne_bytes().to_vec();
            entry.extend([libc::POLLIN as u8, 0, 0, 0]);
            let at = room.put(&entry, true);
            system_call([libc::SYS_poll, at as i64, 1, 0])
        }
    }
}

/// Calls of one thread until there have been enough in its process.
fn storm(rig: &Shared, seed: u64, calls: u64, done: &AtomicU64) -> Result<u64> {
    let mut rng = Rng::new(seed);
    let room = Room::new()?;
    let mut maker = Calls {
        rng: Rng::new(rng.next()),
        rings: &rig.rig.rings,
        world: &rig.rig.world,
    };
    let mut succeeded = 0;
    while done.load(Ordering::Relaxed) < calls {
        let i = rng.below(DEVICES as u64) as usize;
        let mut steps = match rng.below(100) {
            0 => {
                rig.devices.reopen(i)?;
                continue;
            }
            1 => {
                // What cannot be mapped is not.
                let fd = i64::from(rig.devices.fd(i));
                system_call([libc::SYS_fsync, fd, 0, 0]);
                continue;
            }
            2..5 => maker.set_up(),
            _ => Vec::new(),
        };
        steps.push(maker.call());
        for step in steps {
            let Step::Call(_, op) = step else { continue };
            succeeded += u64::from(issue(rig.devices.fd(i), &op, &room) >= 0);
            done.fetch_add(1, Ordering::Relaxed);
        }
    }
    Ok(succeeded)
}

/// What all threads of a process use: plain memory and descriptors, which the
/// kernel is to keep apart.
struct Shared {
    rig: Rig,
    devices: Devices,
}

// SAFETY: The threads read the addresses and descriptors only; what is behind
// them is the kernel's to guard.
unsafe impl Sync for Shared {}

fn threads(rig: &Shared, seed: u64, calls: u64) -> Result<(u64, u64)> {
    let done = AtomicU64::new(0);
    let results: Vec<_> = thread::scope(|scope| {
        let run = |i| {
            let done = &done;
            scope.spawn(move || storm(rig, seed ^ (i << 32), calls, done))
        };
        let threads: Vec<_> = (1..=THREADS).map(run).collect();
        threads
            .into_iter()
            .map(thread::ScopedJoinHandle::join)
            .collect()
    });
    let mut succeeded = 0;
    for result in results {
        succeeded += result.map_err(|_| anyhow::anyhow!("a thread panicked"))??;
    }
    Ok((done.into_inner(), succeeded))
}

fn many(ctx: &Ctx) -> Result<()> {
    let start = Instant::now();
    let calls = u64::from(ctx.cycles) * 10;
    let rig = Shared {
        rig: Rig::new(ctx)?,
        devices: Devices::open(ctx)?,
    };
    let other = Child::spawn(|_| {
        threads(&rig, ctx.seed ^ 0xffff, calls)?;
        Ok(())
    })?;
    let (made, succeeded) = threads(&rig, ctx.seed, calls)?;
    other
        .finish_within(Duration::from_secs(300))
        .context("the other process")?;
    drop(rig);
    let time = start.elapsed().as_secs_f64();
    println!(
        "# calls: {} in {time:.1} s ({:.0}/s), seed {}",
        2 * made,
        2.0 * made as f64 / time,
        ctx.seed
    );
    ensure!(
        succeeded > made / 20,
        "only {succeeded} of {made} calls succeeded: nothing was tried"
    );
    Setup::new().tap_name("vt9").build(ctx)?.check_alive()
}
