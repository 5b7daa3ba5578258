// SPDX-License-Identifier: GPL-2.0

//! Every call in every state of the device, with good and bad arguments. A
//! case is a call; what it notes becomes a row of Documentation/compat.rst.

use std::fs::File;
use std::io::Read;
use std::io::Seek;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::fd::FromRawFd;

use anyhow::Context;
use anyhow::Result;
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::eventfd::EFD_NONBLOCK;

use crate::case::seen;
use crate::case::Ctx;
use crate::case::Table;
use crate::device::RX;
use crate::device::TX;
use crate::errno::Errno;
use crate::ioctl::MemoryRegion;
use crate::ioctl::Outcome;
use crate::ioctl::Raw;
use crate::ioctl::VringAddr;
use crate::ioctl::VringState;
use crate::process::in_child;
use crate::traffic::expect;
use crate::vmm::Setup;
use crate::vmm::Vmm;
use crate::wire::Wire;

mod device;
mod other;
mod queue;

/// What the cases' names begin with.
pub(crate) const PREFIX: &str = "matrix::";

/// A column of the table.
#[derive(Clone, Copy)]
pub(crate) struct State {
    pub(crate) name: &'static str,
    pub(crate) meaning: &'static str,
}

const fn state(name: &'static str, meaning: &'static str) -> State {
    State { name, meaning }
}

/// The states, in the order in which [`check`] makes them.
pub(crate) const STATES: [State; 7] = [
    state("unowned", "just opened"),
    state("owned", "the caller has become the owner, and no more"),
    state(
        "ready",
        "memory table and rings are set, there is no backend",
    ),
    state(
        "foreign",
        "both queues have a TAP; the owner is another process",
    ),
    state("running", "both queues have a TAP; the caller is the owner"),
    state("reset", "the owner has given it up with VHOST_RESET_OWNER"),
    state("again", "and has become the owner once more"),
];

/// An address in the first page, where nothing is mapped.
const NOWHERE: usize = 8;
/// An address that is the kernel's.
const KERNEL: u64 = 0xffff_8880_0000_0000;
/// A descriptor that is not open.
const CLOSED: i32 = 999;

/// What arguments are made from.
struct Props {
    vmm: Vmm,
    event: EventFd,
    null: File,
    socket: Wire,
    /// A page that can be read, not written.
    constant: u64,
    /// The last four bytes before a page that is not there.
    brink: usize,
}

/// A device in some state.
struct Device<'a> {
    raw: Raw,
    props: &'a Props,
}

