// SPDX-License-Identifier: GPL-2.0

//! A guest at its worst, where a packet's way shows what the device makes of it.

use std::sync::atomic::AtomicBool;
use std::sync::atomic::Ordering;
use std::thread;

use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;

use crate::better;
use crate::case::skip;
use crate::case::Ctx;
use crate::case::Module;
use crate::case::Table;
use crate::device::feature;
use crate::device::RX;
use crate::device::TX;
use crate::frame::NetHdr;
use crate::frame::Rng;
use crate::frame::NEEDS_CSUM;
use crate::ioctl::MemoryRegion;
use crate::mem::PAGE;
use crate::poll;
use crate::ring::Desc;
use crate::ring::F_WRITE;
use crate::ring::NO_INTERRUPT;
use crate::traffic::expect;
use crate::traffic::Split;
use crate::virtqueue::Mode;
use crate::virtqueue::Virtqueue;
use crate::vmm::Setup;
use crate::vmm::Vmm;

const EVENT_IDX: u64 = feature::VERSION_1 | feature::EVENT_IDX;

pub(super) fn register(table: &mut Table) {
    table.add("guest::odd_descriptor_table_carries_traffic", odd_table);
    table.add("guest::ring_full_of_one_head_is_sent_as_often", one_head);
    table.add_better(
        "guest::receive_buffer_of_4_gib_holds_one_packet",
        better::RX_WRAP,
        four_gib,
    );
    table.add(
        "guest::used_ring_over_descriptors_harms_nobody_else",
        |ctx| overlap(ctx, |vmm, index| vmm.queue(index).ring.layout().desc),
    );
    table.add("guest::used_ring_over_available_harms_nobody_else", |ctx| {
        overlap(ctx, |vmm, index| vmm.queue(index).ring.layout().avail & !3)
    });
    table.add("guest::used_ring_over_buffers_harms_nobody_else", |ctx| {
        overlap(ctx, |_, _| 60 << 20)
    });
    table.add("guest::suppression_flaps_under_traffic_flags", |ctx| {
        flaps(ctx, feature::VERSION_1)
    });
    table.add("guest::suppression_flaps_under_traffic_event_idx", |ctx| {
        flaps(ctx, EVENT_IDX)
    });
    segmentation(table);
    table.add("guest::header_rewritten_while_it_is_sent", rewritten);
    table.add(
        "guest::tap_header_larger_than_that_of_the_features",
        larger_header,
    );
    table.add_better(
        "guest::header_of_the_other_byte_order",
        better::TX_SPIN,
        byte_order,
    );
    super::guest_load::register(table);
}

fn segmentation(table: &mut Table) {
    let tcp4 = NetHdr {
        flags: NEEDS_CSUM,
        gso_type: 1,
        gso_size: 1000,
        hdr_len: 54,
        csum_start: 34,
        csum_offset: 16,
        ..NetHdr::default()
    };
    let headers = [
        (
            "of_ufo",
            NetHdr {
                gso_type: 3,
                csum_offset: 6,
                ..tcp4
            },
        ),
        (
            "of_size_1",
            NetHdr {
                gso_size: 1,
                ..tcp4
            },
        ),
        (
            "of_size_65535",
            NetHdr {
                gso_size: 65_535,
                ..tcp4
            },
        ),
        (
            "with_ecn_only",
            NetHdr {
                gso_type: 0x80,
                ..tcp4
            },
        ),
        (
            "of_tunnels",
            NetHdr {
                gso_type: 0x61,
                ..tcp4
            },
        ),
        (
            "of_tcp6",
            NetHdr {
                gso_type: 4,
                ..tcp4
            },
        ),
        (
            "of_udp_l4",
            NetHdr {
                gso_type: 5,
                ..tcp4
            },
        ),
        (
            "with_unknown_flags",
            NetHdr {
                flags: 0xff,
                ..tcp4
            },
        ),
        ("without_checksum", NetHdr { flags: 0, ..tcp4 }),
        (
            "with_checksum_in_ethernet",
            NetHdr {
                csum_start: 2,
                csum_offset: 0,
                ..tcp4
            },
        ),
    ];
    for (name, hdr) in headers {
        table.add(format!("guest::segmentation_header_{name}"), move |ctx| {
            given_back(ctx, &hdr, 0x0800)
        });
    }
    // What the frame says it is, while the header says TCP over IPv4.
    for (name, kind) in [
        ("ipv6_as_ipv4", 0x86dd),
        ("vlan_tags", 0x8100),
        ("arp", 0x0806),
        ("llc", 0x0010),
        ("nothing_known", 0xffff),
    ] {
        table.add(format!("guest::segmentation_of_{name}"), move |ctx| {
            given_back(ctx, &tcp4, kind)
        });
    }
}

