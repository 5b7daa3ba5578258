// SPDX-License-Identifier: GPL-2.0
//! The arguments of the ioctls about ports: `include/uapi/linux/rvhost.h`.

use kernel::{
    ioctl::{
        _IOR,
        _IOW, //
    },
    prelude::*, //
};

use crate::{
    ioctl::{
        Arg,
        VHOST, //
    },
    kext::port::{
        rss::{
            random_symmetric_key,
            Rss, //
        },
        vtap::{
            Vtap,
            VtapQueue, //
        },
        Port,
        Wanted,
        MAX_QUEUES, //
    },
    vcore::rss::{
        types,
        Key,
        Table,
        KEY_BYTES,
        MAX_ENTRIES, //
    },
};

const ANY_QUEUE: u32 = u32::MAX;
const PROMISC: u32 = 1 << 0;
/// Packets that may wait for the guest, unless it is said.
const RING: u32 = 1024;

const SET_TYPES: u32 = 1 << 0;
const SET_UNCLASSIFIED: u32 = 1 << 1;
const SET_KEY: u32 = 1 << 2;
const SET_SYMMETRIC: u32 = 1 << 3;
const SET_TABLE: u32 = 1 << 4;
const SET_EVEN: u32 = 1 << 5;
const SET_ALL: u32 = (1 << 6) - 1;

// Where the fields of `struct rvhost_net_rss` are.
const NUMBERS_AT: u64 = 8;
const KEY_AT: u64 = 16;
const TABLE_AT: u64 = 56;
const CARRIED_AT: u64 = 312;
const RSS_BYTES: usize = 1336;

pub(crate) const SET_RSS: u32 = _IOW::<[u8; RSS_BYTES]>(VHOST, 0xe1);
pub(crate) const GET_RSS: u32 = _IOR::<[u8; RSS_BYTES]>(VHOST, 0xe1);
pub(crate) const REBALANCE: u32 = _IOW::<u32>(VHOST, 0xe2);

/// What a queue sits on of a port.
pub(crate) enum Seat {
    Port(Port),
    Vtap(VtapQueue),
}

/// A port that is steered.
pub(crate) enum Steered {
    Port(Port),
    Vtap(Vtap),
}

impl Seat {
    /// What is steered there.
    pub(crate) fn steered(&self) -> Steered {
        match self {
            Self::Port(port) => Steered::Port(port.clone()),
            Self::Vtap(queue) => Steered::Vtap(queue.port().clone()),
        }
    }
}

impl Steered {
    fn rss(&self) -> Result<Rss> {
        match self {
            Self::Port(port) => Ok(port.rss()),
            Self::Vtap(port) => port.rss(),
        }
    }

    fn carried(&self, each: impl FnMut(u64) -> Result) -> Result {
        match self {
            Self::Port(port) => port.carried().try_for_each(each),
            Self::Vtap(port) => port.carried().try_for_each(each),
        }
    }

    fn change_rss(&self, change: impl FnOnce(&mut Rss) -> Result) -> Result {
        match self {
            Self::Port(port) => port.change_rss(change),
            Self::Vtap(port) => port.change_rss(change),
        }
    }

    fn rebalance(&self, max: usize) -> Result<usize> {
        match self {
            Self::Port(port) => port.rebalance(max),
            Self::Vtap(port) => port.rebalance(max),
        }
    }
}

/// Carries out an ioctl that concerns the port that `port` gets; `ENOTTY` if `cmd` is none.
pub(crate) fn ioctl(port: impl FnOnce() -> Result<Steered>, cmd: u32, arg: Arg) -> Result<isize> {
    match cmd {
        SET_RSS => set_rss(&port()?, arg)?,
        GET_RSS => get_rss(&port()?, arg)?,
        REBALANCE => {
            let max: u32 = arg.get(0)?;
            let moved = port()?.rebalance(max as usize)?;
            // At most the entries of a table.
            return isize::try_from(moved).map_err(|_| EINVAL);
        }
        _ => return Err(ENOTTY),
    }
    Ok(0)
}

