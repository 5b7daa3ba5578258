// SPDX-License-Identifier: GPL-2.0
//! The IOTLB: mappings from I/O virtual to owner addresses that user space adds and removes.

use core::ops::{
    DerefMut,
    Range, //
};

use super::{
    addr::{
        Hva,
        Seg, //
    },
    mem::Access,
    Error, Result,
};

/// Mappings kept at most; the oldest gives way (`vhost.max_iotlb_entries` of C vhost).
pub const MAX_ENTRIES: usize = 2048;

/// The device may read (`VHOST_ACCESS_RO`).
pub const PERM_READ: u8 = 1;
/// The device may write (`VHOST_ACCESS_WO`).
pub const PERM_WRITE: u8 = 2;

/// The permission that `access` needs.
#[inline]
pub fn permission(access: Access) -> u8 {
    match access {
        Access::Read => PERM_READ,
        Access::Write => PERM_WRITE,
    }
}

/// A mapping.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Entry {
    /// First I/O virtual address.
    pub first: u64,
    /// Last I/O virtual address, inclusive.
    pub last: u64,
    /// Where the first byte lies in owner memory.
    pub hva: u64,
    /// `PERM_*` bits.
    pub perm: u8,
    /// When it came, for the choice of the oldest.
    age: u64,
    /// The highest `last` of this entry and all before it.
    reach: u64,
}

impl Entry {
    /// A mapping of `size` bytes; `None` if it is empty or wraps.
    pub fn new(first: u64, size: u64, hva: u64, perm: u8) -> Option<Self> {
        Some(Self {
            first,
            last: first.checked_add(size.checked_sub(1)?)?,
            hva,
            perm,
            ..Self::default()
        })
    }

    #[inline]
    fn holds(&self, at: u64) -> bool {
        self.first <= at && at <= self.last
    }

    /// The first contiguous part of `len` bytes at `at`, which it holds.
    #[inline]
    fn segment(&self, at: u64, len: u64, access: Access) -> Result<Seg> {
        if self.perm & permission(access) == 0 {
            return Err(Error::Denied);
        }
        // One less than what is left, which cannot overflow.
        let left = self.last.wrapping_sub(at);
        Ok(Seg {
            at: Hva(self.hva.wrapping_add(at.wrapping_sub(self.first))),
            len: if len > left {
                left.saturating_add(1)
            } else {
                len
            },
        })
    }
}

/// All mappings, sorted by their first address.
///
/// Where they overlap, the one with the lowest start counts, and of those the older.
pub struct Table<S> {
    slots: S,
    len: usize,
    clock: u64,
}

impl<S: DerefMut<Target = [Entry]>> Table<S> {
    /// An empty table over the caller's storage, which sets its capacity.
    pub fn new(slots: S) -> Self {
        Self {
            slots,
            len: 0,
            clock: 0,
        }
    }

    fn entries(&self) -> &[Entry] {
        self.slots.get(..self.len).unwrap_or(&[])
    }

    /// The mapping that counts for `at`.
    #[inline]
    pub fn find(&self, at: u64) -> Option<&Entry> {
        let entries = self.entries();
        // The first that reaches so far is the one with the lowest start that does.
        let i = entries.partition_point(|e| e.reach < at);
        entries.get(i).filter(|e| e.holds(at))
    }

    /// Adds a mapping, in the place of the oldest if there is no room. Returns whether another
    /// one does not count any more, in part or at all.
    pub fn insert(&mut self, mut entry: Entry) -> bool {
        let mut hides = self.touches(entry.first, entry.last);
        if self.len == self.slots.len() {
            let oldest = self.entries().iter().enumerate().min_by_key(|(_, e)| e.age);
            let Some(i) = oldest.map(|(i, _)| i) else {
                return false;
            };
            self.remove_at(i);
            hides = true;
        }
        self.clock = self.clock.wrapping_add(1);
        entry.age = self.clock;
        let i = self.entries().partition_point(|e| e.first <= entry.first);
        // PANIC: `i` is `len` at most, and there is a slot behind `len`.
        self.slots.copy_within(i..self.len, i + 1);
        if let Some(slot) = self.slots.get_mut(i) {
            *slot = entry;
        }
        self.len += 1;
        self.reach_from(i);
        hides
    }

    fn remove_at(&mut self, i: usize) {
        // PANIC: `i` is below `len`.
        self.slots.copy_within(i + 1..self.len, i);
        self.len -= 1;
        self.reach_from(i);
    }

