// SPDX-License-Identifier: GPL-2.0
//! What of a packet says which flow it belongs to, in the terms of virtio's hash types
//! (virtio 1.3, 5.1.6.4.3).
//!
//! Packets are hostile: every step is bounded, and what is cut short or makes no sense is
//! described by as much of it as made sense. Length fields are not looked at, as the stack's big
//! packets have none: only what is there counts.

/// VLAN tags that are looked behind.
const MAX_TAGS: usize = 2;
/// IPv6 extension headers that are looked behind.
const MAX_EXTENSIONS: usize = 8;
/// Options of one destination-options header that are looked at.
const MAX_OPTIONS: usize = 16;
/// How much of a frame is worth handing in: all but the strangest headers are found in it.
pub const HEAD_BYTES: usize = 256;

const ETH_ADDRS: usize = 12;
const ETHERTYPE_IPV4: u16 = 0x0800;
const ETHERTYPE_IPV6: u16 = 0x86dd;
const ETHERTYPE_TAGS: [u16; 3] = [0x8100, 0x88a8, 0x9100];

const PROTO_HOP_BY_HOP: u8 = 0;
const PROTO_TCP: u8 = 6;
const PROTO_UDP: u8 = 17;
const PROTO_ROUTING: u8 = 43;
const PROTO_FRAGMENT: u8 = 44;
const PROTO_AUTHENTICATION: u8 = 51;
const PROTO_DESTINATION: u8 = 60;
const PROTO_MOBILITY: u8 = 135;
const PROTO_HIP: u8 = 139;
const PROTO_SHIM6: u8 = 140;

/// More fragments follow, or this is not the first one.
const IPV4_FRAGMENT: u16 = 0x3fff;
/// Offset, and whether more follow. A fragment that is a whole packet is none.
const IPV6_FRAGMENT: u16 = 0xfff9;

const OPTION_PAD1: u8 = 0;
const OPTION_HOME_ADDRESS: u8 = 0xc9;

/// The two ports, as they stand in the header: source first.
pub type Ports<'a> = &'a [u8; 4];
/// An IPv6 address.
pub type Addr6<'a> = &'a [u8; 16];

/// The flow of one packet: pieces of its headers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow<'a> {
    /// Not IP.
    Other,
    /// IPv4.
    V4 {
        /// Source, then destination.
        addrs: &'a [u8; 8],
        /// What it carries.
        transport: Transport<'a>,
    },
    /// IPv6.
    V6 {
        /// Source, then destination.
        addrs: &'a [u8; 32],
        /// What it carries.
        transport: Transport<'a>,
        /// Its extension headers, if there are any.
        extensions: Option<Extensions<'a>>,
    },
}

/// What an IP packet carries. Fragments carry nothing, even the first one, so that the packet
/// stays together.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport<'a> {
    /// Neither of the two below, or not to be seen.
    Other,
    /// TCP.
    Tcp(Ports<'a>),
    /// UDP.
    Udp(Ports<'a>),
}

/// The addresses that IPv6 extension headers hold.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Extensions<'a> {
    /// The home address option's, which stands for the source.
    pub home: Option<Addr6<'a>>,
    /// A type 2 routing header's, which stands for the destination.
    pub routed: Option<Addr6<'a>>,
}

impl<'a> Flow<'a> {
    /// The flow of an Ethernet frame.
    #[inline]
    pub fn of_frame(frame: &'a [u8]) -> Self {
        let mut rest = frame.get(ETH_ADDRS..).unwrap_or_default();
        for _ in 0..=MAX_TAGS {
            let Some((ethertype, after)) = u16_at_front(rest) else {
                break;
            };
            if !ETHERTYPE_TAGS.contains(&ethertype) {
                return Self::of_packet(ethertype, after);
            }
            rest = after.get(2..).unwrap_or_default();
        }
        Self::Other
    }