type Call = fn(&Device<'_>) -> Outcome;

/// One argument: what it is, the call, and what it returns in each state.
struct Row(&'static str, Call, &'static str);

/// Arguments that every call on a queue refuses alike.
const NO_POINTER: &str = "EPERM EFAULT EFAULT EPERM EFAULT EPERM EFAULT";
const NO_QUEUE: &str = "EPERM ENOBUFS ENOBUFS EPERM ENOBUFS EPERM ENOBUFS";
/// Owners only.
const OWNER: &str = "EPERM ok ok EPERM ok EPERM ok";
const ANYBODY: &str = "ok ok ok ok ok ok ok";
const UNREADABLE: &str = "EFAULT EFAULT EFAULT EFAULT EFAULT EFAULT EFAULT";
const UNSUPPORTED: &str =
    "EOPNOTSUPP EOPNOTSUPP EOPNOTSUPP EOPNOTSUPP EOPNOTSUPP EOPNOTSUPP EOPNOTSUPP";
const INVALID: &str = "EPERM EINVAL EINVAL EPERM EINVAL EPERM EINVAL";
const NOT_OPEN: &str = "EPERM EBADF EBADF EPERM EBADF EPERM EBADF";
const NO_SUCH: &str = "EPERM ENOTTY ENOTTY EPERM ENOTTY EPERM ENOTTY";
/// Not while that queue runs.
const STOPPED: &str = "EPERM ok ok EPERM EBUSY EPERM ok";
const STOPPED_INVALID: &str = "EPERM EINVAL EINVAL EPERM EBUSY EPERM EINVAL";
const STOPPED_UNREADABLE: &str = "EPERM EFAULT EFAULT EPERM EBUSY EPERM EFAULT";

/// Calls by name. Rows that change the state come last.
type Calls = &'static [(&'static str, &'static [Row])];

pub(super) fn register(table: &mut Table) {
    for (call, rows) in [device::CALLS, queue::CALLS, other::CALLS].concat() {
        table.add(format!("{PREFIX}{call}"), move |ctx| check(ctx, rows));
    }
}

/// An open file that belongs to somebody else.
struct Borrowed(i32);

impl AsRawFd for Borrowed {
    fn as_raw_fd(&self) -> i32 {
        self.0
    }
}

impl Props {
    fn new(ctx: &Ctx) -> Result<Self> {
        let vmm = Setup::new().stopped().build(ctx)?;
        let constant = vmm.mem.alloc(4096, 4096)?;
        vmm.mem
            .protect(constant, 4096, crate::mem::Access::ReadOnly)?;
        let page = vmm.mem.alloc(8192, 4096)?;
        vmm.mem
            .protect(page + 4096, 4096, crate::mem::Access::None)?;
        let brink = vmm.mem.host(page + 4096 - 4)? as usize;
        Ok(Self {
            constant,
            brink,
            event: EventFd::new(EFD_NONBLOCK).context("eventfd")?,
            null: File::open("/dev/null").context("/dev/null")?,
            socket: Wire::unbound()?,
            vmm,
        })
    }
}

impl Device<'_> {
    /// An argument of which only the first four bytes, queue 0, are there.
    fn half(&self, number: libc::c_ulong) -> Outcome {
        self.raw.call(number, self.props.brink)
    }

    fn constant(&self) -> usize {
        // Allocated from guest memory, so mapped.
        self.props
            .vmm
            .mem
            .host(self.props.constant)
            .map_or(0, |at| at as usize)
    }

    fn state(&self, number: libc::c_ulong, index: u32) -> Outcome {
        self.raw.get(number, &mut VringState { index, num: 0 })
    }

    fn addr(&self, spoil: fn(&mut VringAddr)) -> Outcome {
        let addr = self.props.vmm.vring_addr(RX);
        let mut addr = addr.map_err(|_| Errno(libc::ENOENT))?;
        spoil(&mut addr);
        self.raw.set_vring_addr(&addr)
    }

    fn flags(&self, flags: i32) {
        // SAFETY: Plain system call without pointers.
        unsafe { libc::fcntl(self.raw.0, libc::F_SETFL, flags) };
    }

    /// Returns 0 for what must come: nothing.
    fn read(&self, len: usize, nonblock: bool) -> Outcome {
        let mut bytes = vec![0; len];
        self.flags(if nonblock { libc::O_NONBLOCK } else { 0 });
        // SAFETY: The buffer is valid for the length given.
        let rc = unsafe { libc::read(self.raw.0, bytes.as_mut_ptr().cast(), len) };
        let errno = Errno::last();
        self.flags(libc::O_NONBLOCK);
        if rc < 0 {
            Err(errno)
        } else {
            Ok(rc as i32)
        }
    }

    /// Writes the first `len` bytes of an UPDATE.
    fn write(&self, len: usize, version: u32) -> Outcome {
        let mut bytes = [0u8; 72];
        bytes[..4].copy_from_slice(&version.to_ne_bytes());
        // Size 4096, permission RW, type UPDATE.
        (bytes[17], bytes[32], bytes[33]) = (16, 3, 2);
        // SAFETY: The buffer is longer than that.
        let rc = unsafe { libc::write(self.raw.0, bytes.as_ptr().cast(), len) };
        if rc < 0 {
            Err(Errno::last())
        } else {
            Ok(0)
        }
    }

    fn mmap(&self) -> Outcome {
        // SAFETY: Maps at an address of the kernel's choice.
        let at = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                4096,
                libc::PROT_READ,
                libc::MAP_SHARED,
                self.raw.0,
                0,
            )
        };
        if at == libc::MAP_FAILED {
            Err(Errno::last())
        } else {
            Ok(0)
        }
    }
}

