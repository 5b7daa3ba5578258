// SPDX-License-Identifier: GPL-2.0
//! The core against plain models of the same things, on random input: after each step both must
//! say the same, and memory must hold the same bytes.

mod naive;

use proptest::{
    collection::vec,
    prelude::*,
    sample::select, //
};
use vcore::vcore::{
    addr::{
        Gpa,
        Hva,
        Seg, //
    },
    chain::{
        Batch,
        Chain, //
    },
    dirty,
    event,
    feat,
    hdr,
    iotlb,
    map::{
        self,
        Lookup,
        Region, //
    },
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
    Error,
    Result,
};

/// Room for a ring of 256 descriptors and for indirect tables.
const BYTES: usize = 16384;
/// Where those are, as offsets; the memory tables below map guest addresses so that they are
/// found at about the same address.
const TABLES_AT: u64 = 8192;
const TABLE_BYTES: u64 = 1024;
const TABLES: u64 = 8;

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig {
        // Miri takes a thousand times as long, and finds what it finds in any case.
        cases: if cfg!(miri) { 4 } else { cases },
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

fn region(first: u64, size: u64, hva: u64) -> Region {
    Region::new(Gpa(first), size, Hva(HVA_BASE + hva)).unwrap()
}

/// Memory tables: neighbours, shuffled, with a hole, overlapping, up to the top.
fn tables() -> impl Strategy<Value = Vec<Region>> {
    let half = BYTES as u64 / 2;
    select(vec![
        vec![region(0, half, 0), region(half, half, half)],
        vec![
            region(half, half, half),
            region(half / 2, half / 2, 0),
            region(0, half / 2, half / 2),
        ],
        vec![region(0, 100, 0), region(TABLES_AT - 60, 4000, TABLES_AT - 60)],
        vec![
            region(0, half + 40, 0),
            region(half, half, half),
            region(half - 16, 64, 0),
            region(half, 200, 3),
        ],
        vec![region(0, 2 * half, 0), region(u64::MAX - 63, 64, 9000)],
        vec![],
    ])
}

/// A descriptor, well formed as often as not.
fn descs() -> impl Strategy<Value = Desc> {
    let addr = prop_oneof![
        8 => 0..BYTES as u64,
        2 => TABLES_AT - 70..TABLES_AT + 10,
        1 => u64::MAX - 70..=u64::MAX,
        1 => any::<u64>(),
    ];
    let len = prop_oneof![8 => 0..200u32, 1 => 0..9000u32, 1 => any::<u32>()];
    let flags = prop_oneof![
        8 => select(vec![0, DESC_F_NEXT, DESC_F_WRITE, DESC_F_NEXT | DESC_F_WRITE]),
        1 => 0..8u16,
        1 => any::<u16>(),
    ];
    let next = prop_oneof![12 => 0..8u16, 2 => 0..256u16, 1 => any::<u16>()];
    (addr, len, flags, next).prop_map(|(addr, len, flags, next)| Desc {
        addr,
        len,
        flags,
        next,
    })
}

/// One step of the driver, or of the device.
#[derive(Clone, Debug)]
enum Step {
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

fn steps() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..256u16, descs()).prop_map(|(i, d)| Step::Desc(i, d)),
        4 => (0..256u16, 0..TABLES, vec(descs(), 0..8), prop::option::of(0..130u32))
            .prop_map(|(i, t, d, len)| Step::Table(i, t, d, len)),
        12 => (0..256u16, 1..6u16, 0..3000u32).prop_map(|(h, n, l)| Step::Chain(h, n, l)),
        8 => (0..256u16).prop_map(Step::Offer),
        1 => (0..600u16).prop_map(Step::Jump),
        1 => any::<u16>().prop_map(Step::AvailFlags),
        2 => any::<u16>().prop_map(Step::UsedEvent),
        1 => (0..BYTES, any::<u8>()).prop_map(|(at, b)| Step::Scribble(at, b)),
        1 => (0..BYTES, 0..600usize).prop_map(|(at, n)| Step::Fault(at, n)),
        16 => (0..70usize).prop_map(Step::Take),
        3 => (0..20usize).prop_map(Step::Untake),
        12 => (0..40usize).prop_map(Step::Use),
        1 => (0..70000u32).prop_map(Step::Spin),
        8 => Just(Step::Publish),
        8 => any::<bool>().prop_map(Step::WantsCall),
        4 => Just(Step::Suppress),
        6 => Just(Step::Arm),
        3 => Just(Step::Compact),
        1 => Just(Step::Clear),
        3 => Just(Step::Restart),
    ]
}

