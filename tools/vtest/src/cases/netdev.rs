// SPDX-License-Identifier: GPL-2.0

//! Queue pairs that run on a network device, with no TAP in between.

use std::process::Command;

use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;

use super::front::powerless;
use crate::case::skip;
use crate::case::Ctx;
use crate::case::Module;
use crate::case::Table;
use crate::case::NO_SUCH_BACKEND;
use crate::device::feature;
use crate::device::RX;
use crate::device::TX;
use crate::errno::Errno;
use crate::frame::compare;
use crate::frame::NetHdr;
use crate::frame::GUEST_MAC;
use crate::frame::TCP4_HLEN;
use crate::ioctl;
use crate::ioctl::Netdev;
use crate::ioctl::Outcome;
use crate::net;
use crate::poll;
use crate::process;
use crate::tap::TUN_F_CSUM;
use crate::tap::TUN_F_TSO4;
use crate::traffic::expect;
use crate::traffic::Split;
use crate::vmm::Setup;
use crate::vmm::Vmm;
use crate::wire::Wire;

/// The device that the queues run on, and the far end of what it is connected to.
pub(super) const NEAR: &str = "near";
pub(super) const FAR: &str = "far";

pub(super) const V1: u64 = feature::VERSION_1;

pub(super) fn register(table: &mut Table) {
    for (name, bits) in [
        ("legacy", 0),
        ("version_1", V1),
        ("mergeable", V1 | feature::MRG_RXBUF),
        ("event_idx", V1 | feature::EVENT_IDX),
        ("stripped_header", V1 | feature::NET_HDR),
    ] {
        table.add(format!("netdev::veth_carries_traffic_{name}"), move |ctx| {
            sizes(&mut on_veth(ctx, bits, 0)?)
        });
    }
    table.add("netdev::macvlan_carries_traffic", macvlan);
    table.add("netdev::checksums_are_left_to_the_device", checksum);
    table.add("netdev::big_segments_leave_as_they_are", tx_gso);
    table.add(
        "netdev::big_segments_arrive_where_the_guest_takes_them",
        rx_gso,
    );
    table.add(
        "netdev::big_segments_are_cut_for_other_guests",
        rx_segmented,
    );
    table.add("netdev::packets_beyond_the_mtu_are_dropped", too_long);
    table.add("netdev::malformed_headers_are_dropped", malformed);
    table.add("netdev::batches_keep_their_order", batches);
    table.add("netdev::full_ring_drops_and_counts", full_ring);
    table.add("netdev::stopped_and_started_again", restart);
    table.add("netdev::goes_back_to_a_tap", back_to_tap);
    table.add("netdev::deleted_under_load_ends_cleanly", deleted);
    table.add("netdev::moved_to_another_namespace_ends_cleanly", moved);
    table.add("netdev::deleted_and_made_again", again);
    table.add("netdev::bound_and_unbound_under_load", rebound);
    table.add("netdev::needs_the_capability", capability);
    table.add("netdev::refuses_what_is_no_place_for_it", refused);
    table.add("netdev::belongs_to_one_owner", one_owner);
}

/// What is to run on `name`.
pub(super) fn wanted(name: &str) -> Result<Netdev> {
    Ok(Netdev {
        ifindex: net::index(name)? as u32,
        flags: 0,
        queue: u32::MAX,
        offloads: 0,
        ring: 0,
        sndbuf: 0,
        reserved: [0; 2],
    })
}

/// RVHOST_NET_SET_NETDEV.
pub(super) fn set(vmm: &Vmm, wanted: &Netdev) -> Outcome {
    vmm.vhost.raw().put(ioctl::RVHOST_NET_SET_NETDEV(), wanted)
}

pub(super) fn bind(vmm: &Vmm, wanted: &Netdev) -> Result<()> {
    set(vmm, wanted).context("RVHOST_NET_SET_NETDEV")?;
    Ok(())
}

