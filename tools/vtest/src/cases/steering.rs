// SPDX-License-Identifier: GPL-2.0

//! Several queue pairs on one network device: who gets which flow.

use std::time::Duration;

use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;

use super::netdev;
use super::netdev::FAR;
use super::netdev::NEAR;
use super::steering_macvtap;
use crate::case::skip;
use crate::case::Ctx;
use crate::case::Module;
use crate::case::Table;
use crate::device::feature;
use crate::device::RX;
use crate::errno::Errno;
use crate::frame::compare;
use crate::frame::NetHdr;
use crate::ioctl;
use crate::ioctl::Netdev;
use crate::ioctl::Outcome;
use crate::ioctl::Rss;
use crate::poll;
use crate::traffic::expect;
use crate::traffic::Split;
use crate::vmm::Setup;
use crate::vmm::Vmm;
use crate::wire::Wire;

const TYPES: u32 = 1 << 0;
const UNCLASSIFIED: u32 = 1 << 1;
const KEY: u32 = 1 << 2;
const SYMMETRIC: u32 = 1 << 3;
const TABLE: u32 = 1 << 4;
const EVEN: u32 = 1 << 5;

/// The key of the published verification suite.
const SUITE: [u8; 40] = [
    0x6d, 0x5a, 0x56, 0xda, 0x25, 0x5b, 0x0e, 0xc2, 0x41, 0x67, 0x25, 0x3d, 0x43, 0xa3, 0x8f, 0xb0,
    0xd0, 0xca, 0x2b, 0xcb, 0xae, 0x7b, 0x30, 0xb4, 0x77, 0xcb, 0x2d, 0xa3, 0x80, 0x30, 0xf2, 0x0c,
    0x6a, 0x42, 0xb7, 0x3b, 0xbe, 0xac, 0x01, 0xfa,
];

/// Makes so many queue pairs with these features that are steered.
type Make = fn(&Ctx, usize, u64) -> Result<Port>;

pub(super) fn register(table: &mut Table) {
    for (on, make) in [
        ("", Port::on_veth as Make),
        ("macvtap_", steering_macvtap::steered),
    ] {
        let long = Duration::from_secs(300);
        let name = |name| format!("steering::{on}{name}");
        table.add_long(
            name("ten_thousand_flows_stay_and_are_even"),
            long,
            move |ctx| even(ctx, make),
        );
        table.add(
            name("flow_falls_on_the_entry_of_its_published_hash"),
            move |ctx| published(ctx, make),
        );
        table.add(name("moved_entries_move_their_flows_only"), move |ctx| {
            moved(ctx, make)
        });
        table.add_long(
            name("table_changes_while_packets_flow"),
            Duration::from_secs(120),
            move |ctx| live(ctx, make),
        );
        table.add_long(
            name("entries_that_move_disturb_no_other_flow"),
            long,
            move |ctx| undisturbed(ctx, make),
        );
        table.add(
            name("unclassified_packets_go_where_it_is_said"),
            move |ctx| unclassified(ctx, make),
        );
        table.add(
            name("symmetric_key_keeps_both_directions_together"),
            move |ctx| symmetric(ctx, make),
        );
        table.add(name("rebalancing_evens_out"), move |ctx| {
            rebalanced(ctx, make)
        });
        table.add(
            name("stopped_queue_leaves_its_flows_to_others"),
            move |ctx| handed_over(ctx, make),
        );
        table.add(name("settings_are_read_back_and_checked"), move |ctx| {
            settings(ctx, make)
        });
        table.add(name("hash_is_reported_with_each_packet"), move |ctx| {
            reported(ctx, make)
        });
    }
    table.add("steering::no_hash_is_reported_from_a_tap", reported_by_tap);
}

