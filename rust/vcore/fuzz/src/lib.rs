// SPDX-License-Identifier: GPL-2.0
//! Fuzz targets: a split ring whose driver does anything, at any time; frames of any bytes.

#[path = "../../tests/naive/mod.rs"]
mod naive;

use std::ops::Range;

use naive::{
    rig::{
        Rig,
        Setup,
        Step,
        TABLES,
        TABLES_AT, //
    },
    steering::Seen, //
};
use vcore::vcore::{
    addr::{
        Gpa,
        Hva,
        RingAddr,
        Seg, //
    },
    chain::{
        Batch,
        Chain,
        MAX_SEGMENTS, //
    },
    feat,
    flow::Flow,
    map::Region,
    mem::{
        Access,
        Fence,
        GuestMem, //
    },
    mock::{
        MockMem,
        MockRing,
        HVA_BASE, //
    },
    rss::{
        Key,
        Toeplitz,
        INPUT_BYTES,
        KEY_BYTES,
        NO_SUMS, //
    },
    split::{
        Cursor,
        MAX_TAKE, //
    },
    wire::{
        used_elem,
        Desc, //
    },
    Error,
    Result, //
};

/// A target by its name.
pub fn target(name: &str) -> Option<fn(&[u8])> {
    match name {
        "split_ring" => Some(split_ring),
        "steering" => Some(steering),
        _ => None,
    }
}

/// Runs one input: types, and a frame, beside the model of its flow and hash.
pub fn steering(data: &[u8]) {
    const KEY: [u8; KEY_BYTES] = *b"any key that has no period will do, here";
    let Some((&[low, high], frame)) = data.split_first_chunk() else {
        return;
    };
    thread_local! {
        static HASH: Toeplitz<Vec<[u32; 256]>> =
            Toeplitz::new(&Key(KEY), vec![NO_SUMS; INPUT_BYTES]);
    }
    let types = u32::from(u16::from_le_bytes([low, high]));
    let flow = Flow::of_frame(frame);
    let seen = Seen::of_frame(frame);
    assert_eq!(Seen::by_core(&flow), seen);
    let hash = HASH.with(|toeplitz| toeplitz.of_flow(types, &flow));
    assert_eq!((hash.value, hash.report), seen.hash(&KEY, types));
}

/// Runs one input: either step by step beside the model, or with memory that changes between
/// any two accesses, where what is known is what must not happen.
pub fn split_ring(data: &[u8]) {
    let mut input = Input(data);
    match input.byte() {
        Some(kind) if kind % 2 == 0 => beside_model(&mut input),
        _ => under_attack(input),
    };
}

/// The rest of the input: a program from its start, an attacker's writes from its end.
struct Input<'a>(&'a [u8]);