/// Two connected interfaces that are up.
pub(super) fn pair() -> Result<()> {
    net::add_veth(NEAR, FAR)?;
    for name in [NEAR, FAR] {
        net::set_mtu(name, 9000)?;
        net::set_up(name, true)?;
    }
    Ok(())
}

/// A machine whose queues have no backend yet.
pub(super) fn stopped(ctx: &Ctx, features: u64, tap: &str) -> Result<Vmm> {
    if ctx.module == Module::C {
        return skip(NO_SUCH_BACKEND);
    }
    Setup::new()
        .features(features)
        .tap_name(tap)
        .stopped()
        .build(ctx)
}

pub(super) fn on_veth(ctx: &Ctx, features: u64, offloads: u32) -> Result<Vmm> {
    let mut vmm = stopped(ctx, features, "vt0")?;
    pair()?;
    vmm.wire = Wire::open(FAR)?;
    let wanted = Netdev {
        offloads,
        ..wanted(NEAR)?
    };
    bind(&vmm, &wanted)?;
    Ok(vmm)
}

pub(super) fn sizes(vmm: &mut Vmm) -> Result<()> {
    vmm.post_rx(64, &[9100])?;
    for len in [
        14, 15, 59, 60, 61, 64, 65, 100, 1000, 1514, 3300, 4084, 4096, 5000, 9014,
    ] {
        for split in [
            Split::Whole,
            Split::HeaderAlone,
            Split::HeaderPlus(14),
            Split::Every(700),
        ] {
            vmm.check_tx(len, &split)?;
        }
        let received = vmm.check_rx(len)?;
        vmm.repost(&received)?;
    }
    vmm.check_quiet()
}

fn macvlan(ctx: &Ctx) -> Result<()> {
    let mut vmm = stopped(ctx, V1, "vt0")?;
    pair()?;
    net::add_macvlan(NEAR, "mv", GUEST_MAC)?;
    net::set_up("mv", true)?;
    vmm.wire = Wire::open(FAR)?;
    bind(&vmm, &wanted("mv")?)?;
    sizes(&mut vmm)?;
    // What is for somebody else does not reach it.
    let mut other = vmm.rx_frames.plain(100);
    other[..6].copy_from_slice(&[2, 0, 0, 0, 0, 9]);
    vmm.wire.send(&NetHdr::default(), &other)?;
    vmm.check_alive()?;
    vmm.check_quiet()
}

fn checksum(ctx: &Ctx) -> Result<()> {
    let mut vmm = on_veth(ctx, V1, TUN_F_CSUM)?;
    vmm.post_rx(16, &[9100])?;
    for len in [60, 1514, 9014] {
        let (hdr, frame) = vmm.tx_frames.tcp4(len, 0);
        let asked = NetHdr { hdr_len: 0, ..hdr };
        vmm.queue_tx(&asked, &frame, &Split::HeaderAlone)?;
        vmm.tx.flush()?;
        let (seen, packet) = vmm.wire.recv()?;
        compare("frame from the guest", &packet, &frame)?;
        same_offload(&seen, &hdr)?;
        vmm.tx.wait_used()?;

        let (hdr, frame) = vmm.rx_frames.tcp4(len, 0);
        vmm.wire.send(&hdr, &frame)?;
        let received = vmm.recv()?;
        compare("frame to the guest", &received.frame, &frame)?;
        same_offload(&received.hdr, &hdr)?;
    }
    vmm.check_quiet()
}

pub(super) fn same_offload(seen: &NetHdr, expected: &NetHdr) -> Result<()> {
    let of = |hdr: &NetHdr| {
        let NetHdr {
            flags,
            gso_type,
            gso_size,
            csum_start,
            csum_offset,
            ..
        } = *hdr;
        (flags, gso_type, gso_size, csum_start, csum_offset)
    };
    expect(
        "flags, gso_type, gso_size, csum_start, csum_offset",
        of(seen),
        of(expected),
    )
}