/// Makes all calls of `rows` in each state and compares what they return.
fn check(ctx: &Ctx, rows: &[Row]) -> Result<()> {
    let props = Props::new(ctx)?;
    let call = |raw: Raw| -> Vec<String> {
        let device = Device { raw, props: &props };
        rows.iter().map(|row| name((row.1)(&device))).collect()
    };

    let unowned = crate::device::open(&ctx.device)?;
    let owned = crate::device::owned(&ctx.device)?;
    let running = running(ctx, &props)?;
    let running = Raw::of(&running);
    let columns = [
        call(Raw::of(&unowned)),
        call(Raw::of(&owned)),
        call(props.vmm.vhost.raw()),
        // Refused, or without effect on what follows.
        of_child(|| call(running))?,
        call(running),
        call(Raw::of(&given_up(ctx, &props)?)),
        {
            let again = given_up(ctx, &props)?;
            expect("SET_OWNER", Raw::of(&again).set_owner(), Ok(0))?;
            call(Raw::of(&again))
        },
    ];

    for (i, row) in rows.iter().enumerate() {
        let wanted: Vec<&str> = row.2.split(' ').collect();
        let got: Vec<&str> = columns.iter().map(|column| column[i].as_str()).collect();
        for (state, (got, wanted)) in STATES.iter().zip(got.iter().zip(&wanted)) {
            expect(&format!("{}, {}", row.0, state.name), got, wanted)?;
        }
        seen(format!("{}|{}", row.0, got.join("|")));
    }
    Ok(())
}

/// A device with an owner and a memory table.
fn with_table(ctx: &Ctx) -> Result<File> {
    let file = crate::device::owned(&ctx.device)?;
    let table = Raw::of(&file).set_mem_table(0, &[MemoryRegion::new(0, 4096, 1 << 20)]);
    expect("SET_MEM_TABLE", table, Ok(0))?;
    Ok(file)
}

/// A device that runs on the rings and the TAP of another, which does not.
fn running(ctx: &Ctx, props: &Props) -> Result<File> {
    let file = with_table(ctx)?;
    let raw = Raw::of(&file);
    let tap = props.vmm.tap.as_raw_fd();
    for index in [RX, TX] {
        let number = index as u32;
        let addr = raw.set_vring_addr(&props.vmm.vring_addr(index)?);
        expect("SET_VRING_ADDR", addr, Ok(0))?;
        expect("SET_VRING_NUM", raw.set_vring_num(number, 256), Ok(0))?;
        expect("SET_BACKEND", raw.set_backend(number, tap), Ok(0))?;
    }
    Ok(file)
}

/// A device that was set up and given up.
fn given_up(ctx: &Ctx, props: &Props) -> Result<File> {
    let file = with_table(ctx)?;
    let raw = Raw::of(&file);
    let addr = raw.set_vring_addr(&props.vmm.vring_addr(RX)?);
    expect("SET_VRING_ADDR", addr, Ok(0))?;
    expect("SET_VRING_BASE", raw.set_vring_base(0, 7), Ok(0))?;
    expect("RESET_OWNER", raw.reset_owner(), Ok(0))?;
    Ok(file)
}

/// What a child process gets from `call`.
fn of_child(call: impl FnOnce() -> Vec<String>) -> Result<Vec<String>> {
    // SAFETY: The name is a valid C string; the descriptor is nobody else's.
    let mut file = unsafe { File::from_raw_fd(libc::memfd_create(c"names".as_ptr(), 0)) };
    in_child(|| Ok((&file).write_all(call().join("\n").as_bytes())?))?;
    let mut names = String::new();
    file.rewind()?;
    file.read_to_string(&mut names)?;
    Ok(names.lines().map(str::to_owned).collect())
}

fn name(outcome: Outcome) -> String {
    match outcome {
        Ok(0) => "ok".to_owned(),
        Ok(value) => value.to_string(),
        Err(errno) => errno.to_string(),
    }
}
