// SPDX-License-Identifier: GPL-2.0

//! What every call on a vhost-net device returns, in whatever order they
//! come: the control plane of Linux's vhost-net without its data path.

use crate::case::Module;
use crate::device::feature;
use crate::errno::Errno;
use crate::ioctl;
use crate::ioctl::Outcome;

const LOG_ALL: u64 = 1 << 26;
const EVENT_IDX: u64 = 1 << 29;
const ACCESS_PLATFORM: u64 = 1 << 33;
/// Bytes of an IOTLB message.
const MESSAGE: usize = 72;

/// The memory that an argument points to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Arg {
    /// What is there; behind it is nothing.
    pub(crate) bytes: Vec<u8>,
    /// Whether it can be written.
    pub(crate) writable: bool,
}

type Got<T> = Result<T, Errno>;

const fn fail<T>(errno: libc::c_int) -> Got<T> {
    Err(Errno(errno))
}

impl Arg {
    fn get<const N: usize>(&self, at: usize) -> Got<[u8; N]> {
        let end = at.checked_add(N).ok_or(Errno(libc::EFAULT))?;
        let bytes = self.bytes.get(at..end).ok_or(Errno(libc::EFAULT))?;
        bytes.try_into().map_err(|_| Errno(libc::EFAULT))
    }

    fn u32(&self, at: usize) -> Got<u32> {
        self.get(at).map(u32::from_ne_bytes)
    }

    fn u64(&self, at: usize) -> Got<u64> {
        self.get(at).map(u64::from_ne_bytes)
    }

    fn put(&mut self, at: usize, value: &[u8]) -> Got<()> {
        let end = at.checked_add(value.len()).ok_or(Errno(libc::EFAULT))?;
        let room = self.bytes.get_mut(at..end).filter(|_| self.writable);
        room.ok_or(Errno(libc::EFAULT))?.copy_from_slice(value);
        Ok(())
    }
}

/// What a file descriptor stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Not open.
    Closed,
    /// An eventfd.
    Event,
    /// A TAP or a raw packet socket.
    Socket,
    /// A tun file without an interface.
    Unattached,
    /// Anything else.
    Other,
}

/// The process that the calls are made in, as far as the device can tell.
#[derive(Clone, Debug)]
pub(crate) struct World {
    /// The implementation.
    pub(crate) module: Module,
    /// Descriptors that are open.
    pub(crate) files: Vec<(i32, Kind)>,
    /// Memory that can be written, and memory that can only be read.
    pub(crate) writable: Vec<std::ops::Range<u64>>,
    /// First address that is not user space's.
    pub(crate) user_end: u64,
    /// Regions that a memory table may have.
    pub(crate) max_regions: u32,
    /// What VHOST_GET_FORK_FROM_OWNER says of a new device.
    pub(crate) fork_default: bool,
}

impl World {
    fn kind(&self, fd: i32) -> Kind {
        let found = self.files.iter().find(|(number, _)| *number == fd);
        found.map_or(Kind::Closed, |(_, kind)| *kind)
    }

    fn event(&self, fd: i32) -> Got<()> {
        match self.kind(fd) {
            _ if fd == -1 => Ok(()),
            Kind::Event => Ok(()),
            Kind::Closed => fail(libc::EBADF),
            _ => fail(libc::EINVAL),
        }
    }

    /// Whether a range may be user memory, mapped or not.
    fn in_user_range(&self, addr: u64, len: u64) -> bool {
        addr.checked_add(len)
            .is_some_and(|end| end <= self.user_end)
    }

    fn is_writable(&self, addr: u64, len: u64) -> bool {
        let holds = |range: &std::ops::Range<u64>| {
            addr >= range.start && addr.checked_add(len).is_some_and(|end| end <= range.end)
        };
        self.writable.iter().any(holds)
    }

    /// Whether the bits for `size` bytes at `start` may be user memory.
    fn log_fits(&self, base: u64, start: u64, size: u64) -> bool {
        const BITS: u64 = 4096 * 8;
        let bytes = size.saturating_add(BITS - 1) / BITS;
        let first = base.checked_add(start / BITS);
        first.is_some_and(|first| self.in_user_range(first, bytes))
    }
}

#[derive(Clone, Debug, Default)]
struct Region {
    gpa: u64,
    size: u64,
    uaddr: u64,
}

#[derive(Clone, Debug)]
struct Mapping {
    first: u64,
    last: u64,
    uaddr: u64,
    perm: u8,
}

/// The translations of a device.
#[derive(Clone, Debug, Default)]
struct Iotlb {
    mappings: Vec<Mapping>,
    /// Something was done to it whose result is not modelled.
    vague: bool,
}

