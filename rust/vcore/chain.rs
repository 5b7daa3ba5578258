// SPDX-License-Identifier: GPL-2.0
//! Descriptor chains: following them, checking them, and the storage for a batch of them.

use core::ops::DerefMut;

use super::{
    addr::{
        Gpa,
        RingAddr,
        Seg, //
    },
    mem::{
        Access,
        GuestMem, //
    },
    split::MAX_TAKE,
    wire::{
        Desc,
        DESC_BYTES,
        DESC_F_INDIRECT,
        DESC_F_NEXT,
        DESC_F_WRITE, //
    },
    Error, Result,
};

/// Segments one packet may have (`UIO_MAXIOV`, the limit of C vhost).
pub const MAX_SEGMENTS: usize = 1024;
/// Entries of an indirect table (the range of a descriptor's `next`).
const MAX_INDIRECT: u32 = 65536;
/// Descriptors one chain may visit, its indirect tables included. Only a chain of many large
/// tables of empty buffers reaches it: no driver makes one, and it must not hold the queue. For
/// the same reason a chain of more descriptors than it may have segments is its batch's last.
const MAX_STEPS: u32 = 2 * MAX_INDIRECT;
/// Indirect descriptors fetched at once: the tables of common drivers have up to 18 entries.
const INDIRECT_FETCH: u32 = 16;

/// A chain taken from the available ring.
#[derive(Clone, Copy, Debug, Default)]
pub struct Chain {
    /// Its first descriptor, which names it in the used ring.
    pub head: u16,
    /// Bytes in its buffers of the wanted direction.
    pub len: u64,
    /// Why the chain cannot carry a packet though it is well formed. Such a chain is given back
    /// to the driver unused.
    pub refused: Option<Error>,
    first_seg: u16,
    segs: u16,
}

// A queue keeps a thousand of them.
const _: () = assert!(size_of::<Chain>() == 16);

/// Chains that were taken and not yet given back, with their segments.
///
/// # Invariants
///
/// `head <= tail <= chains.len()` and `seg_tail <= segs.len()`; the segments of a chain in
/// `head..tail` end at or before `seg_tail`.
pub struct Batch<C, S> {
    chains: C,
    segs: S,
    head: usize,
    tail: usize,
    seg_tail: usize,
    pub(super) scratch: Scratch,
}

/// What [`Cursor::take`](super::split::Cursor::take) needs meanwhile. Kept, as clearing it each
/// time costs more than a packet.
pub(super) struct Scratch {
    pub(super) raw: [[u8; 2]; MAX_TAKE],
    pub(super) heads: [u16; MAX_TAKE],
    pub(super) descs: [Desc; MAX_TAKE],
}

