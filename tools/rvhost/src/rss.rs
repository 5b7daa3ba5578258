// SPDX-License-Identifier: GPL-2.0

//! How the queues on a network device share what it receives: `include/uapi/linux/rvhost.h`.

use std::fmt::Write as _;
use std::io;
use std::os::fd::AsRawFd;
use std::os::fd::FromRawFd;
use std::os::fd::OwnedFd;
use std::str::FromStr;

use anyhow::bail;
use anyhow::Context;
use anyhow::Result;
use clap::Args;
use serde_json::json;
use serde_json::Value;

use crate::system::Found;
use crate::system::Open;

const SET: libc::c_ulong = 0x4538_afe1;
const GET: libc::c_ulong = 0x8538_afe1;
const REBALANCE: libc::c_ulong = 0x4004_afe2;

const F_TYPES: u32 = 1 << 0;
const F_UNCLASSIFIED: u32 = 1 << 1;
const F_KEY: u32 = 1 << 2;
const F_SYMMETRIC: u32 = 1 << 3;
const F_TABLE: u32 = 1 << 4;
const F_EVEN: u32 = 1 << 5;

/// The bits of `hash_types`, lowest first (virtio 1.3, 5.1.6.4.3.1).
const TYPES: [&str; 9] = [
    "ipv4", "tcp4", "udp4", "ipv6", "tcp6", "udp6", "ip6-ex", "tcp6-ex", "udp6-ex",
];

/// `struct rvhost_net_rss`.
#[repr(C)]
#[derive(Clone)]
struct Raw {
    flags: u32,
    hash_types: u32,
    unclassified: u16,
    table_len: u16,
    key_len: u16,
    reserved: u16,
    key: [u8; 40],
    table: [u16; 128],
    carried: [u64; 128],
}

impl Raw {
    fn new() -> Self {
        Self {
            flags: 0,
            hash_types: 0,
            unclassified: 0,
            table_len: 0,
            key_len: 0,
            reserved: 0,
            key: [0; 40],
            table: [0; 128],
            carried: [0; 128],
        }
    }

    fn table(&self) -> &[u16] {
        &self.table[..usize::from(self.table_len).min(self.table.len())]
    }
}

/// What is to change.
#[derive(Args, Clone, Debug)]
pub(crate) struct Change {
    /// What is hashed: of ipv4, tcp4, udp4, ipv6, tcp6, udp6, ip6-ex, tcp6-ex, udp6-ex; or none
    #[arg(long, value_name = "LIST")]
    types: Option<Types>,
    /// The queue for what cannot be hashed
    #[arg(long, value_name = "QUEUE")]
    unclassified: Option<u16>,
    /// The key, up to 40 bytes as hexadecimal digits
    #[arg(long, value_name = "HEX", conflicts_with = "symmetric")]
    key: Option<Key>,
    /// A new random key for which both directions of a flow are alike
    #[arg(long)]
    symmetric: bool,
    /// The queue of each entry, as 0,1,2,3: as many as a power of two, up to 128
    #[arg(
        long,
        value_name = "QUEUES",
        value_delimiter = ',',
        conflicts_with = "even"
    )]
    table: Option<Vec<u16>>,
    /// A table that follows the queues there are, evenly
    #[arg(long)]
    even: bool,
}

/// Bits of `hash_types`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Types(u32);

impl FromStr for Types {
    type Err = String;

    fn from_str(list: &str) -> Result<Self, String> {
        if list == "none" {
            return Ok(Self(0));
        }
        let bit = |name: &str| {
            let at = TYPES.iter().position(|known| *known == name);
            at.map(|at| 1 << at)
                .ok_or(format!("there is no type {name}"))
        };
        list.split(',')
            .try_fold(0, |bits, name| Ok(bits | bit(name)?))
            .map(Self)
    }
}

/// The bytes of a key.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Key(Vec<u8>);

impl FromStr for Key {
    type Err = String;

    fn from_str(hex: &str) -> Result<Self, String> {
        let digits: Vec<u8> = hex
            .chars()
            .filter(|c| *c != ':')
            .map(|c| c.to_digit(16).map(|digit| digit as u8))
            .collect::<Option<_>>()
            .ok_or("not hexadecimal")?;
        if digits.is_empty() || digits.len() % 2 != 0 || digits.len() > 80 {
            return Err("from 1 to 40 bytes, two digits each".to_owned());
        }
        Ok(Self(digits.chunks(2).map(|d| d[0] << 4 | d[1]).collect()))
    }
}