/// Every length, with random bytes behind the Ethernet header: the stack may
/// take such a packet or not; its chain comes back, and the next is sent.
fn given_back(ctx: &Ctx, hdr: &NetHdr, kind: u16) -> Result<()> {
    let mut vmm = Setup::new().build(ctx)?;
    let mut rng = Rng::new(ctx.seed);
    for len in [54, 60, 200, 1514, 9000, 60_000] {
        let mut frame = vmm.tx_frames.plain(len);
        frame[12..14].copy_from_slice(&kind.to_be_bytes());
        for byte in &mut frame[14..len.min(100)] {
            *byte = rng.next() as u8;
        }
        if kind == 0x8100 {
            for at in (14..len.min(60) - 4).step_by(4) {
                frame[at..at + 4].copy_from_slice(&[0, 7, 0x81, 0]);
            }
        }
        if kind == 0x0800 {
            frame[14] = 0x45;
            frame[23] = if hdr.gso_type & 0x7f == 3 { 17 } else { 6 };
        }
        let head = vmm.queue_tx(hdr, &frame, &Split::HeaderAlone)?;
        vmm.tx.flush()?;
        let used = vmm.tx.wait_used().with_context(|| format!("{len} bytes"))?;
        expect("chain given back", (used.head, used.len), (head, 0))?;
        vmm.fence(TX)?;
        vmm.wire.drain()?;
        vmm.check_tx(200, &Split::HeaderAlone)?;
    }
    expect("err signals", poll::take_signals(&vmm.tx.err), 0)
}

fn odd_table(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new().stopped().build(ctx)?;
    // A descriptor table of its own, one byte off: what the driver writes to
    // the even one is copied there.
    let layout = vmm.tx.ring.layout();
    let odd = vmm.mem.alloc(16 * 257, 16)? + 1;
    let mut addr = vmm.vring_addr(TX)?;
    addr.desc = vmm.mem.host(odd)? as u64;
    expect(
        "SET_VRING_ADDR",
        vmm.vhost.raw().set_vring_addr(&addr),
        Ok(0),
    )?;
    vmm.start()?;
    for i in 0..300 {
        let frame = vmm.tx_frames.plain(60 + i);
        vmm.queue_tx(&NetHdr::default(), &frame, &Split::HeaderAlone)?;
        vmm.mem.write(odd, &vmm.mem.read(layout.desc, 16 * 256)?)?;
        vmm.tx.flush()?;
        vmm.expect_on_wire(&frame)?;
        vmm.tx.wait_used()?;
    }
    vmm.check_quiet()
}

fn one_head(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new().build(ctx)?;
    let frame = vmm.tx_frames.plain(100);
    let head = vmm.queue_tx(&NetHdr::default(), &frame, &Split::Whole)?;
    for slot in 0..256 {
        vmm.tx.ring.set_avail(slot, head);
    }
    vmm.tx.ring.set_avail_idx(256);
    vmm.tx.kick()?;
    for i in 0..256 {
        vmm.expect_on_wire(&frame)
            .with_context(|| format!("copy {i}"))?;
    }
    poll::wait_for("256 used elements", || {
        Ok((vmm.tx.ring.used_idx() == 256).then_some(()))
    })?;
    for slot in 0..256 {
        let used = vmm.tx.ring.used(slot);
        expect("element", (used.id, used.len), (head.into(), 0))?;
    }
    vmm.fence(TX)?;
    vmm.wire.expect_silence()?;
    expect("err signals", poll::take_signals(&vmm.tx.err), 0)?;
    expect("base", vmm.base(TX)?, 256)
}