/// A frame with these IPv4 addresses and UDP ports; its number is in the payload.
fn udp(from: [u8; 4], to: [u8; 4], ports: [u16; 2], number: u32) -> Vec<u8> {
    let mut frame = vec![2, 0, 0, 0, 0, 2, 2, 0, 0, 0, 0, 1, 8, 0];
    frame.extend([0x45, 0, 0, 46, 0, 1, 0x40, 0, 64, 17, 0, 0]);
    frame.extend(from);
    frame.extend(to);
    frame.extend(ports.map(u16::to_be_bytes).concat());
    frame.extend([0, 26, 0, 0]);
    frame.extend(number.to_be_bytes());
    frame.resize(60, 0x5a);
    frame
}

/// One of many flows.
pub(super) fn flow(i: u32) -> Vec<u8> {
    let [_, a, b, c] = (i / 4).to_be_bytes();
    udp(
        [10, a, b, c],
        [192, 0, 2, 1],
        [20_000 + (i % 4096) as u16, 443],
        i,
    )
}

/// Queue pairs on one device.
pub(super) struct Port {
    pub(super) pairs: Vec<Vmm>,
    /// The far end of what the device is connected to.
    pub(super) far: Wire,
}

impl Port {
    fn on_veth(ctx: &Ctx, count: usize, features: u64) -> Result<Self> {
        let mut pairs = Vec::new();
        for i in 0..count {
            let mut vmm = netdev::stopped(ctx, features, &format!("vt{i}"))?;
            if i == 0 {
                netdev::pair()?;
            }
            vmm.post_rx(250, &[256])?;
            let wanted = Netdev {
                queue: i as u32,
                ..netdev::wanted(NEAR)?
            };
            netdev::set(&vmm, &wanted).context("RVHOST_NET_SET_NETDEV")?;
            pairs.push(vmm);
        }
        let far = Wire::open(FAR)?;
        Ok(Self { pairs, far })
    }

    pub(super) fn set(&self, change: impl FnOnce(&mut Rss)) -> Outcome {
        let mut rss = Rss::none();
        change(&mut rss);
        self.pairs[0]
            .vhost
            .raw()
            .put(ioctl::RVHOST_NET_SET_RSS(), &rss)
    }

    pub(super) fn get(&self) -> Result<Rss> {
        let mut rss = Rss::none();
        self.pairs[0]
            .vhost
            .raw()
            .get(ioctl::RVHOST_NET_GET_RSS(), &mut rss)
            .context("RVHOST_NET_GET_RSS")?;
        Ok(rss)
    }

    /// Hashes these types with the key of the published verification suite.
    fn hash_as_published(&self, types: u32) -> Result<()> {
        self.set(|rss| {
            rss.flags = KEY | TYPES;
            rss.hash_types = types;
            rss.key_len = 40;
            rss.key = SUITE;
        })
        .context("RVHOST_NET_SET_RSS")?;
        Ok(())
    }

    /// Sets the table's entries.
    pub(super) fn set_table(&self, entries: &[u16]) -> Result<()> {
        self.set(|rss| {
            rss.flags = TABLE;
            rss.table_len = entries.len() as u16;
            rss.table[..entries.len()].copy_from_slice(entries);
        })
        .context("RVHOST_NET_SET_RSS")?;
        Ok(())
    }

    /// Sends frames, no more than the queues have buffers for, and returns on which queue each
    /// one arrived; those on one queue must be in order.
    pub(super) fn carry(&mut self, frames: &[Vec<u8>]) -> Result<Vec<usize>> {
        for frame in frames {
            self.far.send(&NetHdr::default(), frame)?;
        }
        let mut at = vec![None; frames.len()];
        let mut next = vec![0; self.pairs.len()];
        for done in 0..frames.len() {
            let (queue, frame) = self
                .receive_any()
                .with_context(|| format!("{done} of {} frames arrived", frames.len()))?;
            let place = (next[queue]..frames.len()).find(|&i| frames[i] == frame);
            let Some(place) = place else {
                compare("frame, out of order", &frame, &frames[next[queue]])?;
                continue;
            };
            next[queue] = place + 1;
            at[place] = Some(queue);
        }
        at.into_iter()
            .map(|queue| queue.context("a frame did not arrive"))
            .collect()
    }

