// SPDX-License-Identifier: GPL-2.0
//! Flows that were noted lately.
//!
//! A TAP with several queues learns from what it is sent which queue a flow belongs to, and
//! forgets it after three seconds. Who passes it by has to send it something of each flow before
//! that.

use super::flow::{
    Flow,
    Transport, //
};

/// Flows that are remembered; a power of two.
const SLOTS: usize = 64;
/// Nanoseconds in a unit of time, as a power of two: about a quarter of a second.
const UNIT_SHIFT: u32 = 28;
/// Units of time for which a flow is remembered: about a second.
const AGE: u32 = 4;

/// Flows, and when they were noted.
#[derive(Clone, Debug)]
pub struct Recent([Slot; SLOTS]);

#[derive(Clone, Copy, Debug, Default)]
struct Slot {
    /// Zero: none.
    key: u64,
    since: u32,
}

impl Default for Recent {
    fn default() -> Self {
        Self([Slot::default(); SLOTS])
    }
}

impl Recent {
    /// Whether the flow of `frame` was noted within about the last second before `now`, a time in
    /// nanoseconds. Always `false` of what is neither TCP nor UDP.
    #[inline]
    pub fn knows(&self, frame: &[u8], now: u64) -> bool {
        let Some(key) = key(&Flow::of_frame(frame)) else {
            return false;
        };
        let slot = self.0.get(place(key));
        slot.is_some_and(|slot| slot.key == key && units(now).wrapping_sub(slot.since) < AGE)
    }

    /// Notes the flow of `frame` at `now`.
    pub fn note(&mut self, frame: &[u8], now: u64) {
        let Some(key) = key(&Flow::of_frame(frame)) else {
            return;
        };
        if let Some(slot) = self.0.get_mut(place(key)) {
            let since = units(now);
            *slot = Slot { key, since };
        }
    }
}

/// Where a flow is remembered.
#[inline]
fn place(key: u64) -> usize {
    // CAST: 32 bits fit.
    (key >> 32) as usize % SLOTS
}

/// A time in units, as far as differences between times go.
#[inline]
fn units(now: u64) -> u32 {
    // CAST: the lower bits are what differences are made of.
    (now >> UNIT_SHIFT) as u32
}

/// A number for a flow, never zero; different flows have the same one only by chance.
#[inline]
fn key(flow: &Flow<'_>) -> Option<u64> {
    let (addrs, transport) = match flow {
        Flow::V4 { addrs, transport } => (addrs.as_slice(), transport),
        Flow::V6 {
            addrs,
            transport,
            extensions: None,
        } => (addrs.as_slice(), transport),
        _ => return None,
    };
    let (proto, ports) = match transport {
        Transport::Tcp(ports) => (1, *ports),
        Transport::Udp(ports) => (2, *ports),
        Transport::Other => return None,
    };
    let words = addrs.chunks_exact(8).filter_map(<[u8]>::first_chunk);
    let start = mix(proto, u32::from_le_bytes(*ports).into());
    let key = words.fold(start, |key, &word| mix(key, u64::from_le_bytes(word)));
    Some(key | 1)
}

/// Mixes a word into a key.
#[inline]
fn mix(key: u64, word: u64) -> u64 {
    // The golden ratio's bits: odd, and without a pattern.
    (key.rotate_left(29) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15)
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: u64 = 1 << 30;

    /// A frame of IPv4 with these ports.
    fn frame(proto: u8, source: u16, destination: u16) -> [u8; 60] {
        let mut frame = [0; 60];
        frame[12] = 8;
        frame[14] = 0x45;
        frame[23] = proto;
        frame[26..34].copy_from_slice(&[10, 0, 0, 1, 10, 0, 0, 2]);
        frame[34..36].copy_from_slice(&source.to_be_bytes());
        frame[36..38].copy_from_slice(&destination.to_be_bytes());
        frame
    }

    #[test]
    fn a_flow_is_known_for_a_second() {
        let mut recent = Recent::default();
        let flow = frame(6, 1000, 80);
        for round in 1..5 {
            let start = round * 10 * SECOND;
            assert!(!recent.knows(&flow, start));
            recent.note(&flow, start);
            assert!(recent.knows(&flow, start));
            assert!(recent.knows(&flow, start + SECOND / 2));
            assert!(!recent.knows(&flow, start + 2 * SECOND));
        }
    }

    #[test]
    fn flows_are_told_apart() {
        let mut recent = Recent::default();
        recent.note(&frame(6, 1000, 80), SECOND);
        for other in [frame(17, 1000, 80), frame(6, 1001, 80), frame(6, 1000, 81)] {
            assert!(!recent.knows(&other, SECOND));
        }
    }

    #[test]
    fn what_has_no_ports_is_never_known() {
        let mut recent = Recent::default();
        for frame in [frame(1, 0, 0).as_slice(), &[]] {
            recent.note(frame, SECOND);
            assert!(!recent.knows(frame, SECOND));
        }
    }

    #[test]
    fn several_flows_are_mostly_known() {
        let mut recent = Recent::default();
        for port in 0..16 {
            recent.note(&frame(17, port, 53), SECOND);
        }
        let known = (0..16).filter(|&port| recent.knows(&frame(17, port, 53), SECOND));
        assert!(known.count() > 8);
    }
}