/// Lengths are added up in 64 bits.
fn four_gib(ctx: &Ctx) -> Result<()> {
    const SIZE: usize = 5 << 30;
    if ctx.module == Module::C {
        return skip(better::RX_WRAP.c);
    }
    for features in [feature::VERSION_1, feature::VERSION_1 | feature::MRG_RXBUF] {
        let mut vmm = Setup::new().features(features).build(ctx)?;
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
        // SAFETY: Maps fresh memory at an address of the kernel's choice.
        let at = unsafe {
            let prot = libc::PROT_READ | libc::PROT_WRITE;
            libc::mmap(std::ptr::null_mut(), SIZE, prot, flags, -1, 0)
        };
        ensure!(at != libc::MAP_FAILED, "mmap of 5 GiB");
        let mut regions = vmm.regions()?;
        let base = 1 << 40;
        regions.push(MemoryRegion {
            gpa: base,
            size: SIZE as u64,
            uaddr: at as u64,
            flags_padding: 0,
        });
        expect("table", vmm.vhost.raw().set_mem_table(0, &regions), Ok(0))?;
        for (slot, start) in [(0, base), (1, base + PAGE), (2, base + 7)] {
            let desc = Desc {
                addr: start,
                len: u32::MAX,
                flags: F_WRITE,
                next: 0,
            };
            vmm.rx.ring.set_desc(slot, desc);
            vmm.rx.ring.set_avail(slot, slot);
            vmm.rx.ring.set_avail_idx(slot + 1);
            vmm.rx.kick()?;
            let frame = vmm.send_rx(60 + 700 * usize::from(slot))?;
            poll::wait_for("a used element", || {
                Ok((vmm.rx.ring.used_idx() == slot + 1).then_some(()))
            })?;
            let used = vmm.rx.ring.used(slot);
            expect(
                "element",
                (used.id, used.len as usize),
                (slot.into(), 12 + frame.len()),
            )?;
            let offset = (start - base) as usize + 12;
            // SAFETY: The packet lies in the mapping, and the device is done with it.
            let seen =
                unsafe { std::slice::from_raw_parts(at.cast::<u8>().add(offset), frame.len()) };
            crate::frame::compare("packet", seen, &frame)?;
        }
        expect("err signals", poll::take_signals(&vmm.rx.err), 0)?;
        expect("base", vmm.base(RX)?, 3)?;
        vmm.stop()?;
        // SAFETY: No table names it any more once the device is closed; a device
        // that wrote there nevertheless would find nothing.
        unsafe { libc::munmap(at, SIZE) };
    }
    Ok(())
}

/// Fresh rings: whatever was done to the old ones, the device works again.
pub(super) fn fresh_start(vmm: &mut Vmm) -> Result<()> {
    let mode = Mode {
        event_idx: vmm.features & feature::EVENT_IDX != 0,
        in_order: vmm.features & feature::IN_ORDER != 0,
        indirect: false,
    };
    vmm.stop()?;
    vmm.wire.drain()?;
    while vmm.tap.read()?.is_some() {}
    // The old ones' memory is used again: there is not enough for each time.
    for index in [RX, TX] {
        let layout = vmm.queue(index).ring.layout();
        vmm.mem
            .write(layout.desc, &vec![0; 16 * usize::from(layout.size)])?;
        vmm.mem
            .write(layout.avail, &vec![0; 6 + 2 * usize::from(layout.size)])?;
        vmm.mem
            .write(layout.used, &vec![0; 6 + 8 * usize::from(layout.size)])?;
        let queue = Virtqueue::over(&vmm.mem, layout, mode, 0, 0)?;
        if index == RX {
            vmm.rx = queue;
        } else {
            vmm.tx = queue;
        }
    }
    vmm.configure([0; 2])?;
    vmm.start()?;
    vmm.check_alive()
}

