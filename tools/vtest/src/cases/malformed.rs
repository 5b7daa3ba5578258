// SPDX-License-Identifier: GPL-2.0

//! Rings that break the specification. Most stall their queue: an err signal,
//! nothing consumed, and on it goes once the guest has repaired the ring.

use anyhow::Context;
use anyhow::Result;

use crate::case::Ctx;
use crate::case::Table;
use crate::device::feature;
use crate::device::RX;
use crate::device::TX;
use crate::frame::NetHdr;
use crate::ioctl;
use crate::mem::END;
use crate::poll;
use crate::ring::Desc;
use crate::ring::F_INDIRECT;
use crate::ring::F_NEXT;
use crate::ring::F_WRITE;
use crate::traffic::expect;
use crate::traffic::Split;
use crate::vmm::Setup;
use crate::vmm::Vmm;

/// What a case spoils: the chain is in the ring at `slot`, not yet published.
struct Victim {
    queue: usize,
    slot: u16,
    head: u16,
    /// A descriptor of the same ring that belongs to nobody.
    spare: u16,
}

/// Changes the ring; the return value says whether it has set the available
/// index itself.
type Spoil = fn(&Vmm, &Victim) -> Result<bool>;

struct Row {
    name: &'static str,
    size: u16,
    spoil: Spoil,
}

const fn row(name: &'static str, spoil: Spoil) -> Row {
    Row {
        name,
        size: 256,
        spoil,
    }
}