#[derive(Clone, Debug)]
struct Queue {
    num: u32,
    desc: u64,
    avail: u64,
    used: u64,
    log: Option<u64>,
    log_base: u64,
    /// Unknown once the queue has run.
    base: Option<u32>,
    busyloop: u32,
    backend: Option<i32>,
}

impl Default for Queue {
    fn default() -> Self {
        Self {
            num: 1,
            desc: 0,
            avail: 0,
            used: 0,
            log: None,
            log_base: 0,
            base: Some(0),
            busyloop: 0,
            backend: None,
        }
    }
}

impl Queue {
    fn forget_addresses(&mut self) {
        (self.desc, self.avail, self.used, self.log) = (0, 0, 0, None);
    }

    fn used_size(&self, features: u64) -> u64 {
        4 + 8 * u64::from(self.num) + if features & EVENT_IDX != 0 { 2 } else { 0 }
    }
}

/// A call other than an ioctl, or an ioctl.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Op {
    /// Any ioctl; `None` is a pointer to nothing.
    Ioctl(libc::c_ulong, Option<Arg>),
    /// A read of so many bytes; waits only where it returns at once.
    Read { len: usize, wait: bool },
    /// A write.
    Write(Vec<u8>),
    /// Whether there is something to read.
    Poll,
}

/// A device.
#[derive(Clone, Debug, Default)]
pub(crate) struct Model {
    /// Which of the processes owns it.
    owner: Option<usize>,
    fork: bool,
    /// None until the first one is set.
    table: Option<Vec<Region>>,
    features: u64,
    iotlb: Option<Iotlb>,
    queues: [Queue; 2],
}

impl Model {
    /// A device that was just opened.
    pub(crate) fn new(world: &World) -> Self {
        Self {
            fork: world.fork_default,
            ..Self::default()
        }
    }

    /// Whether a read that waits would not return at once.
    pub(crate) fn read_waits(&self) -> bool {
        self.iotlb.is_some()
    }

    /// Follows a call by process `who` that returned `seen` and left `after`
    /// in its argument; tells what it should have returned where that is
    /// something else.
    pub(crate) fn follow(
        &mut self,
        world: &World,
        who: usize,
        op: &Op,
        seen: Outcome,
        after: Option<&Arg>,
    ) -> Result<(), String> {
        let wanted = match op {
            Op::Ioctl(number, arg) => {
                let mut arg = arg.clone().unwrap_or(Arg {
                    bytes: Vec::new(),
                    writable: false,
                });
                let wanted = self.ioctl(world, who, *number, &mut arg, (seen, after));
                if wanted == seen && seen.is_ok() && after.is_some_and(|after| *after != arg) {
                    return Err(format!("should have written {:02x?}", arg.bytes));
                }
                wanted
            }
            Op::Read { len, wait } => self.read(*len, *wait, seen),
            Op::Write(bytes) => self.write(world, bytes),
            Op::Poll => match &self.iotlb {
                Some(_) => seen,
                None => Ok(0),
            },
        };
        if wanted == seen {
            Ok(())
        } else {
            Err(format!("should have returned {wanted:?}"))
        }
    }

    fn ioctl(
        &mut self,
        world: &World,
        who: usize,
        number: libc::c_ulong,
        arg: &mut Arg,
        (seen, after): (Outcome, Option<&Arg>),
    ) -> Outcome {
        let done = if number == ioctl::GET_FEATURES() {
            arg.put(0, &feature::offered(world.module)[0].to_ne_bytes())
        } else if number == ioctl::SET_FEATURES() {
            arg.u64(0)
                .and_then(|word| self.set_features(world, [word, 0]))
        } else if number == ioctl::GET_FEATURES_ARRAY() {
            get_array(world.module, arg)
        } else if number == ioctl::SET_FEATURES_ARRAY() {
            set_array(arg).and_then(|words| self.set_features(world, words))
        } else if number == ioctl::GET_BACKEND_FEATURES() {
            arg.put(0, &2u64.to_ne_bytes())
        } else if number == ioctl::SET_BACKEND_FEATURES() {
            arg.u64(0).and_then(|word| match word & !2 {
                0 => Ok(()),
                _ => fail(libc::EOPNOTSUPP),
            })
        } else if number == ioctl::SET_OWNER() {
            match self.owner {
                Some(_) => fail(libc::EBUSY),
                None => {
                    self.owner = Some(who);
                    Ok(())
                }
            }
        } else if number == ioctl::RESET_OWNER() {
            self.owned(who).map(|()| {
                *self = Self {
                    table: Some(Vec::new()),
                    ..Self::new(world)
                }
            })
        } else if number == ioctl::SET_FORK_FROM_OWNER() {
            self.set_fork(arg)
        } else if number == ioctl::GET_FORK_FROM_OWNER() {
            arg.put(0, &[u8::from(self.fork)])
        } else if number == ioctl::NET_SET_BACKEND() {
            match (arg.u32(0), arg.u32(4)) {
                (Ok(index), Ok(fd)) => self
                    .owned(who)
                    .and_then(|()| self.set_backend(world, index, fd as i32, seen)),
                _ => fail(libc::EFAULT),
            }
        } else {
            self.owned(who)
                .and_then(|()| self.owner_ioctl(world, number, arg, after))
        };
        done.map(|()| 0)
    }