impl<C, S> Batch<C, S>
where
    C: DerefMut<Target = [Chain]>,
    S: DerefMut<Target = [Seg]>,
{
    /// An empty batch over the caller's storage, which sets its limits.
    pub fn new(chains: C, segs: S) -> Self {
        Self {
            chains,
            segs,
            head: 0,
            tail: 0,
            seg_tail: 0,
            scratch: Scratch {
                raw: [[0; 2]; MAX_TAKE],
                heads: [0; MAX_TAKE],
                descs: [Desc::default(); MAX_TAKE],
            },
        }
    }

    /// How many chains it holds.
    #[inline]
    pub fn len(&self) -> usize {
        self.tail - self.head
    }

    /// Whether it holds no chain.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.head == self.tail
    }

    /// The `i`th chain.
    #[inline]
    pub fn get(&self, i: usize) -> Option<&Chain> {
        self.chains.get(self.head..self.tail)?.get(i)
    }

    /// The chains from the `i`th on.
    #[inline]
    pub fn iter_from(&self, i: usize) -> impl Iterator<Item = &Chain> {
        let held = self.chains.get(self.head..self.tail);
        held.and_then(|held| held.get(i..)).unwrap_or(&[]).iter()
    }

    /// The segments of the `i`th chain; of a refused chain, none.
    #[inline]
    pub fn segments(&self, i: usize) -> &[Seg] {
        self.get(i).map_or(&[], |chain| self.segments_in(chain))
    }

    /// The segments of `chain`, which is one of these; of a refused chain, none.
    #[inline]
    pub fn segments_in(&self, chain: &Chain) -> &[Seg] {
        let first = usize::from(chain.first_seg);
        self.segments_between(first, first + usize::from(chain.segs))
    }

    /// The segments of `n` chains from the `from`th on, which lie one after the other.
    #[inline]
    pub fn segments_of(&self, from: usize, n: usize) -> &[Seg] {
        let first = self.get(from);
        let last = n
            .checked_sub(1)
            .and_then(|more| self.get(from.checked_add(more)?));
        match (first, last) {
            (Some(f), Some(l)) => self.segments_between(
                usize::from(f.first_seg),
                usize::from(l.first_seg) + usize::from(l.segs),
            ),
            _ => &[],
        }
    }

    #[inline]
    fn segments_between(&self, from: usize, to: usize) -> &[Seg] {
        self.segs.get(from..to).unwrap_or(&[])
    }

    /// Forgets the first `n` chains, which were given back.
    #[inline]
    pub fn pop(&mut self, n: usize) {
        self.head = self.head.saturating_add(n).min(self.tail);
        if self.head == self.tail {
            self.clear();
        }
    }

    /// Forgets all chains.
    #[inline]
    pub fn clear(&mut self) {
        self.head = 0;
        self.tail = 0;
        self.seg_tail = 0;
    }

    /// Moves what it holds to the front of the storage, to make room behind it.
    pub fn compact(&mut self) {
        let Some(&Chain { first_seg, .. }) = self.get(0) else {
            return self.clear();
        };
        // PANIC: both ranges lie within the storage by the type's invariants.
        self.chains.copy_within(self.head..self.tail, 0);
        self.segs
            .copy_within(usize::from(first_seg)..self.seg_tail, 0);
        self.tail -= self.head;
        self.head = 0;
        self.seg_tail -= usize::from(first_seg);
        if let Some(held) = self.chains.get_mut(..self.tail) {
            for chain in held {
                chain.first_seg = chain.first_seg.saturating_sub(first_seg);
            }
        }
    }

    /// How many more chains it could hold.
    #[inline]
    pub fn room(&self) -> usize {
        self.chains.len() - self.tail
    }

    /// Adds the chain if it is what most are: one buffer in one piece, of the wanted direction.
    #[inline(always)]
    fn add_single<M: GuestMem>(
        &mut self,
        mem: &mut M,
        head: u16,
        desc: Desc,
        want: Access,
    ) -> Result<bool> {
        let wanted = match want {
            Access::Read => 0,
            Access::Write => DESC_F_WRITE,
        };
        let flags = desc.flags & (DESC_F_NEXT | DESC_F_WRITE | DESC_F_INDIRECT);
        if flags != wanted || desc.len == 0 {
            return Ok(false);
        }
        let len = u64::from(desc.len);
        let seg = mem.segment(Gpa(desc.addr), len, want)?;
        let (Some(chain), Some(slot)) = (
            self.chains.get_mut(self.tail),
            self.segs.get_mut(self.seg_tail), //
        ) else {
            return Err(Error::NoRoom);
        };
        if seg.len != len {
            return Ok(false);
        }
        *slot = seg;
        *chain = Chain {
            head,
            len,
            refused: None,
            // CAST: bounded by the storage, of a few thousand segments.
            first_seg: self.seg_tail as u16,
            segs: 1,
        };
        self.tail += 1;
        self.seg_tail += 1;
        Ok(true)
    }

    /// Follows the chain that starts with `desc`, the descriptor `head`, and adds it. Returns
    /// whether there is time for another one in this batch.
    ///
    /// `table` and `num` are the ring's descriptor table and its size. On error the batch is as
    /// it was.
    #[inline(always)]
    pub(super) fn add<M: GuestMem>(
        &mut self,
        mem: &mut M,
        table: RingAddr,
        num: u16,
        head: u16,
        desc: Desc,
        want: Access,
    ) -> Result<bool> {
        if self.add_single(mem, head, desc, want)? {
            Ok(true)
        } else {
            self.add_walking(mem, table, num, head, desc, want)
        }
    }

    fn add_walking<M: GuestMem>(
        &mut self,
        mem: &mut M,
        table: RingAddr,
        num: u16,
        head: u16,
        desc: Desc,
        want: Access,
    ) -> Result<bool> {
        let tail = self.tail;
        let slot = self.chains.get_mut(tail).ok_or(Error::NoRoom)?;
        let room = self.segs.get_mut(self.seg_tail..).unwrap_or(&mut []);
        let full = room.len();
        let limit = full.min(MAX_SEGMENTS);
        let mut walk = Walk {
            mem,
            want,
            segs: room.get_mut(..limit).unwrap_or(&mut []),
            kept: 0,
            len: 0,
            dropped: 0,
            writable: false,
            steps: MAX_STEPS,
        };
        let out_of_room = match walk.chain(table, num, desc) {
            Ok(()) => false,
            // Too many for this batch, which may be few for an empty one.
            Err(Error::TooManySegments) if full < MAX_SEGMENTS => true,
            Err(e) => return Err(e),
        };
        if out_of_room {
            return Err(Error::NoRoom);
        }
        let (kept, len, dropped) = (walk.kept, walk.len, walk.dropped);
        let in_time = walk.steps >= MAX_STEPS - MAX_SEGMENTS as u32;
        *slot = Chain {
            head,
            len,
            refused: if dropped > 0 {
                Some(Error::WrongDirection)
            } else if kept == 0 {
                Some(Error::Empty)
            } else {
                None
            },
            // CAST: both are bounded by the storage, of a few thousand segments.
            first_seg: self.seg_tail as u16,
            segs: kept as u16,
        };
        self.tail += 1;
        self.seg_tail += kept;
        Ok(in_time)
    }
}

