// SPDX-License-Identifier: GPL-2.0

//! Every call in every state of the device, with good and bad arguments. A
//! case is a call; what it notes becomes a row of Documentation/compat.rst.

use std::fs::File;
use std::io::Read;
use std::io::Seek;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::fd::FromRawFd;
use std::time::Duration;

use anyhow::Context;
use anyhow::Result;
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::eventfd::EFD_NONBLOCK;

use crate::case::seen;
use crate::case::Ctx;
use crate::case::Table;
use crate::device;
use crate::device::feature;
use crate::device::RX;
use crate::device::TX;
use crate::errno::Errno;
use crate::ioctl;
use crate::ioctl::Outcome;
use crate::ioctl::Raw;
use crate::ioctl::VringAddr;
use crate::ioctl::VringState;
use crate::poll;
use crate::process::in_child;
use crate::traffic::expect;
use crate::vmm::Setup;
use crate::vmm::Vmm;
use crate::wire::Wire;

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

/// Rows that change the state come last.
const CALLS: &[(&str, &[Row])] = &[
    (
        "GET_FEATURES",
        &[
            Row(
                "nowhere",
                |d| d.raw.call(ioctl::GET_FEATURES(), NOWHERE),
                UNREADABLE,
            ),
            Row(
                "u64",
                |d| d.raw.get(ioctl::GET_FEATURES(), &mut 0u64),
                ANYBODY,
            ),
        ],
    ),
    (
        "SET_FEATURES",
        &[
            Row(
                "nowhere",
                |d| d.raw.call(ioctl::SET_FEATURES(), NOWHERE),
                UNREADABLE,
            ),
            Row("bit 0", |d| d.raw.set_features(1), UNSUPPORTED),
            Row("bit 34", |d| d.raw.set_features(1 << 34), UNSUPPORTED),
            Row(
                "bit 32",
                |d| d.raw.set_features(feature::VERSION_1),
                ANYBODY,
            ),
        ],
    ),
    (
        "GET_FEATURES_ARRAY",
        &[
            Row(
                "nowhere",
                |d| d.raw.call(ioctl::GET_FEATURES_ARRAY(), NOWHERE),
                UNREADABLE,
            ),
            Row(
                "0 words",
                |d| d.raw.get(ioctl::GET_FEATURES_ARRAY(), &mut 0u64),
                ANYBODY,
            ),
            Row(
                "2 words",
                |d| d.raw.get(ioctl::GET_FEATURES_ARRAY(), &mut [2u64, 0, 0]),
                ANYBODY,
            ),
        ],
    ),
    (
        "SET_FEATURES_ARRAY",
        &[
            Row(
                "nowhere",
                |d| d.raw.call(ioctl::SET_FEATURES_ARRAY(), NOWHERE),
                UNREADABLE,
            ),
            Row(
                "bit 66",
                |d| d.raw.put(ioctl::SET_FEATURES_ARRAY(), &[2u64, 0, 4]),
                UNSUPPORTED,
            ),
            Row(
                "bit 128",
                |d| d.raw.put(ioctl::SET_FEATURES_ARRAY(), &[3u64, 0, 0, 1]),
                UNSUPPORTED,
            ),
            Row(
                "0 words",
                |d| d.raw.put(ioctl::SET_FEATURES_ARRAY(), &0u64),
                ANYBODY,
            ),
            Row(
                "bits 32, 65",
                |d| {
                    d.raw
                        .put(ioctl::SET_FEATURES_ARRAY(), &[2, feature::VERSION_1, 2])
                },
                ANYBODY,
            ),
        ],
    ),
    (
        "GET_BACKEND_FEATURES",
        &[
            Row(
                "nowhere",
                |d| d.raw.call(ioctl::GET_BACKEND_FEATURES(), NOWHERE),
                UNREADABLE,
            ),
            Row(
                "u64",
                |d| d.raw.get(ioctl::GET_BACKEND_FEATURES(), &mut 0u64),
                ANYBODY,
            ),
        ],
    ),
    (
        "SET_BACKEND_FEATURES",
        &[
            Row(
                "nowhere",
                |d| d.raw.call(ioctl::SET_BACKEND_FEATURES(), NOWHERE),
                UNREADABLE,
            ),
            Row(
                "bit 2",
                |d| d.raw.put(ioctl::SET_BACKEND_FEATURES(), &4u64),
                UNSUPPORTED,
            ),
            Row(
                "bit 1",
                |d| d.raw.put(ioctl::SET_BACKEND_FEATURES(), &2u64),
                ANYBODY,
            ),
        ],
    ),
    (
        "SET_OWNER",
        &[Row(
            "none",
            |d| d.raw.set_owner(),
            "ok EBUSY EBUSY EBUSY EBUSY ok EBUSY",
        )],
    ),
    (
        "RESET_OWNER",
        &[Row("none", |d| d.raw.reset_owner(), OWNER)],
    ),
    (
        "SET_FORK_FROM_OWNER",
        &[
            Row(
                "nowhere",
                |d| d.raw.call(ioctl::SET_FORK_FROM_OWNER(), NOWHERE),
                "EFAULT EBUSY EBUSY EBUSY EBUSY EFAULT EBUSY",
            ),
            Row(
                "2",
                |d| d.raw.put(ioctl::SET_FORK_FROM_OWNER(), &2u8),
                "EINVAL EBUSY EBUSY EBUSY EBUSY EINVAL EBUSY",
            ),
            Row(
                "1",
                |d| d.raw.put(ioctl::SET_FORK_FROM_OWNER(), &1u8),
                "ok EBUSY EBUSY EBUSY EBUSY ok EBUSY",
            ),
            Row(
                "0",
                |d| d.raw.put(ioctl::SET_FORK_FROM_OWNER(), &0u8),
                "ok EBUSY EBUSY EBUSY EBUSY ok EBUSY",
            ),
        ],
    ),
    (
        "GET_FORK_FROM_OWNER",
        &[
            Row(
                "nowhere",
                |d| d.raw.call(ioctl::GET_FORK_FROM_OWNER(), NOWHERE),
                UNREADABLE,
            ),
            Row(
                "u8",
                |d| d.raw.get(ioctl::GET_FORK_FROM_OWNER(), &mut 0u8),
                ANYBODY,
            ),
        ],
    ),
    (
        "SET_MEM_TABLE",
        &[
            Row(
                "nowhere",
                |d| d.raw.call(ioctl::SET_MEM_TABLE(), NOWHERE),
                NO_POINTER,
            ),
            Row(
                "padding 1",
                |d| d.raw.set_mem_table(1, &[]),
                "EPERM EOPNOTSUPP EOPNOTSUPP EPERM EOPNOTSUPP EPERM EOPNOTSUPP",
            ),
            Row(
                "region of size 0",
                |d| d.raw.set_mem_table(0, &[region(4096, 0, 0)]),
                NO_POINTER,
            ),
            Row(
                "region that wraps",
                |d| d.raw.set_mem_table(0, &[region(u64::MAX - 4095, 8192, 0)]),
                NO_POINTER,
            ),
            Row(
                "kernel address",
                |d| d.raw.set_mem_table(0, &[region(0, 4096, KERNEL)]),
                "EPERM ok ok EPERM EFAULT EPERM ok",
            ),
            Row("no region", |d| d.raw.set_mem_table(0, &[]), OWNER),
            Row(
                "one region",
                |d| d.raw.set_mem_table(0, &[region(0, 4096, 1 << 20)]),
                OWNER,
            ),
        ],
    ),
    (
        "SET_LOG_BASE",
        &[
            Row(
                "nowhere",
                |d| d.raw.call(ioctl::SET_LOG_BASE(), NOWHERE),
                NO_POINTER,
            ),
            Row(
                "kernel address",
                |d| d.raw.put(ioctl::SET_LOG_BASE(), &KERNEL),
                OWNER,
            ),
            Row("0", |d| d.raw.put(ioctl::SET_LOG_BASE(), &0u64), OWNER),
        ],
    ),
    (
        "SET_LOG_FD",
        &[
            Row(
                "nowhere",
                |d| d.raw.call(ioctl::SET_LOG_FD(), NOWHERE),
                NO_POINTER,
            ),
            Row(
                "closed",
                |d| d.raw.put(ioctl::SET_LOG_FD(), &CLOSED),
                NOT_OPEN,
            ),
            Row(
                "/dev/null",
                |d| d.raw.put(ioctl::SET_LOG_FD(), &d.props.null.as_raw_fd()),
                INVALID,
            ),
            Row(
                "eventfd",
                |d| d.raw.put(ioctl::SET_LOG_FD(), &d.props.event.as_raw_fd()),
                OWNER,
            ),
            Row("-1", |d| d.raw.put(ioctl::SET_LOG_FD(), &-1i32), OWNER),
        ],
    ),
    (
        "SET_VRING_NUM",
        &[
            Row(
                "nowhere",
                |d| d.raw.call(ioctl::SET_VRING_NUM(), NOWHERE),
                NO_POINTER,
            ),
            Row("queue 2", |d| d.raw.set_vring_num(2, 256), NO_QUEUE),
            Row(
                "half of it",
                |d| d.half(ioctl::SET_VRING_NUM()),
                STOPPED_UNREADABLE,
            ),
            Row("0", |d| d.raw.set_vring_num(0, 0), STOPPED_INVALID),
            Row("255", |d| d.raw.set_vring_num(0, 255), STOPPED_INVALID),
            Row("65536", |d| d.raw.set_vring_num(0, 65_536), STOPPED_INVALID),
            Row("256", |d| d.raw.set_vring_num(0, 256), STOPPED),
        ],
    ),
    (
        "SET_VRING_BASE",
        &[
            Row(
                "nowhere",
                |d| d.raw.call(ioctl::SET_VRING_BASE(), NOWHERE),
                NO_POINTER,
            ),
            Row("queue 2", |d| d.raw.set_vring_base(2, 0), NO_QUEUE),
            Row(
                "half of it",
                |d| d.half(ioctl::SET_VRING_BASE()),
                STOPPED_UNREADABLE,
            ),
            Row(
                "65536",
                |d| d.raw.set_vring_base(0, 65_536),
                STOPPED_INVALID,
            ),
            Row("65535", |d| d.raw.set_vring_base(0, 65_535), STOPPED),
        ],
    ),
    (
        "GET_VRING_BASE",
        &[
            Row(
                "nowhere",
                |d| d.raw.call(ioctl::GET_VRING_BASE(), NOWHERE),
                NO_POINTER,
            ),
            Row("queue 2", |d| d.state(ioctl::GET_VRING_BASE(), 2), NO_QUEUE),
            Row(
                "read-only",
                |d| d.raw.call(ioctl::GET_VRING_BASE(), d.constant()),
                NO_POINTER,
            ),
            Row("queue 0", |d| d.state(ioctl::GET_VRING_BASE(), 0), OWNER),
        ],
    ),
    (
        "SET_VRING_ADDR",
        &[
            Row(
                "nowhere",
                |d| d.raw.call(ioctl::SET_VRING_ADDR(), NOWHERE),
                NO_POINTER,
            ),
            Row("queue 2", |d| d.addr(|a| a.index = 2), NO_QUEUE),
            Row(
                "half of it",
                |d| d.half(ioctl::SET_VRING_ADDR()),
                NO_POINTER,
            ),
            Row(
                "flag 2",
                |d| d.addr(|a| a.flags = 2),
                "EPERM EOPNOTSUPP EOPNOTSUPP EPERM EOPNOTSUPP EPERM EOPNOTSUPP",
            ),
            Row("odd avail", |d| d.addr(|a| a.avail += 1), INVALID),
            Row("used at 2 mod 4", |d| d.addr(|a| a.used += 2), INVALID),
            Row("log at 2 mod 4", |d| d.addr(|a| a.log = 2), INVALID),
            Row(
                "kernel address",
                |d| d.addr(|a| a.desc = KERNEL),
                "EPERM ok ok EPERM EINVAL EPERM ok",
            ),
            Row("odd desc", |d| d.addr(|a| a.desc += 1), OWNER),
            Row("good", |d| d.addr(|_| ()), OWNER),
        ],
    ),
    ("SET_VRING_KICK", &EVENTS_KICK),
    ("SET_VRING_CALL", &EVENTS_CALL),
    ("SET_VRING_ERR", &EVENTS_ERR),
    (
        "SET_VRING_BUSYLOOP_TIMEOUT",
        &[
            Row(
                "nowhere",
                |d| d.raw.call(ioctl::SET_VRING_BUSYLOOP_TIMEOUT(), NOWHERE),
                NO_POINTER,
            ),
            Row(
                "queue 2",
                |d| d.state(ioctl::SET_VRING_BUSYLOOP_TIMEOUT(), 2),
                NO_QUEUE,
            ),
            Row(
                "half of it",
                |d| d.half(ioctl::SET_VRING_BUSYLOOP_TIMEOUT()),
                NO_POINTER,
            ),
            Row(
                "2^32 - 1",
                |d| {
                    let state = VringState {
                        index: 0,
                        num: u32::MAX,
                    };
                    let set = d.raw.put(ioctl::SET_VRING_BUSYLOOP_TIMEOUT(), &state);
                    // Not left there: it would last for more than an hour.
                    let _ = d.state(ioctl::SET_VRING_BUSYLOOP_TIMEOUT(), 0);
                    set
                },
                OWNER,
            ),
        ],
    ),
    (
        "GET_VRING_BUSYLOOP_TIMEOUT",
        &[
            Row(
                "nowhere",
                |d| d.raw.call(ioctl::GET_VRING_BUSYLOOP_TIMEOUT(), NOWHERE),
                NO_POINTER,
            ),
            Row(
                "queue 2",
                |d| d.state(ioctl::GET_VRING_BUSYLOOP_TIMEOUT(), 2),
                NO_QUEUE,
            ),
            Row(
                "read-only",
                |d| {
                    d.raw
                        .call(ioctl::GET_VRING_BUSYLOOP_TIMEOUT(), d.constant())
                },
                NO_POINTER,
            ),
            Row(
                "queue 0",
                |d| d.state(ioctl::GET_VRING_BUSYLOOP_TIMEOUT(), 0),
                OWNER,
            ),
        ],
    ),
    (
        "NET_SET_BACKEND",
        &[
            Row(
                "nowhere",
                |d| d.raw.call(ioctl::NET_SET_BACKEND(), NOWHERE),
                UNREADABLE,
            ),
            Row("queue 2", |d| d.raw.set_backend(2, -1), NO_QUEUE),
            Row(
                "closed",
                |d| d.raw.set_backend(0, CLOSED),
                "EPERM EFAULT ENOTSOCK EPERM ENOTSOCK EPERM ENOTSOCK",
            ),
            Row(
                "-2",
                |d| d.raw.set_backend(0, -2),
                "EPERM EFAULT ENOTSOCK EPERM ENOTSOCK EPERM ENOTSOCK",
            ),
            Row(
                "eventfd",
                |d| d.raw.set_backend(0, d.props.event.as_raw_fd()),
                "EPERM EFAULT ENOTSOCK EPERM ENOTSOCK EPERM ENOTSOCK",
            ),
            Row(
                "packet socket",
                |d| d.raw.set_backend(0, d.props.socket.as_raw_fd()),
                "EPERM EFAULT ok EPERM ok EPERM EFAULT",
            ),
            Row(
                "the same",
                |d| d.raw.set_backend(0, d.props.socket.as_raw_fd()),
                "EPERM EFAULT ok EPERM ok EPERM EFAULT",
            ),
            Row(
                "-1",
                |d| d.raw.set_backend(0, -1),
                "EPERM EFAULT ok EPERM ok EPERM ok",
            ),
            Row(
                "-1 again",
                |d| d.raw.set_backend(0, -1),
                "EPERM EFAULT ok EPERM ok EPERM ok",
            ),
        ],
    ),
    (
        "NEW_WORKER",
        &[
            Row(
                "nowhere",
                |d| d.raw.call(ioctl::NEW_WORKER(), NOWHERE),
                NO_POINTER,
            ),
            Row("7 in memory", |d| d.state(ioctl::NEW_WORKER(), 7), NO_QUEUE),
            Row("0 in memory", |d| d.state(ioctl::NEW_WORKER(), 0), NO_SUCH),
        ],
    ),
    (
        "FREE_WORKER",
        &[
            Row("7", |d| d.state(ioctl::FREE_WORKER(), 7), NO_QUEUE),
            Row("0", |d| d.state(ioctl::FREE_WORKER(), 0), NO_SUCH),
        ],
    ),
    (
        "ATTACH_VRING_WORKER",
        &[
            Row(
                "queue 2",
                |d| d.state(ioctl::ATTACH_VRING_WORKER(), 2),
                NO_QUEUE,
            ),
            Row(
                "queue 0",
                |d| d.state(ioctl::ATTACH_VRING_WORKER(), 0),
                NO_SUCH,
            ),
        ],
    ),
    (
        "GET_VRING_WORKER",
        &[
            Row(
                "queue 2",
                |d| d.state(ioctl::GET_VRING_WORKER(), 2),
                NO_QUEUE,
            ),
            Row(
                "queue 0",
                |d| d.state(ioctl::GET_VRING_WORKER(), 0),
                NO_SUCH,
            ),
        ],
    ),
    (
        "SET_VRING_ENDIAN",
        &[
            Row(
                "queue 2",
                |d| d.state(ioctl::SET_VRING_ENDIAN(), 2),
                NO_QUEUE,
            ),
            Row(
                "queue 0",
                |d| d.state(ioctl::SET_VRING_ENDIAN(), 0),
                NO_SUCH,
            ),
        ],
    ),
    (
        "unknown_ioctl",
        &[
            Row("nowhere", |d| d.raw.call(0xaf7f, NOWHERE), NO_POINTER),
            Row("2 in memory", |d| d.state(0xaf7f, 2), NO_QUEUE),
            Row("1 in memory", |d| d.state(0xaf7f, 1), NO_SUCH),
        ],
    ),
    (
        "ioctl_of_another_device",
        &[
            Row("nowhere", |d| d.raw.call(0x5401, NOWHERE), NO_POINTER),
            Row("1 in memory", |d| d.state(0x5401, 1), NO_SUCH),
        ],
    ),
    (
        "read",
        &[
            Row("0 bytes", |d| d.read(0, true), ANYBODY),
            Row("71 bytes", |d| d.read(71, true), ANYBODY),
            Row(
                "72 bytes",
                |d| d.read(72, true),
                "EAGAIN EAGAIN EAGAIN EAGAIN EAGAIN EAGAIN EAGAIN",
            ),
            Row(
                "72, blocking",
                |d| d.read(72, false),
                "EBADFD EBADFD EBADFD EBADFD EBADFD EBADFD EBADFD",
            ),
        ],
    ),
    (
        "write",
        &[
            Row(
                "3 bytes",
                |d| d.write(3, 2),
                "EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL",
            ),
            Row(
                "39 bytes",
                |d| d.write(39, 2),
                "EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL",
            ),
            Row(
                "version 3",
                |d| d.write(72, 3),
                "EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL",
            ),
            Row("UPDATE", |d| d.write(72, 2), UNREADABLE),
        ],
    ),
    (
        "poll",
        &[Row(
            "for input",
            |d| {
                let ready = poll::readable(&Borrowed(d.raw.0), Duration::ZERO);
                Ok(i32::from(ready.unwrap_or(true)))
            },
            ANYBODY,
        )],
    ),
    (
        "mmap",
        &[Row(
            "a page",
            |d| d.mmap(),
            "ENODEV ENODEV ENODEV ENODEV ENODEV ENODEV ENODEV",
        )],
    ),
    (
        "lseek",
        &[Row(
            "to 100",
            // SAFETY: Plain system call without pointers.
            |d| Ok(unsafe { libc::lseek(d.raw.0, 100, libc::SEEK_SET) } as i32),
            ANYBODY,
        )],
    ),
];

