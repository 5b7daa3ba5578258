// SPDX-License-Identifier: GPL-2.0
//! Flows and their hashes the plain way: headers copied out one byte at a time, the key shifted
//! one bit at a time.

use vcore::vcore::{
    flow::{
        Flow,
        Transport, //
    },
    rss::{
        types,
        Report, //
    },
};

/// A packet's headers, as far as they matter.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    /// 4, 6, or 0 for neither.
    pub version: u8,
    pub from: Vec<u8>,
    pub to: Vec<u8>,
    /// 6 with ports, 17 with ports, or 0 without.
    pub proto: u8,
    pub ports: Vec<u8>,
    pub extended: bool,
    pub home: Vec<u8>,
    pub routed: Vec<u8>,
}

impl Seen {
    /// What the core saw, in the same terms.
    pub fn by_core(flow: &Flow<'_>) -> Self {
        let mut seen = Self::default();
        let transport = match flow {
            Flow::Other => return seen,
            Flow::V4 { addrs, transport } => {
                seen.version = 4;
                (seen.from, seen.to) = (addrs[..4].to_vec(), addrs[4..].to_vec());
                transport
            }
            Flow::V6 {
                addrs,
                transport,
                extensions,
            } => {
                seen.version = 6;
                (seen.from, seen.to) = (addrs[..16].to_vec(), addrs[16..].to_vec());
                if let Some(extensions) = extensions {
                    seen.extended = true;
                    seen.home = extensions.home.map_or(Vec::new(), |a| a.to_vec());
                    seen.routed = extensions.routed.map_or(Vec::new(), |a| a.to_vec());
                }
                transport
            }
        };
        (seen.proto, seen.ports) = match transport {
            Transport::Other => (0, Vec::new()),
            Transport::Tcp(ports) => (6, ports.to_vec()),
            Transport::Udp(ports) => (17, ports.to_vec()),
        };
        seen
    }

    /// The headers of a frame.
    pub fn of_frame(frame: &[u8]) -> Self {
        let mut at = 12;
        let mut tags = 0;
        loop {
            let Some(ethertype) = number(frame, at, 2) else {
                return Self::default();
            };
            match ethertype {
                0x8100 | 0x88a8 | 0x9100 if tags < 2 => {
                    tags += 1;
                    at += 4;
                }
                0x0800 => return Self::of_ipv4(&frame[at + 2..]).unwrap_or_default(),
                0x86dd => return Self::of_ipv6(&frame[at + 2..]).unwrap_or_default(),
                _ => return Self::default(),
            }
        }
    }

    fn of_ipv4(packet: &[u8]) -> Option<Self> {
        let bytes = number(packet, 0, 1)? % 16 * 4;
        if number(packet, 0, 1)? / 16 != 4 || bytes < 20 {
            return None;
        }
        let mut seen = Self {
            version: 4,
            from: piece(packet, 12, 4)?,
            to: piece(packet, 16, 4)?,
            ..Self::default()
        };
        let fragment = number(packet, 6, 2)?;
        let more = fragment & 0x2000 != 0;
        let offset = fragment & 0x1fff;
        if !more && offset == 0 {
            seen.transport(number(packet, 9, 1)?, packet, bytes as usize);
        }
        Some(seen)
    }

    fn of_ipv6(packet: &[u8]) -> Option<Self> {
        if number(packet, 0, 1)? / 16 != 6 {
            return None;
        }
        let mut seen = Self {
            version: 6,
            from: piece(packet, 8, 16)?,
            to: piece(packet, 24, 16)?,
            ..Self::default()
        };
        seen.behind(number(packet, 6, 1)?, packet, 40, 0);
        Some(seen)
    }

