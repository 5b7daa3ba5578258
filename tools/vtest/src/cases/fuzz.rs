// SPDX-License-Identifier: GPL-2.0

//! Another CPU of the guest changes rings, tables, headers and packets at
//! random while the device uses them. It knows what stands where, so that most
//! of what it writes gets past the first check. The same seed makes the same
//! changes; when the device sees them is chance.

use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context;
use anyhow::Result;

use super::guest::fresh_start;
use super::iotlb::translated;
use super::iotlb::update_all;
use crate::case::Ctx;
use crate::case::Table;
use crate::device::feature;
use crate::device::RX;
use crate::device::TX;
use crate::frame::NetHdr;
use crate::frame::Rng;
use crate::mem::BOUNDARY;
use crate::mem::END;
use crate::poll;
use crate::ring::Layout;
use crate::ring::F_INDIRECT;
use crate::ring::F_NEXT;
use crate::ring::F_WRITE;
use crate::vmm::Setup;
use crate::vmm::Vmm;

const TABLES: u64 = 16;
const ENTRIES: u64 = 32;
const BUFFERS: u64 = 64;
const BUFFER: u64 = 4096;

pub(super) fn register(table: &mut Table) {
    let modern = feature::VERSION_1;
    for (name, features, size) in [
        ("flags", modern, 256),
        ("event_idx", modern | feature::EVENT_IDX, 256),
        (
            "mergeable",
            modern | feature::MRG_RXBUF | feature::EVENT_IDX,
            64,
        ),
        ("legacy", 0, 256),
        (
            "in_order_logged",
            modern | feature::IN_ORDER | feature::LOG_ALL,
            8,
        ),
        ("tiny", modern | feature::EVENT_IDX, 2),
    ] {
        table.add_long(
            format!("fuzz::live_rings_and_buffers_{name}"),
            Duration::from_secs(900),
            move |ctx| live(ctx, features, size),
        );
    }
    table.add_long(
        "fuzz::translation_answered_at_random",
        Duration::from_secs(900),
        translation,
    );
}

/// Where things stand, as addresses of this process.
struct Map {
    rings: [(Layout, [usize; 3]); 2],
    tables: usize,
    buffers: usize,
    /// The same as the guest sees them.
    guest_tables: u64,
    guest_buffers: u64,
}

impl Map {
    fn of(vmm: &Vmm) -> Result<Self> {
        let host = |addr: u64| -> Result<usize> { Ok(vmm.mem.host(addr)? as usize) };
        let ring = |index: usize| -> Result<_> {
            let layout = vmm.queue(index).ring.layout();
            let areas = [host(layout.desc)?, host(layout.avail)?, host(layout.used)?];
            Ok((layout, areas))
        };
        let guest_tables = vmm.mem.alloc(TABLES * ENTRIES * 16, 4096)?;
        let guest_buffers = vmm.mem.tx_buffer(BUFFERS * BUFFER)?;
        Ok(Self {
            rings: [ring(RX)?, ring(TX)?],
            tables: host(guest_tables)?,
            buffers: host(guest_buffers)?,
            guest_tables,
            guest_buffers,
        })
    }
}

/// Writes what another CPU would.
fn put<T>(at: usize, value: T) {
    // SAFETY: The callers stay inside of areas of guest memory, which outlives
    // them and to which no references exist.
    unsafe { (at as *mut T).write_unaligned(value) };
}

fn get<T>(at: usize) -> T {
    // SAFETY: As in `put`; any bytes are a number.
    unsafe { (at as *const T).read_unaligned() }
}

struct Mutator<'a> {
    rng: Rng,
    map: &'a Map,
}