/// One walk along a chain.
struct Walk<'a, M> {
    mem: &'a mut M,
    want: Access,
    segs: &'a mut [Seg],
    /// Segments stored, of the wanted direction.
    kept: usize,
    /// Their length in bytes.
    len: u64,
    /// Segments of the other direction.
    dropped: usize,
    /// A writable segment was seen.
    writable: bool,
    /// Descriptors that may still be visited.
    steps: u32,
}

impl<M: GuestMem> Walk<'_, M> {
    /// Follows a chain of the ring's own table.
    fn chain(&mut self, table: RingAddr, num: u16, mut desc: Desc) -> Result {
        // A chain without a loop visits each descriptor once at most.
        for _ in 0..num {
            if desc.has(DESC_F_INDIRECT) {
                self.indirect(desc)?;
            } else {
                self.buffer(desc)?;
            }
            if !desc.has(DESC_F_NEXT) {
                return Ok(());
            }
            let next = desc.next;
            if next >= num {
                return Err(Error::BadNext);
            }
            let mut one = [Desc::default()];
            self.mem.read_descs(table, &[next], &mut one)?;
            desc = one[0];
        }
        Err(Error::Loop)
    }

    /// Follows the chain in an indirect table (virtio 1.3, 2.7.5.3).
    fn indirect(&mut self, outer: Desc) -> Result {
        let entries = outer.len / DESC_BYTES as u32;
        if entries == 0 || outer.len % DESC_BYTES as u32 != 0 {
            return Err(Error::IndirectLength);
        }
        if entries > MAX_INDIRECT {
            return Err(Error::IndirectTooLong);
        }
        // A window of the table; drivers fill tables in order, so that it seldom moves.
        let mut window = [[0; DESC_BYTES]; INDIRECT_FETCH as usize];
        let (mut from, mut until) = (0, 0);
        let mut at = 0u32;
        for _ in 0..entries {
            if at < from || at >= until {
                from = at;
                until = entries.min(at + INDIRECT_FETCH);
                let raw = window
                    .get_mut(..(until - from) as usize)
                    .unwrap_or(&mut [])
                    .as_flattened_mut();
                // No overflow: `at` is below 65,536.
                let offset = u64::from(at) * DESC_BYTES as u64;
                let window = outer.addr.checked_add(offset).ok_or(Error::Unmapped)?;
                self.mem.read_guest(Gpa(window), raw)?;
            }
            let raw = window.get((at - from) as usize).ok_or(Error::BadNext)?;
            let desc = Desc::from_bytes(raw);
            if desc.has(DESC_F_INDIRECT) {
                return Err(Error::NestedIndirect);
            }
            self.buffer(desc)?;
            if !desc.has(DESC_F_NEXT) {
                return Ok(());
            }
            at = u32::from(desc.next);
            if at >= entries {
                return Err(Error::BadNext);
            }
        }
        Err(Error::Loop)
    }

    /// Adds one buffer.
    fn buffer(&mut self, desc: Desc) -> Result {
        self.steps = self.steps.checked_sub(1).ok_or(Error::Loop)?;
        let mut at = desc.addr;
        let mut left = u64::from(desc.len);
        let access = if desc.has(DESC_F_WRITE) {
            Access::Write
        } else {
            Access::Read
        };
        if left > 0 && access == Access::Read && self.writable {
            return Err(Error::ReadableAfterWritable);
        }
        while left > 0 {
            let seg = self.mem.segment(Gpa(at), left, access)?;
            if self.kept + self.dropped >= self.segs.len() {
                return Err(Error::TooManySegments);
            }
            if access == self.want {
                let slot = self.segs.get_mut(self.kept).ok_or(Error::TooManySegments)?;
                *slot = seg;
                self.kept += 1;
                // 64 bits hold the sum of 1,024 segments of less than 4 GiB each.
                self.len = self.len.wrapping_add(seg.len);
            } else {
                self.dropped += 1;
            }
            self.writable |= access == Access::Write;
            left = left.saturating_sub(seg.len.max(1));
            match at.checked_add(seg.len) {
                Some(next) => at = next,
                None if left == 0 => {}
                None => return Err(Error::Unmapped),
            }
        }
        Ok(())
    }
}
