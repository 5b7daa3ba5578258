// SPDX-License-Identifier: GPL-2.0
//! The target that TARGET names (split_ring by default), without libFuzzer.
//!
//! Usage: `random SECONDS [SEED]` for random input, `random FILE…` for that in files, or
//! `random seeds FOLDER` to fill a folder for libFuzzer to start from.

use std::{
    env,
    fs,
    process,
    time::{
        Duration,
        Instant,
        SystemTime, //
    }, //
};

/// SplitMix64: every seed gives another sequence.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ z >> 31
    }

    /// Up to 2 KiB, with small numbers and repetitions in it.
    fn input(&mut self) -> Vec<u8> {
        let len = self.next() % 2048;
        let mask = if self.next() % 2 == 0 { 0xff } else { 0x0f };
        (0..len).map(|_| self.next() as u8 & mask).collect()
    }
}

/// Inputs that a corpus starts with.
const SEEDS: usize = 200;

fn done<T>(path: &str, result: std::io::Result<T>) -> T {
    result.unwrap_or_else(|e| {
        eprintln!("{path}: {e}");
        process::exit(2);
    })
}

fn main() {
    let name = env::var("TARGET").unwrap_or_else(|_| "split_ring".into());
    let Some(target) = vcore_fuzz::target(&name) else {
        eprintln!("{name}: no such target");
        process::exit(2);
    };
    let mut args = env::args().skip(1).peekable();
    if args.next_if(|a| a == "seeds").is_some() {
        let folder = args.next().unwrap_or_default();
        let mut random = Random(0);
        for i in 0..SEEDS {
            done(&folder, fs::write(format!("{folder}/{i}"), random.input()));
        }
        return;
    }
    let seconds = args.peek().and_then(|a| a.parse::<u64>().ok());
    let Some(seconds) = seconds else {
        for file in args {
            target(&done(&file, fs::read(&file)));
        }
        return;
    };
    let clock = SystemTime::UNIX_EPOCH.elapsed().map_or(0, |t| t.as_nanos());
    let seed = args
        .nth(1)
        .and_then(|a| a.parse().ok())
        .unwrap_or(clock as u64);
    println!("seed {seed}");
    let end = Instant::now() + Duration::from_secs(seconds);
    let mut random = Random(seed);
    let mut runs = 0u64;
    while Instant::now() < end {
        let input = random.input();
        if std::panic::catch_unwind(|| target(&input)).is_err() {
            let file = format!("crash-{seed}-{runs}");
            done(&file, fs::write(&file, &input));
            println!("crash: its input is {file}");
            process::exit(1);
        }
        runs += 1;
    }
    println!("Done {runs} runs in {seconds} second(s)");
}
