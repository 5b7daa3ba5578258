// SPDX-License-Identifier: GPL-2.0
//! The memory table: which guest addresses lie where in the owner's address space.

use super::{
    addr::{
        Gpa,
        Hva,
        Seg, //
    },
    Error, Result,
};

/// A region of guest memory. Holds its last address, not its size, so that a region may end at
/// the top of the address space.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Region {
    /// First guest address.
    pub first: u64,
    /// Last guest address, inclusive.
    pub last: u64,
    /// Where the first byte lies in owner memory.
    pub hva: u64,
}

impl Region {
    /// A region of `size` bytes; `None` if it is empty or wraps.
    pub fn new(first: Gpa, size: u64, hva: Hva) -> Option<Self> {
        Some(Self {
            first: first.0,
            last: first.0.checked_add(size.checked_sub(1)?)?,
            hva: hva.0,
        })
    }

    #[inline(always)]
    fn segment(&self, at: u64, len: u64) -> Option<Seg> {
        if at < self.first || at > self.last {
            return None;
        }
        // One less than what is left, which cannot overflow even for the whole address space.
        let left = self.last - at;
        Some(Seg {
            at: Hva(self.hva.wrapping_add(at - self.first)),
            len: if len > left {
                left.saturating_add(1)
            } else {
                len
            },
        })
    }
}

/// Sorts `regions` and cuts overlaps, so that each address is in one region at most. Where
/// regions overlap the one with the lowest start wins, and of those the one that came first.
/// Returns how many regions remain, at the start of the slice.
pub fn normalize(regions: &mut [Region]) -> usize {
    // PANIC: all indices are below the length by their loops; `kept` never passes `i`.
    // Insertion sort: stable, in place, and tables are short and mostly sorted already.
    for i in 1..regions.len() {
        let mut j = i;
        while j > 0 && regions[j - 1].first > regions[j].first {
            regions.swap(j - 1, j);
            j -= 1;
        }
    }
    let mut kept = 0;
    let mut covered: Option<u64> = None;
    for i in 0..regions.len() {
        let mut region = regions[i];
        if let Some(end) = covered {
            if region.last <= end {
                continue;
            }
            if region.first <= end {
                // No overflow: `end < region.last`.
                region.hva = region.hva.wrapping_add(end + 1 - region.first);
                region.first = end + 1;
            }
        }
        covered = Some(region.last);
        regions[kept] = region;
        kept += 1;
    }
    kept
}

/// Calls `f` with each range of guest addresses that lies at `len` bytes of owner memory at `at`.
pub fn aliases(table: &[Region], at: Hva, len: u64, mut f: impl FnMut(Gpa, u64)) {
    let Some(more) = len.checked_sub(1) else {
        return;
    };
    let (first, last) = (at.0, at.0.saturating_add(more));
    for region in table {
        let end = region.hva.saturating_add(region.last - region.first);
        if last < region.hva || first > end {
            continue;
        }
        let (from, to) = (first.max(region.hva), last.min(end));
        // No overflow: both lie in the region.
        f(
            Gpa(region.first + (from - region.hva)),
            (to - from).saturating_add(1),
        );
    }
}

/// Looks addresses up in a normalized table, remembering the region that was last hit.
#[derive(Clone, Copy, Debug, Default)]
pub struct Lookup {
    hit: Region,
    valid: bool,
}

impl Lookup {
    /// The first contiguous part of `len` bytes at `at`.
    #[inline(always)]
    pub fn segment(&mut self, table: &[Region], at: Gpa, len: u64) -> Result<Seg> {
        match self.hit.segment(at.0, len) {
            Some(seg) if self.valid => Ok(seg),
            _ => self.find(table, at, len),
        }
    }

    #[cold]
    fn find(&mut self, table: &[Region], at: Gpa, len: u64) -> Result<Seg> {
        let after = table.partition_point(|r| r.first <= at.0);
        let region = after
            .checked_sub(1)
            .and_then(|i| table.get(i))
            .ok_or(Error::Unmapped)?;
        let seg = region.segment(at.0, len).ok_or(Error::Unmapped)?;
        *self = Self {
            hit: *region,
            valid: true,
        };
        Ok(seg)
    }
}

