// SPDX-License-Identifier: GPL-2.0
//! All rings there are, as long as they are small: each ends, and ends as the model says.

mod naive;

use naive::rig::{
    Setup,
    Step, //
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
    split::{
        Cursor,
        Layout, //
    },
    wire::{
        Desc,
        DESC_F_INDIRECT,
        DESC_F_NEXT, //
    },
    Error,
    Result, //
};

const BYTES: usize = 512;
/// Offsets, which are guest addresses too.
const TABLE: u64 = 256;
const EDGE: u64 = 384;
const UNMAPPED: u64 = 4096;

/// A ring with one entry available, and the model of it.
struct Rig {
    mem: MockMem<BYTES>,
    ring: MockRing,
    model: naive::Device,
    chains: Vec<Chain>,
    segs: Vec<Seg>,
}

impl Rig {
    fn new(num: u16) -> Self {
        let mut mem = MockMem::new();
        let table = [
            Region::new(Gpa(0), EDGE, Hva(HVA_BASE)).unwrap(),
            Region::new(Gpa(EDGE), 512 - EDGE, Hva(HVA_BASE + 7)).unwrap(),
        ];
        mem.set_table(&table);
        let mut ring = MockRing::new(num);
        assert!(ring.end() <= TABLE);
        ring.set_avail(&mut mem, 1);
        let owner = naive::Memory {
            bytes: mem.bytes().to_vec(),
            table: table.to_vec(),
            faulty: 0..0,
        };
        Self {
            model: naive::Device::new(owner, &ring.layout(), Access::Read, false),
            mem,
            ring,
            chains: vec![Chain::default(); 4],
            segs: vec![Seg::default(); 40],
        }
    }

    fn set_desc(&mut self, i: u16, desc: Desc) {
        self.ring.set_desc(&mut self.mem, i, desc);
    }

    fn set_head(&mut self, head: u16) {
        self.ring.set_avail(&mut self.mem, 0);
        self.ring.offer(&mut self.mem, head);
    }

    /// Takes the entry, and compares what becomes of it. Returns whether it was a chain.
    fn check(&mut self, want: Access) -> bool {
        self.model.mem.bytes.copy_from_slice(self.mem.bytes());
        self.model.want = want;
        self.model.set_base(0);
        let expected = self.model.take(8, 4, 40);
        let mut cursor = Cursor::default();
        let mut batch = Batch::new(&mut self.chains[..], &mut self.segs[..]);
        let layout = self.ring.layout();
        let taken = cursor.take(&layout, &mut self.mem, want, 8, &mut batch);
        let is = batch.get(0).map(|chain| naive::Chain {
            head: chain.head,
            segs: batch.segments(0).to_vec(),
            len: chain.len,
            refused: chain.refused,
        });
        match expected {
            Err(e) => {
                assert_eq!(taken, Err(e));
                assert!(is.is_none());
                false
            }
            Ok(chains) => {
                assert_eq!(taken, Ok(chains.len()));
                assert_eq!(is.as_ref(), chains.first());
                true
            }
        }
    }
}

/// All descriptors with these buffers, of a table of `num`.
fn descs(num: u16, buffers: &[(u64, u32)]) -> Vec<Desc> {
    let mut descs = Vec::new();
    for flags in 0..8 {
        for next in 0..=num {
            for &(addr, len) in buffers {
                descs.push(Desc {
                    addr,
                    len,
                    flags,
                    next,
                });
            }
        }
    }
    descs
}

/// Buffers of each kind; as an indirect table, most hold entries that are all zero.
const BUFFERS: [(u64, u32); 7] = [
    (TABLE, 16),
    (TABLE, 32),
    (TABLE, 24),
    (0, 0),
    (EDGE - 3, 16),
    (UNMAPPED, 16),
    (u64::MAX - 3, 16),
];

/// One out of so many cases is enough where each takes long.
fn thin<T>(cases: impl IntoIterator<Item = T>, miri: usize) -> impl Iterator<Item = T> {
    cases.into_iter().step_by(if cfg!(miri) { miri } else { 1 })
}

#[test]
fn all_rings_of_one_descriptor_end_as_the_model_says() {
    let mut rig = Rig::new(1);
    let mut chains = 0;
    for desc in thin(descs(1, &BUFFERS), 7) {
        rig.set_desc(0, desc);
        for head in [0, 1, u16::MAX] {
            rig.set_head(head);
            for want in [Access::Read, Access::Write] {
                chains += usize::from(rig.check(want));
            }
        }
    }
    assert!(chains > 0);
}

