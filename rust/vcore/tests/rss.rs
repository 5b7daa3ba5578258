// SPDX-License-Identifier: GPL-2.0
//! Steering: the published vectors, the core against a plain model, and how even it is.

mod naive;

use std::net::{
    Ipv4Addr,
    Ipv6Addr, //
};

use naive::steering::{
    toeplitz,
    Seen, //
};
use proptest::{
    collection::vec,
    prelude::*,
    sample::{
        select,
        Index, //
    }, //
};
use vcore::vcore::{
    flow::Flow,
    rss::{
        rebalance,
        types,
        Key,
        Report,
        Steering,
        Sums,
        Table,
        Toeplitz,
        INPUT_BYTES,
        KEY_BYTES,
        NO_SUMS, //
    },
};

/// The key of the published verification suite.
const KEY: [u8; KEY_BYTES] = [
    0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b, 0x0e, 0xc2, 0x41, 0x67, 0x25, 0x3d, 0x43, 0xa3, 0x8f, 0xb0,
    0xd0, 0xca, 0x2b, 0xcb, 0xae, 0x7b, 0x30, 0xb4, 0x77, 0xcb, 0x2d, 0xa3, 0x80, 0x30, 0xf2, 0x0c,
    0x6a, 0x42, 0xb7, 0x3b, 0xbe, 0xac, 0x01, 0xfa,
];

const TCP: u8 = 6;
const UDP: u8 = 17;

fn of_key(key: &[u8; KEY_BYTES]) -> Toeplitz<Vec<Sums>> {
    Toeplitz::new(&Key(*key), vec![NO_SUMS; INPUT_BYTES])
}

/// From and to, with ports.
type Flow4 = ([u8; 4], u16, [u8; 4], u16);

fn tcp4((from, from_port, to, to_port): Flow4) -> Vec<u8> {
    let mut frame = vec![0; 12];
    frame.extend([8, 0, 0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, TCP, 0, 0]);
    frame.extend(from);
    frame.extend(to);
    frame.extend(from_port.to_be_bytes());
    frame.extend(to_port.to_be_bytes());
    frame.extend([0; 16]);
    frame
}

/// Each header is its bytes from the third on, the first two being kind and length.
fn ip6(from: Ipv6Addr, to: Ipv6Addr, headers: &[(u8, &[u8])], proto: u8, rest: &[u8]) -> Vec<u8> {
    let mut frame = vec![0; 12];
    let kinds: Vec<u8> = headers.iter().map(|h| h.0).chain([proto]).collect();
    frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 0, kinds[0], 64]);
    frame.extend(from.octets());
    frame.extend(to.octets());
    for (&(_, body), next) in headers.iter().zip(&kinds[1..]) {
        assert_eq!((body.len() + 2) % 8, 0);
        frame.extend([*next, ((body.len() + 2) / 8 - 1) as u8]);
        frame.extend(body);
    }
    frame.extend(rest);
    frame
}

#[test]
fn published_vectors_of_ipv4() {
    let suite = [
        (
            "161.142.100.80",
            1766,
            "66.9.149.187",
            2794,
            0x323e8fc2,
            0x51ccc178,
        ),
        (
            "65.69.140.83",
            4739,
            "199.92.111.2",
            14230,
            0xd718262a,
            0xc626b0ea,
        ),
        (
            "12.22.207.184",
            38024,
            "24.19.198.95",
            12898,
            0xd2d0a5de,
            0x5c2b394a,
        ),
        (
            "209.142.163.6",
            2217,
            "38.27.205.30",
            48228,
            0x82989176,
            0xafc7327f,
        ),
        (
            "202.188.127.2",
            1303,
            "153.39.163.191",
            44251,
            0x5d1809c5,
            0x10e828a2,
        ),
    ];
    let hash = of_key(&KEY);
    for (to, to_port, from, from_port, by_addr, by_port) in suite {
        let octets = |addr: &str| addr.parse::<Ipv4Addr>().unwrap().octets();
        let frame = tcp4((octets(from), from_port, octets(to), to_port));
        let flow = Flow::of_frame(&frame);
        let both = hash.of_flow(types::ALL, &flow);
        assert_eq!((both.value, both.report), (by_port, Report::Tcpv4));
        let addrs = hash.of_flow(types::IPV4, &flow);
        assert_eq!((addrs.value, addrs.report), (by_addr, Report::Ipv4));
    }
}

