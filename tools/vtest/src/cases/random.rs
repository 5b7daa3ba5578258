// SPDX-License-Identifier: GPL-2.0

//! Calls at random, by two processes, against the model of the control plane:
//! each must return what the model says, and none may hang.

use std::fmt;
use std::fs;
use std::fs::File;
use std::io::Read;
use std::io::Write;
use std::mem::size_of;
use std::os::fd::AsRawFd;
use std::os::fd::FromRawFd;
use std::time::Duration;

use anyhow::bail;
use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::eventfd::EFD_NONBLOCK;

use crate::case::seen;
use crate::case::Ctx;
use crate::case::Table;
use crate::device;
use crate::errno::Errno;
use crate::frame::Rng;
use crate::ioctl;
use crate::ioctl::Outcome;
use crate::model::Arg;
use crate::model::Kind;
use crate::model::Model;
use crate::model::Op;
use crate::model::World;
use crate::process;
use crate::tap::Tap;
use crate::tap::TapOptions;
use crate::traffic::expect;
use crate::wire::Wire;

/// Calls for each of the rounds that were asked for.
const PER_CYCLE: u32 = 100;
const PAGE: usize = 4096;
const MIB: usize = 1 << 20;
/// Room for arguments.
const ROOM: usize = 16 * PAGE;
const KERNEL: u64 = 0xffff_8880_0000_0000;
const CLOSED: i32 = 999;

pub(super) fn register(table: &mut Table) {
    table.add_long(
        "random::calls_return_what_the_model_says",
        Duration::from_secs(300),
        model,
    );
}

/// What is done: a call by one of the processes, or a fresh start.
#[derive(Clone, PartialEq, Eq)]
enum Step {
    Call(usize, Op),
    /// The device is closed and opened again.
    Reopen,
}

impl fmt::Debug for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reopen => f.write_str("close, open"),
            Self::Call(who, Op::Ioctl(number, arg)) => {
                write!(f, "process {who}: {} ", ioctl::name(*number))?;
                match arg {
                    None => f.write_str("nowhere"),
                    Some(arg) => {
                        let words = arg.bytes.chunks(4).take(20);
                        let words: Vec<String> = words
                            .map(|word| {
                                let byte = |i: usize| word.get(i).copied().unwrap_or(0);
                                let word = [byte(0), byte(1), byte(2), byte(3)];
                                format!("{:x}", u32::from_ne_bytes(word))
                            })
                            .collect();
                        let constant = if arg.writable { "" } else { ", read-only" };
                        write!(
                            f,
                            "[{}] ({} bytes{constant})",
                            words.join(" "),
                            arg.bytes.len()
                        )
                    }
                }
            }
            Self::Call(who, op) => write!(f, "process {who}: {op:x?}"),
        }
    }
}

/// A system call to be made, and what it returned, in memory that both
/// processes share.
#[repr(C)]
struct Request {
    call: [i64; 4],
    result: i64,
}

/// The second process: it has the descriptors of the first, but memory of its own.
struct Other {
    pid: libc::pid_t,
    to: File,
    from: File,
    request: *mut Request,
}