fn overlap(ctx: &Ctx, over: fn(&Vmm, usize) -> u64) -> Result<()> {
    let mut vmm = Setup::new().stopped().build(ctx)?;
    let mut other = Setup::new().tap_name("vt1").build(ctx)?;
    for index in [RX, TX] {
        let mut addr = vmm.vring_addr(index)?;
        addr.used = vmm.mem.host(over(&vmm, index))? as u64;
        expect("ADDR", vmm.vhost.raw().set_vring_addr(&addr), Ok(0))?;
    }
    vmm.start()?;
    for round in 0..200u16 {
        let frame = vmm.tx_frames.plain(300);
        let segs = vmm.tx_segs(&NetHdr::default(), &frame, &Split::HeaderAlone)?;
        for (index, flags) in [(TX, 0), (RX, F_WRITE)] {
            let ring = &vmm.queue(index).ring;
            for slot in 0..256 {
                let desc = Desc {
                    addr: segs[1].addr,
                    len: segs[1].len,
                    flags,
                    next: 0,
                };
                ring.set_desc(slot, desc);
                ring.set_avail(slot, slot);
            }
            ring.set_avail_idx(256 + round * 16);
            vmm.queue(index).kick()?;
        }
        vmm.wire.send(&NetHdr::default(), &frame)?;
        if round % 20 == 0 {
            other.check_alive()?;
        }
    }
    let addrs = [vmm.vring_addr(RX)?, vmm.vring_addr(TX)?];
    vmm.stop()?;
    for addr in &addrs {
        expect("ADDR", vmm.vhost.raw().set_vring_addr(addr), Ok(0))?;
    }
    fresh_start(&mut vmm)
}

/// Whatever the guest says about interrupts, its packets flow.
fn flaps(ctx: &Ctx, features: u64) -> Result<()> {
    let mut vmm = Setup::new().features(features).build(ctx)?;
    vmm.post_rx(200, &[2048])?;
    // Rings as seen by another CPU of the guest.
    let words = [RX, TX].map(|index| {
        let layout = vmm.queue(index).ring.layout();
        let at = vmm.mem.host(layout.avail).map(|at| at as usize);
        (at, usize::from(layout.size))
    });
    let mut places = Vec::new();
    for (at, size) in words {
        let at = at?;
        places.push((at, at + 4 + 2 * size));
    }
    let done = AtomicBool::new(false);
    let seed = ctx.seed;
    let mut passed = 0;
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut rng = Rng::new(seed);
            while !done.load(Ordering::Relaxed) {
                for (flags, event) in &places {
                    // SAFETY: Both words lie in guest memory, which outlives the
                    // thread; everybody accesses them as shared memory.
                    unsafe {
                        let flags = *flags as *mut u16;
                        flags.write_volatile(rng.next() as u16 & (NO_INTERRUPT | 0xfffe));
                        (*event as *mut u16).write_volatile(rng.next() as u16);
                    }
                }
            }
        });
        let result = (0..1500).try_for_each(|i| -> Result<()> {
            let frame = vmm.tx_frames.plain(60 + i % 1000);
            vmm.queue_tx(&NetHdr::default(), &frame, &Split::HeaderAlone)?;
            vmm.tx.flush()?;
            vmm.expect_on_wire(&frame)?;
            vmm.tx.spin_used()?;
            let frame = vmm.send_rx(60 + i % 1000)?;
            let used = vmm.rx.spin_used()?;
            let bytes = used.bytes(&vmm.mem)?;
            crate::frame::compare("packet", &bytes[12..], &frame)?;
            vmm.rx.add(&[], &used.segs)?;
            vmm.rx.flush()?;
            passed += 1;
            Ok(())
        });
        done.store(true, Ordering::Relaxed);
        result
    })
    .with_context(|| format!("after {passed} packets"))?;
    vmm.tx.ring.set_avail_flags(0);
    vmm.rx.ring.set_avail_flags(0);
    vmm.check_alive()
}