#[test]
fn published_vectors_of_ipv6() {
    let suite = [
        (
            "3ffe:2501:200:3::1",
            1766,
            "3ffe:2501:200:1fff::7",
            2794,
            0x2cc18cd5,
            0x40207d3d,
        ),
        (
            "ff02::1",
            4739,
            "3ffe:501:8::260:97ff:fe40:efab",
            14230,
            0x0f0c461c,
            0xdde51bbf,
        ),
        (
            "fe80::200:f8ff:fe21:67cf",
            38024,
            "3ffe:1900:4545:3:200:f8ff:fe21:67cf",
            44251,
            0x4b61e985,
            0x02d1feef,
        ),
    ];
    let hash = of_key(&KEY);
    for (to, to_port, from, from_port, by_addr, by_port) in suite {
        let ports = [u16::to_be_bytes(from_port), u16::to_be_bytes(to_port)].concat();
        let frame = ip6(from.parse().unwrap(), to.parse().unwrap(), &[], TCP, &ports);
        let flow = Flow::of_frame(&frame);
        let both = hash.of_flow(types::ALL, &flow);
        assert_eq!((both.value, both.report), (by_port, Report::Tcpv6));
        let addrs = hash.of_flow(types::IPV6, &flow);
        assert_eq!((addrs.value, addrs.report), (by_addr, Report::Ipv6));
    }
}

/// Both addresses stand in extension headers: the hash is that of the published flow.
#[test]
fn published_vector_by_home_and_routing_address() {
    let (to, from): (Ipv6Addr, Ipv6Addr) = (
        "3ffe:2501:200:3::1".parse().unwrap(),
        "3ffe:2501:200:1fff::7".parse().unwrap(),
    );
    let ports = [2794u16.to_be_bytes(), 1766u16.to_be_bytes()].concat();
    // Type 2, one segment left, reserved; then the address.
    let routing = [&[2u8, 1, 0, 0, 0, 0][..], &to.octets()].concat();
    // Padding, and the home address option.
    let options = [&[1u8, 2, 0, 0, 201, 16][..], &from.octets()].concat();
    let any: Ipv6Addr = "2001:db8::1".parse().unwrap();
    let frame = ip6(any, any, &[(60, &options), (43, &routing)], UDP, &ports);
    let flow = Flow::of_frame(&frame);
    let hash = of_key(&KEY);
    let of = |types| {
        let hash = hash.of_flow(types, &flow);
        (hash.value, hash.report)
    };
    assert_eq!(of(types::ALL), (0x40207d3d, Report::Udpv6Ex));
    assert_eq!(
        of(types::ALL & !types::UDP_EX),
        (0x2cc18cd5, Report::Ipv6Ex)
    );
    let plain = [any.octets(), any.octets()].concat();
    let by_addr = toeplitz(&KEY, &plain);
    assert_eq!(of(types::IPV6 | types::TCP_EX), (by_addr, Report::Ipv6));
    assert_eq!(of(types::TCPV6), (0, Report::None));
}

/// Bytes that are likely to mean something to the parser.
fn byte() -> impl Strategy<Value = u8> {
    prop_oneof![
        3 => any::<u8>(),
        2 => select(vec![0u8, 1, 2, 6, 8, 17, 43, 44, 51, 60, 135, 201]),
    ]
}