macro_rules! events {
    ($name:ident, $number:expr) => {
        const $name: [Row; 8] = [
            Row("nowhere", |d| d.raw.call($number, NOWHERE), NO_POINTER),
            Row(
                "queue 2",
                |d| d.raw.set_vring_file($number, 2, -1),
                NO_QUEUE,
            ),
            Row("half of it", |d| d.half($number), NO_POINTER),
            Row(
                "closed",
                |d| d.raw.set_vring_file($number, 0, CLOSED),
                NOT_OPEN,
            ),
            Row("-2", |d| d.raw.set_vring_file($number, 0, -2), NOT_OPEN),
            Row(
                "/dev/null",
                |d| d.raw.set_vring_file($number, 0, d.props.null.as_raw_fd()),
                INVALID,
            ),
            Row(
                "eventfd",
                |d| d.raw.set_vring_file($number, 0, d.props.event.as_raw_fd()),
                OWNER,
            ),
            Row("-1", |d| d.raw.set_vring_file($number, 0, -1), OWNER),
        ];
    };
}

events!(EVENTS_KICK, ioctl::SET_VRING_KICK());
events!(EVENTS_CALL, ioctl::SET_VRING_CALL());
events!(EVENTS_ERR, ioctl::SET_VRING_ERR());

pub(super) fn register(table: &mut Table) {
    for (call, rows) in CALLS {
        table.add(format!("{PREFIX}{call}"), move |ctx| check(ctx, rows));
    }
}