/// Makes a system call; negative numbers are errors.
fn system_call(call: [i64; 4]) -> i64 {
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
    fn start() -> Result<Self> {
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

    fn call(&mut self, call: [i64; 4]) -> Result<i64> {
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

fn map(len: usize, prot: i32, flags: i32, fd: i32) -> Result<u64> {
    // SAFETY: Maps fresh memory at an address of the kernel's choice.
    let at = unsafe { libc::mmap(std::ptr::null_mut(), len, prot, flags, fd, 0) };
    ensure!(at != libc::MAP_FAILED, "mmap: {}", Errno::last());
    Ok(at as u64)
}

/// Memory that both processes see at one address.
fn shared(len: usize) -> Result<u64> {
    let flags = libc::MAP_SHARED | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
    map(len, libc::PROT_READ | libc::PROT_WRITE, flags, -1)
}

/// Room for an argument that ends where nothing is mapped any more.
struct Room {
    end: u64,
    constant_end: u64,
}

impl Room {
    fn new() -> Result<Self> {
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
    fn put(&self, bytes: &[u8], writable: bool) -> u64 {
        let at = self.end - bytes.len() as u64;
        // SAFETY: There is room, and no call is under way.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), at as *mut u8, bytes.len()) };
        if writable {
            at
        } else {
            self.constant_end - bytes.len() as u64
        }
    }

    fn get(&self, len: usize) -> Vec<u8> {
        let at = (self.end - len as u64) as *const u8;
        // SAFETY: The room is larger, and no call is under way.
        unsafe { std::slice::from_raw_parts(at, len) }.to_vec()
    }
}

/// Where rings may be.
struct Rings {
    desc: u64,
    avail: u64,
    used: u64,
    log: u64,
    hole: u64,
    constant: u64,
}

/// Everything a run needs.
struct Rig {
    device: std::path::PathBuf,
    file: Option<File>,
    other: Other,
    room: Room,
    rings: Rings,
    world: World,
    model: Model,
    _open: (Vec<EventFd>, Vec<Tap>, Wire, Vec<File>),
}

impl Rig {
    fn new(ctx: &Ctx) -> Result<Self> {
        let anonymous = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
        let rings = Rings {
            desc: shared(MIB)?,
            avail: shared(MIB)?,
            used: shared(MIB)?,
            // Bits for guest addresses of up to 2^41.
            log: shared(64 * MIB)?,
            hole: map(MIB, libc::PROT_NONE, anonymous, -1)?,
            constant: map(MIB, libc::PROT_READ, anonymous, -1)?,
        };
        let events = [0; 2].map(|_| EventFd::new(EFD_NONBLOCK));
        let events: Vec<EventFd> = events.into_iter().collect::<Result<_, _>>()?;
        let taps = ["vt0", "vt1"].map(|name| Tap::open(name, &TapOptions::default()));
        let taps: Vec<Tap> = taps.into_iter().collect::<Result<_>>()?;
        let socket = Wire::unbound()?;
        let others = vec![Tap::open_unattached()?, File::open("/dev/null")?];
        let mut files = Vec::new();
        files.extend(events.iter().map(|event| (event.as_raw_fd(), Kind::Event)));
        files.extend(taps.iter().map(|tap| (tap.as_raw_fd(), Kind::Socket)));
        files.push((socket.as_raw_fd(), Kind::Socket));
        files.push((others[0].as_raw_fd(), Kind::Unattached));
        files.push((others[1].as_raw_fd(), Kind::Other));
        let la57 = fs::read_to_string("/proc/cpuinfo")?.contains(" la57");
        let user_bits = if la57 { 56 } else { 47 };
        let areas = [rings.desc, rings.avail, rings.used];
        let mut writable: Vec<_> = areas.map(|at| at..at + MIB as u64).into();
        writable.push(rings.log..rings.log + 64 * MIB as u64);
        let world = World {
            module: ctx.module,
            files,
            writable,
            user_end: (1 << user_bits) - PAGE as u64,
            max_regions: ctx.module.parameter("max_mem_regions")?.parse()?,
            fork_default: ctx.module.parameter("fork_from_owner_default")? == "Y",
        };
        Ok(Self {
            device: ctx.device.clone(),
            file: None,
            room: Room::new()?,
            // With all that is mapped by now.
            other: Other::start()?,
            rings,
            model: Model::new(&world),
            world,
            _open: (events, taps, socket, others),
        })
    }

    /// Does one step; the error says what it returned and should have.
    fn step(&mut self, step: &Step) -> Result<Outcome> {
        let (who, op) = match step {
            Step::Reopen => {
                self.file = None;
                self.file = Some(device::open(&self.device)?);
                self.model = Model::new(&self.world);
                return Ok(Ok(0));
            }
            Step::Call(who, op) => (*who, op),
        };
        let fd = i64::from(self.file.as_ref().context("not open")?.as_raw_fd());
        let call = match op {
            Op::Ioctl(number, None) => [libc::SYS_ioctl, fd, *number as i64, 8],
            Op::Ioctl(number, Some(arg)) => {
                let at = self.room.put(&arg.bytes, arg.writable);
                [libc::SYS_ioctl, fd, *number as i64, at as i64]
            }
            Op::Read { len, wait } => {
                // Nobody would wake it.
                let flags = match *wait && !self.model.read_waits() {
                    true => 0,
                    false => libc::O_NONBLOCK,
                };
                system_call([libc::SYS_fcntl, fd, libc::F_SETFL.into(), flags.into()]);
                let at = self.room.put(&vec![0; *len], true);
                [libc::SYS_read, fd, at as i64, *len as i64]
            }
            Op::Write(bytes) => {
                let at = self.room.put(bytes, false);
                [libc::SYS_write, fd, at as i64, bytes.len() as i64]
            }
            Op::Poll => {
                let mut entry = (fd as i32).to_ne_bytes().to_vec();
                entry.extend([libc::POLLIN as u8, 0, 0, 0]);
                let at = self.room.put(&entry, true);
                [libc::SYS_poll, at as i64, 1, 0]
            }
        };
        let result = match who {
            0 => system_call(call),
            _ => self.other.call(call)?,
        };
        let outcome = if result < 0 {
            Err(Errno(-result as i32))
        } else {
            Ok(result as i32)
        };
        let after = match op {
            Op::Ioctl(_, Some(arg)) => Some(Arg {
                bytes: self.room.get(arg.bytes.len()),
                writable: arg.writable,
            }),
            _ => None,
        };
        let op = match op {
            Op::Read { len, wait } => &Op::Read {
                len: *len,
                wait: *wait && !self.model.read_waits(),
            },
            op => op,
        };
        let world = &self.world;
        let verdict = self.model.follow(world, who, op, outcome, after.as_ref());
        match verdict {
            Ok(()) => Ok(outcome),
            Err(text) => bail!(
                "{step:?} returned {outcome:?} and left {:02x?}; it {text}",
                after.map(|after| after.bytes).unwrap_or_default()
            ),
        }
    }

    /// Whether `steps` on a fresh device end in an error, and in which.
    fn failure(&mut self, steps: &[Step]) -> Option<(usize, anyhow::Error)> {
        for (i, step) in [Step::Reopen].iter().chain(steps).enumerate() {
            if let Err(error) = self.step(step) {
                return Some((i, error));
            }
        }
        None
    }

    /// Leaves out what the failure does not need.
    fn shrink(&mut self, mut steps: Vec<Step>) -> Vec<Step> {
        let mut chunk = steps.len() / 2;
        while chunk > 0 {
            let mut at = 0;
            while at < steps.len() {
                let mut fewer = steps.clone();
                fewer.drain(at..(at + chunk).min(steps.len()));
                match self.failure(&fewer) {
                    Some((end, _)) => {
                        fewer.truncate(end);
                        steps = fewer;
                    }
                    None => at += chunk,
                }
            }
            chunk /= 2;
        }
        steps
    }
}

/// Makes up calls: most could be a VMM's, some are nearly right, some are not.
struct Calls<'a> {
    rng: Rng,
    rings: &'a Rings,
    world: &'a World,
}

impl Calls<'_> {
    fn one_in(&mut self, n: u64) -> bool {
        self.rng.below(n) == 0
    }

    fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.rng.below(choices.len() as u64) as usize]
    }

    /// The first one mostly.
    fn mostly<T: Copy>(&mut self, choices: &[T]) -> T {
        if self.one_in(4) {
            self.of(choices)
        } else {
            choices[0]
        }
    }

    fn garbage(&mut self) -> u64 {
        match self.rng.below(4) {
            0 => self.rng.below(PAGE as u64),
            1 => u64::MAX - self.rng.below(PAGE as u64),
            // Never user space's: what is there is ours.
            _ => self.rng.next() | 1 << 63,
        }
    }

    fn index(&mut self) -> u32 {
        if self.one_in(30) {
            self.of(&[2, 3, u32::MAX, 1 << 31])
        } else {
            self.rng.below(2) as u32
        }
    }

    fn event(&mut self) -> i32 {
        let files = &self.world.files;
        let some = self.rng.below(files.len() as u64 + 3) as usize;
        match files.get(some) {
            Some((fd, _)) => *fd,
            None => self.of(&[-1, -2, CLOSED]),
        }
    }

    fn region(&mut self) -> [u64; 4] {
        let (used, end) = (self.rings.used, self.world.user_end);
        let garbage = self.garbage();
        let page = PAGE as u64;
        [
            self.mostly(&[
                0,
                0,
                page,
                1 << 20,
                1 << 40,
                u64::MAX - page + 1,
                3,
                garbage,
            ]),
            self.mostly(&[MIB as u64, page, 1, 0, 2 * page, 1 << 30, u64::MAX, garbage]),
            self.mostly(&[used, 0, end - page, end - MIB as u64, end, KERNEL, garbage]),
            self.of(&[0, 0, garbage]),
        ]
    }

    fn mem_table(&mut self) -> Vec<u8> {
        let most = self.world.max_regions;
        let count = if self.one_in(20) {
            self.of(&[most, most + 1, u32::MAX])
        } else {
            self.mostly(&[1, 0, 2, 3, 8])
        };
        let padding = u32::from(self.one_in(30));
        let mut bytes = words(&[count, padding]);
        for i in 0..u64::from(count.min(most)) {
            let mut region = self.region();
            region[0] = region[0].wrapping_add(i << 42);
            bytes.extend(longs(&region));
        }
        bytes
    }

    fn addr(&mut self) -> Vec<u8> {
        let Rings {
            desc,
            avail,
            used,
            hole,
            constant,
            ..
        } = *self.rings;
        let end = self.world.user_end;
        let garbage = self.garbage();
        let index = self.index();
        let flags = self.mostly(&[0, 1, 1, 2, u32::MAX]);
        let mut bytes = words(&[index, flags]);
        let half = MIB as u64 / 2;
        bytes.extend(longs(&[
            self.mostly(&[
                desc,
                desc + 1,
                desc + half,
                0,
                hole,
                end - 16,
                KERNEL,
                garbage,
            ]),
            self.mostly(&[
                used,
                used + 4,
                used + 2,
                used + half,
                0,
                hole,
                constant,
                end - 12,
                KERNEL,
                garbage,
            ]),
            self.mostly(&[
                avail,
                avail + 2,
                avail + 1,
                avail + half,
                0,
                hole,
                end - 6,
                KERNEL,
                garbage,
            ]),
            self.mostly(&[0, 4, 2, 1 << 12, 1 << 40, garbage]),
        ]));
        bytes
    }

    fn features(&mut self) -> u64 {
        let offered = 0x0000_010b_3d00_8000;
        let event_idx = 1 << 29;
        let log_all = 1 << 26;
        let platform = 1 << 33;
        let version = 1 << 32;
        let bits = [
            version,
            version | event_idx,
            0,
            version | log_all,
            version | platform,
        ];
        match self.rng.below(12) {
            0 => offered,
            1 => self.rng.next() & offered,
            2 => 1 << self.rng.below(64),
            3 => self.rng.next(),
            _ => self.of(&bits),
        }
    }

    fn message(&mut self) -> Vec<u8> {
        let Rings {
            desc,
            avail,
            used,
            hole,
            ..
        } = *self.rings;
        let garbage = self.garbage();
        let iova = self.of(&[used, used, desc, avail, hole, 0, garbage]);
        // What is mapped elsewhere is written by nobody.
        let uaddr = match iova {
            at if [used, desc, avail].contains(&at) => self.mostly(&[at, hole, KERNEL]),
            _ => self.of(&[hole, KERNEL, garbage]),
        };
        let size = self.mostly(&[MIB as u64, PAGE as u64, 4, 2, 0, u64::MAX, garbage]);
        let perm = self.mostly(&[3, 1, 2]);
        let kind = self.mostly(&[2, 3, 3, 1, 4, 5, 6, 0, 255]);
        let mut bytes = words(&[self.mostly(&[2, 1, 0, 3]), 0]);
        bytes.extend(longs(&[iova, size, uaddr]));
        bytes.extend([perm, kind]);
        bytes.resize(self.mostly(&[72, 40, 39, 3, 0, 71, 144]), 0);
        bytes
    }

    fn ioctl(&mut self) -> (libc::c_ulong, Vec<u8>) {
        let index = self.index();
        match self.rng.below(48) {
            0 => (ioctl::GET_FEATURES(), longs(&[0])),
            1..=3 => (ioctl::SET_FEATURES(), longs(&[self.features()])),
            4 => {
                let count = self.mostly(&[2, 0, 1, 3, 4, 1 << 61, u64::MAX]);
                (ioctl::GET_FEATURES_ARRAY(), longs(&[count, 5, 5, 5, 5]))
            }
            5 => {
                let count = self.mostly(&[2, 0, 1, 3, 4, 1 << 61, u64::MAX]);
                let features = self.features();
                let more = self.mostly(&[0, 2, 8, 4]);
                let rest = self.mostly(&[0, 1]);
                (
                    ioctl::SET_FEATURES_ARRAY(),
                    longs(&[count, features, more, rest]),
                )
            }
            6 => (ioctl::GET_BACKEND_FEATURES(), longs(&[7])),
            7 => (
                ioctl::SET_BACKEND_FEATURES(),
                longs(&[self.mostly(&[2, 0, 1, 4])]),
            ),
            8..=9 => (ioctl::SET_OWNER(), Vec::new()),
            10 if self.one_in(3) => (ioctl::RESET_OWNER(), Vec::new()),
            11 => (ioctl::SET_FORK_FROM_OWNER(), vec![self.of(&[0, 1, 1, 2])]),
            12 => (ioctl::GET_FORK_FROM_OWNER(), vec![9]),
            13..=17 => (ioctl::SET_MEM_TABLE(), self.mem_table()),
            18..=19 => {
                let (log, garbage) = (self.rings.log, self.garbage());
                (
                    ioctl::SET_LOG_BASE(),
                    longs(&[self.mostly(&[log, 0, KERNEL, garbage])]),
                )
            }
            20 => (ioctl::SET_LOG_FD(), words(&[self.event() as u32])),
            21..=22 => {
                let num = self.mostly(&[256, 1, 32_768, 2, 0, 3, 65_535, 65_536, u32::MAX]);
                (ioctl::SET_VRING_NUM(), words(&[index, num]))
            }
            23..=24 => {
                let base = self.mostly(&[0, 1, 65_535, 65_536, u32::MAX]);
                (ioctl::SET_VRING_BASE(), words(&[index, base]))
            }
            25..=26 => (ioctl::GET_VRING_BASE(), words(&[index, 7])),
            27..=32 => (ioctl::SET_VRING_ADDR(), self.addr()),
            33..=35 => {
                let number = self.of(&[
                    ioctl::SET_VRING_KICK(),
                    ioctl::SET_VRING_CALL(),
                    ioctl::SET_VRING_ERR(),
                ]);
                (number, words(&[index, self.event() as u32]))
            }
            36 => {
                let timeout = self.of(&[0, 1, 50]);
                (
                    ioctl::SET_VRING_BUSYLOOP_TIMEOUT(),
                    words(&[index, timeout]),
                )
            }
            37 => (ioctl::GET_VRING_BUSYLOOP_TIMEOUT(), words(&[index, 7])),
            38..=44 => (
                ioctl::NET_SET_BACKEND(),
                words(&[index, self.backend() as u32]),
            ),
            _ => {
                let number = self.of(&[
                    ioctl::NEW_WORKER(),
                    ioctl::FREE_WORKER(),
                    ioctl::ATTACH_VRING_WORKER(),
                    ioctl::GET_VRING_WORKER(),
                    ioctl::SET_VRING_ENDIAN(),
                    0xaf7f,
                    0x5401,
                ]);
                (number, words(&[self.index(), 0]))
            }
        }
    }

    fn backend(&mut self) -> i32 {
        match self.rng.below(4) {
            0 => -1,
            1 => self.event(),
            _ => {
                let sockets = self.world.files.iter();
                let sockets = sockets.filter(|(_, kind)| *kind == Kind::Socket);
                let sockets: Vec<i32> = sockets.map(|(fd, _)| *fd).collect();
                self.of(&sockets)
            }
        }
    }

    fn call(&mut self) -> Step {
        let who = usize::from(self.one_in(25));
        let op = match self.rng.below(20) {
            0 => Op::Read {
                len: self.mostly(&[72, 71, 0, 144]),
                wait: self.one_in(2),
            },
            1..=2 => Op::Write(self.message()),
            3 => Op::Poll,
            _ => {
                let (number, mut bytes) = self.ioctl();
                let mut writable = true;
                let mut nowhere = false;
                if self.one_in(15) {
                    match self.rng.below(3) {
                        0 => nowhere = true,
                        1 => writable = false,
                        _ => bytes.truncate(self.rng.below(bytes.len() as u64 + 1) as usize),
                    }
                }
                let arg = Arg { bytes, writable };
                Op::Ioctl(number, (!nowhere).then_some(arg))
            }
        };
        Step::Call(who, op)
    }

    /// What a VMM does first, nearly.
    fn set_up(&mut self) -> Vec<Step> {
        let Rings {
            desc, avail, used, ..
        } = *self.rings;
        let mut region = words(&[1, 0]);
        region.extend(longs(&[0, MIB as u64, used, 0]));
        // Threads of the owner are where it is: see [`model`].
        let fork = self.mostly(&[1, 0]);
        let mut calls = vec![
            (ioctl::SET_FORK_FROM_OWNER(), vec![fork]),
            (ioctl::SET_OWNER(), Vec::new()),
            (ioctl::SET_MEM_TABLE(), region),
        ];
        for index in [0, 1] {
            let mut addr = words(&[index, 0]);
            addr.extend(longs(&[desc, used, avail, 0]));
            calls.push((ioctl::SET_VRING_NUM(), words(&[index, 256])));
            calls.push((ioctl::SET_VRING_ADDR(), addr));
            calls.push((
                ioctl::NET_SET_BACKEND(),
                words(&[index, self.backend() as u32]),
            ));
        }
        calls.retain(|_| self.rng.below(15) != 0);
        let step = |(number, bytes)| {
            let arg = Arg {
                bytes,
                writable: true,
            };
            Step::Call(0, Op::Ioctl(number, Some(arg)))
        };
        calls.into_iter().map(step).collect()
    }

    /// All that is done with one open device.
    fn life(&mut self) -> Vec<Step> {
        let mut steps = vec![Step::Reopen];
        // A close takes longer than all that comes between.
        for _ in 0..1 + self.rng.below(8) {
            if !self.one_in(4) {
                steps.extend(self.set_up());
            }
            let more = self.rng.below(150);
            steps.extend((0..more).map(|_| self.call()));
            let arg = None;
            steps.push(Step::Call(0, Op::Ioctl(ioctl::RESET_OWNER(), arg)));
        }
        steps
    }
}

