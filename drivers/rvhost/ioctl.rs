// SPDX-License-Identifier: GPL-2.0
//! The ioctls of `linux/vhost.h`: what is read and checked of each, in the order in which C
//! vhost-net reads and checks it.

use kernel::{
    ioctl::{
        _IO,
        _IOR,
        _IOW,
        _IOWR, //
    },
    prelude::*,
    transmute::{
        AsBytes,
        FromBytes, //
    },
    uaccess::{
        UserPtr,
        UserSlice, //
    },
};

use crate::{
    device::{
        Device,
        Owner,
        BACKEND_FEATURES,
        FEATURES, //
    },
    kext::{
        errno,
        eventfd::EventFd,
        file::FileRef,
        netdev::{
            NetDev,
            Which, //
        },
        param,
        sched, //
    },
    memtable::MemTable,
    placement, steering,
    vcore::{
        addr::{
            Gpa,
            Hva, //
        },
        feat::Features,
        map::Region, //
    },
    virtqueue::Addresses,
};

/// `VHOST_VIRTIO`, the type of all ioctls of vhost devices, and of ours on them.
pub(crate) const VHOST: u32 = 0xaf;

const GET_FEATURES: u32 = _IOR::<u64>(VHOST, 0x00);
const SET_FEATURES: u32 = _IOW::<u64>(VHOST, 0x00);
const SET_OWNER: u32 = _IO(VHOST, 0x01);
const RESET_OWNER: u32 = _IO(VHOST, 0x02);
const SET_MEM_TABLE: u32 = _IOW::<[u32; 2]>(VHOST, 0x03);
const SET_LOG_BASE: u32 = _IOW::<u64>(VHOST, 0x04);
const SET_LOG_FD: u32 = _IOW::<u32>(VHOST, 0x07);
const SET_VRING_NUM: u32 = _IOW::<[u32; 2]>(VHOST, 0x10);
const SET_VRING_ADDR: u32 = _IOW::<[u64; 5]>(VHOST, 0x11);
const SET_VRING_BASE: u32 = _IOW::<[u32; 2]>(VHOST, 0x12);
const GET_VRING_BASE: u32 = _IOWR::<[u32; 2]>(VHOST, 0x12);
const SET_VRING_KICK: u32 = _IOW::<[u32; 2]>(VHOST, 0x20);
const SET_VRING_CALL: u32 = _IOW::<[u32; 2]>(VHOST, 0x21);
const SET_VRING_ERR: u32 = _IOW::<[u32; 2]>(VHOST, 0x22);
const SET_VRING_BUSYLOOP_TIMEOUT: u32 = _IOW::<[u32; 2]>(VHOST, 0x23);
const GET_VRING_BUSYLOOP_TIMEOUT: u32 = _IOW::<[u32; 2]>(VHOST, 0x24);
const SET_BACKEND_FEATURES: u32 = _IOW::<u64>(VHOST, 0x25);
const GET_BACKEND_FEATURES: u32 = _IOR::<u64>(VHOST, 0x26);
const NET_SET_BACKEND: u32 = _IOW::<[u32; 2]>(VHOST, 0x30);
const GET_FEATURES_ARRAY: u32 = _IOR::<u64>(VHOST, 0x83);
const SET_FEATURES_ARRAY: u32 = _IOW::<u64>(VHOST, 0x83);
const SET_FORK_FROM_OWNER: u32 = _IOW::<u8>(VHOST, 0x84);
const GET_FORK_FROM_OWNER: u32 = _IOR::<u8>(VHOST, 0x85);

// include/uapi/linux/rvhost.h
const RVHOST_NET_SET_NETDEV: u32 = _IOW::<[u64; 4]>(VHOST, 0xe0);
const RVHOST_NET_SET_CPUS: u32 = _IOW::<[u64; 2]>(VHOST, 0xe3);
const RVHOST_NET_SET_SOCKET_NETDEV: u32 = _IOW::<[u64; 4]>(VHOST, 0xe4);

/// The one flag of `VHOST_SET_VRING_ADDR`.
const VRING_F_LOG: u32 = 1;