/// Lengths and segment sizes.
const GSO: [(usize, u16); 3] = [(2000, 1448), (20_000, 1448), (65_000, 8948)];

fn tx_gso(ctx: &Ctx) -> Result<()> {
    let mut vmm = on_veth(ctx, V1, 0)?;
    for (len, gso_size) in GSO {
        for split in [Split::Whole, Split::HeaderAlone, Split::Every(4096)] {
            let (hdr, frame) = vmm.tx_frames.tcp4(len, gso_size);
            vmm.queue_tx(&hdr, &frame, &split)?;
            vmm.tx.flush()?;
            let (seen, packet) = vmm
                .wire
                .recv()
                .with_context(|| format!("TSO4 of {len} bytes as {split:?}"))?;
            compare("frame from the guest", &packet, &frame)?;
            same_offload(&seen, &hdr)?;
            vmm.tx.wait_used()?;
        }
    }
    vmm.check_quiet()
}

fn rx_gso(ctx: &Ctx) -> Result<()> {
    let mut vmm = on_veth(ctx, V1 | feature::MRG_RXBUF, TUN_F_CSUM | TUN_F_TSO4)?;
    vmm.post_rx(64, &[4096])?;
    for (len, gso_size) in GSO {
        let (hdr, frame) = vmm.rx_frames.tcp4(len, gso_size);
        vmm.wire.send(&hdr, &frame)?;
        let received = vmm.recv()?;
        compare("frame to the guest", &received.frame, &frame)?;
        same_offload(&received.hdr, &hdr)?;
        vmm.repost(&received)?;
    }
    vmm.check_quiet()
}

fn rx_segmented(ctx: &Ctx) -> Result<()> {
    let mut vmm = on_veth(ctx, V1, 0)?;
    vmm.post_rx(16, &[2048])?;
    let (hdr, frame) = vmm.rx_frames.tcp4(TCP4_HLEN + 4 * 1000, 1000);
    vmm.wire.send(&hdr, &frame)?;
    for segment in 0..4 {
        let received = vmm.recv().with_context(|| format!("segment {segment}"))?;
        expect("length", received.frame.len(), TCP4_HLEN + 1000)?;
        let NetHdr {
            flags, gso_type, ..
        } = received.hdr;
        expect("gso_type", gso_type, 0)?;
        expect("partial checksum", flags & crate::frame::NEEDS_CSUM, 0)?;
        let from = TCP4_HLEN + 1000 * segment;
        compare(
            "payload",
            &received.frame[TCP4_HLEN..],
            &frame[from..from + 1000],
        )?;
        ensure!(
            tcp_sum_is_right(&received.frame),
            "segment {segment}: bad checksum"
        );
    }
    vmm.check_quiet()
}

