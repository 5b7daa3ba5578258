// SPDX-License-Identifier: GPL-2.0
//! The device's side of a split virtqueue, written as plainly as it goes: what the core does in
//! batches, with windows and in place, is done here one byte and one descriptor at a time.
//!
//! Shared by the property tests and the fuzz target, neither of which uses all of it.
#![allow(dead_code, unreachable_pub)]

pub mod rig;
pub mod steering;

use std::{
    collections::HashSet,
    ops::Range, //
};

use vcore::vcore::{
    addr::{
        Hva,
        Seg, //
    },
    chain::MAX_SEGMENTS,
    map::Region,
    mem::Access,
    mock::HVA_BASE,
    split::{
        Layout,
        MAX_TAKE, //
    },
    wire::{
        Desc,
        DESC_F_INDIRECT,
        DESC_F_NEXT,
        DESC_F_WRITE, //
    },
    Error,
    Result, //
};

/// Descriptors a chain may visit, those that name a table apart.
const MAX_STEPS: usize = 2 * 65536;

/// A copy of owner memory, and the memory table as the owner gave it.
#[derive(Clone)]
pub struct Memory {
    pub bytes: Vec<u8>,
    pub table: Vec<Region>,
    pub faulty: Range<usize>,
}

impl Memory {
    fn range(&self, hva: u64, len: usize) -> Result<Range<usize>> {
        let from = hva.checked_sub(HVA_BASE).ok_or(Error::Fault)? as usize;
        let to = from.checked_add(len).ok_or(Error::Fault)?;
        let bad = self.faulty.start.max(from)..self.faulty.end.min(to);
        if to > self.bytes.len() || !bad.is_empty() {
            return Err(Error::Fault);
        }
        Ok(from..to)
    }

    fn read(&self, hva: u64, len: usize) -> Result<&[u8]> {
        Ok(&self.bytes[self.range(hva, len)?])
    }

    fn write(&mut self, hva: u64, data: &[u8]) -> Result {
        let range = self.range(hva, data.len())?;
        self.bytes[range].copy_from_slice(data);
        Ok(())
    }

    fn u16_at(&self, hva: u64) -> Result<u16> {
        let raw = self.read(hva, 2)?;
        Ok(u16::from_le_bytes([raw[0], raw[1]]))
    }

    /// The region that counts for an address: of those that hold it the one with the lowest
    /// start, and of those the first.
    pub fn region(&self, gpa: u64) -> Option<&Region> {
        self.table
            .iter()
            .filter(|r| r.first <= gpa && gpa <= r.last)
            .min_by_key(|r| r.first)
    }

    /// The pieces of a buffer, as far as they go, and what ends them.
    pub fn pieces(&self, gpa: u64, len: u64) -> (Vec<Seg>, Result) {
        let (mut at, mut left) = (u128::from(gpa), u128::from(len));
        let mut pieces = Vec::new();
        while left > 0 {
            let region = u64::try_from(at).ok().and_then(|at| self.region(at));
            let Some(region) = region else {
                return (pieces, Err(Error::Unmapped));
            };
            let n = left.min(u128::from(region.last) - at + 1);
            let offset = (at - u128::from(region.first)) as u64;
            pieces.push(Seg {
                at: Hva(region.hva.wrapping_add(offset)),
                len: n as u64,
            });
            at += n;
            left -= n;
        }
        (pieces, Ok(()))
    }

    fn read_guest(&self, gpa: u64, len: usize) -> Result<Vec<u8>> {
        let (pieces, end) = self.pieces(gpa, len as u64);
        let mut out = Vec::new();
        for piece in pieces {
            out.extend(self.read(piece.at.0, piece.len as usize)?);
        }
        end.map(|()| out)
    }
}

/// A chain as the core should see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    pub head: u16,
    pub segs: Vec<Seg>,
    pub len: u64,
    pub refused: Option<Error>,
}

/// One walk along a chain.
struct Walk<'a> {
    mem: &'a Memory,
    want: Access,
    /// Segments that there is room for.
    room: usize,
    segs: Vec<Seg>,
    others: usize,
    writable: bool,
    steps: usize,
}