const ROWS: [Row; 24] = [
    row("head_beyond_ring", |vmm, v| avail_entry(vmm, v, 300)),
    row("head_equal_to_ring_size", |vmm, v| avail_entry(vmm, v, 256)),
    Row {
        name: "head_65535_in_largest_ring",
        size: 32_768,
        spoil: |vmm, v| avail_entry(vmm, v, 0xffff),
    },
    row("avail_index_jumps_by_ring_size_plus_one", |vmm, v| {
        avail_idx(vmm, v, 257)
    }),
    row("avail_index_jumps_by_300", |vmm, v| avail_idx(vmm, v, 300)),
    row("avail_index_moves_backwards", |vmm, v| {
        avail_idx(vmm, v, 65_535)
    }),
    row("descriptor_points_to_itself", |vmm, v| {
        desc(vmm, v, v.head, |d| {
            (d.flags, d.next) = (d.flags | F_NEXT, v.head)
        })
    }),
    row("two_descriptors_point_to_each_other", |vmm, v| {
        desc(vmm, v, v.head, |d| {
            (d.flags, d.next) = (d.flags | F_NEXT, v.spare)
        })?;
        desc(vmm, v, v.spare, |d| {
            (d.flags, d.next) = (d.flags | F_NEXT, v.head)
        })
    }),
    row("loop_through_the_whole_ring", |vmm, v| {
        for i in 0..256 {
            desc(vmm, v, i, |d| {
                (d.flags, d.next) = (d.flags | F_NEXT, (i + 1) % 256)
            })?;
        }
        Ok(false)
    }),
    row("next_beyond_ring", |vmm, v| {
        desc(vmm, v, v.head, |d| {
            (d.flags, d.next) = (d.flags | F_NEXT, 900)
        })
    }),
    row("readable_after_writable", |vmm, v| {
        desc(vmm, v, v.head, |d| {
            (d.flags, d.next) = (F_WRITE | F_NEXT, v.spare);
        })?;
        desc(vmm, v, v.spare, |d| d.flags = 0)
    }),
    row("indirect_length_24", |vmm, v| indirect_length(vmm, v, 24)),
    row("indirect_length_0", |vmm, v| indirect_length(vmm, v, 0)),
    row("indirect_table_of_65537_entries", |vmm, v| {
        indirect_length(vmm, v, 65_537 * 16)
    }),
    row(
        "indirect_table_of_65536_entries_has_too_many_segments",
        |vmm, v| {
            let write = write_flag(v);
            let table: Vec<Desc> = (0..65_536u32)
                .map(|i| Desc {
                    addr: 0x2000,
                    len: 1,
                    flags: write | F_NEXT,
                    next: (i + 1) as u16,
                })
                .collect();
            indirect(vmm, v, &table)
        },
    ),
    row("indirect_within_indirect", |vmm, v| {
        let inner = Desc {
            addr: 0x2000,
            len: 16,
            flags: F_INDIRECT,
            next: 0,
        };
        indirect(vmm, v, &[inner])
    }),
    row("indirect_last_entry_has_next", |vmm, v| {
        let write = write_flag(v);
        let entry = |next| Desc {
            addr: 0x2000,
            len: 100,
            flags: write | F_NEXT,
            next,
        };
        indirect(vmm, v, &[entry(1), entry(2)])
    }),
    row("indirect_next_beyond_table", |vmm, v| {
        let entry = Desc {
            addr: 0x2000,
            len: 100,
            flags: write_flag(v) | F_NEXT,
            next: 700,
        };
        indirect(vmm, v, &[entry])
    }),
    row("indirect_entries_point_in_a_circle", |vmm, v| {
        let write = write_flag(v);
        let entry = |next| Desc {
            addr: 0x2000,
            len: 100,
            flags: write | F_NEXT,
            next,
        };
        indirect(vmm, v, &[entry(1), entry(0)])
    }),
    row("indirect_table_not_in_memory", |vmm, v| {
        desc(vmm, v, v.head, |d| {
            *d = Desc {
                addr: END + 4096,
                len: 32,
                flags: F_INDIRECT,
                next: 0,
            }
        })
    }),
    row("indirect_table_reaches_behind_memory", |vmm, v| {
        vmm.mem.write(
            END - 16,
            &Desc {
                addr: 0x2000,
                len: 100,
                flags: write_flag(v) | F_NEXT,
                next: 1,
            }
            .bytes(),
        )?;
        desc(vmm, v, v.head, |d| {
            *d = Desc {
                addr: END - 16,
                len: 32,
                flags: F_INDIRECT,
                next: 0,
            }
        })
    }),
    row("buffer_not_in_memory", |vmm, v| {
        desc(vmm, v, v.head, |d| d.addr = END + 0x1000_0000)
    }),
    row("buffer_reaches_behind_memory", |vmm, v| {
        desc(vmm, v, v.head, |d| (d.addr, d.len) = (END - 50, 2048))
    }),
    row("buffer_wraps_the_address_space", |vmm, v| {
        desc(vmm, v, v.head, |d| {
            (d.addr, d.len) = (u64::MAX - 0xfff, 0x2000)
        })
    }),
];

pub(super) fn register(table: &mut Table) {
    for row in ROWS {
        let Row { name, size, spoil } = row;
        for (suffix, features) in [
            ("", feature::VERSION_1),
            ("_event_idx", feature::VERSION_1 | feature::EVENT_IDX),
        ] {
            table.add(
                format!("malformed::tx_{name}_stalls_until_repaired{suffix}"),
                move |ctx| stalls(ctx, TX, features, size, spoil),
            );
            table.add(
                format!("malformed::rx_{name}_stalls_until_repaired{suffix}"),
                move |ctx| stalls(ctx, RX, features, size, spoil),
            );
        }
        table.add(
            format!("malformed::rx_mergeable_{name}_stalls_until_repaired"),
            move |ctx| {
                stalls(
                    ctx,
                    RX,
                    feature::VERSION_1 | feature::MRG_RXBUF,
                    size,
                    spoil,
                )
            },
        );
    }
    table.add(
        "malformed::stalled_queue_stops_and_starts_again",
        stall_restart,
    );
    table.add(
        "malformed::stalled_queue_leaves_the_other_running",
        stall_other,
    );
    table.add(
        "malformed::stall_without_err_eventfd_is_harmless",
        stall_no_err,
    );
    table.add("malformed::garbage_rings_end_in_a_stall", garbage);
}