/// Both devices over the same memory, and the driver.
struct Rig {
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

/// How a case is set up.
type Setup = (u32, bool, bool, bool, u16, u16, Vec<Region>, usize, usize);

fn setups() -> impl Strategy<Value = Setup> {
    (
        0..=8u32,
        any::<bool>(),
        any::<bool>(),
        any::<bool>(),
        prop_oneof![Just(0), 0xff00..=0xffffu16, any::<u16>()],
        prop_oneof![Just(0), 0xff00..=0xffffu16, any::<u16>()],
        tables(),
        1..90usize,
        prop_oneof![1..40usize, Just(1024), Just(1200)],
    )
}

type TestBatch = Batch<Vec<Chain>, Vec<Seg>>;

impl Rig {
    fn new(setup: &Setup) -> (Self, TestBatch) {
        let &(order, write, event_idx, on_empty, base, used, ref table, chains, segs) = setup;
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
        assert_eq!(self.cursor.start(&layout, &mut *self.mem), self.model.start());
    }

    /// What the driver did is done to the model's memory as well.
    fn copy_memory(&mut self) {
        self.model.mem.bytes.copy_from_slice(self.mem.bytes());
    }

    fn put_used(&mut self, elems: &[(u16, u32)]) -> Result {
        let layout = self.ring.layout();
        let encoded: Vec<_> = elems.iter().map(|&(id, len)| used_elem(id, len)).collect();
        let done = self.cursor.put_used(&layout, &mut *self.mem, &encoded);
        assert_eq!(done, self.model.put_used(elems));
        done
    }

    fn publish(&mut self) {
        let layout = self.ring.layout();
        let shown = self.cursor.publish(&layout, &mut *self.mem);
        assert_eq!(shown, self.model.publish());
    }

    fn forget(&mut self, batch: &TestBatch) {
        if self.held.is_empty() {
            self.spent = (0, 0);
        }
        assert_eq!(batch.is_empty(), self.held.is_empty());
    }

    fn step(&mut self, step: &Step, batch: &mut TestBatch) {
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
                let write = if self.want == Access::Write { DESC_F_WRITE } else { 0 };
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
            Step::Offer(head) => self.ring.offer(&mut self.mem, head % (num + num.div_ceil(16))),
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
                let taken = self.cursor.take(&layout, &mut *self.mem, self.want, max, batch);
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
                let elems: Vec<_> = self.held[..n].iter().map(|c| (c.head, c.len as u32)).collect();
                if self.put_used(&elems).is_ok() {
                    batch.pop(n);
                    self.held.drain(..n);
                    self.forget(batch);
                }
            }
            Step::Spin(mut count) => {
                while count > 0 {
                    let n = count.min(u32::from(num)).min(64);
                    if self.put_used(&vec![(0, 0); n as usize]).is_err() {
                        break;
                    }
                    self.publish();
                    count -= n;
                }
            }
            Step::Publish => self.publish(),
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
                self.spent = (self.held.len(), self.held.iter().map(|c| c.segs.len()).sum());
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
        if matches!(
            step,
            Step::Desc(..)
                | Step::Table(..)
                | Step::Chain(..)
                | Step::Offer(..)
                | Step::Jump(..)
                | Step::AvailFlags(..)
                | Step::UsedEvent(..)
                | Step::Scribble(..)
        ) {
            self.copy_memory();
        }
        self.compare(batch);
    }