/// Carries out an ioctl.
pub(crate) fn dispatch(device: &Device, cmd: u32, arg: usize) -> Result<isize> {
    let arg = Arg(arg);
    match cmd {
        GET_FEATURES => arg.put(0, &FEATURES.0[0])?,
        SET_FEATURES => set_features(device, [arg.get(0)?, 0])?,
        GET_FEATURES_ARRAY => get_features_array(arg)?,
        SET_FEATURES_ARRAY => set_features_array(device, arg)?,
        GET_BACKEND_FEATURES => arg.put(0, &BACKEND_FEATURES)?,
        SET_BACKEND_FEATURES => {
            let acked: u64 = arg.get(0)?;
            if acked & !BACKEND_FEATURES != 0 {
                return Err(errno::eopnotsupp());
            }
            device.set_backend_features(acked);
        }
        SET_OWNER => device.set_owner().map_err(no_worker)?,
        RESET_OWNER => device.reset_owner()?,
        SET_FORK_FROM_OWNER => device.set_fork_from_owner(|| match arg.get(0)? {
            0u8 => Ok(false),
            1 => Ok(true),
            _ => Err(EINVAL),
        })?,
        GET_FORK_FROM_OWNER => arg.put(0, &u8::from(device.fork_from_owner()?))?,
        NET_SET_BACKEND => {
            let [index, fd] = arg.get::<[u32; 2]>(0)?;
            // CAST: a descriptor is signed, whatever structure it comes in.
            device.owner()?.set_backend(device, index, fd as i32)?;
        }
        SET_MEM_TABLE => set_mem_table(device, &*device.owner()?, arg)?,
        SET_LOG_BASE => {
            let owner = device.owner()?;
            device.set_log_base(&owner, arg.get(0)?)?;
        }
        SET_LOG_FD => {
            let owner = device.owner()?;
            device.set_log_event(&owner, optional_fd(arg.get(0)?, EventFd::get)?)?;
        }
        RVHOST_NET_SET_NETDEV => {
            let owner = device.owner()?;
            let (ifindex, wanted) = steering::netdev(arg)?;
            let index = ifindex.try_into().map_err(|_| ENODEV)?;
            owner.set_netdev(&NetDev::get(&Which::Index(index))?, &wanted)?;
        }
        RVHOST_NET_SET_SOCKET_NETDEV => {
            let owner = device.owner()?;
            owner.set_socket_netdev(steering::socket_netdev(arg)?);
        }
        RVHOST_NET_SET_CPUS => placement::set_cpus(&*device.owner()?, arg)?,
        steering::SET_RSS | steering::GET_RSS | steering::REBALANCE => {
            return steering::ioctl(|| device.steered(), cmd, arg);
        }
        _ => vring(&*device.owner()?, cmd, arg)?,
    }
    Ok(0)
}

/// User space knows one errno for a worker that cannot be had. A signal is no reason to fail: the
/// call is made again when it was delivered.
fn no_worker(e: Error) -> Error {
    if e == EBUSY || e == EINTR || e == ERESTARTNOINTR {
        e
    } else {
        ENOMEM
    }
}

fn set_features(device: &Device, words: [u64; 2]) -> Result {
    for (word, offered) in words.into_iter().zip(FEATURES.0) {
        if word & !offered != 0 {
            return Err(errno::eopnotsupp());
        }
    }
    device.set_features(Features(words))
}

fn get_features_array(arg: Arg) -> Result {
    let count: u64 = arg.get(0)?;
    let known = FEATURES.0.iter().zip(0..count);
    for (word, i) in known {
        arg.put(8 + 8 * i, word)?;
    }
    // The words we do not know are zero, however many there are room for.
    let end = count
        .checked_mul(8)
        .and_then(|n| n.checked_add(8))
        .ok_or(EFAULT)?;
    let mut at = end.min(8 + 8 * FEATURES.0.len() as u64);
    let zeroes = [0; 512];
    while at < end {
        // CAST: at most 512.
        let n = (end - at).min(zeroes.len() as u64) as usize;
        let chunk = zeroes.get(..n).unwrap_or(&[]);
        arg.slice(at, n).writer().write_slice(chunk)?;
        at += n as u64;
        sched::yield_unless_killed()?;
    }
    Ok(())
}