    pub(super) fn receive_any(&mut self) -> Result<(usize, Vec<u8>)> {
        let pairs = &mut self.pairs;
        poll::wait_for("a packet on any queue", || {
            for (i, vmm) in pairs.iter_mut().enumerate() {
                if vmm.rx.ring.used_idx() != vmm.rx.used_seen() {
                    let received = vmm.recv()?;
                    vmm.repost(&received)?;
                    return Ok(Some((i, received.frame)));
                }
            }
            Ok(None)
        })
    }
}

fn even(ctx: &Ctx, make: Make) -> Result<()> {
    const FLOWS: u32 = 10_000;
    let mut port = make(ctx, 4, feature::VERSION_1)?;
    // A known key: the spread of a random one is random.
    port.set(|rss| {
        rss.flags = KEY;
        rss.key_len = 40;
        rss.key = SUITE;
    })
    .context("RVHOST_NET_SET_RSS")?;
    let mut counts = [0u32; 4];
    let mut before = Vec::new();
    let batch = |first| (first..first + 200).map(flow).collect::<Vec<_>>();
    for first in (0..FLOWS).step_by(200) {
        let frames = batch(first);
        let at = port.carry(&frames)?;
        for &queue in &at {
            counts[queue] += 1;
        }
        before.extend(at);
    }
    for count in counts {
        ensure!(
            count.abs_diff(FLOWS / 4) <= FLOWS / 40,
            "flows on each queue: {counts:?}"
        );
    }
    // Each again, after all the others.
    for (first, before) in (0..FLOWS).step_by(200).zip(before.chunks(200)) {
        let at = port.carry(&batch(first))?;
        expect("queues the second time", at.as_slice(), before)?;
    }
    let carried: u64 = port.get()?.carried.iter().sum();
    expect("packets counted by entry", carried, u64::from(2 * FLOWS))
}

fn published(ctx: &Ctx, make: Make) -> Result<()> {
    let mut port = make(ctx, 2, feature::VERSION_1)?;
    let (from, to) = ([66, 9, 149, 187], [161, 142, 100, 80]);
    let frame = udp(from, to, [2794, 1766], 0);
    for (types, hash) in [(1 << 2, 0x51cc_c178u32), (1 << 0, 0x323e_8fc2)] {
        port.hash_as_published(types)?;
        let mut entries = [0u16; 128];
        entries[hash as usize % 128] = 1;
        port.set_table(&entries)?;
        expect("queue", port.carry(std::slice::from_ref(&frame))?, vec![1])?;
    }
    Ok(())
}

fn moved(ctx: &Ctx, make: Make) -> Result<()> {
    let mut port = make(ctx, 4, feature::VERSION_1)?;
    let frames: Vec<_> = (0..200).map(flow).collect();
    let before = port.carry(&frames)?;
    let rss = port.get()?;
    // The entries of queue 1 go to queue 3.
    let entries = rss
        .table
        .iter()
        .map(|&queue| if queue == 1 { 3 } else { queue });
    port.set_table(&entries.collect::<Vec<_>>())?;
    let after = port.carry(&frames)?;
    let expected = before
        .iter()
        .map(|&queue| if queue == 1 { 3 } else { queue });
    expect("queues", after, expected.collect())
}

fn live(ctx: &Ctx, make: Make) -> Result<()> {
    let mut port = make(ctx, 4, feature::VERSION_1)?;
    let mut turn = 0u16;
    for round in 0..ctx.rounds(5, 50) {
        let frames: Vec<_> = (0..100).map(|i| flow(100 * round + i)).collect();
        for (i, frame) in frames.iter().enumerate() {
            port.far.send(&NetHdr::default(), frame)?;
            if i % 10 == 0 {
                turn += 1;
                let entries: Vec<_> = (0..128).map(|i| (i + turn) % 4).collect();
                port.set_table(&entries)?;
            }
        }
        let mut missing = frames;
        while !missing.is_empty() {
            let (_, frame) = port.receive_any()?;
            let place = missing.iter().position(|other| *other == frame);
            missing.remove(place.context("a frame arrived twice, or changed")?);
        }
    }
    Ok(())
}

