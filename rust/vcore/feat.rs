// SPDX-License-Identifier: GPL-2.0
//! Feature bits, and what the acknowledged ones mean for a packet's header.

/// Packets may span several chains; the header counts them (virtio 1.3, 5.1.3).
pub const NET_F_MRG_RXBUF: u64 = 1 << 15;
/// Interrupt when the available ring runs empty, whatever the suppression says (legacy).
pub const F_NOTIFY_ON_EMPTY: u64 = 1 << 24;
/// Writes to guest memory are logged.
pub const VHOST_F_LOG_ALL: u64 = 1 << 26;
/// vhost itself supplies and strips the packet header. The same bit is `VIRTIO_F_ANY_LAYOUT`.
pub const VHOST_NET_F_VIRTIO_NET_HDR: u64 = 1 << 27;
/// Descriptors may name tables of descriptors.
pub const F_INDIRECT_DESC: u64 = 1 << 28;
/// Event indices suppress notifications.
pub const F_EVENT_IDX: u64 = 1 << 29;
/// The device is not a legacy one.
pub const F_VERSION_1: u64 = 1 << 32;
/// Addresses in rings are I/O virtual ones, which an IOTLB translates.
pub const F_ACCESS_PLATFORM: u64 = 1 << 33;
/// Buffers are used in the order in which they were made available.
pub const F_IN_ORDER: u64 = 1 << 35;
/// Single queues can be reset.
pub const F_RING_RESET: u64 = 1 << 40;

/// The header tells a packet's hash, and of what it is (virtio 1.3, 5.1.6.4).
pub const NET_F_HASH_REPORT: u64 = 1 << 57;

/// The guest takes UDP-tunnel segments; of the second feature word (bit 65).
pub const NET_F_GUEST_UDP_TUNNEL_GSO: u64 = 1 << (65 - 64);
/// The guest sends UDP-tunnel segments; of the second feature word (bit 67).
pub const NET_F_HOST_UDP_TUNNEL_GSO: u64 = 1 << (67 - 64);

/// Feature bits in two words.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Features(pub [u64; 2]);

impl Features {
    /// Whether any of `bits` of the first word is set.
    #[inline]
    pub fn any(&self, bits: u64) -> bool {
        self.0[0] & bits != 0
    }

    /// Whether tunnel headers are exchanged.
    fn tunnel(&self) -> bool {
        self.0[1] & (NET_F_GUEST_UDP_TUNNEL_GSO | NET_F_HOST_UDP_TUNNEL_GSO) != 0
    }
}

/// Bytes that precede each packet, by who provides them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HeaderLen {
    /// Header bytes that vhost itself strips (TX) or supplies as zeroes (RX).
    pub vhost: usize,
    /// Header bytes that the backend reads and writes.
    pub sock: usize,
    /// Whether the header has the `num_buffers` field at offset 10.
    pub num_buffers: bool,
    /// Whether the header has fields for a hash that are in use.
    pub hash: bool,
    /// Whether the header has tunnel fields.
    pub tunnel: bool,
}

impl HeaderLen {
    /// The lengths for the acknowledged features.
    pub fn of(acked: Features) -> Self {
        let hash = acked.any(NET_F_HASH_REPORT);
        let num_buffers = hash || acked.any(NET_F_MRG_RXBUF | F_VERSION_1);
        let len = match (acked.tunnel(), hash, num_buffers) {
            (true, ..) => 24,
            (_, true, _) => 20,
            (.., true) => 12,
            _ => 10,
        };
        let ours = acked.any(VHOST_NET_F_VIRTIO_NET_HDR);
        Self {
            vhost: if ours { len } else { 0 },
            sock: if ours { 0 } else { len },
            num_buffers,
            hash,
            tunnel: acked.tunnel(),
        }
    }

    /// All header bytes in front of a packet in guest memory.
    #[inline]
    pub fn guest(&self) -> usize {
        self.vhost + self.sock
    }
}

#[cfg_attr(rv_kunit, ::kernel::macros::kunit_tests(rvhost_vcore_feat))]
#[cfg(any(test, rv_kunit))]
mod tests {
    use super::*;

    fn of(first: u64, second: u64) -> HeaderLen {
        HeaderLen::of(Features([first, second]))
    }

    #[test]
    fn header_is_as_long_as_the_fields_in_it() {
        assert_eq!(of(0, 0).sock, 10);
        assert_eq!(of(NET_F_MRG_RXBUF, 0).sock, 12);
        assert_eq!(of(F_VERSION_1, 0).sock, 12);
        assert_eq!(of(F_VERSION_1, NET_F_GUEST_UDP_TUNNEL_GSO).sock, 24);
        assert_eq!(of(0, NET_F_HOST_UDP_TUNNEL_GSO).sock, 24);
        assert_eq!(of(NET_F_HASH_REPORT, 0).sock, 20);
        assert_eq!(of(NET_F_HASH_REPORT, NET_F_GUEST_UDP_TUNNEL_GSO).sock, 24);
        assert!(!of(0, 0).num_buffers);
        assert!(of(NET_F_HASH_REPORT, 0).num_buffers);
    }

    #[test]
    fn bit_27_moves_the_header_from_the_backend_to_vhost() {
        let len = of(VHOST_NET_F_VIRTIO_NET_HDR | F_VERSION_1, 0);
        assert_eq!(len.vhost, 12);
        assert_eq!(len.sock, 0);
        assert_eq!(len.guest(), 12);
    }
}