    /// What the header of kind `next` at `at` starts, after `passed` others.
    fn behind(&mut self, next: u64, packet: &[u8], at: usize, passed: usize) -> Option<()> {
        if ![0, 43, 44, 51, 60, 135, 139, 140].contains(&next) {
            self.transport(next, packet, at);
            return Some(());
        }
        self.extended = true;
        if passed == 8 {
            return None;
        }
        let units = number(packet, at + 1, 1);
        let len = match next {
            44 => 8,
            51 => units? as usize * 4 + 8,
            _ => units? as usize * 8 + 8,
        };
        let header = piece(packet, at, len)?;
        match next {
            44 => {
                let field = number(&header, 2, 2)?;
                let (offset, more) = (field >> 3, field & 1);
                if offset != 0 || more != 0 {
                    return None;
                }
            }
            43 if self.routed.is_empty() && header[1..4] == [2, 2, 1] => {
                self.routed = header[8..].to_vec();
            }
            60 if self.home.is_empty() => {
                let mut at = 2;
                for _ in 0..16 {
                    match number(&header, at, 1) {
                        None => break,
                        Some(0) => at += 1,
                        Some(kind) => {
                            let Some(len) = number(&header, at + 1, 1) else {
                                break;
                            };
                            let Some(value) = piece(&header, at + 2, len as usize) else {
                                break;
                            };
                            if kind == 201 {
                                if len == 16 {
                                    self.home = value;
                                }
                                break;
                            }
                            at += 2 + len as usize;
                        }
                    }
                }
            }
            _ => {}
        }
        self.behind(u64::from(header[0]), packet, at + len, passed + 1)
    }

    fn transport(&mut self, proto: u64, packet: &[u8], at: usize) {
        if let (6 | 17, Some(ports)) = (proto, piece(packet, at, 4)) {
            self.proto = proto as u8;
            self.ports = ports;
        }
    }

    /// Value and kind of the hash, by the table of precedence.
    pub fn hash(&self, key: &[u8; 40], on: u32) -> (u32, Report) {
        let or = |addr: &Vec<u8>, otherwise: &Vec<u8>| {
            if addr.is_empty() {
                otherwise.clone()
            } else {
                addr.clone()
            }
        };
        let plain = [self.from.clone(), self.to.clone()].concat();
        let extended = [or(&self.home, &self.from), or(&self.routed, &self.to)].concat();
        let tcp = self.proto == 6;
        let udp = self.proto == 17;
        let (v4, v6, ex) = (self.version == 4, self.version == 6, self.extended);
        let rules = [
            (v4 && tcp, types::TCPV4, Report::Tcpv4, &plain, true),
            (v4 && udp, types::UDPV4, Report::Udpv4, &plain, true),
            (v4, types::IPV4, Report::Ipv4, &plain, false),
            (ex && tcp, types::TCP_EX, Report::Tcpv6Ex, &extended, true),
            (ex && udp, types::UDP_EX, Report::Udpv6Ex, &extended, true),
            (ex, types::IP_EX, Report::Ipv6Ex, &extended, false),
            (v6 && tcp, types::TCPV6, Report::Tcpv6, &plain, true),
            (v6 && udp, types::UDPV6, Report::Udpv6, &plain, true),
            (v6, types::IPV6, Report::Ipv6, &plain, false),
        ];
        for (applies, kind, report, addrs, ports) in rules {
            if applies && on & kind != 0 {
                let mut input = addrs.clone();
                if ports {
                    input.extend(&self.ports);
                }
                return (toeplitz(key, &input), report);
            }
        }
        (0, Report::None)
    }
}

/// The hash of `input`: for each bit that is set, the key from there on.
pub fn toeplitz(key: &[u8; 40], input: &[u8]) -> u32 {
    let bit = |bytes: &[u8], at: usize| bytes[at / 8] >> (7 - at % 8) & 1 != 0;
    let mut sum = 0;
    for i in (0..input.len() * 8).filter(|&i| bit(input, i)) {
        let mut word = 0;
        for j in i..i + 32 {
            word = word << 1 | u32::from(bit(key, j));
        }
        sum ^= word;
    }
    sum
}

fn piece(bytes: &[u8], at: usize, len: usize) -> Option<Vec<u8>> {
    (at..at + len).map(|i| bytes.get(i).copied()).collect()
}

fn number(bytes: &[u8], at: usize, len: usize) -> Option<u64> {
    let piece = piece(bytes, at, len)?;
    Some(
        piece
            .iter()
            .fold(0, |sum, &byte| sum * 256 + u64::from(byte)),
    )
}
