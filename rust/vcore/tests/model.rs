// SPDX-License-Identifier: GPL-2.0
//! The core against plain models of the same things, on random input: after each step both must
//! say the same, and memory must hold the same bytes.

mod naive;

use naive::rig::{
    Rig,
    Setup,
    Step,
    BYTES,
    TABLES,
    TABLES_AT, //
};

use proptest::{
    collection::vec,
    prelude::*,
    sample::select, //
};
use vcore::vcore::{
    addr::{
        Gpa,
        Hva, //
    },
    dirty,
    event,
    hdr,
    iotlb,
    map::{
        self,
        Lookup,
        Region, //
    },
    mock::HVA_BASE,
    wire::{
        Desc,
        DESC_F_NEXT,
        DESC_F_WRITE, //
    },
    Error, //
};

/// `PROPTEST_CASES` makes it more or fewer than 256 times 8.
fn config() -> ProptestConfig {
    let default = ProptestConfig::default();
    ProptestConfig {
        // Miri takes a thousand times as long, and finds what it finds in any case.
        cases: if cfg!(miri) { 2 } else { 8 * default.cases },
        failure_persistence: None,
        ..default
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
        vec![
            region(0, 100, 0),
            region(TABLES_AT - 60, 4000, TABLES_AT - 60),
        ],
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
        1 => (0..if cfg!(miri) { 100 } else { 70000u32 }).prop_map(Step::Spin),
        8 => Just(Step::Publish),
        8 => any::<bool>().prop_map(Step::WantsCall),
        4 => Just(Step::Suppress),
        6 => Just(Step::Arm),
        3 => Just(Step::Compact),
        1 => Just(Step::Clear),
        3 => Just(Step::Restart),
    ]
}

fn setups() -> impl Strategy<Value = Setup> {
    let indices = || prop_oneof![Just(0), 0xff00..=0xffffu16, any::<u16>()];
    let flags = (any::<bool>(), any::<bool>(), any::<bool>());
    let segs = prop_oneof![1..40usize, Just(1024), Just(1200)];
    (
        0..=8u32,
        flags,
        indices(),
        indices(),
        tables(),
        1..90usize,
        segs,
    )
        .prop_map(
            |(order, (write, event_idx, on_empty), base, used, table, chains, segs)| Setup {
                order,
                write,
                event_idx,
                on_empty,
                base,
                used,
                table,
                chains,
                segs,
            },
        )
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn ring_does_as_the_model_step_by_step(
        setup in setups(),
        steps in vec(steps(), 1..if cfg!(miri) { 40 } else { 120 }),
    ) {
        let (mut rig, mut batch) = Rig::new(&setup);
        for step in &steps {
            rig.step(step, &mut batch);
        }
        rig.finish();
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
    #![proptest_config(config())]

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
        far in prop::option::of(0..70000usize),
        near in 0..5usize,
    ) {
        header[0] = header[0] & !1 | u8::from(needs_csum);
        if small {
            for high in [3, 7, 9] {
                header[high] = 0;
            }
        }
        let field = |h: &[u8; hdr::BASE_BYTES], at| u32::from(h[at]) + 256 * u32::from(h[at + 1]);
        let (was, end) = (field(&header, 2), field(&header, 6) + field(&header, 8) + 2);
        let total = far.unwrap_or((end as usize % 0x10000 + near).saturating_sub(2));
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
                let touched = model.iter().any(|e| e.first <= last && first <= e.last);
                let full = model.len() == ROOM;
                prop_assert_eq!(table.insert(entry), touched || full);
                if full {
                    model.remove(0);
                }
                model.push(entry);
            } else {
                let before = model.len();
                model.retain(|e| e.last < first || e.first > last);
                prop_assert_eq!(table.remove(first, last), model.len() < before);
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