fn write_flag(v: &Victim) -> u16 {
    if v.queue == RX {
        F_WRITE
    } else {
        0
    }
}

fn avail_entry(vmm: &Vmm, v: &Victim, head: u16) -> Result<bool> {
    vmm.queue(v.queue).ring.set_avail(v.slot, head);
    Ok(false)
}

fn avail_idx(vmm: &Vmm, v: &Victim, delta: u16) -> Result<bool> {
    let ring = &vmm.queue(v.queue).ring;
    ring.set_avail_idx(v.slot.wrapping_add(delta));
    Ok(true)
}

fn desc(vmm: &Vmm, v: &Victim, index: u16, change: impl FnOnce(&mut Desc)) -> Result<bool> {
    let ring = &vmm.queue(v.queue).ring;
    let mut desc = Desc {
        addr: 0x2000,
        len: 2048,
        flags: write_flag(v),
        next: 0,
    };
    change(&mut desc);
    ring.set_desc(index, desc);
    Ok(false)
}

fn indirect_length(vmm: &Vmm, v: &Victim, len: u32) -> Result<bool> {
    // Sound entries, as far as they go.
    let entry = Desc {
        addr: 0x2000,
        len: 2048,
        flags: write_flag(v),
        next: 0,
    };
    indirect(vmm, v, &[entry])?;
    let table = vmm.mem.alloc(65_537 * 16, 16)?;
    vmm.mem.write(table, &entry.bytes())?;
    desc(vmm, v, v.head, |d| {
        *d = Desc {
            addr: table,
            len,
            flags: F_INDIRECT,
            next: 0,
        }
    })
}

fn indirect(vmm: &Vmm, v: &Victim, entries: &[Desc]) -> Result<bool> {
    let bytes: Vec<u8> = entries.iter().flat_map(|entry| entry.bytes()).collect();
    let table = vmm.mem.alloc(bytes.len() as u64, 16)?;
    vmm.mem.write(table, &bytes)?;
    desc(vmm, v, v.head, |d| {
        *d = Desc {
            addr: table,
            len: bytes.len() as u32,
            flags: F_INDIRECT,
            next: 0,
        }
    })
}

/// Descriptor table and available entries of a queue, to be put back.
struct Image {
    desc: Vec<u8>,
    avail: Vec<u8>,
}

impl Image {
    fn take(vmm: &Vmm, index: usize) -> Result<Self> {
        let layout = vmm.queue(index).ring.layout();
        let size = usize::from(layout.size);
        Ok(Self {
            desc: vmm.mem.read(layout.desc, 16 * size)?,
            avail: vmm.mem.read(layout.avail + 4, 2 * size)?,
        })
    }

    fn put(&self, vmm: &Vmm, index: usize) -> Result<()> {
        let layout = vmm.queue(index).ring.layout();
        vmm.mem.write(layout.desc, &self.desc)?;
        vmm.mem.write(layout.avail + 4, &self.avail)
    }
}