    fn owned(&self, who: usize) -> Got<()> {
        if self.owner == Some(who) {
            Ok(())
        } else {
            fail(libc::EPERM)
        }
    }

    fn set_fork(&mut self, arg: &Arg) -> Got<()> {
        if self.owner.is_some() {
            return fail(libc::EBUSY);
        }
        match arg.get::<1>(0)? {
            [value @ (0 | 1)] => self.fork = value == 1,
            _ => return fail(libc::EINVAL),
        }
        Ok(())
    }

    fn owner_ioctl(
        &mut self,
        world: &World,
        number: libc::c_ulong,
        arg: &mut Arg,
        after: Option<&Arg>,
    ) -> Got<()> {
        if number == ioctl::SET_MEM_TABLE() {
            return self.set_mem_table(world, arg);
        }
        if number == ioctl::SET_LOG_BASE() {
            return self.set_log_base(world, arg.u64(0)?);
        }
        if number == ioctl::SET_LOG_FD() {
            return world.event(arg.u32(0)? as i32);
        }
        let index = arg.u32(0)? as usize;
        if index >= 2 {
            return fail(libc::ENOBUFS);
        }
        let is_virtual = self.iotlb.is_some();
        let features = self.features;
        let queue = &mut self.queues[index];
        if number == ioctl::SET_VRING_NUM() || number == ioctl::SET_VRING_BASE() {
            if queue.backend.is_some() {
                return fail(libc::EBUSY);
            }
            let value = arg.u32(4)?;
            if number == ioctl::SET_VRING_BASE() {
                if value > 0xffff {
                    return fail(libc::EINVAL);
                }
                queue.base = Some(value);
            } else {
                if !value.is_power_of_two() || value > 0xffff {
                    return fail(libc::EINVAL);
                }
                queue.num = value;
            }
            Ok(())
        } else if number == ioctl::GET_VRING_BASE() {
            // Where it is not known, it is what was seen.
            let seen = after.and_then(|after| after.u32(4).ok());
            let base = queue.base.or(seen).unwrap_or_default();
            arg.get::<8>(0)?;
            arg.put(4, &base.to_ne_bytes())
        } else if number == ioctl::SET_VRING_ADDR() {
            arg.get::<40>(0)?;
            let [desc, used, avail, log] = [8, 16, 24, 32].map(|at| arg.u64(at));
            let (desc, used, avail, log) = (desc?, used?, avail?, log?);
            let flags = arg.u32(4)?;
            if flags & !1 != 0 {
                return fail(libc::EOPNOTSUPP);
            }
            if avail % 2 != 0 || used % 4 != 0 || log % 4 != 0 {
                return fail(libc::EINVAL);
            }
            let new = Queue {
                desc,
                used,
                avail,
                log: (flags == 1).then_some(log),
                ..queue.clone()
            };
            if new.backend.is_some()
                && !is_virtual
                && !(ring_fits(world, &new, features) && used_log_fits(world, &new, features))
            {
                return fail(libc::EINVAL);
            }
            *queue = new;
            Ok(())
        } else if number == ioctl::SET_VRING_KICK()
            || number == ioctl::SET_VRING_CALL()
            || number == ioctl::SET_VRING_ERR()
        {
            world.event(arg.u32(4)? as i32)
        } else if number == ioctl::SET_VRING_BUSYLOOP_TIMEOUT() {
            queue.busyloop = arg.u32(4)?;
            Ok(())
        } else if number == ioctl::GET_VRING_BUSYLOOP_TIMEOUT() {
            arg.put(4, &queue.busyloop.to_ne_bytes())
        } else {
            fail(libc::ENOTTY)
        }
    }