/// While packets of many flows are under way, every other entry moves on, again and again: nothing is
/// lost, and the flows of entries that stay keep queue and order.
fn undisturbed(ctx: &Ctx, make: Make) -> Result<()> {
    const FLOWS: u32 = 64;
    const ROUNDS: u32 = 80;
    let mut port = make(ctx, 4, feature::VERSION_1)?;
    let packet = |flow: u32, number: u32| {
        let from = [10, 1, 2, flow as u8];
        let ports = [20_000 + 7 * flow as u16, 443];
        udp(from, [192, 0, 2, 1], ports, flow << 16 | number)
    };
    let stays = |entry: usize| entry % 2 == 0;
    let table_of = |turn: usize| -> Vec<u16> {
        let queue = |entry: usize| entry / 2 + if stays(entry) { 0 } else { turn };
        (0..128).map(|entry| queue(entry) as u16 % 4).collect()
    };
    port.set_table(&table_of(0))?;
    let mut entries = Vec::new();
    for flow in 0..FLOWS {
        let before = port.get()?.carried;
        port.carry(&[packet(flow, 0)])?;
        let after = port.get()?.carried;
        let entry = (0..128).find(|&i| after[i] != before[i]);
        entries.push(entry.context("a packet was counted nowhere")?);
    }
    let moving = entries.iter().filter(|&&entry| !stays(entry)).count();
    ensure!((10..54).contains(&moving), "{moving} of 64 flows move");

    let mut numbers: Vec<Vec<u32>> = vec![Vec::new(); FLOWS as usize];
    let mut queues = vec![[false; 4]; FLOWS as usize];
    let (mut turn, mut under_way) = (0, 0);
    for round in 1..=ROUNDS {
        for flow in 0..FLOWS {
            port.far.send(&NetHdr::default(), &packet(flow, round))?;
            under_way += 1;
            // Not a multiple of the queues' number in a round: a flow's packets find other turns.
            if flow % 10 == 0 {
                turn += 1;
                port.set_table(&table_of(turn))?;
            }
        }
        let leave = if round == ROUNDS { 0 } else { 2 * FLOWS };
        while under_way > leave {
            let (queue, frame) = port.receive_any()?;
            let [_, flow, a, b] = frame[42..46] else {
                continue;
            };
            let number = u32::from(u16::from_be_bytes([a, b]));
            compare("frame", &frame, &packet(flow.into(), number))?;
            numbers[usize::from(flow)].push(number);
            queues[usize::from(flow)][queue] = true;
            under_way -= 1;
        }
    }
    let all: Vec<u32> = (1..=ROUNDS).collect();
    for (flow, &entry) in entries.iter().enumerate() {
        let at = queues[flow].iter().filter(|&&seen| seen).count();
        if stays(entry) {
            expect("queues of a flow whose entry stays", at, 1)?;
        } else {
            ensure!(at > 1, "flow {flow} has not moved");
            // Those may overtake each other.
            numbers[flow].sort_unstable();
        }
        expect("packets of a flow", &numbers[flow], &all)?;
    }
    Ok(())
}

fn unclassified(ctx: &Ctx, make: Make) -> Result<()> {
    let mut port = make(ctx, 3, feature::VERSION_1)?;
    let other = port.pairs[0].rx_frames.plain(100);
    for queue in [2u16, 0, 1] {
        port.set(|rss| {
            rss.flags = UNCLASSIFIED;
            rss.unclassified = queue;
        })
        .context("RVHOST_NET_SET_RSS")?;
        let at = port.carry(std::slice::from_ref(&other))?;
        expect("queue", at, vec![usize::from(queue)])?;
    }
    // Nothing is classified.
    port.set(|rss| rss.flags = TYPES)
        .context("RVHOST_NET_SET_RSS")?;
    let frames: Vec<_> = (0..50).map(flow).collect();
    expect("queues", port.carry(&frames)?, vec![1; 50])
}