/// Another CPU of the guest writes a header that is good and one that is not,
/// in turn.
fn rewritten(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new().build(ctx)?;
    let done = AtomicBool::new(false);
    let at = vmm.mem.tx_buffer(2 * PAGE)?.next_multiple_of(PAGE);
    let host = vmm.mem.host(at)? as usize;
    let (mut sent, mut dropped) = (0, 0);
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut bad = 0u8;
            while !done.load(Ordering::Relaxed) {
                bad ^= 0x7f;
                // SAFETY: The type of the header, in guest memory that outlives
                // the thread; everybody accesses it as shared memory.
                unsafe { (host as *mut u8).add(1).write_volatile(bad) };
            }
        });
        let result = (0..1500).try_for_each(|i| -> Result<()> {
            let frame = vmm.tx_frames.plain(60 + i % 1300);
            vmm.mem.write(at + 12, &frame)?;
            let seg = crate::virtqueue::Seg {
                addr: at,
                len: 12 + frame.len() as u32,
            };
            let head = vmm.tx.add(&[seg], &[])?;
            vmm.tx.flush()?;
            let used = vmm.tx.wait_used()?;
            expect("chain given back", (used.head, used.len), (head, 0))?;
            vmm.fence(TX)?;
            match vmm.wire.try_recv()? {
                Some((_, seen)) => {
                    crate::frame::compare("packet", &seen, &frame)?;
                    sent += 1;
                }
                None => dropped += 1,
            }
            Ok(())
        });
        done.store(true, Ordering::Relaxed);
        result
    })?;
    ensure!(sent > 0, "{sent} sent, {dropped} dropped");
    vmm.mem.write(at, &NetHdr::default().bytes(12))?;
    vmm.check_alive()
}

/// The TAP reads 24 bytes of header where the guest gives 12: it may take the
/// packet's first bytes for the rest, but what it sends is the packet's.
fn larger_header(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new().header(24).build(ctx)?;
    for len in [60, 1500, 30_000] {
        let frame = vmm.tx_frames.plain(len);
        let head = vmm.queue_tx(&NetHdr::default(), &frame, &Split::HeaderAlone)?;
        vmm.tx.flush()?;
        let used = vmm.tx.wait_used()?;
        expect("chain given back", (used.head, used.len), (head, 0))?;
        vmm.fence(TX)?;
        if let Some((_, seen)) = vmm.wire.try_recv()? {
            let whole = frame.ends_with(&seen) && seen.len() + 12 >= len;
            ensure!(whole, "of {len} bytes, {} others came", seen.len());
        }
    }
    vmm.tap.set_header(12)?;
    vmm.check_alive()
}

/// A guest that takes itself for one of the other byte order.
fn byte_order(ctx: &Ctx) -> Result<()> {
    if ctx.module == Module::C {
        return skip(better::TX_SPIN.c);
    }
    for features in [0, feature::VERSION_1] {
        let mut vmm = Setup::new().features(features).build(ctx)?;
        for len in [60, 1514, 9000] {
            let (hdr, frame) = vmm.tx_frames.tcp4(len, 1000);
            let swapped = NetHdr {
                hdr_len: hdr.hdr_len.swap_bytes(),
                gso_size: hdr.gso_size.swap_bytes(),
                csum_start: hdr.csum_start.swap_bytes(),
                csum_offset: hdr.csum_offset.swap_bytes(),
                ..hdr
            };
            let head = vmm.queue_tx(&swapped, &frame, &Split::HeaderAlone)?;
            vmm.tx.flush()?;
            let used = vmm.tx.wait_used()?;
            expect("chain given back", (used.head, used.len), (head, 0))?;
            vmm.fence(TX)?;
            vmm.wire.drain()?;
            vmm.check_tx(200, &Split::HeaderAlone)?;
        }
        expect("err signals", poll::take_signals(&vmm.tx.err), 0)?;
        drop(vmm);
        poll::wait_for("the interface to go", || {
            Ok(crate::net::index("vt0").is_err().then_some(()))
        })?;
    }
    Ok(())
}