/// Whether the checksum of TCP over IPv4 without options is right.
pub(super) fn tcp_sum_is_right(frame: &[u8]) -> bool {
    let tcp = &frame[34..];
    let mut sum = 6 + tcp.len() as u32;
    for pair in frame[26..].chunks(2) {
        sum += u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum == 0xffff
}

fn too_long(ctx: &Ctx) -> Result<()> {
    let mut vmm = on_veth(ctx, V1, 0)?;
    net::set_mtu(NEAR, 1500)?;
    for len in [1519, 4000, 9014, 60_000] {
        let frame = vmm.tx_frames.plain(len);
        vmm.queue_tx(&NetHdr::default(), &frame, &Split::HeaderAlone)?;
        vmm.tx.flush()?;
        vmm.tx.wait_used()?;
        // Segments would be too long as well.
        let (hdr, frame) = vmm.tx_frames.tcp4(9014, 4000);
        vmm.queue_tx(&hdr, &frame, &Split::HeaderAlone)?;
        vmm.tx.flush()?;
        vmm.tx.wait_used()?;
    }
    vmm.check_alive()?;
    vmm.check_quiet()
}

fn malformed(ctx: &Ctx) -> Result<()> {
    let mut vmm = on_veth(ctx, V1, 0)?;
    for len in [60, 2000, 5000] {
        let (good, frame) = vmm.tx_frames.tcp4(len, 1000);
        let bad = [
            NetHdr {
                gso_type: 0x55,
                ..good
            },
            NetHdr {
                gso_size: 0,
                ..good
            },
            NetHdr {
                csum_start: 0xffff,
                csum_offset: 0xffff,
                ..good
            },
            NetHdr {
                csum_start: 4000 + len as u16,
                ..good
            },
            NetHdr {
                flags: 0,
                gso_type: 3,
                ..good
            },
        ];
        for hdr in bad {
            vmm.queue_tx(&hdr, &frame, &Split::HeaderAlone)?;
            vmm.tx.flush()?;
            vmm.tx.wait_used().with_context(|| format!("{hdr:?}"))?;
        }
    }
    // Some make sense to the stack after all.
    vmm.fence(TX)?;
    vmm.wire.drain()?;
    poll::take_signals(&vmm.tx.err);
    vmm.check_alive()
}

/// Sends a batch of so many packets each way, in order.
pub(super) fn exchange(vmm: &mut Vmm, count: usize) -> Result<()> {
    let (mut out, mut coming) = (Vec::new(), Vec::new());
    for i in 0..count {
        let frame = vmm.tx_frames.plain(60 + 8 * i);
        vmm.queue_tx(&NetHdr::default(), &frame, &Split::HeaderAlone)?;
        out.push(frame);
        coming.push(vmm.send_rx(60 + 8 * i)?);
    }
    vmm.tx.flush()?;
    for frame in &out {
        vmm.expect_on_wire(frame)?;
    }
    expect("chains given back", vmm.tx.drain()?.len(), out.len())?;
    for frame in &coming {
        let received = vmm.expect_in_guest(frame)?;
        vmm.repost(&received)?;
    }
    Ok(())
}

fn batches(ctx: &Ctx) -> Result<()> {
    let mut vmm = on_veth(ctx, V1, 0)?;
    vmm.post_rx(200, &[2048])?;
    for _ in 0..5 {
        exchange(&mut vmm, 120)?;
    }
    vmm.check_quiet()
}

fn full_ring(ctx: &Ctx) -> Result<()> {
    let mut vmm = stopped(ctx, V1, "vt0")?;
    pair()?;
    vmm.wire = Wire::open(FAR)?;
    let wanted = Netdev {
        ring: 16,
        ..wanted(NEAR)?
    };
    bind(&vmm, &wanted)?;
    let before = net::counters(NEAR)?.rx_dropped;
    // Without buffers the queue's thread takes what the ring holds once, and then leaves it.
    let mut sent = Vec::new();
    for _ in 0..300 {
        sent.push(vmm.send_rx(100)?);
    }
    let dropped = poll::wait_for("packets that are dropped", || {
        let dropped = net::counters(NEAR)?.rx_dropped - before;
        Ok((dropped > 0).then_some(dropped))
    })?;
    ensure!(dropped < 300, "all {dropped} packets were dropped");
    vmm.post_rx(250, &[2048])?;
    // The first ones are there, in order; then some that found a place by chance.
    for frame in &sent[..16] {
        vmm.expect_in_guest(frame)?;
    }
    vmm.fence(RX)?;
    let rest = vmm.rx.drain_some()?;
    ensure!(
        16 + rest as u64 + dropped == 300,
        "16 and {rest} arrived, {dropped} dropped of 300"
    );
    vmm.check_alive()
}

fn restart(ctx: &Ctx) -> Result<()> {
    let mut vmm = on_veth(ctx, V1, 0)?;
    vmm.post_rx(64, &[2048])?;
    for round in 0..20 {
        vmm.check_alive()
            .with_context(|| format!("round {round}"))?;
        match round % 3 {
            // Both, one after the other.
            0 => vmm.stop()?,
            1 => vmm.stop_queue(RX)?,
            _ => {}
        }
        bind(&vmm, &wanted(NEAR)?)?;
    }
    vmm.check_quiet()
}

fn back_to_tap(ctx: &Ctx) -> Result<()> {
    let mut vmm = on_veth(ctx, V1, 0)?;
    vmm.post_rx(8, &[2048])?;
    vmm.check_alive()?;
    vmm.start()?;
    let far = std::mem::replace(&mut vmm.wire, Wire::open("vt0")?);
    vmm.check_alive()?;
    // The device is its own again.
    let near = Wire::open(NEAR)?;
    let frame = vmm.rx_frames.plain(100);
    far.send(&NetHdr::default(), &frame)?;
    compare("frame at the device", &near.recv()?.1, &frame)?;
    bind(&vmm, &wanted(NEAR)?)?;
    vmm.wire = far;
    vmm.check_alive()?;
    vmm.check_quiet()
}

/// Sends without looking what becomes of it.
pub(super) fn load(vmm: &mut Vmm) -> Result<()> {
    for i in 0..40 {
        let frame = vmm.tx_frames.plain(60 + 30 * i);
        vmm.queue_tx(&NetHdr::default(), &frame, &Split::HeaderAlone)?;
        // The far end goes with the near one.
        let frame = vmm.rx_frames.plain(100);
        let _ = vmm.wire.send(&NetHdr::default(), &frame);
    }
    vmm.tx.flush()?;
    Ok(())
}

/// After the device is gone: what is sent is given back, and the owner told; and the device
/// works on something else.
pub(super) fn gone(vmm: &mut Vmm) -> Result<()> {
    vmm.tx.drain()?;
    let frame = vmm.tx_frames.plain(100);
    vmm.queue_tx(&NetHdr::default(), &frame, &Split::HeaderAlone)?;
    vmm.tx.flush()?;
    vmm.tx.wait_used()?;
    poll::wait_signal(&vmm.tx.err, "an error of TX")?;
    poll::wait_signal(&vmm.rx.err, "an error of RX")?;
    vmm.start()?;
    vmm.wire = Wire::open("vt0")?;
    vmm.fence(RX)?;
    vmm.rx.drain_some()?;
    vmm.post_rx(8, &[2048])?;
    vmm.check_alive()
}

fn deleted(ctx: &Ctx) -> Result<()> {
    let mut vmm = on_veth(ctx, V1, 0)?;
    vmm.post_rx(100, &[2048])?;
    load(&mut vmm)?;
    net::delete(NEAR)?;
    load(&mut vmm)?;
    gone(&mut vmm)
}

fn moved(ctx: &Ctx) -> Result<()> {
    let mut vmm = on_veth(ctx, V1, 0)?;
    vmm.post_rx(100, &[2048])?;
    load(&mut vmm)?;
    let child = process::Child::spawn(|inside| {
        net::own_namespace()?;
        inside.ready()?;
        inside.wait()
    })?;
    child.wait_ready()?;
    tool(
        "ip",
        &["link", "set", NEAR, "netns", &child.pid().to_string()],
    )?;
    load(&mut vmm)?;
    gone(&mut vmm)?;
    child.finish()
}

fn again(ctx: &Ctx) -> Result<()> {
    let mut vmm = on_veth(ctx, V1, 0)?;
    vmm.post_rx(64, &[2048])?;
    for _ in 0..ctx.rounds(2, 10) {
        vmm.check_alive()?;
        net::delete(NEAR)?;
        pair()?;
        vmm.wire = Wire::open(FAR)?;
        bind(&vmm, &wanted(NEAR)?)?;
        poll::take_signals(&vmm.rx.err);
    }
    vmm.check_alive()?;
    vmm.check_quiet()
}

fn rebound(ctx: &Ctx) -> Result<()> {
    let mut vmm = on_veth(ctx, V1, 0)?;
    vmm.post_rx(200, &[2048])?;
    for _ in 0..ctx.cycles.min(50) {
        load(&mut vmm)?;
        bind(&vmm, &wanted(NEAR)?)?;
        vmm.tx.drain()?;
        let came = vmm.rx.drain_some()?;
        vmm.post_rx(came, &[2048])?;
    }
    vmm.fence(RX)?;
    vmm.fence(TX)?;
    vmm.wire.drain()?;
    let came = vmm.rx.drain_some()?;
    vmm.post_rx(came, &[2048])?;
    vmm.check_alive()
}

fn capability(ctx: &Ctx) -> Result<()> {
    let vmm = stopped(ctx, V1, "vt0")?;
    pair()?;
    let wanted = wanted(NEAR)?;
    powerless()?;
    expect("without it", set(&vmm, &wanted), Err(Errno(libc::EPERM)))
}

fn refused(ctx: &Ctx) -> Result<()> {
    let vmm = stopped(ctx, V1, "vt0")?;
    pair()?;
    net::set_up("lo", true)?;
    let good = wanted(NEAR)?;
    for (what, bad, errno) in [
        (
            "no device",
            Netdev {
                ifindex: 99_999,
                ..good
            },
            libc::ENODEV,
        ),
        ("index 0", Netdev { ifindex: 0, ..good }, libc::ENODEV),
        (
            "huge index",
            Netdev {
                ifindex: 1 << 31,
                ..good
            },
            libc::ENODEV,
        ),
        ("loopback", Netdev { ifindex: 1, ..good }, libc::EINVAL),
        ("a flag", Netdev { flags: 2, ..good }, libc::EINVAL),
        ("queue 256", Netdev { queue: 256, ..good }, libc::EINVAL),
        (
            "an offload",
            Netdev {
                offloads: 1 << 7,
                ..good
            },
            libc::EINVAL,
        ),
        (
            "a long ring",
            Netdev {
                ring: 65_537,
                ..good
            },
            libc::EINVAL,
        ),
        (
            "reserved",
            Netdev {
                reserved: [0, 1],
                ..good
            },
            libc::EINVAL,
        ),
    ] {
        expect(what, set(&vmm, &bad), Err(Errno(errno)))?;
    }
    let no_address = vmm.vhost.raw().call(ioctl::RVHOST_NET_SET_NETDEV(), 8);
    expect("no argument", no_address, Err(Errno(libc::EFAULT)))?;
    // A MacVLAN's lower device gives what it receives to the MacVLAN.
    net::add_macvlan(NEAR, "mv", GUEST_MAC)?;
    expect("enslaved", set(&vmm, &good), Err(Errno(libc::EBUSY)))?;
    net::delete("mv")?;
    bind(&vmm, &good)
}

fn one_owner(ctx: &Ctx) -> Result<()> {
    let vmm = on_veth(ctx, V1, 0)?;
    process::in_child(|| {
        let other = stopped(ctx, V1, "vt1")?;
        expect(
            "somebody else",
            set(&other, &wanted(NEAR)?),
            Err(Errno(libc::EBUSY)),
        )
    })?;
    let second = stopped(ctx, V1, "vt2")?;
    let taken = Netdev {
        queue: 0,
        ..wanted(NEAR)?
    };
    expect(
        "queue 0 again",
        set(&second, &taken),
        Err(Errno(libc::EBUSY)),
    )?;
    bind(
        &second,
        &Netdev {
            queue: 255,
            ..taken
        },
    )?;
    drop(vmm);
    bind(&second, &taken)
}

/// Runs a program of the machine.
pub(super) fn tool(program: &str, arguments: &[&str]) -> Result<()> {
    let Ok(output) = Command::new(program).args(arguments).output() else {
        return skip(&format!("there is no {program}"));
    };
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{program} {arguments:?}: {said}");
    Ok(())
}