    /// The entries among which those are that touch `first..=last`: at least the first does, if
    /// there is any.
    fn around(&self, first: u64, last: u64) -> Range<usize> {
        let entries = self.entries();
        let from = entries.partition_point(|e| e.reach < first);
        let to = entries.partition_point(|e| e.first <= last);
        from..to.max(from)
    }

    /// Whether a mapping touches `first..=last`.
    fn touches(&self, first: u64, last: u64) -> bool {
        !self.around(first, last).is_empty()
    }

    /// Removes all mappings that touch `first..=last`, which may be empty. Returns whether there
    /// were any.
    pub fn remove(&mut self, first: u64, last: u64) -> bool {
        let around = self.around(first, last);
        if first > last || around.is_empty() {
            return false;
        }
        let mut kept = around.start;
        for i in around.clone() {
            if let Some(&entry) = self.slots.get(i).filter(|e| e.last < first) {
                if let Some(slot) = self.slots.get_mut(kept) {
                    *slot = entry;
                }
                kept += 1;
            }
        }
        // PANIC: `kept <= around.end <= len`.
        self.slots.copy_within(around.end..self.len, kept);
        self.len -= around.end - kept;
        self.reach_from(around.start);
        true
    }

    fn reach_from(&mut self, from: usize) {
        let mut reach = match from.checked_sub(1).and_then(|i| self.slots.get(i)) {
            Some(before) => before.reach,
            None => 0,
        };
        if let Some(changed) = self.slots.get_mut(from..self.len) {
            for entry in changed {
                reach = reach.max(entry.last);
                entry.reach = reach;
            }
        }
    }
}

/// The mappings used last by one queue. To be cleared whenever the table changes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cache {
    entries: [Entry; Self::SIZE],
    used: usize,
    next: usize,
}

impl Cache {
    /// Three ring areas, indirect tables and a few buffers.
    const SIZE: usize = 8;

    /// The first contiguous part of `len` bytes at `at`, if one of the mappings is cached.
    #[inline]
    pub fn segment(&self, at: u64, len: u64, access: Access) -> Option<Result<Seg>> {
        self.entries
            .iter()
            .take(self.used)
            .find(|e| e.holds(at))
            .map(|e| e.segment(at, len, access))
    }

    /// Remembers a mapping, and does as [`Cache::segment`] for it.
    pub fn remember(&mut self, entry: &Entry, at: u64, len: u64, access: Access) -> Result<Seg> {
        if let Some(slot) = self.entries.get_mut(self.next) {
            *slot = *entry;
        }
        self.next = (self.next + 1) % Self::SIZE;
        self.used = (self.used + 1).min(Self::SIZE);
        entry.segment(at, len, access)
    }
}

/// The mappings of a queue's ring, kept for as long as the queue works: what was used must be
/// shown to the driver whatever becomes of the table meanwhile.
#[derive(Clone, Copy, Debug, Default)]
pub struct Kept {
    pieces: [Piece; Self::SIZE],
    used: usize,
}

/// A piece of a ring in owner memory, and what it is for.
#[derive(Clone, Copy, Debug, Default)]
struct Piece {
    at: u64,
    seg: Seg,
    perm: u8,
}

impl Kept {
    /// Enough for the largest rings of common drivers in pages of 4 KiB; of a larger ring, the rest
    /// is looked up like anything else.
    const SIZE: usize = 16;

    /// Keeps the piece `seg` of owner memory, which was found at `at`.
    pub fn keep(&mut self, at: u64, seg: Seg, access: Access) {
        if let Some(slot) = self.pieces.get_mut(self.used) {
            *slot = Piece {
                at,
                seg,
                perm: permission(access),
            };
            self.used += 1;
        }
    }

    /// The first contiguous part of `len` bytes at `at`, if it was kept for such an access.
    #[inline]
    pub fn segment(&self, at: u64, len: u64, access: Access) -> Option<Seg> {
        self.pieces.iter().take(self.used).find_map(|piece| {
            let offset = at.checked_sub(piece.at)?;
            let left = piece.seg.len.checked_sub(offset).filter(|&left| left > 0)?;
            (piece.perm == permission(access)).then(|| Seg {
                at: piece.seg.at.at(offset),
                len: len.min(left),
            })
        })
    }
}

#[cfg_attr(rv_kunit, ::kernel::macros::kunit_tests(rvhost_vcore_iotlb))]
#[cfg(any(test, rv_kunit))]
mod tests {
    use super::*;

    fn add<S: DerefMut<Target = [Entry]>>(t: &mut Table<S>, first: u64, size: u64, hva: u64) {
        if let Some(entry) = Entry::new(first, size, hva, PERM_READ) {
            t.insert(entry);
        }
    }