    fn compare(&mut self, batch: &TestBatch) {
        assert_eq!(self.cursor.base(), self.model.base);
        assert_eq!(self.cursor.drained(), self.model.drained());
        assert!(self.mem.bytes()[..] == self.model.mem.bytes[..]);
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
            assert_eq!(batch.segments_of_first(i + 1), all.as_slice());
        }
        assert!(batch.get(self.held.len()).is_none());
        assert!(batch.segments(self.held.len()).is_empty());
        assert!(batch.segments_of_first(0).is_empty());
    }
}

proptest! {
    #![proptest_config(config(3000))]

    #[test]
    fn ring_does_as_the_model_step_by_step(
        setup in setups(),
        steps in vec(steps(), 1..if cfg!(miri) { 40 } else { 120 }),
    ) {
        let (mut rig, mut batch) = Rig::new(&setup);
        for step in &steps {
            rig.step(step, &mut batch);
        }
    }
}

/// Regions in a space of 64 addresses somewhere in the space of all.
fn small_tables() -> impl Strategy<Value = (u64, Vec<Region>)> {
    let base = select(vec![0, 1 << 63, u64::MAX - 63]);
    let regions = vec((0..64u64, 0..64u64, any::<u64>()), 0..6);
    (base, regions).prop_map(|(base, regions)| {
        let made = regions.into_iter().map(|(a, b, hva)| Region {
            first: base + a.min(b),
            last: base + a.max(b),
            hva,
        });
        (base, made.collect())
    })
}