impl Walk<'_> {
    fn buffer(&mut self, desc: Desc) -> Result {
        self.steps += 1;
        if self.steps > MAX_STEPS {
            return Err(Error::Loop);
        }
        let writable = desc.has(DESC_F_WRITE);
        if desc.len > 0 && self.writable && !writable {
            return Err(Error::ReadableAfterWritable);
        }
        let (pieces, end) = self.mem.pieces(desc.addr, desc.len.into());
        for piece in pieces {
            if self.segs.len() + self.others == self.room {
                return Err(Error::TooManySegments);
            }
            if writable == (self.want == Access::Write) {
                self.segs.push(piece);
            } else {
                self.others += 1;
            }
        }
        self.writable |= writable && desc.len > 0;
        end
    }

    fn indirect(&mut self, outer: Desc) -> Result {
        let entries = outer.len as usize / 16;
        if entries == 0 || outer.len % 16 != 0 {
            return Err(Error::IndirectLength);
        }
        if entries > 65536 {
            return Err(Error::IndirectTooLong);
        }
        let mut at = 0;
        // Entries are fetched 16 at a time, all of which must be there.
        let mut fetched = 0..0;
        for _ in 0..entries {
            if !fetched.contains(&at) {
                fetched = at..entries.min(at + 16);
            }
            let from = u128::from(outer.addr) + 16 * fetched.start as u128;
            let from = u64::try_from(from).map_err(|_| Error::Unmapped)?;
            let raw = self.mem.read_guest(from, 16 * fetched.len())?;
            let raw = &raw[16 * (at - fetched.start)..][..16];
            let desc = Desc::from_bytes(raw.try_into().unwrap());
            if desc.has(DESC_F_INDIRECT) {
                return Err(Error::NestedIndirect);
            }
            self.buffer(desc)?;
            if !desc.has(DESC_F_NEXT) {
                return Ok(());
            }
            at = usize::from(desc.next);
            if at >= entries {
                return Err(Error::BadNext);
            }
        }
        Err(Error::Loop)
    }
}

/// The device.
#[derive(Clone)]
pub struct Device {
    pub mem: Memory,
    num: u16,
    desc: u64,
    avail: u64,
    used: u64,
    pub want: Access,
    event_idx: bool,
    notify_on_empty: bool,
    /// Index of the next entry to take, and the driver's as last read.
    pub base: u16,
    known: u16,
    /// Chains taken, and neither given back nor used.
    held: u16,
    /// Used elements in all: written, shown to the driver, and shown at the last decision on an
    /// interrupt. The indices are their lower halves.
    written: u64,
    shown: u64,
    decided: Option<u64>,
    suppressed: bool,
}

impl Device {
    pub fn new(mem: Memory, layout: &Layout, want: Access, event_idx: bool) -> Self {
        let [desc, avail] = layout.readable(event_idx);
        Self {
            mem,
            num: layout.num(),
            desc: desc.at.0,
            avail: avail.at.0,
            used: layout.writable(event_idx).at.0,
            want,
            event_idx,
            notify_on_empty: false,
            base: 0,
            known: 0,
            held: 0,
            written: 0,
            shown: 0,
            decided: None,
            suppressed: false,
        }
    }

    pub fn set_notify_on_empty(&mut self, on: bool) {
        self.notify_on_empty = on;
    }

    pub fn set_base(&mut self, base: u16) {
        self.base = base;
        self.known = base;
        self.held = 0;
    }

    pub fn start(&mut self) -> Result {
        self.held = 0;
        self.decided = None;
        let flags = u16::from(self.suppressed);
        self.mem.write(self.used, &flags.to_le_bytes())?;
        self.written = self.mem.u16_at(self.used + 2)?.into();
        self.shown = self.written;
        Ok(())
    }

    pub fn drained(&self) -> bool {
        self.known == self.base
    }

    fn desc(&self, i: u16) -> Result<Desc> {
        let raw = self.mem.read(self.desc + 16 * u64::from(i), 16)?;
        Ok(Desc::from_bytes(raw.try_into().unwrap()))
    }

    /// The chain that starts at `head`, with `room` for segments; and whether it took so long that no other follows in its batch.
    fn chain(&self, head: u16, room: usize) -> Result<(Chain, bool)> {
        let mut walk = Walk {
            mem: &self.mem,
            want: self.want,
            room: room.min(MAX_SEGMENTS),
            segs: Vec::new(),
            others: 0,
            writable: false,
            steps: 0,
        };
        let mut at = head;
        let mut seen = HashSet::new();
        loop {
            // Where a chain loops does not matter, only that it does.
            if seen.len() == usize::from(self.num) {
                return Err(Error::Loop);
            }
            seen.insert((seen.len(), at));
            let desc = self.desc(at)?;
            let ended = if desc.has(DESC_F_INDIRECT) {
                walk.indirect(desc)
            } else {
                walk.buffer(desc)
            };
            match ended {
                Err(Error::TooManySegments) if room < MAX_SEGMENTS => return Err(Error::NoRoom),
                other => other?,
            }
            if !desc.has(DESC_F_NEXT) {
                break;
            }
            at = desc.next;
            if at >= self.num {
                return Err(Error::BadNext);
            }
        }
        // Nothing that ended well passed the same place twice.
        let places: HashSet<u16> = seen.iter().map(|&(_, at)| at).collect();
        assert_eq!(places.len(), seen.len());
        let long = walk.steps > MAX_SEGMENTS;
        let chain = Chain {
            head,
            len: walk.segs.iter().map(|s| s.len).sum(),
            refused: if walk.others > 0 {
                Some(Error::WrongDirection)
            } else if walk.segs.is_empty() {
                Some(Error::Empty)
            } else {
                None
            },
            segs: walk.segs,
        };
        Ok((chain, long))
    }