fn set_features_array(device: &Device, arg: Arg) -> Result {
    let count: u64 = arg.get(0)?;
    let mut words = FEATURES.0.map(|_| 0);
    for (word, i) in words.iter_mut().zip(0..count) {
        *word = arg.get(8 + 8 * i)?;
    }
    for i in words.len() as u64..count {
        let at = i
            .checked_mul(8)
            .and_then(|n| n.checked_add(8))
            .ok_or(EFAULT)?;
        if arg.get::<u64>(at)? != 0 {
            return Err(errno::eopnotsupp());
        }
        sched::yield_unless_killed()?;
    }
    set_features(device, words)
}

fn set_mem_table(device: &Device, owner: &Owner, arg: Arg) -> Result {
    let [count, padding] = arg.get::<[u32; 2]>(0)?;
    if padding != 0 {
        return Err(errno::eopnotsupp());
    }
    if count > param::max_mem_regions().into() {
        return Err(E2BIG);
    }
    let mut regions = KVec::with_capacity(count as usize, GFP_KERNEL)?;
    for i in 0..u64::from(count) {
        let [gpa, size, hva, _flags] = arg.get::<[u64; 4]>(8 + 32 * i)?;
        let region = Region::new(Gpa(gpa), size, Hva(hva)).ok_or(EFAULT)?;
        regions.push(region, GFP_KERNEL)?;
    }
    device.set_mem_table(owner, MemTable::new(regions)?)
}

/// The ioctls that concern one queue, whose number comes first in the argument.
fn vring(owner: &Owner, cmd: u32, arg: Arg) -> Result {
    let index: u32 = arg.get(0)?;
    let mut queue = owner.queue(index)?.lock()?;
    let second = || arg.get::<u32>(4);
    match cmd {
        SET_VRING_NUM => {
            queue.stopped()?;
            queue.set_num(second()?)
        }
        SET_VRING_BASE => {
            queue.stopped()?;
            queue.set_base(second()?)
        }
        GET_VRING_BASE => arg.put(0, &[index, queue.base()?]),
        SET_VRING_ADDR => {
            // In the order of the structure: the used ring comes before the available ring.
            let [_, desc, used, avail, log] = arg.get::<[u64; 5]>(0)?;
            let flags = second()?;
            if flags & !VRING_F_LOG != 0 {
                return Err(errno::eopnotsupp());
            }
            if avail % 2 != 0 || used % 4 != 0 || log % 4 != 0 {
                return Err(EINVAL);
            }
            let log = (flags & VRING_F_LOG != 0).then_some(log);
            queue.set_addresses(Addresses {
                desc,
                used,
                avail,
                log,
            })
        }
        SET_VRING_KICK => queue.set_kick(optional_fd(second()?, FileRef::get)?),
        SET_VRING_CALL => queue.set_call(optional_fd(second()?, EventFd::get)?),
        SET_VRING_ERR => queue.set_err(optional_fd(second()?, EventFd::get)?),
        SET_VRING_BUSYLOOP_TIMEOUT => queue.set_busyloop(second()?),
        GET_VRING_BUSYLOOP_TIMEOUT => arg.put(0, &[index, queue.busyloop()?]),
        _ => Err(ENOTTY),
    }
}

/// What the descriptor stands for; -1 stands for nothing.
fn optional_fd<T>(fd: u32, get: impl FnOnce(i32) -> Result<T>) -> Result<Option<T>> {
    // CAST: a descriptor is signed, whatever structure it comes in.
    match fd as i32 {
        -1 => Ok(None),
        fd => get(fd).map(Some),
    }
}

/// The argument of an ioctl: an address in the caller's memory.
#[derive(Clone, Copy)]
pub(crate) struct Arg(pub(crate) usize);

impl Arg {
    /// What an argument points to.
    pub(crate) fn at(addr: u64) -> Self {
        // CAST: as wide on the 64-bit kernels this runs on.
        Self(addr as usize)
    }

    fn slice(self, offset: u64, len: usize) -> UserSlice {
        // CAST: as wide on the 64-bit kernels this runs on. An address that wraps is refused when
        // it is used.
        UserSlice::new(
            UserPtr::from_addr(self.0.wrapping_add(offset as usize)),
            len,
        )
    }

    pub(crate) fn get<T: FromBytes>(self, offset: u64) -> Result<T> {
        self.slice(offset, size_of::<T>()).reader().read()
    }

    pub(crate) fn put<T: AsBytes>(self, offset: u64, value: &T) -> Result {
        self.slice(offset, size_of::<T>()).writer().write(value)
    }
}