fn region(gpa: u64, size: u64, uaddr: u64) -> ioctl::MemoryRegion {
    ioctl::MemoryRegion {
        gpa,
        size,
        uaddr,
        flags_padding: 0,
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
    let open = || device::open(&ctx.device);
    let call = |raw: Raw| -> Vec<String> {
        let device = Device { raw, props: &props };
        rows.iter().map(|row| name((row.1)(&device))).collect()
    };

    let unowned = open()?;
    let owned = open()?;
    expect("SET_OWNER", Raw::of(&owned).set_owner(), Ok(0))?;
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

/// A device that runs on the rings and the TAP of another, which does not.
fn running(ctx: &Ctx, props: &Props) -> Result<File> {
    let file = device::open(&ctx.device)?;
    let raw = Raw::of(&file);
    expect("SET_OWNER", raw.set_owner(), Ok(0))?;
    expect(
        "SET_MEM_TABLE",
        raw.set_mem_table(0, &[region(0, 4096, 1 << 20)]),
        Ok(0),
    )?;
    for index in [RX, TX] {
        let number = index as u32;
        expect("SET_VRING_NUM", raw.set_vring_num(number, 256), Ok(0))?;
        expect(
            "SET_VRING_ADDR",
            raw.set_vring_addr(&props.vmm.vring_addr(index)?),
            Ok(0),
        )?;
        expect(
            "SET_BACKEND",
            raw.set_backend(number, props.vmm.tap.as_raw_fd()),
            Ok(0),
        )?;
    }
    Ok(file)
}

/// A device that was set up and given up.
fn given_up(ctx: &Ctx, props: &Props) -> Result<File> {
    let file = device::open(&ctx.device)?;
    let raw = Raw::of(&file);
    expect("SET_OWNER", raw.set_owner(), Ok(0))?;
    expect(
        "SET_MEM_TABLE",
        raw.set_mem_table(0, &[region(0, 4096, 1 << 20)]),
        Ok(0),
    )?;
    expect(
        "SET_VRING_ADDR",
        raw.set_vring_addr(&props.vmm.vring_addr(RX)?),
        Ok(0),
    )?;
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
