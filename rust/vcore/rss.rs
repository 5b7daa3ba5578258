// SPDX-License-Identifier: GPL-2.0
//! Receive-side scaling: the Toeplitz hash over virtio's hash types, and the table that maps it
//! to queues (virtio 1.3, 5.1.6.4.3, 5.1.6.5.7).

use core::ops::{
    Deref,
    DerefMut, //
};

use super::flow::{
    Flow,
    Transport, //
};

/// Bytes of a key: enough for two IPv6 addresses and two ports.
pub const KEY_BYTES: usize = 40;
/// Bytes of input a key is enough for.
pub const INPUT_BYTES: usize = KEY_BYTES - 4;
/// The most entries of a table.
pub const MAX_ENTRIES: usize = 128;
/// Bytes of the packet header with a hash in it (`struct virtio_net_hdr_v1_hash`).
pub const HASH_HEADER_BYTES: usize = 20;
/// Where the hash's fields start in it.
pub const HASH_AT: usize = 12;

/// Hash types: what may be hashed.
pub mod types {
    /// Addresses of IPv4.
    pub const IPV4: u32 = 1 << 0;
    /// Addresses and ports of TCP over IPv4.
    pub const TCPV4: u32 = 1 << 1;
    /// Addresses and ports of UDP over IPv4.
    pub const UDPV4: u32 = 1 << 2;
    /// Addresses of IPv6.
    pub const IPV6: u32 = 1 << 3;
    /// Addresses and ports of TCP over IPv6.
    pub const TCPV6: u32 = 1 << 4;
    /// Addresses and ports of UDP over IPv6.
    pub const UDPV6: u32 = 1 << 5;
    /// Addresses of IPv6, those in extension headers first.
    pub const IP_EX: u32 = 1 << 6;
    /// The same, and ports of TCP.
    pub const TCP_EX: u32 = 1 << 7;
    /// The same, and ports of UDP.
    pub const UDP_EX: u32 = 1 << 8;
    /// All of them.
    pub const ALL: u32 = (1 << 9) - 1;
}

/// What was hashed, as it is reported to the driver.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u16)]
pub enum Report {
    /// Nothing.
    #[default]
    None = 0,
    /// [`types::IPV4`].
    Ipv4 = 1,
    /// [`types::TCPV4`].
    Tcpv4 = 2,
    /// [`types::UDPV4`].
    Udpv4 = 3,
    /// [`types::IPV6`].
    Ipv6 = 4,
    /// [`types::TCPV6`].
    Tcpv6 = 5,
    /// [`types::UDPV6`].
    Udpv6 = 6,
    /// [`types::IP_EX`].
    Ipv6Ex = 7,
    /// [`types::TCP_EX`].
    Tcpv6Ex = 8,
    /// [`types::UDP_EX`].
    Udpv6Ex = 9,
}

/// A hash, and of what.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Hash {
    /// The value; 0 if nothing was hashed.
    pub value: u32,
    /// What was hashed.
    pub report: Report,
}

impl Hash {
    /// The fields of the packet header from [`HASH_AT`] on: value, report, padding.
    #[inline]
    pub fn to_bytes(self) -> [u8; HASH_HEADER_BYTES - HASH_AT] {
        // CAST: an enum of 16 bits.
        (u64::from(self.value) | u64::from(self.report as u16) << 32).to_le_bytes()
    }
}

/// A key. One that is given shorter is filled up with zeroes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key(pub [u8; KEY_BYTES]);

impl Key {
    /// The key that starts with `bytes`; none if there are too many.
    pub fn new(bytes: &[u8]) -> Option<Self> {
        let mut key = [0; KEY_BYTES];
        key.get_mut(..bytes.len())?.copy_from_slice(bytes);
        Some(Self(key))
    }

    /// A key under which both directions of a flow have the same hash.
    ///
    /// It repeats every 16 bits, as all such keys do, so that a hash has no more than 16 bits of
    /// entropy and depends on the exclusive or of the header's 16-bit words alone. An odd number
    /// of set bits makes that dependence one to one; `seed` is changed by a bit to have it.
    pub fn symmetric(seed: u16) -> Self {
        let odd = seed ^ u16::from(seed.count_ones() % 2 == 0);
        let [high, low] = odd.to_be_bytes();
        let mut key = [high; KEY_BYTES];
        for byte in key.iter_mut().skip(1).step_by(2) {
            *byte = low;
        }
        Self(key)
    }
}

/// The sums for each value of one byte of input.
pub type Sums = [u32; 256];

/// No sums yet: what storage for [`Toeplitz`] starts as.
pub const NO_SUMS: Sums = [0; 256];