proptest! {
    #![proptest_config(config(3000))]

    #[test]
    fn table_maps_each_address_as_the_first_of_the_lowest_regions_does(
        (base, regions) in small_tables(),
        lens in vec(1..90u64, 64),
    ) {
        let mut sorted = regions.clone();
        let kept = map::normalize(&mut sorted);
        let sorted = &sorted[..kept];
        for pair in sorted.windows(2) {
            prop_assert!(pair[0].last < pair[1].first);
        }
        let model = naive::Memory { bytes: Vec::new(), table: regions, faulty: 0..0 };
        // With and without a region remembered from the last time.
        let mut warm = Lookup::default();
        for (i, len) in (0..64).zip(lens) {
            let at = base + i;
            let (pieces, _) = model.pieces(at, len);
            let want = pieces.first().copied().ok_or(Error::Unmapped);
            prop_assert_eq!(Lookup::default().segment(sorted, Gpa(at), len), want);
            prop_assert_eq!(warm.segment(sorted, Gpa(at), len), want);
        }
    }

    #[test]
    fn aliases_are_all_guest_addresses_of_an_owner_address(
        regions in vec((0..64u64, 1..40u64, 0..64u64), 0..4),
        at in 0..80u64,
        len in 0..40u64,
    ) {
        let mut table: Vec<_> = regions.iter()
            .map(|&(first, size, hva)| Region::new(Gpa(first), size, Hva(hva)).unwrap())
            .collect();
        let kept = map::normalize(&mut table);
        let table = &table[..kept];
        let mut got = Vec::new();
        map::aliases(table, Hva(at), len, |gpa, len| got.extend(gpa.0..gpa.0 + len));
        got.sort_unstable();
        let want: Vec<u64> = (0..128)
            .filter(|&gpa| {
                let seg = Lookup::default().segment(table, Gpa(gpa), 1);
                seg.is_ok_and(|seg| (at..at + len).contains(&seg.at.0))
            })
            .collect();
        prop_assert_eq!(got, want);
    }

    #[test]
    fn event_is_passed_iff_the_index_went_over_it(old: u16, moved: u16, event: u16) {
        let went_over = (0..moved).any(|i| old.wrapping_add(i) == event);
        prop_assert_eq!(event::passed(event, old.wrapping_add(moved), old), went_over);
    }

    #[test]
    fn header_covers_its_checksum_or_is_refused(
        mut header: [u8; hdr::BASE_BYTES],
        needs_csum: bool,
        small: bool,
        total in 0..70000usize,
    ) {
        header[0] = header[0] & !1 | u8::from(needs_csum);
        if small {
            for high in [3, 7, 9] {
                header[high] = 0;
            }
        }
        let field = |h: &[u8; hdr::BASE_BYTES], at| u32::from(h[at]) + 256 * u32::from(h[at + 1]);
        let (was, end) = (field(&header, 2), field(&header, 6) + field(&header, 8) + 2);
        let mut fixed = header;
        let result = hdr::cover_csum(&mut fixed, total);
        // What does not concern the length stays as it is.
        prop_assert_eq!(&fixed[..2], &header[..2]);
        prop_assert_eq!(&fixed[4..], &header[4..]);
        if !needs_csum || end <= was {
            prop_assert_eq!(result, Ok(()));
            prop_assert_eq!(fixed, header);
        } else if end % 0x10000 > total as u32 {
            prop_assert_eq!(result, Err(hdr::BadHeader));
        } else {
            prop_assert_eq!(result, Ok(()));
            prop_assert_eq!(field(&fixed, 2), end % 0x10000);
        }
    }

    #[test]
    fn dirty_words_set_the_bit_of_each_page_touched(
        skew in 0..4u64,
        page in 0..300u64,
        offset in 0..4096u64,
        len in 0..600_000u64,
    ) {
        const BASE: u64 = 0x1000;
        let mut log = [0u8; 64];
        let from = page * dirty::PAGE_BYTES + offset;
        for word in dirty::words(BASE + skew, Gpa(from), len) {
            prop_assert_eq!(word.at.0 % 4, 0);
            let at = (word.at.0 - BASE) as usize;
            for (byte, bits) in log[at..at + 4].iter_mut().zip(word.bits.to_le_bytes()) {
                // No bit is set twice.
                prop_assert_eq!(*byte & bits, 0);
                *byte |= bits;
            }
        }
        for (i, byte) in log.iter().enumerate() {
            for bit in 0..8 {
                let page = (8 * i as u64 + bit).checked_sub(8 * skew);
                let touched = page.is_some_and(|p| {
                    p * dirty::PAGE_BYTES < from + len && from < (p + 1) * dirty::PAGE_BYTES
                });
                prop_assert_eq!(byte >> bit & 1 == 1, touched && len > 0);
            }
        }
    }

    #[test]
    fn iotlb_finds_the_lowest_and_oldest_and_drops_the_oldest(
        steps in vec((0..8u8, 0..64u64, 0..64u64, 1..4u8), 1..60),
    ) {
        const ROOM: usize = 6;
        let mut table = iotlb::Table::new(vec![iotlb::Entry::default(); ROOM]);
        // Oldest first.
        let mut model: Vec<iotlb::Entry> = Vec::new();
        for (i, (kind, a, b, perm)) in steps.into_iter().enumerate() {
            let (first, last) = (a.min(b), a.max(b));
            if kind < 6 {
                let hva = 1000 * i as u64;
                let entry = iotlb::Entry::new(first, last - first + 1, hva, perm).unwrap();
                table.insert(entry);
                if model.len() == ROOM {
                    model.remove(0);
                }
                model.push(entry);
            } else {
                table.remove(first, last);
                model.retain(|e| e.last < first || e.first > last);
            }
            for at in 0..64 {
                let want = model.iter().filter(|e| e.first <= at && at <= e.last)
                    .min_by_key(|e| e.first);
                let key = |e: &iotlb::Entry| (e.first, e.last, e.hva, e.perm);
                prop_assert_eq!(table.find(at).map(key), want.map(key));
            }
        }
    }
}
