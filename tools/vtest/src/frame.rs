// SPDX-License-Identifier: GPL-2.0

//! Ethernet frames with checkable contents, and the virtio-net header.

use anyhow::bail;
use anyhow::Result;

/// Ethertype for local experiments: nothing else speaks it.
const ETHERTYPE: [u8; 2] = [0x88, 0xb5];
const HOST_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 1];
/// The guest's address.
pub(crate) const GUEST_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 2];

/// Length of an Ethernet header.
pub(crate) const ETH_HLEN: usize = 14;
/// Headers before the payload in [`Frames::tcp4`].
pub(crate) const TCP4_HLEN: usize = 54;

/// The checksum is partial and to be completed.
pub(crate) const NEEDS_CSUM: u8 = 1;
/// TCP over IPv4, to be segmented.
pub(crate) const GSO_TCPV4: u8 = 1;

/// The virtio-net header.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct NetHdr {
    /// `NEEDS_CSUM`, and others that no case looks at.
    pub(crate) flags: u8,
    /// `GSO_*`.
    pub(crate) gso_type: u8,
    /// Length of the headers, as a hint.
    pub(crate) hdr_len: u16,
    /// Bytes of payload per segment.
    pub(crate) gso_size: u16,
    /// Where to start checksumming.
    pub(crate) csum_start: u16,
    /// Where to put the checksum, from `csum_start`.
    pub(crate) csum_offset: u16,
    /// RX: how many buffers the packet takes.
    pub(crate) num_buffers: u16,
}

impl NetHdr {
    /// The header as `size` bytes: 10 leave out `num_buffers`, more than 12
    /// are filled with zeroes.
    pub(crate) fn bytes(&self, size: usize) -> Vec<u8> {
        let mut bytes = vec![self.flags, self.gso_type];
        for field in [
            self.hdr_len,
            self.gso_size,
            self.csum_start,
            self.csum_offset,
            self.num_buffers,
        ] {
            bytes.extend(field.to_le_bytes());
        }
        bytes.resize(size, 0);
        bytes
    }

    /// Reads a header of 10 bytes or more.
    pub(crate) fn parse(bytes: &[u8]) -> Self {
        let byte = |i: usize| bytes.get(i).copied().unwrap_or(0);
        let field = |i: usize| u16::from_le_bytes([byte(i), byte(i + 1)]);
        Self {
            flags: byte(0),
            gso_type: byte(1),
            hdr_len: field(2),
            gso_size: field(4),
            csum_start: field(6),
            csum_offset: field(8),
            num_buffers: field(10),
        }
    }

    /// The same header without the field that only receivers have.
    pub(crate) fn without_buffers(mut self) -> Self {
        self.num_buffers = 0;
        self
    }
}

/// Which way a frame goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    /// Guest to network.
    Tx,
    /// Network to guest.
    Rx,
}

/// A small generator of repeatable bytes (xorshift64*).
#[derive(Clone, Debug)]
pub(crate) struct Rng(u64);

impl Rng {
    /// A generator; equal seeds give equal bytes.
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// The next number.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// A number below `limit`.
    pub(crate) fn below(&mut self, limit: u64) -> u64 {
        (self.next() >> 16) % limit
    }
}

/// Makes frames that differ from each other and can be told apart.
#[derive(Clone, Debug)]
pub(crate) struct Frames {
    rng: Rng,
    direction: Direction,
    sequence: u32,
}

impl Frames {
    /// A series of frames for one direction.
    pub(crate) fn new(direction: Direction, seed: u64) -> Self {
        Self {
            rng: Rng::new(seed ^ ((direction as u64) << 32)),
            direction,
            sequence: 0,
        }
    }

    fn addresses(&self) -> [u8; 12] {
        let (to, from) = match self.direction {
            Direction::Tx => (HOST_MAC, GUEST_MAC),
            Direction::Rx => (GUEST_MAC, HOST_MAC),
        };
        let mut bytes = [0; 12];
        bytes[..6].copy_from_slice(&to);
        bytes[6..].copy_from_slice(&from);
        bytes
    }

    fn fill(&mut self, frame: &mut Vec<u8>, len: usize) {
        while frame.len() < len {
            let word = self.rng.next().to_le_bytes();
            let take = word.len().min(len - frame.len());
            frame.extend_from_slice(&word[..take]);
        }
        frame.truncate(len);
    }

    /// The next frame, of `len` bytes, with an ethertype of its own.
    pub(crate) fn plain(&mut self, len: usize) -> Vec<u8> {
        let mut frame = Vec::with_capacity(len);
        frame.extend(self.addresses());
        frame.extend(ETHERTYPE);
        self.sequence += 1;
        frame.extend(self.sequence.to_be_bytes());
        self.fill(&mut frame, len);
        frame
    }