impl Input<'_> {
    fn byte(&mut self) -> Option<u8> {
        let (&first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(first)
    }

    fn last_byte(&mut self) -> Option<u8> {
        let (&last, rest) = self.0.split_last()?;
        self.0 = rest;
        Some(last)
    }

    fn u16(&mut self) -> Option<u16> {
        Some(u16::from_le_bytes([self.byte()?, self.byte()?]))
    }

    /// A number that is small, or near the end of a range.
    fn near(&mut self, end: u64) -> Option<u64> {
        let byte = self.byte()?;
        Some(match byte {
            0..200 => byte.into(),
            200..240 => end.wrapping_add(byte.into()).wrapping_sub(220),
            _ => u64::from(self.u16()?) * u64::from(self.u16()?),
        })
    }

    fn desc(&mut self) -> Option<Desc> {
        let flags = self.byte()?;
        Some(Desc {
            addr: match flags >> 6 {
                0 => self.near(8192)?,
                1 => self.near(16384)?,
                2 => TABLES_AT + 1024 * u64::from(self.byte()?) % (1024 * TABLES),
                _ => self.near(0)?,
            },
            len: self.near(1 << 32)? as u32,
            flags: (flags & 7).into(),
            next: self.byte()?.into(),
        })
    }

    fn setup(&mut self) -> Option<Setup> {
        let flags = self.byte()?;
        let region = |first, size, hva| Region::new(Gpa(first), size, Hva(HVA_BASE + hva));
        let table = match flags >> 3 & 3 {
            0 => [region(0, 8192, 0), region(8192, 8192, 8192)],
            1 => [region(0, 8200, 0), region(8000, 8000, 8000)],
            2 => [region(0, 16384, 0), region(u64::MAX - 63, 64, 9000)],
            _ => [region(100, 8192, 64), region(12000, 100, 0)],
        };
        Some(Setup {
            order: u32::from(self.byte()?) % 9,
            write: flags & 1 != 0,
            event_idx: flags & 2 != 0,
            on_empty: flags & 4 != 0,
            base: self.near(0)? as u16,
            used: self.near(0)? as u16,
            table: table.into_iter().flatten().collect(),
            chains: 1 + usize::from(self.byte()?),
            segs: 1 + 5 * usize::from(self.byte()?),
        })
    }

    fn step(&mut self) -> Option<Step> {
        Some(match self.byte()? % 20 {
            0 => Step::Desc(self.byte()?.into(), self.desc()?),
            1 => {
                let count = self.byte()? % 20;
                let (i, slot, len) = (self.byte()?, self.byte()?, self.byte()?);
                let entries = (0..count).map_while(|_| self.desc()).collect();
                let len = (len < 100).then_some(4 * u32::from(len));
                Step::Table(i.into(), u64::from(slot) % TABLES, entries, len)
            }
            2..5 => {
                let (head, count) = (self.byte()?, self.byte()? % 20);
                Step::Chain(head.into(), count.max(1).into(), self.near(8192)? as u32)
            }
            5 => Step::Offer(self.byte()?.into()),
            6 => match self.byte()? {
                0..16 => Step::Jump(self.near(0)? as u16),
                16..64 => Step::Restart,
                head => Step::Offer(head.into()),
            },
            7 => Step::AvailFlags(self.byte()?.into()),
            8 => Step::UsedEvent(self.near(0)? as u16),
            9 => Step::Scribble(usize::from(self.u16()?) % naive::rig::BYTES, self.byte()?),
            10 => match self.byte()? {
                0..64 => Step::Fault(self.u16()?.into(), self.byte()?.into()),
                _ => Step::Fault(0, 0),
            },
            11 | 12 => Step::Take(self.byte()?.into()),
            13 => Step::Untake(self.byte()?.into()),
            14 => Step::Use(self.byte()?.into()),
            15 => Step::Publish,
            16 => Step::WantsCall(self.byte()? % 2 == 0),
            17 => Step::Suppress,
            18 => match self.byte()? {
                0..16 => Step::Clear,
                _ => Step::Compact,
            },
            _ => Step::Arm,
        })
    }
}

fn beside_model(input: &mut Input<'_>) -> Option<()> {
    let (mut rig, mut batch) = Rig::new(&input.setup()?);
    while let Some(step) = input.step() {
        rig.step(&step, &mut batch);
    }
    rig.finish();
    Some(())
}

/// Memory in which something changes every so many accesses, and which sees to it that the
/// device stays within the ring and the memory table.
struct Attacked<'a> {
    mem: MockMem<4096>,
    input: Input<'a>,
    readable: [Range<u64>; 2],
    writable: Range<u64>,
    every: u32,
    accesses: u32,
}

impl Attacked<'_> {
    fn attack(&mut self) {
        self.accesses += 1;
        if self.accesses % self.every == 0 {
            let bytes = [(); 3].map(|()| self.input.last_byte().unwrap_or(0));
            let at = usize::from(u16::from_le_bytes([bytes[0], bytes[1]]));
            // Half of the attacks are on the ring's start: descriptors and the first indices.
            let at = if bytes[1] & 0x80 == 0 {
                at % 4096
            } else {
                at % 160
            };
            self.mem.bytes()[at] = bytes[2];
        }
    }

    fn in_table(&self, at: u64, len: u64) -> bool {
        let in_region = |r: &Region| at >= r.hva && at + len - 1 <= r.hva + (r.last - r.first);
        len > 0 && self.mem.table().iter().any(in_region)
    }
}

fn within(range: &Range<u64>, at: u64, len: usize) -> bool {
    range.start <= at && at + len as u64 <= range.end
}

impl GuestMem for Attacked<'_> {
    fn read(&mut self, at: RingAddr, out: &mut [u8]) -> Result {
        assert!(self
            .readable
            .iter()
            .chain([&self.writable])
            .any(|r| within(r, at.0, out.len())));
        self.attack();
        self.mem.read(at, out)
    }

    fn write(&mut self, at: RingAddr, data: &[u8]) -> Result {
        assert!(within(&self.writable, at.0, data.len()));
        self.attack();
        self.mem.write(at, data)
    }

    fn load_u16(&mut self, at: RingAddr) -> Result<u16> {
        let mut raw = [0; 2];
        self.read(at, &mut raw)?;
        Ok(u16::from_le_bytes(raw))
    }

    fn store_u16(&mut self, at: RingAddr, value: u16) -> Result {
        self.write(at, &value.to_le_bytes())
    }

    fn segment(&mut self, at: Gpa, len: u64, access: Access) -> Result<Seg> {
        self.mem.segment(at, len, access)
    }

    fn read_segment(&mut self, at: Hva, out: &mut [u8]) -> Result {
        assert!(self.in_table(at.0, out.len() as u64));
        self.attack();
        self.mem.read_segment(at, out)
    }

    fn fence(&self, _kind: Fence) {}
}