fn symmetric(ctx: &Ctx, make: Make) -> Result<()> {
    let mut port = make(ctx, 4, feature::VERSION_1)?;
    port.set(|rss| rss.flags = SYMMETRIC)
        .context("RVHOST_NET_SET_RSS")?;
    let mut used = [false; 4];
    for i in 0..40u8 {
        let (one, two) = ([10, i, 7, 3], [10, 0, 1, i ^ 0x35]);
        let ports = [1000 + 7 * u16::from(i), 443];
        let there = udp(one, two, ports, 1);
        let back = udp(two, one, [ports[1], ports[0]], 2);
        let at = port.carry(&[there, back])?;
        expect("queues of both directions", at[0], at[1])?;
        used[at[0]] = true;
    }
    ensure!(
        used.iter().filter(|used| **used).count() > 1,
        "all flows are on one queue"
    );
    Ok(())
}

fn rebalanced(ctx: &Ctx, make: Make) -> Result<()> {
    let mut port = make(ctx, 4, feature::VERSION_1)?;
    let frames: Vec<_> = (0..200).map(flow).collect();
    let spread = |at: &[usize]| {
        let mut counts = [0u32; 4];
        at.iter().for_each(|&queue| counts[queue] += 1);
        counts
    };
    port.set_table(&[0; 128])?;
    let raw = port.pairs[0].vhost.raw();
    raw.put(ioctl::RVHOST_NET_REBALANCE(), &0u32)
        .context("RVHOST_NET_REBALANCE")?;
    expect("before", spread(&port.carry(&frames)?), [200, 0, 0, 0])?;
    let moved = raw
        .put(ioctl::RVHOST_NET_REBALANCE(), &128u32)
        .context("RVHOST_NET_REBALANCE")?;
    ensure!((3..128).contains(&moved), "{moved} entries were moved");
    let after = spread(&port.carry(&frames)?);
    ensure!(
        after.iter().all(|count| (40..=60).contains(count)),
        "afterwards: {after:?}"
    );
    // It is even now.
    let moved = raw.put(ioctl::RVHOST_NET_REBALANCE(), &128u32);
    let moved = moved.context("RVHOST_NET_REBALANCE")?;
    ensure!(moved < 3, "{moved} entries were moved again");
    Ok(())
}

fn handed_over(ctx: &Ctx, make: Make) -> Result<()> {
    let mut port = make(ctx, 4, feature::VERSION_1)?;
    let frames: Vec<_> = (0..200).map(flow).collect();
    for (even, stopped) in [(true, 3), (false, 1)] {
        if !even {
            port.set_table(&(0..128).map(|i| i % 4).collect::<Vec<_>>())?;
        }
        port.pairs[stopped].stop_queue(RX)?;
        let at = port.carry(&frames)?;
        ensure!(!at.contains(&stopped), "a stopped queue received");
    }
    Ok(())
}