    /// The flow of what a frame with this `ethertype` holds.
    #[inline]
    pub fn of_packet(ethertype: u16, packet: &'a [u8]) -> Self {
        match ethertype {
            ETHERTYPE_IPV4 => Self::of_ipv4(packet),
            ETHERTYPE_IPV6 => Self::of_ipv6(packet),
            _ => None,
        }
        .unwrap_or(Self::Other)
    }

    #[inline]
    fn of_ipv4(packet: &'a [u8]) -> Option<Self> {
        let header = packet.first_chunk::<20>()?;
        let words = usize::from(header[0] & 0xf);
        if header[0] >> 4 != 4 || words < 5 {
            return None;
        }
        let fragment = u16::from_be_bytes([header[6], header[7]]) & IPV4_FRAGMENT != 0;
        let transport = match packet.get(4 * words..) {
            Some(rest) if !fragment => Transport::of(header[9], rest),
            _ => Transport::Other,
        };
        Some(Self::V4 {
            addrs: header.last_chunk()?,
            transport,
        })
    }

    #[inline]
    fn of_ipv6(packet: &'a [u8]) -> Option<Self> {
        let (header, rest) = packet.split_first_chunk::<40>()?;
        if header[0] >> 4 != 6 {
            return None;
        }
        let addrs = header.last_chunk()?;
        if !is_extension(header[6]) {
            return Some(Self::V6 {
                addrs,
                transport: Transport::of(header[6], rest),
                extensions: None,
            });
        }
        let mut extensions = Extensions::default();
        let transport = extensions.walk(header[6], rest);
        Some(Self::V6 {
            addrs,
            transport: transport.unwrap_or(Transport::Other),
            extensions: Some(extensions),
        })
    }
}

impl<'a> Transport<'a> {
    #[inline]
    fn of(proto: u8, rest: &'a [u8]) -> Self {
        match (proto, rest.first_chunk()) {
            (PROTO_TCP, Some(ports)) => Self::Tcp(ports),
            (PROTO_UDP, Some(ports)) => Self::Udp(ports),
            _ => Self::Other,
        }
    }
}

impl<'a> Extensions<'a> {
    /// Follows the headers from the one of kind `next` at the front of `rest`. What they carry;
    /// nothing if that cannot be reached.
    fn walk(&mut self, mut next: u8, mut rest: &'a [u8]) -> Option<Transport<'a>> {
        for _ in 0..MAX_EXTENSIONS {
            if !is_extension(next) {
                break;
            }
            let len = match next {
                PROTO_FRAGMENT => 8,
                PROTO_AUTHENTICATION => 4 * (usize::from(*rest.get(1)?) + 2),
                _ => 8 * (usize::from(*rest.get(1)?) + 1),
            };
            let (header, after) = rest.split_at_checked(len)?;
            match next {
                PROTO_FRAGMENT => {
                    let (field, _) = u16_at_front(header.get(2..)?)?;
                    if field & IPV6_FRAGMENT != 0 {
                        return None;
                    }
                }
                PROTO_ROUTING => self.routed = self.routed.or_else(|| routed(header)),
                PROTO_DESTINATION => self.home = self.home.or_else(|| home(header)),
                _ => {}
            }
            next = *header.first()?;
            rest = after;
        }
        Some(Transport::of(next, rest))
    }
}

#[inline]
fn is_extension(proto: u8) -> bool {
    matches!(
        proto,
        PROTO_HOP_BY_HOP
            | PROTO_ROUTING
            | PROTO_FRAGMENT
            | PROTO_AUTHENTICATION
            | PROTO_DESTINATION
            | PROTO_MOBILITY
            | PROTO_HIP
            | PROTO_SHIM6
    )
}

/// The address in a routing header of type 2 (RFC 6275, 6.4) that is still to be visited.
fn routed(header: &[u8]) -> Option<Addr6<'_>> {
    match header.split_first_chunk::<8>()? {
        ([_, 2, 2, 1, ..], addr) => addr.first_chunk(),
        _ => None,
    }
}