#[test]
fn all_rings_of_two_descriptors_end_as_the_model_says() {
    let mut rig = Rig::new(2);
    // A table that leads on, so that not all tables are the same.
    rig.mem.put_desc(
        TABLE,
        Desc {
            addr: 0,
            len: 2,
            flags: DESC_F_NEXT,
            next: 1,
        },
    );
    let all = descs(2, &BUFFERS);
    let mut chains = 0;
    for &first in thin(&all, 31) {
        rig.set_desc(0, first);
        for &second in thin(&all, 43) {
            rig.set_desc(1, second);
            for head in 0..2 {
                rig.set_head(head);
                for want in [Access::Read, Access::Write] {
                    chains += usize::from(rig.check(want));
                }
            }
        }
    }
    assert!(chains > 0);
}

/// Fills in the descriptor that a path has come to, in each way there is, and those that it
/// goes on to: what it does not come to makes no difference. Returns how many paths were chains.
fn walk(rig: &mut Rig, all: &[Desc], open: [bool; 4], at: u16) -> usize {
    let mut left = open;
    left[usize::from(at)] = false;
    let mut chains = 0;
    for &desc in thin(all, 17) {
        rig.set_desc(at, desc);
        let more = desc.flags & DESC_F_NEXT != 0 && left.get(usize::from(desc.next)) == Some(&true);
        if more {
            chains += walk(rig, all, left, desc.next);
            continue;
        }
        for want in [Access::Read, Access::Write] {
            chains += usize::from(rig.check(want));
        }
    }
    chains
}

#[test]
fn all_rings_of_four_descriptors_end_as_the_model_says() {
    let mut rig = Rig::new(4);
    // A table of one buffer.
    rig.mem.put_desc(
        TABLE,
        Desc {
            addr: 0,
            len: 2,
            flags: 0,
            next: 0,
        },
    );
    let all = descs(4, &[(TABLE, 16), (0, 0)]);
    for head in 0..4 {
        rig.set_head(head);
        assert!(walk(&mut rig, &all, [true; 4], head) > 0);
    }
}

/// One turn of a device with `offered` entries made available and some of them used, the driver
/// waiting for the used index to pass `event`, and what comes of one entry more.
fn turn(setup: &Setup, offered: u16, taken: u16, used: u16, event: u16) {
    let (mut rig, mut batch) = naive::rig::Rig::new(setup);
    for step in [
        Step::UsedEvent(event),
        Step::AvailFlags(event & 1),
        Step::WantsCall(false),
        Step::Suppress,
        Step::Jump(offered),
        Step::Take(taken.into()),
        Step::Use(used.into()),
        Step::Publish,
        Step::WantsCall(false),
        Step::Untake(usize::MAX),
        Step::Arm,
        Step::Offer(0),
        Step::Arm,
        Step::Take(64),
    ] {
        rig.step(&step, &mut batch);
    }
    rig.finish();
}

