// SPDX-License-Identifier: GPL-2.0
//! The core and the model side by side over the same memory, with a driver that does as it is
//! told.

use std::ops::Range;

use vcore::vcore::{
    addr::Seg,
    chain::{
        Batch,
        Chain, //
    },
    feat,
    map::Region,
    mem::Access,
    mock::{
        MockMem,
        MockRing,
        HVA_BASE, //
    },
    split::Cursor,
    wire::{
        used_elem,
        Desc,
        DESC_F_INDIRECT,
        DESC_F_NEXT,
        DESC_F_WRITE, //
    },
    Result, //
};

use super as naive;

/// Room for a ring of 256 descriptors and for indirect tables.
pub const BYTES: usize = 16384;
/// Where those are, as offsets, which memory tables should make about the same guest addresses.
pub const TABLES_AT: u64 = 8192;
pub const TABLE_BYTES: u64 = 1024;
pub const TABLES: u64 = 8;

/// One step of the driver, or of the device.
#[derive(Clone, Debug)]
pub enum Step {
    /// Writes a descriptor.
    Desc(u16, Desc),
    /// Writes an indirect table, and a descriptor that points at it.
    Table(u16, u64, Vec<Desc>, Option<u32>),
    /// Writes a good chain of so many descriptors of so many bytes, and makes it available.
    Chain(u16, u16, u32),
    /// Makes a chain available.
    Offer(u16),
    /// Moves the available index.
    Jump(u16),
    AvailFlags(u16),
    UsedEvent(u16),
    /// Writes anywhere.
    Scribble(usize, u8),
    /// Makes a part of memory inaccessible.
    Fault(usize, usize),
    Take(usize),
    Untake(usize),
    /// Uses the first so many chains.
    Use(usize),
    /// Uses chains that are none, and tells: to move the used index far.
    Spin(u32),
    Publish,
    WantsCall(bool),
    Suppress,
    Arm,
    Compact,
    Clear,
    /// Stops, and starts again where the driver is.
    Restart,
}

/// How a case is set up.
#[derive(Clone, Debug)]
pub struct Setup {
    /// The ring has two to the power of this descriptors, 256 at most.
    pub order: u32,
    /// The device writes buffers.
    pub write: bool,
    pub event_idx: bool,
    pub on_empty: bool,
    /// Available and used index at the start.
    pub base: u16,
    pub used: u16,
    pub table: Vec<Region>,
    /// Storage for chains and segments.
    pub chains: usize,
    pub segs: usize,
}

/// Both devices over the same memory, and the driver.
pub struct Rig {
    mem: Box<MockMem<BYTES>>,
    ring: MockRing,
    cursor: Cursor,
    model: naive::Device,
    want: Access,
    /// What the batch should hold; chains and segments that it has storage for, and that are
    /// spent.
    held: Vec<naive::Chain>,
    size: (usize, usize),
    spent: (usize, usize),
}

pub type TestBatch = Batch<Vec<Chain>, Vec<Seg>>;

impl Rig {
    pub fn new(setup: &Setup) -> (Self, TestBatch) {
        let &Setup {
            order,
            write,
            event_idx,
            on_empty,
            base,
            used,
            ref table,
            chains,
            segs,
        } = setup;
        let mut mem = Box::new(MockMem::<BYTES>::new());
        let mut ring = MockRing::new(1 << order);
        assert!(ring.end() <= TABLES_AT);
        mem.set_table(table);
        ring.set_avail(&mut mem, base);
        ring.set_used_idx(&mut mem, used);
        let want = if write { Access::Write } else { Access::Read };
        let owner = naive::Memory {
            bytes: mem.bytes().to_vec(),
            table: table.clone(),
            faulty: 0..0,
        };
        let mut model = naive::Device::new(owner, &ring.layout(), want, event_idx);
        model.set_notify_on_empty(on_empty);
        model.set_base(base);
        let mut cursor = Cursor::default();
        cursor.set_base(base);
        cursor.set_features(
            if event_idx { feat::F_EVENT_IDX } else { 0 }
                | if on_empty { feat::F_NOTIFY_ON_EMPTY } else { 0 },
        );
        let mut rig = Self {
            mem,
            ring,
            cursor,
            model,
            want,
            held: Vec::new(),
            size: (chains, segs),
            spent: (0, 0),
        };
        rig.start();
        let batch = Batch::new(vec![Chain::default(); chains], vec![Seg::default(); segs]);
        (rig, batch)
    }