    fn hva<S: DerefMut<Target = [Entry]>>(t: &Table<S>, at: u64) -> Option<u64> {
        let seg = t.find(at)?.segment(at, 1, Access::Read).ok()?;
        Some(seg.at.0)
    }

    struct Slots([Entry; 4]);

    impl core::ops::Deref for Slots {
        type Target = [Entry];
        fn deref(&self) -> &[Entry] {
            &self.0
        }
    }

    impl DerefMut for Slots {
        fn deref_mut(&mut self) -> &mut [Entry] {
            &mut self.0
        }
    }

    fn small() -> Table<Slots> {
        Table::new(Slots([Entry::default(); 4]))
    }

    #[test]
    fn lowest_start_counts_where_mappings_overlap_and_then_the_older() {
        let mut t = small();
        add(&mut t, 0x1000, 0x1000, 0xa000);
        add(&mut t, 0, 0x1800, 0x10000);
        add(&mut t, 0, 0x100, 0x90000);
        assert_eq!(hva(&t, 0x10), Some(0x10010));
        assert_eq!(hva(&t, 0x17ff), Some(0x117ff));
        assert_eq!(hva(&t, 0x1800), Some(0xa800));
        assert_eq!(hva(&t, 0x2000), None);
    }

    #[test]
    fn removal_takes_whole_mappings_that_touch_the_range() {
        let mut t = small();
        add(&mut t, 0, 0x1000, 0x10000);
        add(&mut t, 0x1000, 0x1000, 0x20000);
        add(&mut t, 0x3000, 0x1000, 0x30000);
        t.remove(0xfff, 0x1000);
        assert_eq!(hva(&t, 0), None);
        assert_eq!(hva(&t, 0x1800), None);
        assert_eq!(hva(&t, 0x3000), Some(0x30000));
        t.remove(0, u64::MAX);
        assert_eq!(hva(&t, 0x3000), None);
    }

    #[test]
    fn oldest_mapping_gives_way_to_the_newest() {
        let mut t = small();
        for i in [4, 3, 2, 1, 0] {
            add(&mut t, i * 0x1000, 0x1000, i * 0x10000);
        }
        assert_eq!(hva(&t, 0x4000), None);
        assert_eq!(hva(&t, 0x3000), Some(0x30000));
        assert_eq!(hva(&t, 0), Some(0));
    }

    #[test]
    fn whole_address_space_can_be_mapped() {
        let mut t = small();
        t.insert(Entry {
            last: u64::MAX,
            perm: PERM_READ | PERM_WRITE,
            ..Entry::default()
        });
        assert_eq!(hva(&t, u64::MAX), Some(u64::MAX));
        assert_eq!(
            Entry::new(1, u64::MAX, 0, 1).map(|e| e.last),
            Some(u64::MAX)
        );
        assert_eq!(Entry::new(2, u64::MAX, 0, 1), None);
        assert_eq!(Entry::new(0, 0, 0, 1), None);
    }

    #[test]
    fn kept_pieces_answer_for_their_access_only() {
        let mut kept = Kept::default();
        for i in 0..30 {
            let seg = Seg {
                at: Hva(0x9000 + 0x20 * i),
                len: 0x10,
            };
            kept.keep(0x1000 + 0x10 * i, seg, Access::Read);
        }
        let seg = kept.segment(0x1014, 0x20, Access::Read);
        assert_eq!(seg.map(|s| (s.at.0, s.len)), Some((0x9024, 0xc)));
        assert_eq!(kept.segment(0x1014, 0x20, Access::Write), None);
        assert_eq!(kept.segment(0xfff, 1, Access::Read), None);
        // There is room for 16.
        assert!(kept.segment(0x10ff, 1, Access::Read).is_some());
        assert_eq!(kept.segment(0x1100, 1, Access::Read), None);
    }

    #[test]
    fn cache_answers_for_what_it_remembers_with_permissions() {
        let mut cache = Cache::default();
        assert!(cache.segment(0, 1, Access::Read).is_none());
        if let Some(entry) = Entry::new(0x1000, 0x100, 0x9000, PERM_READ) {
            let seg = cache.remember(&entry, 0x10f0, 0x100, Access::Read);
            assert_eq!(
                seg,
                Ok(Seg {
                    at: Hva(0x90f0),
                    len: 0x10
                })
            );
        }
        assert_eq!(
            cache.segment(0x1000, 4, Access::Write),
            Some(Err(Error::Denied))
        );
        assert!(cache.segment(0x1100, 4, Access::Read).is_none());
    }
}