#[test]
fn all_positions_of_the_indices_around_their_wrap_end_as_the_model_says() {
    for order in 0..=2 {
        let num = 1 << order;
        let around = || (0..2 * num + 3).map(move |i: u16| i.wrapping_sub(num + 1));
        // Each index with each place of the other one in its ring.
        let places = around().flat_map(|a| around().map(move |b| (a, b)));
        for (base, used_idx) in thin(places, 50) {
            for event_idx in [false, true] {
                let setup = Setup {
                    order,
                    write: false,
                    event_idx,
                    on_empty: false,
                    base,
                    used: used_idx,
                    table: vec![Region::new(Gpa(0), 512, Hva(HVA_BASE)).unwrap()],
                    chains: 8,
                    segs: 8,
                };
                // The ring may claim more than it holds, or that it went back.
                for offered in (0..=num + 1).chain([u16::MAX]) {
                    for taken in 0..=offered.min(num) {
                        for used in 0..=taken {
                            for event in thin(0..num + 3, 4) {
                                let event = used_idx.wrapping_add(event).wrapping_sub(2);
                                turn(&setup, offered, taken, used, event);
                            }
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn all_indirect_tables_of_two_entries_end_as_the_model_says() {
    let mut rig = Rig::new(2);
    rig.set_head(0);
    let all = descs(2, &BUFFERS[2..]);
    let mut chains = 0;
    for outer in [(16, 0), (32, 0), (32, DESC_F_NEXT)] {
        rig.set_desc(
            0,
            Desc {
                addr: TABLE,
                len: outer.0,
                flags: DESC_F_INDIRECT | outer.1,
                next: 1,
            },
        );
        for &first in thin(&all, 31) {
            rig.mem.put_desc(TABLE, first);
            for &second in thin(&all, 37) {
                rig.mem.put_desc(TABLE + 16, second);
                for want in [Access::Read, Access::Write] {
                    chains += usize::from(rig.check(want));
                }
            }
        }
    }
    assert!(chains > 0);
}

/// Memory in which every entry of every indirect table is the same, but for the last.
struct Tables {
    entry: Desc,
    /// The flags of what leads to a table.
    outer: u16,
    available: u16,
    reads: u64,
}

impl GuestMem for Tables {
    fn read(&mut self, at: RingAddr, out: &mut [u8]) -> Result {
        out.fill(0);
        // The ring's table is at 0 and leads from table to table; its available ring at 1 MiB
        // holds one entry.
        if at.0 < 1 << 20 {
            let desc = Desc {
                addr: 1 << 32,
                len: 65536 * 16,
                flags: self.outer,
                next: (at.0 / 16) as u16 + 1,
            };
            out.copy_from_slice(&desc.to_bytes());
        }
        Ok(())
    }

    fn write(&mut self, _at: RingAddr, _data: &[u8]) -> Result {
        Ok(())
    }

    fn load_u16(&mut self, _at: RingAddr) -> Result<u16> {
        Ok(self.available)
    }

    fn store_u16(&mut self, _at: RingAddr, _value: u16) -> Result {
        Ok(())
    }

    fn segment(&mut self, at: Gpa, len: u64, _access: Access) -> Result<Seg> {
        Ok(Seg { at: Hva(at.0), len })
    }

    fn read_segment(&mut self, at: Hva, out: &mut [u8]) -> Result {
        self.reads += 1;
        for (i, raw) in out.chunks_mut(16).enumerate() {
            let at = (at.0 - (1 << 32)) / 16 + i as u64;
            let mut desc = self.entry;
            desc.next = (at + 1) as u16;
            if at == 65535 {
                desc.flags &= !DESC_F_NEXT;
            }
            raw.copy_from_slice(&desc.to_bytes());
        }
        Ok(())
    }

    fn fence(&self, _kind: Fence) {}
}

fn take_from(mut mem: Tables, storage: usize) -> (Result<usize>, u64) {
    let layout = Layout::new(32768, RingAddr(0), RingAddr(1 << 20), RingAddr(1 << 21)).unwrap();
    let mut batch = Batch::new(vec![Chain::default(); 8], vec![Seg::default(); storage]);
    let mut cursor = Cursor::default();
    let taken = cursor.take(&layout, &mut mem, Access::Read, 8, &mut batch);
    (taken, mem.reads)
}

fn take_from_tables(entry: Desc, storage: usize) -> (Result<usize>, u64) {
    let mem = Tables {
        entry,
        outer: DESC_F_INDIRECT | DESC_F_NEXT,
        available: 1,
        reads: 0,
    };
    take_from(mem, storage)
}

#[test]
#[cfg_attr(miri, ignore)]
fn long_chain_of_empty_buffers_is_the_last_of_its_batch() {
    let mem = Tables {
        entry: Desc {
            flags: DESC_F_NEXT,
            ..Desc::default()
        },
        outer: DESC_F_INDIRECT,
        available: 8,
        reads: 0,
    };
    assert_eq!(take_from(mem, MAX_SEGMENTS), (Ok(1), 65536 / 16));
}

#[test]
#[cfg_attr(miri, ignore)]
fn chain_through_tables_of_empty_buffers_ends_after_two_tables() {
    let entry = Desc {
        flags: DESC_F_NEXT,
        ..Desc::default()
    };
    let (taken, reads) = take_from_tables(entry, MAX_SEGMENTS);
    assert_eq!(taken, Err(Error::Loop));
    assert_eq!(reads, 2 * 65536 / 16 + 1);
}

#[test]
fn chain_of_too_many_segments_ends_when_there_are_too_many() {
    let entry = Desc {
        len: 1,
        flags: DESC_F_NEXT,
        ..Desc::default()
    };
    // However much storage there is; with less, it may only be the wrong time.
    for (storage, want) in [
        (MAX_SEGMENTS, Error::TooManySegments),
        (2 * MAX_SEGMENTS, Error::TooManySegments),
        (MAX_SEGMENTS - 1, Error::NoRoom),
    ] {
        let (taken, reads) = take_from_tables(entry, storage);
        assert_eq!(taken, Err(want));
        assert!(reads <= MAX_SEGMENTS as u64 / 16 + 1);
    }
}