fn stalls(ctx: &Ctx, index: usize, features: u64, size: u16, spoil: Spoil) -> Result<()> {
    let mut vmm = Setup::new().features(features).size(size).build(ctx)?;
    // Three good packets, so that a base of 0 would show.
    for _ in 0..3 {
        vmm.check_tx(60, &Split::Whole)?;
        vmm.post_rx(1, &[2048])?;
        vmm.check_rx(60)?;
    }
    let slot = vmm.queue(index).next_avail();
    let frame = if index == TX {
        let frame = vmm.tx_frames.plain(300);
        vmm.queue_tx(&NetHdr::default(), &frame, &Split::Whole)?;
        frame
    } else {
        vmm.queue_rx(&[2048])?;
        Vec::new()
    };
    let head = vmm.mem.read(
        vmm.queue(index).ring.layout().avail + 4 + 2 * u64::from(slot % size),
        2,
    )?;
    let head = u16::from_le_bytes([head[0], head[1]]);
    let image = Image::take(&vmm, index)?;
    let victim = Victim {
        queue: index,
        slot,
        head,
        spare: (head + 7) % size,
    };
    if !spoil(&vmm, &victim)? {
        vmm.queue(index).ring.set_avail_idx(slot.wrapping_add(1));
    }
    let frame = if index == RX {
        vmm.send_rx(300)?
    } else {
        frame
    };
    for round in 0..3 {
        vmm.queue(index).kick()?;
        expect_stall(&vmm, index, slot).with_context(|| format!("kick {round}"))?;
    }
    vmm.wire.expect_silence()?;
    image.put(&vmm, index)?;
    vmm.queue(index).ring.set_avail_idx(slot.wrapping_add(1));
    vmm.queue(index).kick()?;
    if index == TX {
        vmm.expect_on_wire(&frame).context("after the repair")?;
        vmm.tx.wait_used()?;
        vmm.fence(TX)?;
        poll::take_signals(&vmm.tx.err);
    } else {
        vmm.expect_in_guest(&frame).context("after the repair")?;
        vmm.fence(RX)?;
        poll::take_signals(&vmm.rx.err);
    }
    vmm.check_alive()?;
    vmm.check_quiet()
}

/// An err signal has come and nothing was taken from the ring.
fn expect_stall(vmm: &Vmm, index: usize, slot: u16) -> Result<()> {
    let queue = vmm.queue(index);
    poll::wait_signal(&queue.err, &format!("an err signal ({})", queue.state()))?;
    // C may look at the ring once more: in SET_LOG_FD it waits until it has.
    let seen = vmm.vhost.raw().put(ioctl::SET_LOG_FD(), &-1i32);
    expect("SET_LOG_FD", seen, Ok(0))?;
    vmm.fence(index)?;
    poll::take_signals(&queue.err);
    expect("used index", queue.ring.used_idx(), queue.used_seen())?;
    expect("base", vmm.base(index)?, slot)
}

fn spoiled_tx(ctx: &Ctx) -> Result<Vmm> {
    let mut vmm = Setup::new().build(ctx)?;
    vmm.post_rx(20, &[2048])?;
    vmm.check_alive()?;
    let slot = vmm.tx.next_avail();
    vmm.tx.ring.set_avail(slot, 300);
    vmm.tx.ring.set_avail_idx(slot.wrapping_add(1));
    vmm.tx.kick()?;
    Ok(vmm)
}

fn stall_restart(ctx: &Ctx) -> Result<()> {
    let mut vmm = spoiled_tx(ctx)?;
    let slot = vmm.tx.next_avail();
    expect_stall(&vmm, TX, slot)?;
    vmm.stop()?;
    vmm.tx.ring.set_avail_idx(slot);
    let base = vmm.base(TX)?;
    expect("base", base, slot)?;
    vmm.configure_queue(TX, base)?;
    vmm.start()?;
    vmm.check_alive()
}

fn stall_other(ctx: &Ctx) -> Result<()> {
    let mut vmm = spoiled_tx(ctx)?;
    expect_stall(&vmm, TX, vmm.tx.next_avail())?;
    for _ in 0..20 {
        let received = vmm.check_rx(100)?;
        vmm.repost(&received)?;
        vmm.tx.kick()?;
    }
    repair(&mut vmm)
}

/// Puts a good chain where the bad one was, and kicks whatever the flags say.
fn repair(vmm: &mut Vmm) -> Result<()> {
    let frame = vmm.tx_frames.plain(60);
    vmm.queue_tx(&NetHdr::default(), &frame, &Split::Whole)?;
    vmm.tx.flush_and_kick()?;
    vmm.expect_on_wire(&frame).context("after the repair")?;
    vmm.tx.wait_used()?;
    vmm.check_alive()
}

