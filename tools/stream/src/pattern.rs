// SPDX-License-Identifier: GPL-2.0
//! What is sent, as a function of its place in the stream, and what has been seen of it.

/// Bytes of a datagram before its pattern: stream, sequence number, length.
const HEADER: usize = 24;
/// Largest datagram that needs no fragments.
const MAX_DATAGRAM: usize = 1472;

/// Spreads a number over 64 bits (the finaliser of splitmix64).
fn mix(number: u64) -> u64 {
    let mut x = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Bytes `at`… of the endless pattern with this key.
pub(crate) fn fill(key: u64, at: u64, out: &mut [u8]) {
    let mut at = at;
    let mut rest = out;
    while !rest.is_empty() {
        let word = mix(key.rotate_left(32) ^ (at / 8)).to_le_bytes();
        let from = &word[(at % 8) as usize..];
        let n = from.len().min(rest.len());
        rest[..n].copy_from_slice(&from[..n]);
        rest = &mut rest[n..];
        at += n as u64;
    }
}

/// How many of these bytes differ from the pattern's bytes `at`….
pub(crate) fn differing(key: u64, at: u64, bytes: &[u8]) -> u64 {
    let mut wanted = vec![0; bytes.len()];
    fill(key, at, &mut wanted);
    wanted.iter().zip(bytes).filter(|(a, b)| a != b).count() as u64
}

/// Datagram `seq` of a stream. Lengths vary between small and `MAX_DATAGRAM`.
pub(crate) fn datagram(stream: u64, seq: u64) -> Vec<u8> {
    let len = [64, 1000, 128, MAX_DATAGRAM, 300, 1400][(mix(seq) % 6) as usize];
    datagram_of(stream, seq, len)
}

/// Datagram `seq` of a stream, of this length.
pub(crate) fn datagram_of(stream: u64, seq: u64, len: usize) -> Vec<u8> {
    let mut out = vec![0; len];
    out[..8].copy_from_slice(&stream.to_le_bytes());
    out[8..16].copy_from_slice(&seq.to_le_bytes());
    out[16..24].copy_from_slice(&(len as u64).to_le_bytes());
    fill(stream ^ mix(seq), 0, &mut out[HEADER..]);
    out
}

/// What became of the datagrams of one stream.
#[derive(Default)]
pub(crate) struct Seen {
    bits: Vec<u64>,
    /// Different ones that came, all of them whole.
    pub(crate) got: u64,
    /// Sequence number after the highest that came.
    end: u64,
    /// Came again.
    pub(crate) dup: u64,
    /// Came damaged.
    pub(crate) bad: u64,
}

impl Seen {
    /// Takes what was received.
    pub(crate) fn take(&mut self, stream: u64, bytes: &[u8]) {
        let word = |n: usize| {
            bytes
                .get(8 * n..8 * n + 8)
                .map(|b| u64::from_le_bytes(b.try_into().expect("eight bytes")))
        };
        // A sequence number far ahead is damage too, and must not make `bits` grow.
        let (Some(seq), true) = (
            word(1).filter(|seq| *seq < self.end + (1 << 24)),
            bytes.len() >= HEADER,
        ) else {
            self.bad += 1;
            return;
        };
        if bytes != datagram_of(stream, seq, bytes.len()) {
            self.bad += 1;
            return;
        }
        let (index, bit) = ((seq / 64) as usize, 1 << (seq % 64));
        if self.bits.len() <= index {
            self.bits.resize(index + 1, 0);
        }
        if self.bits[index] & bit != 0 {
            self.dup += 1;
            return;
        }
        self.bits[index] |= bit;
        self.got += 1;
        self.end = self.end.max(seq + 1);
    }

    /// Holes below the highest that came.
    pub(crate) fn lost(&self) -> u64 {
        self.end - self.got
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pattern_is_the_same_however_it_is_cut() {
        let mut whole = [0; 64];
        fill(7, 3, &mut whole);
        let mut parts = [0; 64];
        fill(7, 3, &mut parts[..13]);
        fill(7, 16, &mut parts[13..]);
        assert_eq!(whole, parts);
        assert_eq!(differing(7, 3, &whole), 0);
        whole[40] ^= 1;
        assert_eq!(differing(7, 3, &whole), 1);
    }

    #[test]
    fn losses_repetitions_and_damage_are_told_apart() {
        let mut seen = Seen::default();
        for seq in [0, 1, 3, 3, 200] {
            seen.take(5, &datagram(5, seq));
        }
        let mut damaged = datagram(5, 4);
        *damaged.last_mut().expect("a byte") ^= 0x80;
        seen.take(5, &damaged);
        seen.take(5, &datagram(6, 4));
        seen.take(5, &datagram(5, 4)[..HEADER - 1]);
        seen.take(5, &vec![0; 1400]);
        assert_eq!((seen.got, seen.dup, seen.bad, seen.lost()), (4, 1, 4, 197));
    }

    #[test]
    fn a_cut_datagram_is_damaged() {
        let mut seen = Seen::default();
        let whole = datagram_of(1, 0, 1400);
        seen.take(1, &whole[..1000]);
        assert_eq!((seen.got, seen.bad), (0, 1));
    }
}