impl Mutator<'_> {
    fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.rng.below(choices.len() as u64) as usize]
    }

    fn address(&mut self) -> u64 {
        let buffer = self.map.guest_buffers + self.rng.below(BUFFERS) * BUFFER;
        let somewhere = self.rng.below(END);
        let garbage = self.rng.next();
        let odd = self.of(&[
            0,
            BOUNDARY - 5,
            END - 40,
            END,
            u64::MAX - 3,
            1 << 47,
            garbage,
        ]);
        let table = self.map.guest_tables + self.rng.below(TABLES) * ENTRIES * 16;
        self.of(&[buffer, buffer, buffer, buffer + 7, table, somewhere, odd])
    }

    fn len(&mut self) -> u32 {
        let some = self.rng.below(4096) as u32;
        let table = 16 * (1 + self.rng.below(ENTRIES) as u32);
        let any = self.rng.next() as u32;
        let odd = self.of(&[0, 1, 10, 11, 12, 13, 25, 26, 65_535, 1 << 20, u32::MAX, any]);
        self.of(&[some, some, 1526, 60, table, odd])
    }

    fn flags(&mut self, write: u16) -> u16 {
        let any = self.rng.next() as u16;
        self.of(&[
            write,
            write,
            write,
            write | F_NEXT,
            write | F_NEXT,
            F_INDIRECT,
            F_WRITE,
            F_INDIRECT | F_NEXT,
            any,
        ])
    }

    fn descriptor(&mut self, at: usize, i: u64, num: u64, write: u16) {
        let next = match self.rng.below(6) {
            0 => i as u16,
            1 => num as u16,
            2 => u16::MAX,
            3 => self.rng.below(num) as u16,
            _ => ((i + 1) % num) as u16,
        };
        match self.rng.below(6) {
            0 => put(at, self.address()),
            1 => put(at + 8, self.len()),
            2 => put(at + 12, self.flags(write)),
            3 => put(at + 14, next),
            _ => {
                // A whole one, good for the direction.
                let buffer = self.map.guest_buffers + self.rng.below(BUFFERS) * BUFFER;
                put(at, buffer);
                put(at + 8, 14 + self.rng.below(3000) as u32);
                put(at + 12, write | self.of(&[0, 0, F_NEXT]));
                put(at + 14, next);
            }
        }
    }

    fn header(&mut self) {
        let at = self.map.buffers + (self.rng.below(BUFFERS) * BUFFER) as usize;
        let any = self.rng.next() as u16;
        let field = self.of(&[0, 0, 0, 1, 14, 34, 54, 1000, u16::MAX, any]);
        match self.rng.below(8) {
            0 => put(at, self.of(&[0u8, 1, 1, 2, 4, 0x18, any as u8])),
            1 => put(
                at + 1,
                self.of(&[0u8, 0, 1, 3, 4, 5, 0x81, 0x7f, any as u8]),
            ),
            2..6 => put(at + 2 * self.rng.below(12) as usize, field),
            6 => put(at + 24, self.of(&[0x0008u16, 0xdd86, 0x0081, 0xb588, any])),
            _ => {
                let len = 12 + self.rng.below(100);
                for i in 0..len {
                    put(
                        at + i as usize,
                        if i < 12 { 0 } else { self.rng.next() as u8 },
                    );
                }
            }
        }
    }

    /// One change.
    fn step(&mut self) {
        let queue = self.rng.below(2) as usize;
        let (layout, [desc, avail, used]) = self.map.rings[queue];
        let num = u64::from(layout.size);
        let write = if queue == RX { F_WRITE } else { 0 };
        let slot = self.rng.below(num);
        match self.rng.below(24) {
            0..8 => self.descriptor(desc + 16 * slot as usize, slot, num, write),
            8..11 => {
                let i = self.rng.below(TABLES * ENTRIES);
                let at = self.map.tables + 16 * i as usize;
                self.descriptor(at, i % ENTRIES, ENTRIES, write);
            }
            11..14 => {
                let any = self.rng.next() as u16;
                let head = self.of(&[slot as u16, slot as u16, slot as u16, num as u16, any]);
                put(avail + 4 + 2 * self.rng.below(num) as usize, head);
            }
            14..17 => {
                // Mostly a bit further: what is far off is refused at once.
                let idx: u16 = get(used + 2);
                let more = self.rng.below(num + 1) as u16;
                let any = self.rng.next() as u16;
                let idx = self.of(&[
                    idx.wrapping_add(more),
                    idx.wrapping_add(more),
                    idx.wrapping_add(1),
                    idx,
                    idx.wrapping_sub(1),
                    any,
                ]);
                put(avail + 2, idx);
            }
            17 => put(avail, self.rng.next() as u16),
            18 => put(avail + 4 + 2 * num as usize, self.rng.next() as u16),
            // What the device writes, and nobody else should.
            19 => put(used + 2 * self.rng.below(2 + 4 * num) as usize, slot as u16),
            _ => self.header(),
        }
    }
}

/// A good ring to start from: all descriptors are buffers.
fn lay_out(map: &Map) {
    for (queue, (layout, [desc, avail, _])) in map.rings.iter().enumerate() {
        for i in 0..u64::from(layout.size) {
            let at = desc + 16 * i as usize;
            put(at, map.guest_buffers + i % BUFFERS * BUFFER);
            put(at + 8, if queue == RX { 2048u32 } else { 112 });
            put(at + 12, if queue == RX { F_WRITE } else { 0 });
            put(at + 14, 0u16);
            put(avail + 4 + 2 * i as usize, i as u16);
        }
    }
    for i in 0..BUFFERS {
        for byte in 0..12 {
            put(map.buffers + (i * BUFFER) as usize + byte, 0u8);
        }
    }
}