    /// Takes up to `max` chains, with room for `chains` and for `segs` segments.
    pub fn take(&mut self, max: usize, chains: usize, segs: usize) -> Result<Vec<Chain>> {
        if self.drained() {
            let known = self.mem.u16_at(self.avail + 2)?;
            if known.wrapping_sub(self.base) > self.num.saturating_sub(self.held) {
                return Err(Error::IndexJump);
            }
            self.known = known;
        }
        let pending = usize::from(self.known.wrapping_sub(self.base));
        if pending == 0 {
            return Ok(Vec::new());
        }
        let n = [pending, max, chains, MAX_TAKE].into_iter().min().unwrap();
        if n == 0 {
            return Err(Error::NoRoom);
        }
        let mut heads = Vec::new();
        for i in 0..n as u16 {
            let slot = self.base.wrapping_add(i) % self.num;
            heads.push(self.mem.u16_at(self.avail + 4 + 2 * u64::from(slot))?);
        }
        let good = heads.iter().take_while(|&&h| h < self.num).count();
        heads.truncate(good);
        let first = *heads.first().ok_or(Error::BadHead)?;
        // Where not all first descriptors can be read, only one chain is tried.
        if heads.iter().any(|&h| self.desc(h).is_err()) {
            heads = vec![first];
        }
        let mut taken = Vec::new();
        let mut room = segs;
        for head in heads {
            match self.chain(head, room) {
                Ok((chain, long)) => {
                    room -= chain.segs.len();
                    taken.push(chain);
                    if long {
                        break;
                    }
                }
                Err(e) if taken.is_empty() => return Err(e),
                Err(_) => break,
            }
        }
        self.base = self.base.wrapping_add(taken.len() as u16);
        self.held += taken.len() as u16;
        Ok(taken)
    }

    pub fn untake(&mut self, n: usize) {
        self.base = self.base.wrapping_sub(n as u16);
        self.held = self.held.saturating_sub(n as u16);
    }

    pub fn put_used(&mut self, elems: &[(u16, u32)]) -> Result {
        let mut left = elems;
        let mut at = self.written;
        while !left.is_empty() {
            // What comes before the end of the ring is written together or, if that fails, not
            // at all.
            let slot = at % u64::from(self.num);
            let (now, rest) = left.split_at(left.len().min((u64::from(self.num) - slot) as usize));
            let bytes: Vec<u8> = now
                .iter()
                .flat_map(|&(id, len)| [u32::from(id).to_le_bytes(), len.to_le_bytes()].concat())
                .collect();
            self.mem.write(self.used + 4 + 8 * slot, &bytes)?;
            at += now.len() as u64;
            left = rest;
        }
        self.written = at;
        self.held = self.held.saturating_sub(elems.len() as u16);
        Ok(())
    }

    pub fn publish(&mut self) -> Result<bool> {
        if self.shown == self.written {
            return Ok(false);
        }
        let idx = self.written as u16;
        self.mem.write(self.used + 2, &idx.to_le_bytes())?;
        self.shown = self.written;
        Ok(true)
    }

    pub fn wants_call(&mut self, drained: bool) -> bool {
        if self.notify_on_empty && drained {
            return true;
        }
        if !self.event_idx {
            return self.mem.u16_at(self.avail).map_or(true, |f| f & 1 == 0);
        }
        let Some(old) = self.decided.replace(self.shown) else {
            return true;
        };
        let event = self.mem.u16_at(self.avail + 4 + 2 * u64::from(self.num));
        // Beyond a whole turn of the index, every event was passed.
        event.map_or(true, |event| {
            (old..self.shown).take(0x10000).any(|i| i as u16 == event)
        })
    }

    pub fn suppress(&mut self) -> Result {
        if self.suppressed {
            return Ok(());
        }
        self.suppressed = true;
        if self.event_idx {
            return Ok(());
        }
        self.mem.write(self.used, &1u16.to_le_bytes())
    }

    pub fn arm(&mut self) -> Result<bool> {
        self.suppressed = false;
        if self.event_idx {
            let event = self.used + 4 + 8 * u64::from(self.num);
            self.mem.write(event, &self.known.to_le_bytes())?;
        } else {
            self.mem.write(self.used, &[0; 2])?;
        }
        Ok(self.mem.u16_at(self.avail + 2)? != self.known)
    }
}