    /// The next frame as TCP over IPv4 with a partial checksum, and the header
    /// that asks to segment it into `gso_size` pieces.
    pub(crate) fn tcp4(&mut self, len: usize, gso_size: u16) -> (NetHdr, Vec<u8>) {
        let mut frame = Vec::with_capacity(len);
        frame.extend(self.addresses());
        frame.extend([0x08, 0x00]);
        let ip_len = (len - ETH_HLEN) as u16;
        let mut ip = ipv4_header(ip_len, 6, [10, 99, 0, 2], [10, 99, 0, 1]);
        frame.append(&mut ip);
        self.sequence += 1;
        frame.extend([0x13, 0x88, 0x13, 0x89]);
        frame.extend(self.sequence.to_be_bytes());
        frame.extend([0, 0, 0, 0, 0x50, 0x10, 0xff, 0xff]);
        let pseudo = pseudo_sum(6, ip_len - 20, [10, 99, 0, 2], [10, 99, 0, 1]);
        frame.extend(pseudo.to_be_bytes());
        frame.extend([0, 0]);
        self.fill(&mut frame, len);
        let hdr = NetHdr {
            flags: NEEDS_CSUM,
            gso_type: if gso_size == 0 { 0 } else { GSO_TCPV4 },
            hdr_len: TCP4_HLEN as u16,
            gso_size,
            csum_start: 34,
            csum_offset: 16,
            num_buffers: 0,
        };
        (hdr, frame)
    }

    /// The next frame as UDP over IPv4 between the given ports.
    pub(crate) fn udp4(&mut self, len: usize, from: u16, to: u16) -> Vec<u8> {
        let mut frame = Vec::with_capacity(len);
        frame.extend(self.addresses());
        frame.extend([0x08, 0x00]);
        let ip_len = (len - ETH_HLEN) as u16;
        let (src, dst) = match self.direction {
            Direction::Tx => ([10, 99, 0, 2], [10, 99, 0, 1]),
            Direction::Rx => ([10, 99, 0, 1], [10, 99, 0, 2]),
        };
        frame.append(&mut ipv4_header(ip_len, 17, src, dst));
        frame.extend(from.to_be_bytes());
        frame.extend(to.to_be_bytes());
        frame.extend((ip_len - 20).to_be_bytes());
        frame.extend([0, 0]);
        self.sequence += 1;
        frame.extend(self.sequence.to_be_bytes());
        self.fill(&mut frame, len);
        frame
    }
}

fn sum16(bytes: &[u8]) -> u32 {
    bytes
        .chunks(2)
        .map(|pair| (u32::from(pair[0]) << 8) | u32::from(pair.get(1).copied().unwrap_or(0)))
        .sum()
}

fn fold(mut sum: u32) -> u16 {
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

fn ipv4_header(len: u16, protocol: u8, src: [u8; 4], dst: [u8; 4]) -> Vec<u8> {
    let mut header = vec![0x45, 0];
    header.extend(len.to_be_bytes());
    header.extend([0, 1, 0x40, 0, 64, protocol, 0, 0]);
    header.extend(src);
    header.extend(dst);
    let sum = !fold(sum16(&header));
    header[10..12].copy_from_slice(&sum.to_be_bytes());
    header
}

fn pseudo_sum(protocol: u8, len: u16, src: [u8; 4], dst: [u8; 4]) -> u16 {
    let mut bytes = Vec::from(src);
    bytes.extend(dst);
    bytes.extend([0, protocol]);
    bytes.extend(len.to_be_bytes());
    fold(sum16(&bytes))
}

/// Compares two frames byte by byte; the message names the first difference.
pub(crate) fn compare(what: &str, seen: &[u8], expected: &[u8]) -> Result<()> {
    if seen == expected {
        return Ok(());
    }
    let at = seen.iter().zip(expected).position(|(a, b)| a != b);
    let at = at.unwrap_or(seen.len().min(expected.len()));
    let window = |bytes: &[u8]| {
        let end = bytes.len().min(at + 16);
        let from = at.saturating_sub(4).min(end);
        format!("{:02x?}", &bytes[from..end])
    };
    bail!(
        "{what} differs at byte {at}: expected {} bytes {}, saw {} bytes {}",
        expected.len(),
        window(expected),
        seen.len(),
        window(seen)
    );
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ipv4_header_checksum_is_right() {
        let header = ipv4_header(40, 6, [10, 99, 0, 2], [10, 99, 0, 1]);
        assert_eq!(fold(sum16(&header)), 0xffff);
    }

    #[test]
    fn net_header_survives_its_bytes() {
        let hdr = NetHdr {
            flags: 1,
            gso_type: 2,
            hdr_len: 3,
            gso_size: 4,
            csum_start: 5,
            csum_offset: 6,
            num_buffers: 7,
        };
        assert_eq!(NetHdr::parse(&hdr.bytes(12)), hdr);
        assert_eq!(NetHdr::parse(&hdr.bytes(10)), hdr.without_buffers());
        assert_eq!(hdr.bytes(24).len(), 24);
    }

    #[test]
    fn frames_have_the_length_asked_for_and_differ() {
        let mut frames = Frames::new(Direction::Tx, 1);
        let a = frames.plain(60);
        let b = frames.plain(60);
        assert_eq!((a.len(), b.len()), (60, 60));
        assert!(compare("frame", &a, &b).is_err());
    }
}