fn settings(ctx: &Ctx, make: Make) -> Result<()> {
    let port = make(ctx, 3, feature::VERSION_1)?;
    let rss = port.get()?;
    expect("flags", rss.flags, EVEN)?;
    expect("hash types", rss.hash_types, 0x1ff)?;
    expect("lengths", (rss.table_len, rss.key_len), (128, 40))?;
    ensure!(rss.key != [0; 40], "the key is not random");
    let of = |queue| rss.table.iter().filter(|&&entry| entry == queue).count();
    expect("entries of each", [of(0), of(1), of(2)], [43, 43, 42])?;

    let refused = Err(Errno(libc::EINVAL));
    let bad = |change: fn(&mut Rss)| port.set(change);
    expect("a flag", bad(|rss| rss.flags = 1 << 6), refused)?;
    expect("reserved", bad(|rss| rss.reserved = 1), refused)?;
    expect("two keys", bad(|rss| rss.flags = KEY | SYMMETRIC), refused)?;
    expect("two tables", bad(|rss| rss.flags = TABLE | EVEN), refused)?;
    for len in [0, 3, 129, 256] {
        let outcome = port.set(|rss| {
            rss.flags = TABLE;
            rss.table_len = len;
        });
        expect("a table's length", outcome, refused)?;
    }
    let outcome = port.set(|rss| {
        rss.flags = TABLE;
        rss.table_len = 1;
        rss.table[0] = 256;
    });
    expect("a queue in a table", outcome, refused)?;
    let outcome = port.set(|rss| {
        rss.flags = KEY;
        rss.key_len = 41;
    });
    expect("a key's length", outcome, refused)?;
    let outcome = port.set(|rss| {
        rss.flags = TYPES;
        rss.hash_types = 1 << 9;
    });
    expect("a hash type", outcome, refused)?;
    let outcome = port.set(|rss| {
        rss.flags = UNCLASSIFIED;
        rss.unclassified = 256;
    });
    expect("an unclassified queue", outcome, refused)?;
    let same = port.get()?;
    expect("table", same.table, rss.table)?;
    expect("key", same.key, rss.key)?;

    port.set_table(&[2, 1])?;
    let rss = port.get()?;
    expect("flags, length", (rss.flags, rss.table_len), (0, 2))?;
    expect("table", &rss.table[..3], &[2, 1, 0])?;
    port.set(|rss| rss.flags = EVEN)
        .context("RVHOST_NET_SET_RSS")?;
    expect("length", port.get()?.table_len, 128)?;

    port.pairs[0].stop()?;
    expect("on no port", port.set(|_| {}), Err(Errno(libc::ENOTCONN)))
}

fn reported(ctx: &Ctx, make: Make) -> Result<()> {
    let features = feature::VERSION_1 | feature::MRG_RXBUF | feature::HASH_REPORT;
    let mut port = make(ctx, 1, features)?;
    let (from, to) = ([66, 9, 149, 187], [161, 142, 100, 80]);
    let frame = udp(from, to, [2794, 1766], 0);
    for (types, hash) in [
        (1 << 2, (0x51cc_c178, 3)),
        (1 << 0, (0x323e_8fc2, 1)),
        (0, (0, 0)),
    ] {
        port.hash_as_published(types)?;
        port.far.send(&NetHdr::default(), &frame)?;
        let vmm = &mut port.pairs[0];
        let received = vmm.expect_in_guest(&frame)?;
        expect("hash, and of what", received.hash, Some(hash))?;
        vmm.repost(&received)?;
    }
    // All that a big packet is cut into have its hash, in however many buffers they are.
    port.set(|rss| {
        rss.flags = TYPES;
        rss.hash_types = 1 << 1;
    })
    .context("RVHOST_NET_SET_RSS")?;
    let vmm = &mut port.pairs[0];
    let (hdr, frame) = vmm.rx_frames.tcp4(54 + 3000, 1000);
    port.far.send(&hdr, &frame)?;
    let first = vmm.recv()?;
    ensure!(
        matches!(first.hash, Some((value, 2)) if value != 0),
        "the first segment's hash: {:?}",
        first.hash
    );
    for segment in [vmm.recv()?, vmm.recv()?] {
        expect("bytes of a segment", segment.frame.len(), 1054)?;
        expect("a segment's hash", segment.hash, first.hash)?;
    }
    Ok(())
}

fn reported_by_tap(ctx: &Ctx) -> Result<()> {
    if ctx.module == Module::C {
        return skip("C vhost_net does not offer VIRTIO_NET_F_HASH_REPORT");
    }
    let mut vmm = Setup::new()
        .features(feature::VERSION_1 | feature::HASH_REPORT)
        .build(ctx)?;
    vmm.post_rx(64, &[2048])?;
    for len in [60, 300, 1514] {
        let frame = vmm.send_rx(len)?;
        let received = vmm.expect_in_guest(&frame)?;
        expect("hash, and of what", received.hash, Some((0, 0)))?;
        vmm.repost(&received)?;
        vmm.check_tx(len, &Split::Whole)?;
    }
    Ok(())
}