impl Change {
    fn raw(&self) -> Result<Raw> {
        let mut raw = Raw::new();
        if let Some(Types(bits)) = self.types {
            raw.flags |= F_TYPES;
            raw.hash_types = bits;
        }
        if let Some(queue) = self.unclassified {
            raw.flags |= F_UNCLASSIFIED;
            raw.unclassified = queue;
        }
        if let Some(Key(bytes)) = &self.key {
            raw.flags |= F_KEY;
            raw.key_len = bytes.len() as u16;
            raw.key[..bytes.len()].copy_from_slice(bytes);
        }
        if self.symmetric {
            raw.flags |= F_SYMMETRIC;
        }
        if let Some(queues) = &self.table {
            if !queues.len().is_power_of_two() || queues.len() > raw.table.len() {
                bail!(
                    "a table has 1, 2, 4, ... or 128 entries, not {}",
                    queues.len()
                );
            }
            raw.flags |= F_TABLE;
            raw.table_len = queues.len() as u16;
            raw.table[..queues.len()].copy_from_slice(queues);
        }
        if self.even {
            raw.flags |= F_EVEN;
        }
        if raw.flags == 0 {
            bail!("say what to change: --types, --unclassified, --key, --symmetric, --table or --even");
        }
        Ok(raw)
    }
}

/// A port: queue pairs of one machine on one network device.
pub(crate) struct Port {
    vm: String,
    netdev: String,
    /// Its queue pairs' devices.
    devices: Vec<u64>,
    file: OwnedFd,
}

/// The ports of what was found.
pub(crate) fn ports(found: &Found) -> Result<Vec<Port>> {
    let mut ports: Vec<Port> = Vec::new();
    for open in &found.open {
        let mut queues = open.device.queues.iter();
        let steerable = ["netdev", "macvtap"];
        let Some(queue) = queues.find(|queue| steerable.contains(&&*queue.backend)) else {
            continue;
        };
        let netdev = queue.netdev.clone().unwrap_or_default();
        let known = ports
            .iter_mut()
            .find(|port| port.vm == open.vm && port.netdev == netdev);
        match known {
            Some(port) => port.devices.push(open.device.number),
            None => ports.push(Port {
                vm: open.vm.clone(),
                netdev,
                devices: vec![open.device.number],
                file: descriptor(open)?,
            }),
        }
    }
    if ports.is_empty() {
        bail!("none of these has a queue on a network device or MacVTap: TAPs steer by themselves");
    }
    Ok(ports)
}