    fn set_features(&mut self, world: &World, words: [u64; 2]) -> Got<()> {
        if words
            .iter()
            .zip(feature::offered(world.module))
            .any(|(word, offered)| word & !offered != 0)
        {
            return fail(libc::EOPNOTSUPP);
        }
        if words[0] & LOG_ALL != 0 {
            for queue in &self.queues {
                if queue.backend.is_some() && !self.table_fits(world, queue.log_base, true) {
                    return fail(libc::EFAULT);
                }
            }
        }
        let was_virtual = self.iotlb.is_some();
        let is_virtual = words[0] & ACCESS_PLATFORM != 0;
        self.iotlb = is_virtual.then(Iotlb::default);
        if was_virtual != is_virtual {
            self.queues.iter_mut().for_each(Queue::forget_addresses);
        }
        self.features = words[0];
        Ok(())
    }

    /// Whether memory, and its log where there is one, may be user memory.
    fn table_fits(&self, world: &World, log_base: u64, log: bool) -> bool {
        let fits = |region: &Region| {
            world.in_user_range(region.uaddr, region.size)
                && (!log || world.log_fits(log_base, region.gpa, region.size))
        };
        self.table
            .as_ref()
            .is_some_and(|table| table.iter().all(fits))
    }

    fn log_fits(&self, world: &World, queue: &Queue, base: u64) -> bool {
        let moved = Queue {
            log_base: base,
            ..queue.clone()
        };
        self.table_fits(world, base, self.features & LOG_ALL != 0)
            && (self.iotlb.is_some() || used_log_fits(world, &moved, self.features))
    }

    fn set_mem_table(&mut self, world: &World, arg: &Arg) -> Got<()> {
        arg.get::<8>(0)?;
        let (count, padding) = (arg.u32(0)?, arg.u32(4)?);
        if padding != 0 {
            return fail(libc::EOPNOTSUPP);
        }
        if count > world.max_regions {
            return fail(libc::E2BIG);
        }
        let mut table = Vec::new();
        for i in 0..count as usize {
            let at = 8 + 32 * i;
            arg.get::<32>(at)?;
            let (gpa, mut size) = (arg.u64(at)?, arg.u64(at + 8)?);
            let last = gpa.wrapping_add(size).wrapping_sub(1);
            if last < gpa {
                return fail(libc::EFAULT);
            }
            if size == 0 {
                if world.module == Module::Rust {
                    return fail(libc::EFAULT);
                }
                // C takes it as everything, which is nowhere in user space.
                size = u64::MAX;
            }
            let uaddr = arg.u64(at + 16)?;
            table.push(Region { gpa, size, uaddr });
        }
        let old = self.table.replace(table);
        let log = self.features & LOG_ALL != 0;
        for queue in &self.queues {
            if queue.backend.is_some() && !self.table_fits(world, queue.log_base, log) {
                self.table = old;
                return fail(libc::EFAULT);
            }
        }
        Ok(())
    }

    fn set_log_base(&mut self, world: &World, base: u64) -> Got<()> {
        let fits = |queue: &Queue| queue.backend.is_none() || self.log_fits(world, queue, base);
        let fit = [0, 1].map(|i| fits(&self.queues[i]));
        let all = fit == [true; 2];
        for (queue, fits) in self.queues.iter_mut().zip(fit) {
            // C switches the queues for which it is good.
            if all || (fits && world.module == Module::C) {
                queue.log_base = base;
            }
        }
        if all {
            Ok(())
        } else {
            fail(libc::EFAULT)
        }
    }

    fn set_backend(&mut self, world: &World, index: u32, fd: i32, seen: Outcome) -> Got<()> {
        let index = index as usize;
        if index >= 2 {
            return fail(libc::ENOBUFS);
        }
        let queue = &self.queues[index];
        if !self.log_fits(world, queue, queue.log_base)
            || (self.iotlb.is_none() && !ring_fits(world, queue, self.features))
        {
            return fail(libc::EFAULT);
        }
        if fd == -1 {
            self.queues[index].backend = None;
            return Ok(());
        }
        let kind = world.kind(fd);
        if !matches!(kind, Kind::Socket | Kind::Unattached) {
            return fail(libc::ENOTSOCK);
        }
        if queue.backend == Some(fd) {
            return Ok(());
        }
        match self.used_writable(world, queue) {
            Some(true) => {}
            Some(false) => return fail(libc::EFAULT),
            // Not modelled: as it was.
            None if seen == fail(libc::EFAULT) => return fail(libc::EFAULT),
            None => {}
        }
        if kind == Kind::Unattached {
            return fail(libc::EINVAL);
        }
        let queue = &mut self.queues[index];
        queue.backend = Some(fd);
        // The available index in memory is 0: with another base it may run.
        queue.base = queue.base.filter(|base| *base == 0);
        Ok(())
    }

