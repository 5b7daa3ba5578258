// SPDX-License-Identifier: GPL-2.0
//! Arithmetic of the dirty log: one bit per 4 KiB guest page, counted from guest address 0.

use super::addr::{
    Gpa,
    Hva, //
};

/// Bytes of memory that one bit stands for (`VHOST_PAGE_SIZE`).
pub const PAGE_BYTES: u64 = 4096;

/// A 32-bit word of the log, and the bits to set in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Word {
    /// Where it lies; a multiple of four.
    pub at: Hva,
    /// The bits, of the little-endian word.
    pub bits: u32,
}

/// Where bits are still to be set.
#[derive(Clone, Copy, Debug)]
pub struct Words {
    base: u64,
    /// Next page, and one after the last.
    page: u64,
    end: u64,
}

/// The words of the log at `base` that say that `len` bytes at `at` were written.
pub fn words(base: u64, at: Gpa, len: u64) -> Words {
    let page = at.0 / PAGE_BYTES;
    let end = match len.checked_sub(1) {
        Some(more) => at.0.saturating_add(more) / PAGE_BYTES + 1,
        None => page,
    };
    Words { base, page, end }
}

impl Iterator for Words {
    type Item = Word;

    fn next(&mut self) -> Option<Word> {
        if self.page >= self.end {
            return None;
        }
        // The log need not start at a word: count bits from the word that holds its first byte.
        let skew = self.base % 4 * 8;
        // No overflow: there are 2^52 pages.
        let bit = self.page + skew;
        let word = bit / 32;
        let from = bit % 32;
        let count = (32 - from).min(self.end - self.page);
        self.page += count;
        // CAST: between 1 and 32 bits; the shifts stay below 32.
        let bits = (u32::MAX >> (32 - count as u32)) << from as u32;
        Some(Word {
            at: Hva((self.base - self.base % 4).wrapping_add(word * 4)),
            bits,
        })
    }
}

/// How many bytes of log it takes for guest addresses up to `last`.
pub fn log_bytes(last: u64) -> u64 {
    last / PAGE_BYTES / 8 + 1
}

#[cfg_attr(rv_kunit, ::kernel::macros::kunit_tests(rvhost_vcore_dirty))]
#[cfg(any(test, rv_kunit))]
mod tests {
    use super::*;

    fn one(base: u64, at: u64, len: u64) -> (u64, u32) {
        let mut words = words(base, Gpa(at), len);
        let first = words.next();
        assert!(words.next().is_none());
        first.map_or((0, 0), |w| (w.at.0, w.bits))
    }

    #[test]
    fn one_bit_per_page_touched() {
        assert_eq!(one(0x1000, 0, 1), (0x1000, 1));
        assert_eq!(one(0x1000, 4095, 1), (0x1000, 1));
        assert_eq!(one(0x1000, 4095, 2), (0x1000, 3));
        assert_eq!(one(0x1000, 31 * 4096, 4096), (0x1000, 1 << 31));
        assert_eq!(one(0x1000, 32 * 4096, 1), (0x1004, 1));
        assert_eq!(one(0x1000, 0, 32 * 4096), (0x1000, u32::MAX));
        assert!(words(0x1000, Gpa(0), 0).next().is_none());
    }

    #[test]
    fn range_across_words_gives_each_its_bits() {
        let mut words = words(0x1000, Gpa(31 * 4096), 34 * 4096);
        let (a, b, c) = (words.next(), words.next(), words.next());
        assert_eq!(a.map(|w| (w.at.0, w.bits)), Some((0x1000, 1 << 31)));
        assert_eq!(b.map(|w| (w.at.0, w.bits)), Some((0x1004, u32::MAX)));
        assert_eq!(c.map(|w| (w.at.0, w.bits)), Some((0x1008, 1)));
        assert!(words.next().is_none());
    }

    #[test]
    fn log_may_start_at_any_byte() {
        assert_eq!(one(0x1003, 0, 1), (0x1000, 1 << 24));
        assert_eq!(one(0x1003, 8 * 4096, 1), (0x1004, 1));
    }

    #[test]
    fn top_of_the_address_space_has_a_bit() {
        let (at, bits) = one(0, u64::MAX, 9);
        assert_eq!(at, (1 << 52) / 8 - 4);
        assert_eq!(bits, 1 << 31);
        assert_eq!(log_bytes(u64::MAX), 1 << 49);
    }
}
