// SPDX-License-Identifier: GPL-2.0
//! `cargo bench --bench rss`: how long it takes to choose a queue, in nanoseconds per packet.
//!
//! Headers alone, of 4,096 flows in memory that stays in the cache; in a kernel, the packet's
//! first cache miss comes on top.

use std::{
    hint::black_box,
    time::Instant, //
};

use vcore::vcore::{
    flow::Flow,
    rss::{
        types,
        Key,
        Steering,
        Table,
        Toeplitz,
        INPUT_BYTES,
        NO_SUMS, //
    },
};

const FLOWS: u16 = 4096;
const ROUNDS: u32 = 200;

fn frame(head: &[u8], addrs: usize, i: u16) -> Vec<u8> {
    let mut frame = vec![0; 12];
    frame.extend(head);
    frame.resize(12 + head.len() + addrs, 0x20);
    frame.extend([i.to_be_bytes(), [1, 187]].concat());
    frame
}

fn main() {
    let key = Key(core::array::from_fn(|i| (i * 89 + 57) as u8));
    let steering = Steering {
        toeplitz: Toeplitz::new(&key, vec![NO_SUMS; INPUT_BYTES]),
        types: types::ALL,
        table: Table::even(4),
        unclassified: 0,
    };
    let kinds: [(&str, &[u8], usize); 4] = [
        ("not IP", &[8, 6], 40),
        (
            "TCP over IPv4",
            &[8, 0, 0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0],
            8,
        ),
        (
            "UDP over IPv6",
            &[0x86, 0xdd, 0x60, 0, 0, 0, 0, 0, 17, 64],
            32,
        ),
        (
            "tagged TCP over IPv6",
            &[0x81, 0, 0, 5, 0x86, 0xdd, 0x60, 0, 0, 0, 0, 0, 6, 64],
            32,
        ),
    ];
    for (name, head, addrs) in kinds {
        let frames: Vec<_> = (0..FLOWS).map(|i| frame(head, addrs, i)).collect();
        // The best of five, as others use the machine too.
        let best = (0..5).map(|_| {
            let start = Instant::now();
            let mut sum = 0u32;
            for _ in 0..ROUNDS {
                for frame in &frames {
                    let choice = steering.choose(&Flow::of_frame(black_box(frame)));
                    sum = sum.wrapping_add(u32::from(choice.queue));
                }
            }
            black_box(sum);
            start.elapsed().as_nanos() as f64 / f64::from(ROUNDS) / f64::from(FLOWS)
        });
        println!("{name:24} {:6.1} ns", best.fold(f64::INFINITY, f64::min));
    }
}