/// Frames that get far, with any bytes behind the headers, cut anywhere, and a few bytes changed.
fn frame() -> impl Strategy<Value = Vec<u8>> {
    let tag = select(vec![[0x81u8, 0, 0, 5], [0x88, 0xa8, 0, 7], [0x91, 0, 1, 1]]);
    let head = select(vec![
        vec![8u8, 0, 0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, TCP],
        vec![8, 0, 0x46, 0, 0, 40, 0, 0, 0, 0, 64, UDP],
        vec![8, 0, 0x45, 0, 0, 40, 0, 0, 0x20, 0, 64, UDP],
        vec![0x86, 0xdd, 0x60, 0, 0, 0, 0, 0, TCP, 64],
        vec![0x86, 0xdd, 0x60, 0, 0, 0, 0, 0, 60, 64],
        vec![0x86, 0xdd, 0x60, 0, 0, 0, 0, 0, 43, 64],
    ]);
    let option = prop_oneof![
        Just(vec![0u8]),
        vec(byte(), 0..5).prop_map(|b| [vec![1, b.len() as u8], b].concat()),
        vec(byte(), 16).prop_map(|b| [vec![201, 16], b].concat()),
        vec(byte(), 0..20).prop_map(|b| [vec![201, b.len() as u8], b].concat()),
    ];
    let options = vec(option, 0..6).prop_map(|options| {
        let mut body = options.concat();
        body.resize((body.len() + 2).next_multiple_of(8) - 2, 0);
        body
    });
    let routing = (
        select(vec![[2u8, 1], [2, 0], [0, 1], [3, 1]]),
        vec(byte(), 20),
    )
        .prop_map(|(kind, rest)| [kind.to_vec(), rest].concat());
    let kind = || select(vec![0u8, TCP, UDP, 43, 44, 51, 59, 60, 135, 139]);
    let extension = prop_oneof![
        (kind(), options).prop_map(|(next, body)| (next, body)),
        (kind(), routing).prop_map(|(next, body)| (next, body)),
        (kind(), vec(byte(), 6)).prop_map(|(next, body)| (next, body)),
        (kind(), Just(vec![0; 6])).prop_map(|(next, body)| (next, body)),
    ]
    .prop_map(|(next, body)| {
        let units = ((body.len() + 2) / 8 - 1) as u8;
        [vec![next, units], body].concat()
    });
    (
        vec(tag, 0..4),
        head,
        vec(byte(), 32),
        vec(extension, 0..10),
        vec(byte(), 0..60),
        vec((any::<Index>(), byte()), 0..3),
        prop_oneof![3 => Just(None), 1 => any::<Index>().prop_map(Some)],
    )
        .prop_map(|(tags, head, addrs, extensions, rest, changes, cut)| {
            let mut frame = vec![0; 12];
            frame.extend(tags.concat());
            frame.extend(head);
            frame.extend(addrs);
            frame.extend(extensions.concat());
            frame.extend(rest);
            for (at, byte) in changes {
                let at = at.index(frame.len());
                frame[at] = byte;
            }
            if let Some(cut) = cut {
                frame.truncate(cut.index(frame.len() + 1));
            }
            frame
        })
}

fn key() -> impl Strategy<Value = [u8; KEY_BYTES]> {
    prop_oneof![
        Just(KEY),
        any::<[[u8; 8]; 5]>().prop_map(|parts| parts.concat().try_into().unwrap())
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: if cfg!(miri) { 4 } else { 20_000 }, ..ProptestConfig::default() })]

    #[test]
    fn flow_and_hash_are_those_of_the_model(frame in frame(), key in key(), types in 0..=types::ALL) {
        let flow = Flow::of_frame(&frame);
        let seen = Seen::of_frame(&frame);
        prop_assert_eq!(Seen::by_core(&flow), seen.clone());
        let hash = of_key(&key).of_flow(types, &flow);
        prop_assert_eq!((hash.value, hash.report), seen.hash(&key, types));
    }

    #[test]
    fn hash_is_that_of_the_model_however_the_input_is_cut(
        key in key(), input in vec(any::<u8>(), 0..60), cut in any::<Index>()
    ) {
        let (first, second) = input.split_at(cut.index(input.len() + 1));
        let counts = &input[..input.len().min(INPUT_BYTES)];
        prop_assert_eq!(of_key(&key).hash(&[first, second]), toeplitz(&key, counts));
    }

    #[test]
    fn symmetric_key_hashes_both_directions_alike(
        seed in any::<u16>(), v6 in any::<bool>(), input in vec(any::<u8>(), 36)
    ) {
        let hash = of_key(&Key::symmetric(seed).0);
        let addr = if v6 { 16 } else { 4 };
        let (from, rest) = input.split_at(addr);
        let (to, rest) = rest.split_at(addr);
        let (from_port, to_port) = (&rest[..2], &rest[2..4]);
        prop_assert_eq!(
            hash.hash(&[from, to, from_port, to_port]),
            hash.hash(&[to, from, to_port, from_port])
        );
        // One port more is another hash.
        let mut other = to_port.to_vec();
        other[1] ^= 1;
        prop_assert_ne!(
            hash.hash(&[from, to, from_port, to_port]),
            hash.hash(&[from, to, from_port, &other])
        );
    }

    #[test]
    fn rebalancing_never_makes_it_worse_and_ends(
        queues in 1usize..9,
        entries in 0u32..8,
        seed in vec((any::<u16>(), prop_oneof![Just(0u64), 0..1000u64, any::<u64>()]), 128),
        max in 0usize..200,
    ) {
        let len = 1usize << entries;
        // Some name no queue.
        let before: Vec<u16> = seed.iter().take(len).map(|s| s.0 % (queues as u16 + 1)).collect();
        let carried: Vec<u64> = seed.iter().take(len).map(|s| s.1 / 128).collect();
        let mut table = before.clone();
        let mut loads = vec![0; queues];
        let moved = rebalance(&mut table, &carried, &mut loads, max);
        prop_assert!(moved <= max);
        let sums = |table: &[u16]| {
            let mut sums = vec![0u64; queues];
            for (&queue, load) in table.iter().zip(&carried) {
                if let Some(sum) = sums.get_mut(usize::from(queue)) {
                    *sum += load;
                }
            }
            sums
        };
        let (old, new) = (sums(&before), sums(&table));
        prop_assert_eq!(&new, &loads);
        prop_assert!(new.iter().max() <= old.iter().max());
        prop_assert!(new.iter().min() >= old.iter().min());
        let changed = before.iter().zip(&table).filter(|(a, b)| a != b).count();
        prop_assert!(changed <= moved);
        for ((&was, &is), &load) in before.iter().zip(&table).zip(&carried) {
            prop_assert!(was == is || load > 0 && usize::from(was) < queues && usize::from(is) < queues);
        }
        // Once it has ended by itself there is nothing to add.
        if moved < max {
            prop_assert_eq!(rebalance(&mut table, &carried, &mut loads, max), 0);
        }
    }
}