fn words(values: &[u32]) -> Vec<u8> {
    values
        .iter()
        .flat_map(|value| value.to_ne_bytes())
        .collect()
}

fn longs(values: &[u64]) -> Vec<u8> {
    values
        .iter()
        .flat_map(|value| value.to_ne_bytes())
        .collect()
}

fn affinity() -> Result<libc::cpu_set_t> {
    // SAFETY: All zeroes are an empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: The set is valid for its size.
    let rc = unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &mut set) };
    ensure!(rc == 0, "sched_getaffinity: {}", Errno::last());
    Ok(set)
}

/// Moves this process and the threads that are made for it from now on.
fn set_affinity(set: &libc::cpu_set_t) -> Result<()> {
    // SAFETY: The set is valid for its size.
    let rc = unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), set) };
    ensure!(rc == 0, "sched_setaffinity: {}", Errno::last());
    Ok(())
}

fn model(ctx: &Ctx) -> Result<()> {
    expect("size of a request", size_of::<Request>(), 40)?;
    // On one CPU the device's threads, if they are ours, answer without delay;
    // the last tenth of the calls meets them on all.
    let all = affinity()?;
    // SAFETY: All zeroes are an empty set.
    let mut one: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: The set has room for more CPUs than there are.
    unsafe { libc::CPU_SET(0, &mut one) };
    set_affinity(&one)?;
    let mut rig = Rig::new(ctx)?;
    let calls = ctx.cycles.saturating_mul(PER_CYCLE);
    let (mut done, mut starts, mut errors) = (0, 0, 0);
    let mut rng = Rng::new(ctx.seed);
    while done < calls {
        if done >= calls / 10 * 9 {
            set_affinity(&all)?;
        }
        let life = Calls {
            rng: Rng::new(rng.next()),
            rings: &rig.rings,
            world: &rig.world,
        }
        .life();
        for (i, step) in life.iter().enumerate() {
            match rig.step(step) {
                Ok(Ok(_)) => {
                    let starting = |number: &libc::c_ulong| *number == ioctl::NET_SET_BACKEND();
                    let is_start =
                        matches!(step, Step::Call(_, Op::Ioctl(number, _)) if starting(number));
                    starts += u32::from(is_start);
                }
                Ok(Err(_)) => errors += 1,
                Err(error) => {
                    // The device that it happened to began with the life.
                    let steps = rig.shrink(life[1..=i].to_vec());
                    let steps: Vec<String> = steps.iter().map(|s| format!("  {s:?}")).collect();
                    bail!(
                        "after {done} calls with seed {}: {error:#}\nthese are enough:\n{}",
                        ctx.seed,
                        steps.join("\n")
                    );
                }
            }
            done += 1;
        }
    }
    rig.file = None;
    // What is tried must be worth it.
    ensure!(
        starts > calls / 100 && errors > calls / 10,
        "{starts} starts and stops, {errors} errors in {done} calls"
    );
    seen(format!("{calls} calls"));
    Ok(())
}