    fn start(&mut self) {
        let layout = self.ring.layout();
        assert_eq!(
            self.cursor.start(&layout, &mut *self.mem),
            self.model.start()
        );
    }

    /// What the driver did is done to the model's memory as well.
    fn copy(&mut self, range: Range<usize>) {
        self.model.mem.bytes[range.clone()].copy_from_slice(&self.mem.bytes()[range]);
    }

    /// The used ring, as offsets.
    fn used(&self) -> Range<usize> {
        let area = self.ring.layout().writable(true);
        let from = (area.at.0 - HVA_BASE) as usize;
        from..from + area.len as usize
    }

    /// Ends a case: nothing but the used ring was written at any time.
    pub fn finish(mut self) {
        assert!(self.mem.bytes()[..] == self.model.mem.bytes[..]);
    }

    fn put_used(&mut self, elems: &[(u16, u32)]) -> Result {
        let layout = self.ring.layout();
        let encoded: Vec<_> = elems.iter().map(|&(id, len)| used_elem(id, len)).collect();
        let done = self.cursor.put_used(&layout, &mut *self.mem, &encoded);
        assert_eq!(done, self.model.put_used(elems));
        done
    }

    fn publish(&mut self) -> Result<bool> {
        let layout = self.ring.layout();
        let shown = self.cursor.publish(&layout, &mut *self.mem);
        assert_eq!(shown, self.model.publish());
        shown
    }

    fn forget(&mut self, batch: &TestBatch) {
        if self.held.is_empty() {
            self.spent = (0, 0);
        }
        assert_eq!(batch.is_empty(), self.held.is_empty());
    }