/// A device's file, out of the process that has it.
fn descriptor(open: &Open) -> Result<OwnedFd> {
    let get = |number: libc::c_long, a: libc::c_int, b: libc::c_int| {
        // SAFETY: Neither call takes an address.
        let fd = unsafe { libc::syscall(number, a, b, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: The descriptor was made for us just now.
        Ok(unsafe { OwnedFd::from_raw_fd(fd as libc::c_int) })
    };
    let process =
        get(libc::SYS_pidfd_open, open.pid, 0).with_context(|| format!("process {}", open.pid))?;
    get(libc::SYS_pidfd_getfd, process.as_raw_fd(), open.fd).with_context(|| {
        format!(
            "descriptor {} of process {} (that is for root, or for who may trace it)",
            open.fd, open.pid
        )
    })
}

impl Port {
    fn name(&self) -> String {
        format!("{}/{}", self.vm, self.netdev)
    }

    fn call(&self, request: libc::c_ulong, raw: &mut Raw) -> Result<()> {
        // SAFETY: The argument of both requests is this structure.
        let rc =
            unsafe { libc::ioctl(self.file.as_raw_fd(), request as _, std::ptr::from_mut(raw)) };
        if rc < 0 {
            return Err(io::Error::last_os_error())
                .with_context(|| format!("{} (steering is for CAP_NET_ADMIN)", self.name()));
        }
        Ok(())
    }

    /// How it distributes; nothing if its device, a MacVTap, does.
    fn get(&self) -> Result<Option<Raw>> {
        let mut raw = Raw::new();
        match self.call(GET, &mut raw) {
            Ok(()) => Ok(Some(raw)),
            Err(error) => {
                let errno = error.downcast_ref::<io::Error>();
                match errno.and_then(io::Error::raw_os_error) {
                    Some(libc::ENOTCONN) => Ok(None),
                    _ => Err(error),
                }
            }
        }
    }

    /// Changes how it distributes.
    pub(crate) fn set(&self, change: &Change) -> Result<()> {
        self.call(SET, &mut change.raw()?)
    }

    /// Moves up to `max` entries from busy to idle queues, and tells how many were.
    pub(crate) fn rebalance(&self, max: u32) -> Result<String> {
        // SAFETY: The argument is such a number.
        let moved = unsafe { libc::ioctl(self.file.as_raw_fd(), REBALANCE as _, &raw const max) };
        if moved < 0 {
            return Err(io::Error::last_os_error())
                .with_context(|| format!("{} (steering is for CAP_NET_ADMIN)", self.name()));
        }
        Ok(format!("{}: {moved} entries moved", self.name()))
    }

    /// How it distributes, as text.
    pub(crate) fn text(&self) -> Result<String> {
        let Some(raw) = self.get()? else {
            return Ok(format!(
                "{}: {} queue pairs (devices {}), over which the MacVTap distributes as it likes\n",
                self.name(),
                self.devices.len(),
                list(&self.devices),
            ));
        };
        let even = if raw.flags & F_EVEN != 0 {
            ", even"
        } else {
            ""
        };
        let mut out = format!(
            "{}: {} queue pairs (devices {})\n  hash types    {}\n  key           {}\n  unclassified  queue {}\n  table         {} entries{even}\n",
            self.name(),
            self.devices.len(),
            list(&self.devices),
            list(&names(raw.hash_types)),
            hex(&raw.key),
            raw.unclassified,
            raw.table_len,
        );
        let _ = writeln!(out, "  {:<6} {:>7} {:>14}", "QUEUE", "ENTRIES", "PACKETS");
        for (queue, entries, packets) in loads(&raw) {
            let _ = writeln!(out, "  {queue:<6} {entries:>7} {packets:>14}");
        }
        Ok(out)
    }

    /// The same as JSON; nothing if its device distributes.
    pub(crate) fn json(&self) -> Result<Option<Value>> {
        let Some(raw) = self.get()? else {
            return Ok(None);
        };
        let loads: Vec<_> = loads(&raw)
            .into_iter()
            .map(|(queue, entries, packets)| json!({ "queue": queue, "entries": entries, "packets": packets }))
            .collect();
        Ok(Some(json!({
            "vm": self.vm,
            "netdev": self.netdev,
            "devices": self.devices,
            "hash_types": names(raw.hash_types),
            "key": hex(&raw.key),
            "unclassified": raw.unclassified,
            "even": raw.flags & F_EVEN != 0,
            "table": raw.table(),
            "carried": &raw.carried[..raw.table().len()],
            "queues": loads,
        })))
    }
}

/// The queues of a table: how many entries each has, and what these carried.
fn loads(raw: &Raw) -> Vec<(u16, usize, u64)> {
    let mut all = std::collections::BTreeMap::<u16, (usize, u64)>::new();
    for (queue, carried) in raw.table().iter().zip(raw.carried) {
        let (entries, packets) = all.entry(*queue).or_default();
        *entries += 1;
        *packets = packets.saturating_add(carried);
    }
    all.into_iter()
        .map(|(q, (n, packets))| (q, n, packets))
        .collect()
}

fn names(bits: u32) -> Vec<&'static str> {
    let on = TYPES.iter().enumerate().filter(|(i, _)| bits >> i & 1 != 0);
    on.map(|(_, name)| *name).collect()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn list<T: ToString>(items: &[T]) -> String {
    match items {
        [] => "none".to_owned(),
        items => items.iter().map(T::to_string).collect::<Vec<_>>().join(","),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structure_is_that_of_the_interface() {
        // The size is part of the numbers.
        assert_eq!(size_of::<Raw>(), (SET >> 16 & 0x3fff) as usize);
        assert_eq!(std::mem::offset_of!(Raw, table), 56);
        assert_eq!(std::mem::offset_of!(Raw, carried), 312);
    }

    #[test]
    fn types_and_keys_are_read_and_shown() {
        assert_eq!("tcp4,udp6".parse(), Ok(Types(0b10_0010)));
        assert_eq!("none".parse(), Ok(Types(0)));
        assert!("sctp".parse::<Types>().is_err());
        assert_eq!(list(&names(0b10_0010)), "tcp4,udp6");
        assert_eq!("6d:5A".parse(), Ok(Key(vec![0x6d, 0x5a])));
        for bad in ["", "6", "xy", &"00".repeat(41)] {
            assert!(bad.parse::<Key>().is_err(), "{bad}");
        }
    }

    #[test]
    fn loads_are_summed_by_queue() {
        let mut raw = Raw::new();
        raw.table_len = 4;
        raw.table[..4].copy_from_slice(&[0, 1, 0, 3]);
        raw.carried[..5].copy_from_slice(&[5, 7, 1, 0, 99]);
        assert_eq!(loads(&raw), [(0, 2, 6), (1, 1, 7), (3, 1, 0)]);
    }

    #[test]
    fn changes_that_make_no_sense_are_refused() {
        let nothing = Change {
            types: None,
            unclassified: None,
            key: None,
            symmetric: false,
            table: None,
            even: false,
        };
        assert!(nothing.raw().is_err());
        let odd = Change {
            table: Some(vec![0, 1, 2]),
            ..nothing.clone()
        };
        assert!(odd.raw().is_err());
        let even = Change {
            even: true,
            ..nothing
        };
        assert_eq!(even.raw().unwrap().flags, F_EVEN);
    }
}