/// A device's index, and what is to run there: `struct rvhost_net_netdev`.
pub(crate) fn netdev(arg: Arg) -> Result<(u32, Wanted)> {
    let [ifindex, flags, queue, offloads, ring, sndbuf, a, b] = arg.get::<[u32; 8]>(0)?;
    if flags & !PROMISC != 0 || [a, b] != [0; 2] {
        return Err(EINVAL);
    }
    let sndbuf = match sndbuf {
        0 => i32::MAX,
        bytes => bytes.try_into().map_err(|_| EINVAL)?,
    };
    let queue = match queue {
        ANY_QUEUE => None,
        number => Some(number as usize),
    };
    let wanted = Wanted {
        queue,
        promiscuous: flags & PROMISC != 0,
        all_groups: false,
        alone: false,
        offloads,
        ring: if ring == 0 { RING } else { ring } as usize,
        sndbuf,
    };
    Ok((ifindex, wanted))
}

/// The argument of `RVHOST_NET_SET_SOCKET_NETDEV`: what is to run where sockets are bound to, if that
/// is wanted.
pub(crate) fn socket_netdev(arg: Arg) -> Result<Option<Wanted>> {
    if arg.0 == 0 {
        return Ok(None);
    }
    match netdev(arg)? {
        (0, wanted) => Ok(Some(wanted)),
        _ => Err(EINVAL),
    }
}

/// `RVHOST_NET_SET_RSS`.
fn set_rss(port: &Steered, arg: Arg) -> Result {
    let [flags, hash_types] = arg.get::<[u32; 2]>(0)?;
    let [unclassified, table_len, key_len, reserved] = arg.get::<[u16; 4]>(NUMBERS_AT)?;
    let on = |flag| flags & flag != 0;
    let both = |one, other| on(one) && on(other);
    if flags & !SET_ALL != 0
        || reserved != 0
        || both(SET_KEY, SET_SYMMETRIC)
        || both(SET_TABLE, SET_EVEN)
        || on(SET_TYPES) && hash_types & !types::ALL != 0
        || on(SET_UNCLASSIFIED) && usize::from(unclassified) >= MAX_QUEUES
    {
        return Err(EINVAL);
    }
    let key = match flags & (SET_KEY | SET_SYMMETRIC) {
        SET_KEY => {
            let bytes = arg.get::<[u8; KEY_BYTES]>(KEY_AT)?;
            let bytes = bytes.get(..key_len.into()).ok_or(EINVAL)?;
            Some(Key::new(bytes).ok_or(EINVAL)?)
        }
        SET_SYMMETRIC => Some(random_symmetric_key()),
        _ => None,
    };
    let table = if on(SET_TABLE) {
        let entries = arg.get::<[u16; MAX_ENTRIES]>(TABLE_AT)?;
        let entries = entries.get(..table_len.into()).ok_or(EINVAL)?;
        if entries
            .iter()
            .any(|&queue| usize::from(queue) >= MAX_QUEUES)
        {
            return Err(EINVAL);
        }
        Some(Table::new(entries).ok_or(EINVAL)?)
    } else {
        None
    };
    port.change_rss(|rss| {
        if on(SET_TYPES) {
            rss.types = hash_types;
        }
        if on(SET_UNCLASSIFIED) {
            rss.unclassified = unclassified;
        }
        if let Some(key) = key {
            rss.key = key;
        }
        if let Some(table) = table {
            rss.table = table;
            rss.even = false;
        }
        if on(SET_EVEN) {
            rss.even = true;
        }
        Ok(())
    })
}

/// `RVHOST_NET_GET_RSS`.
fn get_rss(port: &Steered, arg: Arg) -> Result {
    let Rss {
        types,
        unclassified,
        key,
        table,
        even,
    } = port.rss()?;
    let entries = table.entries();
    arg.put(0, &[if even { SET_EVEN } else { 0 }, types])?;
    // CAST: small.
    let (table_len, key_len) = (entries.len() as u16, KEY_BYTES as u16);
    arg.put(NUMBERS_AT, &[unclassified, table_len, key_len, 0])?;
    arg.put(KEY_AT, &key.0)?;
    let mut all = [0u16; MAX_ENTRIES];
    for (to, &queue) in all.iter_mut().zip(entries) {
        *to = queue;
    }
    arg.put(TABLE_AT, &all)?;
    let mut at = CARRIED_AT;
    port.carried(|carried| {
        arg.put(at, &carried)?;
        at += 8;
        Ok(())
    })
}