    pub fn step(&mut self, step: &Step, batch: &mut TestBatch) {
        let layout = self.ring.layout();
        let num = self.ring.num();
        // What there is room for.
        let (chains, segs) = (self.size.0 - self.spent.0, self.size.1 - self.spent.1);
        assert_eq!(batch.room(), chains);
        match *step {
            Step::Desc(i, desc) => self.ring.set_desc(&mut self.mem, i % num, desc),
            Step::Table(i, slot, ref entries, len) => {
                let at = TABLES_AT + slot * TABLE_BYTES;
                for (i, &entry) in entries.iter().enumerate() {
                    self.mem.put_desc(at + 16 * i as u64, entry);
                }
                let desc = Desc {
                    addr: at,
                    len: len.unwrap_or(16 * entries.len() as u32),
                    flags: DESC_F_INDIRECT,
                    next: 0,
                };
                self.ring.set_desc(&mut self.mem, i % num, desc);
            }
            Step::Chain(head, count, len) => {
                let head = head % num;
                let count = count.min(num);
                let write = if self.want == Access::Write {
                    DESC_F_WRITE
                } else {
                    0
                };
                for i in 0..count {
                    let more = if i + 1 < count { DESC_F_NEXT } else { 0 };
                    let desc = Desc {
                        addr: 64 * u64::from(i),
                        len,
                        flags: write | more,
                        next: (head + i + 1) % num,
                    };
                    self.ring.set_desc(&mut self.mem, (head + i) % num, desc);
                }
                self.ring.offer(&mut self.mem, head);
            }
            // Every 16th or so names no descriptor.
            Step::Offer(head) => self
                .ring
                .offer(&mut self.mem, head % (num + num.div_ceil(16))),
            Step::Jump(by) => {
                let to = self.ring.avail().wrapping_add(by);
                self.ring.set_avail(&mut self.mem, to);
            }
            Step::AvailFlags(flags) => self.ring.set_avail_flags(&mut self.mem, flags),
            Step::UsedEvent(event) => self.ring.set_used_event(&mut self.mem, event),
            Step::Scribble(at, byte) => self.mem.bytes()[at] = byte,
            Step::Fault(at, len) => {
                self.model.mem.faulty = at..at + len;
                self.mem.set_faulty(at..at + len);
            }
            Step::Take(max) => {
                let taken = self
                    .cursor
                    .take(&layout, &mut *self.mem, self.want, max, batch);
                let expected = self.model.take(max, chains, segs);
                assert_eq!(taken, expected.as_ref().map(Vec::len).map_err(|e| *e));
                for chain in expected.into_iter().flatten() {
                    self.spent.0 += 1;
                    self.spent.1 += chain.segs.len();
                    self.held.push(chain);
                }
            }
            Step::Untake(n) => {
                // Only the newest can be given back, and a batch forgets all or the oldest.
                if n >= self.held.len() {
                    self.cursor.untake(self.held.len());
                    self.model.untake(self.held.len());
                    batch.clear();
                    self.held.clear();
                    self.forget(batch);
                }
            }
            Step::Use(n) => {
                let n = n.min(self.held.len());
                let elems: Vec<_> = self.held[..n]
                    .iter()
                    .map(|c| (c.head, c.len as u32))
                    .collect();
                if self.put_used(&elems).is_ok() {
                    batch.pop(n);
                    self.held.drain(..n);
                    self.forget(batch);
                }
            }
            Step::Spin(mut count) => {
                while count > 0 {
                    let n = count.min(u32::from(num)).min(64);
                    // No more than a ring is ever written without being shown.
                    if self.put_used(&vec![(0, 0); n as usize]).is_err() || self.publish().is_err()
                    {
                        break;
                    }
                    count -= n;
                }
            }
            Step::Publish => {
                let _ = self.publish();
            }
            Step::WantsCall(drained) => {
                let wants = self.cursor.wants_call(&layout, &mut *self.mem, drained);
                assert_eq!(wants, self.model.wants_call(drained));
            }
            Step::Suppress => {
                let done = self.cursor.suppress(&layout, &mut *self.mem);
                assert_eq!(done, self.model.suppress());
            }
            Step::Arm => {
                let more = self.cursor.arm(&layout, &mut *self.mem);
                assert_eq!(more, self.model.arm());
            }
            Step::Compact => {
                batch.compact();
                self.spent = (
                    self.held.len(),
                    self.held.iter().map(|c| c.segs.len()).sum(),
                );
            }
            Step::Clear => {
                batch.clear();
                self.held.clear();
                self.forget(batch);
            }
            Step::Restart => {
                batch.clear();
                self.held.clear();
                self.forget(batch);
                let base = self.ring.avail();
                self.cursor.set_base(base);
                self.model.set_base(base);
                self.start();
            }
        }
        match *step {
            Step::Table(..) => {
                self.copy(0..self.used().start);
                self.copy(TABLES_AT as usize..BYTES);
            }
            Step::Scribble(at, _) => self.copy(at..at + 1),
            Step::Desc(..)
            | Step::Chain(..)
            | Step::Offer(..)
            | Step::Jump(..)
            | Step::AvailFlags(..)
            | Step::UsedEvent(..) => self.copy(0..self.used().start),
            _ => {}
        }
        self.compare(batch);
    }

    fn compare(&mut self, batch: &TestBatch) {
        assert_eq!(self.cursor.base(), self.model.base);
        assert_eq!(self.cursor.drained(), self.model.drained());
        let used = self.used();
        assert!(self.mem.bytes()[used.clone()] == self.model.mem.bytes[used]);
        assert_eq!(batch.len(), self.held.len());
        let mut all = Vec::new();
        for (i, want) in self.held.iter().enumerate() {
            let chain = batch.get(i).unwrap();
            let is = naive::Chain {
                head: chain.head,
                segs: batch.segments(i).to_vec(),
                len: chain.len,
                refused: chain.refused,
            };
            assert_eq!(&is, want);
            all.extend(&want.segs);
            assert_eq!(batch.segments_of(0, i + 1), all.as_slice());
        }
        assert!(batch.get(self.held.len()).is_none());
        assert!(batch.segments(self.held.len()).is_empty());
        assert!(batch.segments_of(0, 0).is_empty());
    }
}