fn steering(key: Key, queues: u16) -> Steering<Vec<Sums>> {
    Steering {
        toeplitz: of_key(&key.0),
        types: types::ALL,
        table: Table::even(queues),
        unclassified: 0,
    }
}

/// `count` flows as they come: clients with counting addresses and ports.
fn flows(count: u32) -> impl Iterator<Item = Vec<u8>> {
    (0..count).map(|i| {
        let [_, a, b, c] = (i / 16).to_be_bytes();
        tcp4((
            [10, a, b, c],
            32768 + (i % 28231) as u16,
            [192, 0, 2, 1],
            443,
        ))
    })
}

#[test]
#[cfg_attr(miri, ignore = "the same few paths, ten thousand times")]
fn ten_thousand_flows_are_spread_within_a_tenth_of_even() {
    for (key, queues) in [
        (Key(KEY), 2),
        (Key(KEY), 4),
        (Key(KEY), 8),
        (Key::symmetric(0x6d5a), 4),
    ] {
        let steering = steering(key, queues);
        let mut counts = vec![0u32; usize::from(queues)];
        for frame in flows(10_000) {
            counts[usize::from(steering.choose(&Flow::of_frame(&frame)).queue)] += 1;
        }
        let even = 10_000 / u32::from(queues);
        for count in &counts {
            assert!(
                count.abs_diff(even) <= even / 10,
                "{queues} queues: {counts:?}"
            );
        }
    }
}

#[test]
#[cfg_attr(miri, ignore = "the same few paths, ten thousand times")]
fn flow_moves_only_if_its_entry_does() {
    let before = steering(Key(KEY), 4);
    let mut after = before.clone();
    let moved = [3, 77];
    for entry in moved {
        after.table.entries_mut()[entry] = 200;
    }
    let mut seen = [0; 2];
    for frame in flows(10_000) {
        let flow = Flow::of_frame(&frame);
        let (was, is) = (before.choose(&flow), after.choose(&flow));
        assert_eq!(was.entry, is.entry);
        match moved.iter().position(|&entry| Some(entry) == is.entry) {
            Some(n) => {
                assert_eq!(is.queue, 200);
                seen[n] += 1;
            }
            None => assert_eq!(was.queue, is.queue),
        }
    }
    assert!(seen.iter().all(|&n| n > 20), "{seen:?}");
}

#[test]
fn what_cannot_be_hashed_goes_to_the_unclassified_queue() {
    let mut steering = steering(Key(KEY), 4);
    steering.unclassified = 9;
    let choice = steering.choose(&Flow::of_frame(&[0; 60]));
    assert_eq!(
        (choice.queue, choice.entry, choice.hash.report),
        (9, None, Report::None)
    );
    steering.types = types::UDPV4;
    let frame = tcp4(([1, 2, 3, 4], 5, [6, 7, 8, 9], 10));
    let choice = steering.choose(&Flow::of_frame(&frame));
    assert_eq!((choice.queue, choice.entry), (9, None));
}

/// Four queues, of which one gets most: after rebalancing each is within a tenth of even.
#[test]
fn imbalance_is_evened_out_by_moving_entries() {
    let mut table = Table::even(4);
    let carried: Vec<u64> = (0..128)
        .map(|i| if i % 4 == 1 { 1000 + i } else { 10 + i })
        .collect();
    let mut loads = [0; 4];
    let moved = rebalance(table.entries_mut(), &carried, &mut loads, 64);
    let even = carried.iter().sum::<u64>() / 4;
    assert!(
        loads.iter().all(|l| l.abs_diff(even) <= even / 10),
        "{loads:?} after {moved}"
    );
    assert!(moved <= 32, "{moved}");
}