#[cfg_attr(rv_kunit, ::kernel::macros::kunit_tests(rvhost_vcore_map))]
#[cfg(any(test, rv_kunit))]
mod tests {
    use super::*;

    fn region(first: u64, last: u64, hva: u64) -> Region {
        Region { first, last, hva }
    }

    fn find(table: &[Region], at: u64, len: u64) -> Result<(u64, u64)> {
        let seg = Lookup::default().segment(table, Gpa(at), len)?;
        Ok((seg.at.0, seg.len))
    }

    #[test]
    fn empty_and_wrapping_regions_are_refused() {
        assert_eq!(Region::new(Gpa(4096), 0, Hva(0)), None);
        assert_eq!(Region::new(Gpa(0), 0, Hva(0)), None);
        assert_eq!(Region::new(Gpa(u64::MAX), 2, Hva(0)), None);
        assert!(Region::new(Gpa(u64::MAX), 1, Hva(0)).is_some());
    }

    #[test]
    fn lookup_stops_at_the_end_of_a_region() -> Result {
        let table = [region(0, 0xfff, 0x10000), region(0x1000, 0x1fff, 0x50000)];
        assert_eq!(find(&table, 0xff0, 0x20)?, (0x10ff0, 0x10));
        assert_eq!(find(&table, 0x1000, 0x20)?, (0x50000, 0x20));
        assert_eq!(find(&table, 0x2000, 1), Err(Error::Unmapped));
        assert_eq!(find(&[], 0, 1), Err(Error::Unmapped));
        Ok(())
    }

    #[test]
    fn region_up_to_the_top_of_the_address_space_works() -> Result {
        let table = [region(0, u64::MAX, 0)];
        assert_eq!(find(&table, u64::MAX, 5)?, (u64::MAX, 1));
        assert_eq!(find(&table, 0, u64::MAX)?, (0, u64::MAX));
        Ok(())
    }

    #[test]
    fn lowest_start_wins_an_overlap_and_the_rest_stays_reachable() -> Result {
        let mut table = [
            region(0x100, 0x4ff, 0x20000),
            region(0, 0x1ff, 0x10000),
            region(0, 0x0ff, 0x70000),
            region(0x180, 0x1f0, 0x60000),
        ];
        let kept = normalize(&mut table);
        assert_eq!(kept, 2);
        let table = &table[..kept];
        assert_eq!(find(table, 0x10, 1)?, (0x10010, 1));
        assert_eq!(find(table, 0x1ff, 8)?, (0x101ff, 1));
        assert_eq!(find(table, 0x200, 1)?, (0x20100, 1));
        assert_eq!(find(table, 0x4ff, 9)?, (0x203ff, 1));
        Ok(())
    }

    #[test]
    fn all_guest_addresses_of_owner_memory_are_found() {
        let table = [region(0, 0xfff, 0x10000), region(0x8000, 0x8fff, 0x10800)];
        let mut found = [(0, 0); 3];
        let mut n = 0;
        aliases(&table, Hva(0x10f00), 0x200, |gpa, len| {
            found[n] = (gpa.0, len);
            n += 1;
        });
        assert_eq!(found, [(0xf00, 0x100), (0x8700, 0x200), (0, 0)]);
    }

    #[test]
    fn remembered_region_does_not_answer_for_others() -> Result {
        let table = [region(0, 0xff, 0x1000), region(0x200, 0x2ff, 0x9000)];
        let mut lookup = Lookup::default();
        assert_eq!(lookup.segment(&table, Gpa(0x210), 4)?.at, Hva(0x9010));
        assert_eq!(lookup.segment(&table, Gpa(0x10), 4)?.at, Hva(0x1010));
        assert_eq!(lookup.segment(&table, Gpa(0x100), 4), Err(Error::Unmapped));
        Ok(())
    }
}