fn stall_no_err(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new().build(ctx)?;
    vmm.post_rx(20, &[2048])?;
    vmm.check_alive()?;
    let raw = vmm.vhost.raw();
    expect(
        "ERR -1",
        raw.set_vring_file(crate::ioctl::SET_VRING_ERR(), 1, -1),
        Ok(0),
    )?;
    let slot = vmm.tx.next_avail();
    vmm.tx.ring.set_avail(slot, 300);
    vmm.tx.ring.set_avail_idx(slot.wrapping_add(1));
    for _ in 0..5 {
        vmm.tx.kick()?;
        let received = vmm.check_rx(60)?;
        vmm.repost(&received)?;
    }
    expect("used index", vmm.tx.ring.used_idx(), vmm.tx.used_seen())?;
    repair(&mut vmm)
}

/// Random bytes in descriptors and tables: the device stays stoppable and works
/// again with a sound ring.
fn garbage(ctx: &Ctx) -> Result<()> {
    let mut rng = crate::frame::Rng::new(ctx.seed);
    let mut vmm = Setup::new()
        .features(feature::VERSION_1 | feature::MRG_RXBUF | feature::INDIRECT_DESC)
        .build(ctx)?;
    for _ in 0..40 {
        for index in [RX, TX] {
            let layout = vmm.queue(index).ring.layout();
            let bytes: Vec<u8> = (0..256)
                .flat_map(|_| random_desc(&mut rng, index).bytes())
                .collect();
            vmm.mem.write(layout.desc, &bytes)?;
            // Tables for indirect descriptors, in the first MiB.
            let table: Vec<u8> = (0..1024)
                .flat_map(|_| random_desc(&mut rng, index).bytes())
                .collect();
            vmm.mem.write(0x8000, &table)?;
            let entries: Vec<u8> = (0..256)
                .flat_map(|_| ((rng.below(260)) as u16).to_le_bytes())
                .collect();
            vmm.mem.write(layout.avail + 4, &entries)?;
            let idx = vmm.base(index)?.wrapping_add(rng.below(256) as u16);
            vmm.queue(index).ring.set_avail_idx(idx);
            vmm.queue(index).kick()?;
        }
        for _ in 0..10 {
            // The interface may drop what it has no room for.
            let frame = vmm.rx_frames.plain(60 + rng.below(1400) as usize);
            let _ = vmm.wire.send(&NetHdr::default(), &frame);
            vmm.rx.kick()?;
            vmm.tx.kick()?;
        }
        vmm.fence(RX)?;
        vmm.fence(TX)?;
    }
    vmm.stop()?;
    while vmm.wire.try_recv()?.is_some() {}
    while vmm.tap.read()?.is_some() {}
    for index in [RX, TX] {
        let queue = crate::virtqueue::Virtqueue::new(&vmm.mem, 256, Default::default(), 0, 0)?;
        if index == RX {
            vmm.rx = queue;
        } else {
            vmm.tx = queue;
        }
    }
    vmm.configure([0; 2])?;
    vmm.start()?;
    vmm.check_alive()?;
    vmm.check_quiet()
}

/// A descriptor that is sound in most fields, writing only to the first MiB.
fn random_desc(rng: &mut crate::frame::Rng, index: usize) -> Desc {
    let mut desc = Desc {
        addr: 0x4_0000 + rng.below(0x4_0000),
        len: 1 + rng.below(3000) as u32,
        flags: if index == RX { F_WRITE } else { 0 },
        next: rng.below(256) as u16,
    };
    match rng.below(12) {
        0 => desc.addr = rng.next() | 1 << 60,
        1 => desc.len = 0,
        2 => desc.flags ^= F_WRITE,
        3 | 4 => desc.flags |= F_NEXT,
        5 => {
            (desc.addr, desc.flags) = (0x8000 + 16 * rng.below(512), F_INDIRECT);
            desc.len = 16 * (1 + rng.below(20) as u32);
        }
        6 => (desc.flags, desc.next) = (desc.flags | F_NEXT, rng.next() as u16),
        _ => {}
    }
    desc
}