    /// Whether the start of the used ring can be written; not always known.
    fn used_writable(&self, world: &World, queue: &Queue) -> Option<bool> {
        let Some(iotlb) = &self.iotlb else {
            return Some(world.is_writable(queue.used, 4));
        };
        if iotlb.vague {
            return None;
        }
        let last = queue.used + 3;
        let covers = |m: &&Mapping| m.first <= last && m.last >= queue.used;
        let touching: Vec<&Mapping> = iotlb.mappings.iter().filter(covers).collect();
        match touching[..] {
            [] => Some(false),
            [m] if m.first <= queue.used && m.last >= last && m.perm == 3 => {
                let at = m.uaddr.wrapping_add(queue.used - m.first);
                Some(world.is_writable(at, 4))
            }
            // Which of them, and with which permission, is not modelled.
            _ => None,
        }
    }

    fn read(&self, len: usize, wait: bool, seen: Outcome) -> Outcome {
        if len < MESSAGE {
            return Ok(0);
        }
        match &self.iotlb {
            // Queues may or may not miss something.
            Some(_) if [Ok(MESSAGE as i32), fail(libc::EAGAIN)].contains(&seen) => seen,
            Some(_) => fail(libc::EAGAIN),
            None if wait => fail(libc::EBADFD),
            None => fail(libc::EAGAIN),
        }
    }

    fn write(&mut self, world: &World, bytes: &[u8]) -> Outcome {
        let arg = Arg {
            bytes: bytes.to_vec(),
            writable: false,
        };
        let invalid = fail(libc::EINVAL);
        if !matches!(arg.u32(0), Ok(1 | 2)) || arg.get::<32>(8).is_err() {
            return invalid;
        }
        let [iova, size, uaddr] = [8, 16, 24].map(|at| arg.u64(at));
        let (iova, size, uaddr) = (iova?, size?, uaddr?);
        let [perm, kind] = arg.get::<2>(32)?;
        if kind == 2 && size == 0 {
            return invalid;
        }
        let iotlb = self.iotlb.as_mut().ok_or(Errno(libc::EFAULT))?;
        let last = iova.wrapping_add(size).wrapping_sub(1);
        match kind {
            2 => {
                if uaddr.checked_add(size - 1).is_none()
                    || (perm & 3 != 0 && !world.in_user_range(uaddr, size))
                    || last < iova
                {
                    return fail(libc::EFAULT);
                }
                iotlb.mappings.push(Mapping {
                    first: iova,
                    last,
                    uaddr,
                    perm,
                });
            }
            // C and the replacement differ in what an empty range removes.
            3 if size == 0 => iotlb.vague = true,
            3 => {
                let last = if last < iova { u64::MAX } else { last };
                iotlb.vague |= iova.checked_add(size - 1).is_none();
                iotlb.mappings.retain(|m| m.last < iova || m.first > last);
            }
            _ => return fail(libc::EFAULT),
        }
        Ok(MESSAGE as i32)
    }
}

fn ring_fits(world: &World, queue: &Queue, features: u64) -> bool {
    let num = u64::from(queue.num);
    let event = if features & EVENT_IDX != 0 { 2 } else { 0 };
    world.in_user_range(queue.desc, 16 * num)
        && world.in_user_range(queue.avail, 4 + 2 * num + event)
        && world.in_user_range(queue.used, queue.used_size(features))
}

fn used_log_fits(world: &World, queue: &Queue, features: u64) -> bool {
    queue
        .log
        .is_none_or(|log| world.log_fits(queue.log_base, log, queue.used_size(features)))
}

fn get_array(module: Module, arg: &mut Arg) -> Got<()> {
    let count = arg.u64(0)?;
    let end = count.checked_mul(8).and_then(|len| len.checked_add(8));
    match end {
        Some(end) if end <= arg.bytes.len() as u64 => {
            for i in 0..count as usize {
                let word = feature::offered(module).get(i).copied().unwrap_or(0);
                arg.put(8 + 8 * i, &word.to_ne_bytes())?;
            }
            Ok(())
        }
        _ => fail(libc::EFAULT),
    }
}

fn set_array(arg: &Arg) -> Got<[u64; 2]> {
    let count = arg.u64(0)?;
    let mut words = [0; 2];
    for (i, word) in (0..count).zip(&mut words) {
        *word = arg.u64(8 + 8 * i as usize)?;
    }
    for i in 2..count {
        if arg.u64(8 + 8 * i as usize)? != 0 {
            return fail(libc::EOPNOTSUPP);
        }
    }
    Ok(words)
}