/// The hash of one key, by a table for each byte of input: [`INPUT_BYTES`] tables of 1 KiB, in
/// storage of the caller's. Two to three times as fast as tables for half bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Toeplitz<S> {
    tables: S,
}

impl<S: DerefMut<Target = [Sums]>> Toeplitz<S> {
    /// The hash of `key`; as many bytes of input count as there are tables.
    pub fn new(key: &Key, mut tables: S) -> Self {
        let mut ahead = key.0.iter();
        // The key from the input's current byte on.
        let mut window = 0u64;
        for &byte in ahead.by_ref().take(4) {
            window = window << 8 | u64::from(byte);
        }
        for (sums, &byte) in tables.iter_mut().zip(ahead) {
            window = window << 8 | u64::from(byte);
            for (value, sum) in (0u32..).zip(sums.iter_mut()) {
                // 40 bits of key for 8 bits of input: 32 for each.
                *sum = (0..8)
                    .filter(|bit| value & 1 << bit != 0)
                    // CAST: the upper bits are those of the bits before.
                    .fold(0, |sum, bit| sum ^ (window >> (bit + 1)) as u32);
            }
        }
        Self { tables }
    }
}

impl<S: Deref<Target = [Sums]>> Toeplitz<S> {
    /// The hash of the parts, one after the other. What is beyond the key does not count.
    #[inline]
    pub fn hash(&self, parts: &[&[u8]]) -> u32 {
        let mut tables = &*self.tables;
        let mut sum = 0;
        for part in parts {
            let (here, rest) = tables.split_at_checked(part.len()).unwrap_or((tables, &[]));
            for (&byte, sums) in part.iter().zip(here) {
                // PANIC: there is a sum for each byte.
                sum ^= sums[usize::from(byte)];
            }
            tables = rest;
        }
        sum
    }

    /// The hash of a flow by the most telling one of `types` that applies.
    #[inline]
    pub fn of_flow(&self, types: u32, flow: &Flow<'_>) -> Hash {
        let on = |kind| types & kind != 0;
        let hashed = |report, parts: &[&[u8]]| Hash {
            value: self.hash(parts),
            report,
        };
        match *flow {
            Flow::Other => Hash::default(),
            Flow::V4 { addrs, transport } => match transport {
                Transport::Tcp(ports) if on(types::TCPV4) => hashed(Report::Tcpv4, &[addrs, ports]),
                Transport::Udp(ports) if on(types::UDPV4) => hashed(Report::Udpv4, &[addrs, ports]),
                _ if on(types::IPV4) => hashed(Report::Ipv4, &[addrs]),
                _ => Hash::default(),
            },
            Flow::V6 {
                addrs,
                transport,
                extensions,
            } => {
                if let Some(extensions) = extensions {
                    let (from, to) = addrs.split_at(16);
                    let from = extensions.home.map_or(from, |home| home);
                    let to = extensions.routed.map_or(to, |routed| routed);
                    match transport {
                        Transport::Tcp(ports) if on(types::TCP_EX) => {
                            return hashed(Report::Tcpv6Ex, &[from, to, ports])
                        }
                        Transport::Udp(ports) if on(types::UDP_EX) => {
                            return hashed(Report::Udpv6Ex, &[from, to, ports])
                        }
                        _ if on(types::IP_EX) => return hashed(Report::Ipv6Ex, &[from, to]),
                        // As if there were no extension headers.
                        _ => {}
                    }
                }
                match transport {
                    Transport::Tcp(ports) if on(types::TCPV6) => {
                        hashed(Report::Tcpv6, &[addrs, ports])
                    }
                    Transport::Udp(ports) if on(types::UDPV6) => {
                        hashed(Report::Udpv6, &[addrs, ports])
                    }
                    _ if on(types::IPV6) => hashed(Report::Ipv6, &[addrs]),
                    _ => Hash::default(),
                }
            }
        }
    }
}

/// The indirection table: which queue gets which hashes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Table {
    queues: [u16; MAX_ENTRIES],
    /// One less than the entries, which are a power of two.
    mask: u8,
}

impl Table {
    /// The table with these entries; none unless they are a power of two, of up to
    /// [`MAX_ENTRIES`].
    pub fn new(entries: &[u16]) -> Option<Self> {
        let mut queues = [0; MAX_ENTRIES];
        queues.get_mut(..entries.len())?.copy_from_slice(entries);
        if !entries.len().is_power_of_two() {
            return None;
        }
        let mask = u8::try_from(entries.len() - 1).ok()?;
        Some(Self { queues, mask })
    }