fn live(ctx: &Ctx, features: u64, size: u16) -> Result<()> {
    let mut vmm = Setup::new().features(features).size(size).build(ctx)?;
    let log = match features & feature::LOG_ALL {
        0 => None,
        _ => Some(super::log::Log::new(&vmm)?),
    };
    let map = Map::of(&vmm)?;
    let mut rng = Rng::new(ctx.seed);
    let done = AtomicBool::new(false);
    let paused = AtomicBool::new(false);
    let resting = AtomicBool::new(false);
    let mutations = AtomicU64::new(0);
    let start = Instant::now();
    let mut errors = 0;
    let seed = rng.next();
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut mutator = Mutator {
                rng: Rng::new(seed),
                map: &map,
            };
            while !done.load(Ordering::Relaxed) {
                if paused.load(Ordering::SeqCst) {
                    resting.store(true, Ordering::SeqCst);
                    thread::yield_now();
                    continue;
                }
                resting.store(false, Ordering::SeqCst);
                for _ in 0..16 {
                    mutator.step();
                }
                mutations.fetch_add(16, Ordering::Relaxed);
            }
        });
        let mut round = || -> Result<()> {
            lay_out(&map);
            for _ in 0..400 {
                for index in [RX, TX] {
                    vmm.queue(index).kick()?;
                }
                let frame = vmm.rx_frames.plain(60 + rng.below(3000) as usize);
                let _ = vmm.wire.send(&NetHdr::default(), &frame);
                vmm.wire.drain()?;
            }
            for index in [RX, TX] {
                errors += poll::take_signals(&vmm.queue(index).err);
            }
            // Stops where it is, and starts from good rings.
            paused.store(true, Ordering::SeqCst);
            poll::wait_for("the mutations to pause", || {
                Ok(resting.load(Ordering::SeqCst).then_some(()))
            })?;
            fresh_start(&mut vmm)?;
            paused.store(false, Ordering::SeqCst);
            Ok(())
        };
        let result = (0..ctx.cycles.div_ceil(250))
            .try_for_each(|i| round().with_context(|| format!("round {i}, seed {}", ctx.seed)));
        done.store(true, Ordering::Relaxed);
        result
    })?;
    vmm.stop()?;
    drop(log);
    report(mutations.into_inner(), errors, start, ctx.seed);
    Ok(())
}

fn report(mutations: u64, errors: u64, start: Instant, seed: u64) {
    let time = start.elapsed().as_secs_f64();
    println!(
        "# mutations: {mutations} in {time:.1} s ({:.0}/s), {errors} err signals, seed {seed}",
        mutations as f64 / time
    );
}

/// The VMM answers misses rightly, wrongly, in part, late, or takes back what it
/// answered.
fn translation(ctx: &Ctx) -> Result<()> {
    const UPDATE: u8 = 2;
    const INVALIDATE: u8 = 3;
    let start = Instant::now();
    let mut rng = Rng::new(ctx.seed);
    let mut messages = 0;
    let mut vmm = translated(ctx)?;
    update_all(&vmm)?;
    vmm.start()?;
    let map = Map::of(&vmm)?;
    for _ in 0..ctx.cycles.div_ceil(20) {
        lay_out(&map);
        for index in [RX, TX] {
            let ring = &vmm.queue(index).ring;
            let more = 1 + rng.below(64) as u16;
            ring.set_avail_idx(ring.used_idx().wrapping_add(more));
            vmm.queue(index).kick()?;
        }
        let frame = vmm.rx_frames.plain(60 + rng.below(2000) as usize);
        let _ = vmm.wire.send(&NetHdr::default(), &frame);
        vmm.wire.drain()?;
        for _ in 0..20 {
            let mut miss = [0u8; 72];
            let missed = read(&vmm, &mut miss);
            let asked = u64::from_ne_bytes(miss[8..16].try_into().unwrap_or_default());
            let iova = match rng.below(4) {
                _ if missed && rng.below(4) != 0 => asked & !4095,
                0 => rng.next(),
                _ => rng.below(END) & !4095,
            };
            let len = match rng.below(5) {
                0 => 0,
                1 => 1,
                2 => u64::MAX,
                _ => 4096 << rng.below(8),
            };
            // What is written goes where it may.
            let inside = |from: u64, to: u64| iova >= from && iova < to - (1 << 20);
            let known = inside(0, BOUNDARY) || inside(BOUNDARY, END);
            let uaddr = match known && len <= 1 << 20 {
                true => vmm.mem.host(iova)? as u64,
                false => 1 << 63,
            };
            let perm = 1 + rng.below(3) as u8;
            let kind = if rng.below(3) == 0 {
                INVALIDATE
            } else {
                UPDATE
            };
            write(&vmm, iova, len, uaddr, perm, kind);
            messages += 1;
        }
    }
    vmm.stop()?;
    let errors = poll::take_signals(&vmm.rx.err) + poll::take_signals(&vmm.tx.err);
    drop(vmm);
    report(messages, errors, start, ctx.seed);
    poll::wait_for("the interface to go", || {
        Ok(crate::net::index("vt0").is_err().then_some(()))
    })?;
    Setup::new().build(ctx)?.check_alive()
}

fn read(vmm: &Vmm, miss: &mut [u8; 72]) -> bool {
    use std::io::Read;
    vmm.vhost.file().read(miss).is_ok_and(|len| len == 72)
}

fn write(vmm: &Vmm, iova: u64, len: u64, uaddr: u64, perm: u8, kind: u8) {
    use std::io::Write;
    let mut bytes = vec![2, 0, 0, 0, 0, 0, 0, 0];
    for word in [iova, len, uaddr] {
        bytes.extend(word.to_ne_bytes());
    }
    bytes.extend([perm, kind]);
    bytes.resize(72, 0);
    // Most are refused.
    let _ = vmm.vhost.file().write(&bytes);
}