/// The address in the home address option (RFC 6275, 6.3) of a destination-options header.
fn home(header: &[u8]) -> Option<Addr6<'_>> {
    let mut rest = header.get(2..)?;
    for _ in 0..MAX_OPTIONS {
        let (&kind, after) = rest.split_first()?;
        if kind == OPTION_PAD1 {
            rest = after;
            continue;
        }
        let (&len, after) = after.split_first()?;
        let (value, after) = after.split_at_checked(usize::from(len))?;
        if kind == OPTION_HOME_ADDRESS {
            return value.try_into().ok();
        }
        rest = after;
    }
    None
}

#[inline]
fn u16_at_front(bytes: &[u8]) -> Option<(u16, &[u8])> {
    let (first, rest) = bytes.split_first_chunk()?;
    Some((u16::from_be_bytes(*first), rest))
}

#[cfg_attr(rv_kunit, ::kernel::macros::kunit_tests(rvhost_vcore_flow))]
#[cfg(any(test, rv_kunit))]
mod tests {
    use super::*;

    const UDP4: [u8; 24] = [
        0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2, 0x12, 0x34, 0, 53,
    ];

    fn is_udp(flow: Flow<'_>) -> bool {
        matches!(
            flow,
            Flow::V4 {
                addrs: [10, 0, 0, 1, 10, 0, 0, 2],
                transport: Transport::Udp([0x12, 0x34, 0, 53])
            }
        )
    }

    #[test]
    fn ipv4_gives_addresses_and_ports() {
        assert!(is_udp(Flow::of_packet(0x0800, &UDP4)));
        assert!(Flow::of_packet(0x0806, &UDP4) == Flow::Other);
    }

    #[test]
    fn two_tags_are_looked_behind_and_three_are_not() {
        let mut frame = [0u8; 12 + 12 + 2 + 24];
        let (head, tail) = frame.split_at_mut(26);
        tail.copy_from_slice(&UDP4);
        head.copy_from_slice(&[
            0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x88, 0xa8, 0, 1, 0x81, 0, 0, 2, 0x81, 0, 0, 3, 8,
            0,
        ]);
        assert!(Flow::of_frame(&frame) == Flow::Other);
        let mut two = [0u8; 46];
        two[..20].copy_from_slice(&frame[..20]);
        two[20..].copy_from_slice(&frame[24..]);
        assert!(is_udp(Flow::of_frame(&two)));
    }

    #[test]
    fn fragments_have_no_ports() {
        for (high, low) in [(0x20, 0), (0, 1), (0x1f, 0xff)] {
            let mut packet = UDP4;
            (packet[6], packet[7]) = (high, low);
            let flow = Flow::of_packet(0x0800, &packet);
            assert!(matches!(
                flow,
                Flow::V4 {
                    transport: Transport::Other,
                    ..
                }
            ));
        }
        // "Don't fragment" makes none.
        let mut packet = UDP4;
        packet[6] = 0x40;
        assert!(is_udp(Flow::of_packet(0x0800, &packet)));
    }

    #[test]
    fn header_that_is_cut_short_or_lies_about_itself_is_not_ip() {
        for len in 0..20 {
            assert!(Flow::of_packet(0x0800, &UDP4[..len]) == Flow::Other);
        }
        for first in [0x44, 0x55, 0x65, 0] {
            let mut packet = UDP4;
            packet[0] = first;
            assert!(Flow::of_packet(0x0800, &packet) == Flow::Other);
        }
    }

    #[test]
    fn extension_headers_without_end_are_given_up() {
        let mut packet = [0u8; 40 + 8 * 32];
        packet[0] = 0x60;
        let flow = Flow::of_packet(0x86dd, &packet);
        assert!(matches!(
            flow,
            Flow::V6 {
                transport: Transport::Other,
                extensions: Some(_),
                ..
            }
        ));
    }
}