    /// As many entries as there may be, shared evenly by the queues below `count`.
    pub fn even(count: u16) -> Self {
        let mut queues = [0; MAX_ENTRIES];
        for (entry, queue) in queues.iter_mut().zip((0..count.max(1)).cycle()) {
            *entry = queue;
        }
        Self {
            queues,
            mask: 127, // MAX_ENTRIES - 1
        }
    }

    /// The entries.
    #[inline]
    pub fn entries(&self) -> &[u16] {
        self.queues
            .get(..=usize::from(self.mask))
            .unwrap_or_default()
    }

    /// The entries, to be changed.
    pub fn entries_mut(&mut self) -> &mut [u16] {
        self.queues
            .get_mut(..=usize::from(self.mask))
            .unwrap_or_default()
    }

    /// Which entry a hash falls on.
    #[inline]
    pub fn entry_of(&self, hash: u32) -> usize {
        // CAST: only as many bits as there are entries for.
        usize::from(hash as u8 & self.mask)
    }
}

/// A number close to `hash` by which a device chooses queue `index`, if it chooses one of `count` by the
/// remainder, and takes 0 for no number. None if there is no such queue.
#[inline]
pub fn leading_to(hash: u32, index: u32, count: u32) -> Option<u32> {
    if index >= count {
        return None;
    }
    match (hash - hash % count).checked_add(index) {
        Some(lead) if lead != 0 => Some(lead),
        // Too close to an end.
        _ if index != 0 => Some(index),
        _ => Some(count),
    }
}

/// How a port steers: all that decides on a packet's queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Steering<S> {
    /// The hash.
    pub toeplitz: Toeplitz<S>,
    /// What is hashed: bits of [`types`].
    pub types: u32,
    /// Who gets it.
    pub table: Table,
    /// Who gets what cannot be hashed.
    pub unclassified: u16,
}

/// Where a packet goes, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Choice {
    /// The queue.
    pub queue: u16,
    /// The table's entry that said so; none for what cannot be hashed.
    pub entry: Option<usize>,
    /// The hash.
    pub hash: Hash,
}

impl<S: Deref<Target = [Sums]>> Steering<S> {
    /// Decides on a flow.
    #[inline]
    pub fn choose(&self, flow: &Flow<'_>) -> Choice {
        let hash = self.toeplitz.of_flow(self.types, flow);
        let entry = (hash.report != Report::None).then(|| self.table.entry_of(hash.value));
        let queue = entry
            .and_then(|entry| self.table.entries().get(entry))
            .copied()
            .unwrap_or(self.unclassified);
        Choice { queue, entry, hash }
    }
}

/// Moves entries of `table` from busy to idle queues, by what each entry carried lately: up to
/// `max_moves` of them, each the one that evens out most. `queues` is storage for one number for
/// each queue. Returns how many were moved.
///
/// Entries that name no queue are left alone, and so is what is hashed to them.
pub fn rebalance(
    table: &mut [u16],
    carried: &[u64],
    queues: &mut [u64],
    max_moves: usize, //
) -> usize {
    queues.fill(0);
    for (&queue, &load) in table.iter().zip(carried) {
        if let Some(sum) = queues.get_mut(usize::from(queue)) {
            *sum = sum.saturating_add(load);
        }
    }
    for moved in 0..max_moves {
        if !move_one(table, carried, queues) {
            return moved;
        }
    }
    max_moves
}

/// Moves one entry from the busiest queue to the idlest, so that the busier one of both is as
/// idle as possible after it; of equals, the one that carries less. Each move makes the sum of squares smaller, so that there is an end.
fn move_one(table: &mut [u16], carried: &[u64], queues: &mut [u64]) -> bool {
    let by_load = |&(_, load): &(usize, u64)| load;
    let loads = || queues.iter().copied().enumerate();
    // The first one of equals, whichever way.
    let (Some((busy, most)), Some((idle, least))) = (
        loads().rev().max_by_key(by_load),
        loads().min_by_key(by_load),
    ) else {
        return false;
    };
    let gap = most - least;
    let best = table
        .iter_mut()
        .zip(carried)
        .filter(|(queue, &load)| usize::from(**queue) == busy && load > 0 && load < gap)
        .min_by_key(|(_, &load)| (load.max(gap - load), load));
    let (Some((queue, &load)), Ok(to)) = (best, u16::try_from(idle)) else {
        return false;
    };
    *queue = to;
    // What saturated may go below nothing.
    if let Some(sum) = queues.get_mut(busy) {
        *sum = sum.saturating_sub(load);
    }
    if let Some(sum) = queues.get_mut(idle) {
        *sum = sum.saturating_add(load);
    }
    true
}