fn under_attack(mut input: Input<'_>) -> Option<()> {
    let kind = input.byte()?;
    let mut ring = MockRing::new(1 << (kind & 7).min(6));
    let layout = ring.layout();
    let [desc, avail] = layout.readable(true);
    let used = layout.writable(true);
    let mut mem = Attacked {
        mem: MockMem::new(),
        every: 1 + u32::from(input.byte()? % 32),
        readable: [desc, avail].map(|a| a.at.0..a.at.0 + a.len),
        writable: used.at.0..used.at.0 + used.len,
        input,
        accesses: 0,
    };
    let want = if kind & 8 == 0 {
        Access::Read
    } else {
        Access::Write
    };
    // The first descriptors are input as it comes.
    for i in 0..16 * usize::from(ring.num()).min(16) {
        mem.mem.bytes()[i] = mem.input.byte()?;
    }
    let mut cursor = Cursor::default();
    cursor.set_features(if kind & 16 == 0 { 0 } else { feat::F_EVENT_IDX });
    let mut batch = Batch::new(vec![Chain::default(); 100], vec![Seg::default(); 1500]);
    while let Some(step) = mem.input.byte() {
        let before = mem.accesses;
        match step % 16 {
            0..3 => {
                let (i, at) = (mem.input.byte()?, mem.input.byte()?);
                let mut desc = mem.input.desc()?;
                desc.addr %= 1 << 13;
                // In the ring's table, or anywhere.
                let i = u64::from(i);
                let at = if i < 200 {
                    i % u64::from(ring.num())
                } else {
                    u64::from(at)
                };
                mem.mem.put_desc(16 * at, desc);
            }
            3..6 => {
                let head = u16::from(mem.input.byte()?) % (ring.num() + 1);
                ring.offer(&mut mem.mem, head);
            }
            6 => {
                let by = u16::from(mem.input.byte()?);
                let to = if by < 200 {
                    cursor.base()
                } else {
                    ring.avail().wrapping_add(by).wrapping_sub(220)
                };
                ring.set_avail(&mut mem.mem, to);
            }
            7..11 => {
                let (base, held) = (cursor.base(), batch.len());
                let max = usize::from(mem.input.byte()?);
                let taken = cursor.take(&layout, &mut mem, want, max, &mut batch);
                let n = taken.unwrap_or(0);
                assert!(n <= max.min(MAX_TAKE) && held + n <= ring.num().into());
                assert_eq!(cursor.base(), base.wrapping_add(n as u16));
                assert_eq!(batch.len(), held + n);
                assert_eq!(batch.segments_of(0, 0), &[]);
                for i in held..held + n {
                    check(&mem, batch.get(i)?, batch.segments(i), ring.num());
                }
            }
            11 => {
                let n = batch.len().min(mem.input.byte()?.into());
                let used: Vec<_> = (0..n).map(|i| used_elem(i as u16, !0)).collect();
                cursor.put_used(&layout, &mut mem, &used).ok()?;
                batch.pop(n);
                let _ = cursor.publish(&layout, &mut mem);
                cursor.wants_call(&layout, &mut mem, cursor.drained());
            }
            12 => {
                cursor.untake(batch.len());
                batch.clear();
            }
            13 => batch.compact(),
            14 => drop(cursor.suppress(&layout, &mut mem)),
            _ => drop(cursor.arm(&layout, &mut mem)),
        }
        // Each of 64 chains may visit as many tables as the ring has entries.
        assert!(mem.accesses - before < 64 * 64 * 65536 / 16);
    }
    Some(())
}

/// What holds for every chain taken.
fn check(mem: &Attacked<'_>, chain: &Chain, segs: &[Seg], num: u16) {
    assert!(chain.head < num && segs.len() <= MAX_SEGMENTS);
    assert!(segs.iter().all(|s| mem.in_table(s.at.0, s.len)));
    assert_eq!(segs.iter().map(|s| s.len).sum::<u64>(), chain.len);
    match chain.refused {
        None => assert!(chain.len > 0),
        Some(Error::Empty) => assert!(segs.is_empty()),
        Some(e) => assert_eq!(e, Error::WrongDirection),
    }
}