#[cfg_attr(rv_kunit, ::kernel::macros::kunit_tests(rvhost_vcore_rss))]
#[cfg(any(test, rv_kunit))]
mod tests {
    use super::*;

    const KEY: Key = Key([
        0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b, 0x0e, 0xc2, 0x41, 0x67, 0x25, 0x3d, 0x43, 0xa3, 0x8f,
        0xb0, 0xd0, 0xca, 0x2b, 0xcb, 0xae, 0x7b, 0x30, 0xb4, 0x77, 0xcb, 0x2d, 0xa3, 0x80, 0x30,
        0xf2, 0x0c, 0x6a, 0x42, 0xb7, 0x3b, 0xbe, 0xac, 0x01, 0xfa,
    ]);

    fn hash(parts: &[&[u8]]) -> u32 {
        // Small enough for a kernel's stack.
        let mut tables = [NO_SUMS; 1];
        let (mut sum, mut key) = (0, KEY);
        for &byte in parts.iter().flat_map(|part| part.iter()).take(INPUT_BYTES) {
            sum ^= Toeplitz::new(&key, &mut tables[..]).hash(&[&[byte]]);
            key.0.rotate_left(1);
        }
        sum
    }

    #[test]
    fn published_key_gives_a_published_hash() {
        // From 66.9.149.187:2794 to 161.142.100.80:1766.
        let addrs = [66, 9, 149, 187, 161, 142, 100, 80];
        assert_eq!(hash(&[&addrs]), 0x323e8fc2);
        assert_eq!(hash(&[&addrs, &[10, 234, 6, 230]]), 0x51ccc178);
    }

    #[test]
    fn input_beyond_the_tables_does_not_count() {
        let mut tables = [NO_SUMS; 1];
        let toeplitz = Toeplitz::new(&KEY, &mut tables[..]);
        assert!(toeplitz.hash(&[&[5]]) != 0);
        assert_eq!(toeplitz.hash(&[&[5], &[1]]), toeplitz.hash(&[&[5]]));
        assert_eq!(toeplitz.hash(&[&[5; 99]]), toeplitz.hash(&[&[5]]));
    }

    #[test]
    fn hash_fields_are_value_report_and_padding() {
        let hash = Hash {
            value: 0x04030201,
            report: Report::Udpv6Ex,
        };
        assert_eq!(hash.to_bytes(), [1, 2, 3, 4, 9, 0, 0, 0]);
    }

    #[test]
    fn key_is_40_bytes_at_most_and_filled_with_zeroes() {
        assert!(Key::new(&[1; 41]).is_none());
        assert!(Key::new(&[1; 40]) == Some(Key([1; 40])));
        assert!(Key::new(&[]) == Some(Key([0; 40])));
    }

    #[test]
    fn table_has_a_power_of_two_of_entries_up_to_128() {
        for len in 0..=130 {
            let entries = [7u16; 130];
            let table = Table::new(&entries[..len]);
            assert_eq!(
                table.is_some(),
                [1, 2, 4, 8, 16, 32, 64, 128].contains(&len)
            );
            if let Some(table) = table {
                assert_eq!(table.entries().len(), len);
                assert_eq!(table.entry_of(u32::MAX), len - 1);
            }
        }
    }

    #[test]
    fn lead_has_the_remainder_and_is_not_zero() {
        for hash in [0, 1, 7, 255, 0x51cc_c178, u32::MAX - 1, u32::MAX] {
            for count in [1, 2, 3, 5, 128, 255, 256] {
                for index in 0..count {
                    let lead = leading_to(hash, index, count);
                    assert!(lead.is_some_and(|lead| lead != 0 && lead % count == index));
                }
                assert!(leading_to(hash, count, count).is_none());
            }
            assert!(leading_to(hash, 0, 0).is_none());
        }
        assert_eq!(leading_to(0x51cc_c178, 2, 4), Some(0x51cc_c17a));
    }

    #[test]
    fn busiest_entry_stays_where_moving_it_would_not_help() {
        let mut table = [0u16, 0, 1, 1];
        let mut queues = [0u64; 2];
        // One flow that is all the load cannot be split.
        assert_eq!(rebalance(&mut table, &[100, 0, 0, 0], &mut queues, 9), 0);
        // The small one beside it can go.
        assert_eq!(rebalance(&mut table, &[100, 9, 0, 0], &mut queues, 9), 1);
        assert_eq!(table, [0, 1, 1, 1]);
        assert_eq!(queues, [100, 9]);
    }
}
