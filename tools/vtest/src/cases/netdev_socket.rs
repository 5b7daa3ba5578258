// SPDX-License-Identifier: GPL-2.0

//! Queues on the network device that a packet socket is bound to, once that is asked for.

use std::os::fd::AsRawFd;

use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;

use super::front::powerless;
use super::netdev;
use super::netdev::FAR;
use super::netdev::NEAR;
use super::netdev::V1;
use crate::case::Ctx;
use crate::case::Table;
use crate::device;
use crate::device::feature;
use crate::device::RX;
use crate::device::TX;
use crate::errno::Errno;
use crate::fdinfo::Fdinfo;
use crate::frame::compare;
use crate::frame::NetHdr;
use crate::frame::GUEST_MAC;
use crate::ioctl;
use crate::ioctl::Netdev;
use crate::ioctl::Outcome;
use crate::ioctl::Raw;
use crate::ioctl::Rss;
use crate::net;
use crate::process;
use crate::tap::TUN_F_CSUM;
use crate::tap::TUN_F_TSO4;
use crate::traffic::expect;
use crate::traffic::Split;
use crate::vmm::Vmm;
use crate::wire::Wire;

/// The features under which a packet socket without headers serves.
const BARE: u64 = V1 | feature::NET_HDR;

pub(super) fn register(table: &mut Table) {
    for (name, bits) in [
        ("legacy", 0),
        ("version_1", V1),
        ("mergeable", V1 | feature::MRG_RXBUF),
    ] {
        table.add(
            format!("netdev::by_a_socket_carries_traffic_{name}"),
            move |ctx| traffic(ctx, bits),
        );
    }
    table.add("netdev::by_a_socket_offloads_are_the_guests", offloads);
    table.add("netdev::socket_is_a_socket_unless_asked", not_asked);
    table.add("netdev::socket_and_device_and_back", swapped);
    table.add("netdev::by_a_socket_one_queue_alone", alone);
    table.add("netdev::by_a_socket_of_another_namespace", elsewhere);
    table.add("netdev::by_a_socket_needs_the_capability", capability);
    table.add("netdev::by_a_socket_that_is_bound_to_nothing", unbound);
    table.add("netdev::by_a_socket_belongs_to_one_owner", one_owner);
    table.add("netdev::by_a_socket_deleted_ends_cleanly", deleted);
    table.add("netdev::by_a_socket_set_again_under_load", again);
    table.add("netdev::by_a_socket_makes_a_port", port);
    table.add("netdev::by_a_socket_arguments_are_checked", arguments);
}

/// What is asked of all sockets.
const ASKED: Netdev = Netdev {
    ifindex: 0,
    flags: 0,
    queue: u32::MAX,
    offloads: 0,
    ring: 0,
    sndbuf: 0,
    reserved: [0; 2],
};

fn ask(vmm: &Vmm, asked: &Netdev) -> Outcome {
    vmm.vhost
        .raw()
        .put(ioctl::RVHOST_NET_SET_SOCKET_NETDEV(), asked)
}

/// Has sockets be sockets again.
fn forget(vmm: &Vmm) -> Outcome {
    vmm.vhost
        .raw()
        .call(ioctl::RVHOST_NET_SET_SOCKET_NETDEV(), 0)
}

fn set(vmm: &Vmm, index: usize, socket: &Wire) -> Outcome {
    vmm.vhost
        .raw()
        .set_backend(index as u32, socket.as_raw_fd())
}

/// Runs the queues where `socket` is bound to, TX first.
fn run_on(vmm: &Vmm, socket: &Wire) -> Result<()> {
    for index in [TX, RX] {
        set(vmm, index, socket).with_context(|| format!("SET_BACKEND {index}"))?;
    }
    Ok(())
}

fn is_on(vmm: &Vmm, queue: &str, backend: &str) -> Result<()> {
    let name = format!("{queue}-backend");
    expect(&name, Fdinfo::of(&vmm.vhost)?.text(&name), Some(backend))
}

/// A machine on one end of a pair, by a socket that is closed again.
fn on_veth(ctx: &Ctx, features: u64, asked: &Netdev) -> Result<Vmm> {
    let mut vmm = netdev::stopped(ctx, features, "vt0")?;
    netdev::pair()?;
    vmm.wire = Wire::open(FAR)?;
    ask(&vmm, asked).context("RVHOST_NET_SET_SOCKET_NETDEV")?;
    run_on(&vmm, &Wire::open(NEAR)?)?;
    Ok(vmm)
}

fn traffic(ctx: &Ctx, features: u64) -> Result<()> {
    let mut vmm = on_veth(ctx, features, &ASKED)?;
    let info = Fdinfo::of(&vmm.vhost)?;
    for queue in ["rx", "tx"] {
        is_on(&vmm, queue, "netdev")?;
        let name = format!("{queue}-netdev");
        expect(&name, info.text(&name), Some(NEAR))?;
    }
    netdev::sizes(&mut vmm)
}

/// As far as the asker said.
fn offloads(ctx: &Ctx) -> Result<()> {
    let asked = Netdev {
        offloads: TUN_F_CSUM | TUN_F_TSO4,
        ..ASKED
    };
    let mut vmm = on_veth(ctx, V1 | feature::MRG_RXBUF, &asked)?;
    vmm.post_rx(64, &[4096])?;
    let (hdr, frame) = vmm.rx_frames.tcp4(20_000, 1448);
    vmm.wire.send(&hdr, &frame)?;
    let received = vmm.recv()?;
    compare("frame to the guest", &received.frame, &frame)?;
    netdev::same_offload(&received.hdr, &hdr)?;
    vmm.check_quiet()
}

/// Whether what the device receives is the queues' alone.
fn is_taken() -> Result<bool> {
    match net::add_macvlan(NEAR, "mv", GUEST_MAC) {
        Ok(()) => {
            net::delete("mv")?;
            Ok(false)
        }
        Err(_) => Ok(true),
    }
}

fn not_asked(ctx: &Ctx) -> Result<()> {
    let mut vmm = netdev::stopped(ctx, BARE, "vt0")?;
    netdev::pair()?;
    vmm.wire = Wire::open(FAR)?;
    run_on(&vmm, &Wire::headerless(NEAR)?)?;
    for queue in ["rx", "tx"] {
        is_on(&vmm, queue, "packet")?;
    }
    expect("the device is taken", is_taken()?, false)?;
    vmm.post_rx(8, &[2048])?;
    vmm.check_alive()?;
    // To have asked, and to have changed one's mind, changes nothing.
    expect("asked", ask(&vmm, &ASKED), Ok(0))?;
    expect("not any more", forget(&vmm), Ok(0))?;
    vmm.stop()?;
    run_on(&vmm, &Wire::headerless(NEAR)?)?;
    is_on(&vmm, "rx", "packet")?;
    vmm.check_alive()?;
    vmm.check_quiet()
}

fn swapped(ctx: &Ctx) -> Result<()> {
    let mut vmm = netdev::stopped(ctx, BARE, "vt0")?;
    netdev::pair()?;
    let far = Wire::open(FAR)?;
    let tap = std::mem::replace(&mut vmm.wire, far);
    vmm.post_rx(64, &[2048])?;
    let socket = Wire::headerless(NEAR)?;
    for round in 0..10 {
        expect("not asked", forget(&vmm), Ok(0))?;
        run_on(&vmm, &socket)?;
        is_on(&vmm, "rx", "packet")?;
        vmm.check_alive()
            .with_context(|| format!("socket, round {round}"))?;
        expect("asked", ask(&vmm, &ASKED), Ok(0))?;
        // What runs stays as it is.
        is_on(&vmm, "rx", "packet")?;
        run_on(&vmm, &socket)?;
        is_on(&vmm, "tx", "netdev")?;
        ensure!(is_taken()?, "the device is not taken");
        vmm.check_alive()
            .with_context(|| format!("device, round {round}"))?;
        // By the same socket, in a new queue.
        run_on(&vmm, &socket)?;
        vmm.check_alive()
            .with_context(|| format!("again, round {round}"))?;
        // The socket saw it all as well.
        socket.drain()?;
    }
    vmm.start()?;
    vmm.wire = tap;
    vmm.check_alive()?;
    expect("the device is taken", is_taken()?, false)?;
    vmm.check_quiet()
}

/// One by the device, the other by a TAP.
fn alone(ctx: &Ctx) -> Result<()> {
    let mut vmm = netdev::stopped(ctx, V1, "vt0")?;
    netdev::pair()?;
    let (near, far) = (Wire::open(NEAR)?, Wire::open(FAR)?);
    expect("asked", ask(&vmm, &ASKED), Ok(0))?;
    vmm.post_rx(32, &[2048])?;
    for _ in 0..5 {
        vmm.start_queue(RX)?;
        expect("TX", set(&vmm, TX, &near), Ok(0))?;
        expect("the device is taken", is_taken()?, false)?;
        vmm.check_rx(100)?;
        let frame = vmm.tx_frames.plain(100);
        vmm.queue_tx(&NetHdr::default(), &frame, &Split::HeaderAlone)?;
        vmm.tx.flush()?;
        compare("frame from the guest", &far.recv()?.1, &frame)?;
        vmm.tx.wait_used()?;

        vmm.start_queue(TX)?;
        expect("RX", set(&vmm, RX, &near), Ok(0))?;
        ensure!(is_taken()?, "the device is not taken");
        vmm.check_tx(100, &Split::Whole)?;
        let frame = vmm.rx_frames.plain(100);
        far.send(&NetHdr::default(), &frame)?;
        vmm.expect_in_guest(&frame)?;
    }
    vmm.check_quiet()
}

fn elsewhere(ctx: &Ctx) -> Result<()> {
    let mut vmm = netdev::stopped(ctx, V1, "vt0")?;
    let other = net::another_namespace()?;
    let (near, far) = net::inside(&other, || {
        netdev::pair()?;
        Ok((Wire::open(NEAR)?, Wire::open(FAR)?))
    })?;
    vmm.wire = far;
    expect("asked", ask(&vmm, &ASKED), Ok(0))?;
    run_on(&vmm, &near)?;
    drop(near);
    netdev::sizes(&mut vmm)
}

fn capability(ctx: &Ctx) -> Result<()> {
    let mut vmm = netdev::stopped(ctx, BARE, "vt0")?;
    netdev::pair()?;
    vmm.wire = Wire::open(FAR)?;
    let socket = Wire::headerless(NEAR)?;
    run_on(&vmm, &socket)?;
    powerless()?;
    let raw = vmm.vhost.raw();
    expect("asked", ask(&vmm, &ASKED), Ok(0))?;
    for index in [RX, TX] {
        let seen = set(&vmm, index, &socket);
        expect("without it", seen, Err(Errno(libc::EPERM)))?;
    }
    // What ran before goes on; a socket that is but a socket needs no more than to be there.
    vmm.post_rx(8, &[2048])?;
    vmm.check_alive()?;
    expect("not asked", forget(&vmm), Ok(0))?;
    for index in [0, 1] {
        expect("stopped", raw.set_backend(index, -1), Ok(0))?;
    }
    run_on(&vmm, &socket)?;
    vmm.check_alive()
}

fn unbound(ctx: &Ctx) -> Result<()> {
    let mut vmm = netdev::stopped(ctx, V1, "vt0")?;
    netdev::pair()?;
    net::set_up("lo", true)?;
    vmm.start()?;
    expect("asked", ask(&vmm, &ASKED), Ok(0))?;
    let gone = Wire::open(NEAR)?;
    net::delete(NEAR)?;
    netdev::pair()?;
    for (what, socket, errno) in [
        ("bound to nothing", Wire::unbound()?, libc::EINVAL),
        (
            "bound to the loopback device",
            Wire::open("lo")?,
            libc::EINVAL,
        ),
        ("bound to a device that is gone", gone, libc::ENODEV),
    ] {
        for index in [RX, TX] {
            expect(what, set(&vmm, index, &socket), Err(Errno(errno)))?;
        }
    }
    // Other files are what they are.
    let null = device::open(std::path::Path::new("/dev/null"))?;
    let seen = vmm.vhost.raw().set_backend(0, null.as_raw_fd());
    expect("no socket", seen, Err(Errno(libc::ENOTSOCK)))?;
    vmm.post_rx(8, &[2048])?;
    vmm.check_alive()?;
    vmm.start()?;
    vmm.check_alive()?;
    vmm.check_quiet()
}

fn one_owner(ctx: &Ctx) -> Result<()> {
    let asked = Netdev { queue: 3, ..ASKED };
    let mut vmm = on_veth(ctx, V1, &asked)?;
    let near = Wire::open(NEAR)?;
    let taken = set(&vmm, RX, &near);
    expect("its own number again", taken, Err(Errno(libc::EBUSY)))?;
    process::in_child(|| {
        let other = netdev::stopped(ctx, V1, "vt1")?;
        expect("asked", ask(&other, &ASKED), Ok(0))?;
        let seen = set(&other, RX, &near);
        expect("somebody else", seen, Err(Errno(libc::EBUSY)))
    })?;
    vmm.post_rx(8, &[2048])?;
    vmm.check_alive()?;
    vmm.stop()?;
    run_on(&vmm, &near)?;
    vmm.check_alive()?;
    vmm.check_quiet()
}

fn deleted(ctx: &Ctx) -> Result<()> {
    let mut vmm = on_veth(ctx, V1, &ASKED)?;
    vmm.post_rx(100, &[2048])?;
    netdev::load(&mut vmm)?;
    net::delete(NEAR)?;
    netdev::load(&mut vmm)?;
    netdev::gone(&mut vmm)
}

/// The device, the socket itself, and the device again, while packets flow.
fn again(ctx: &Ctx) -> Result<()> {
    let mut vmm = on_veth(ctx, BARE, &ASKED)?;
    let near = Wire::headerless(NEAR)?;
    vmm.post_rx(200, &[2048])?;
    for round in 0..ctx.cycles.min(50) {
        netdev::load(&mut vmm)?;
        if round % 2 == 0 {
            expect("asked", ask(&vmm, &ASKED), Ok(0))?;
        } else {
            expect("not asked", forget(&vmm), Ok(0))?;
        }
        run_on(&vmm, &near)?;
        vmm.tx.drain()?;
        let came = vmm.rx.drain_some()?;
        vmm.post_rx(came, &[2048])?;
    }
    expect("asked", ask(&vmm, &ASKED), Ok(0))?;
    run_on(&vmm, &near)?;
    vmm.fence(RX)?;
    vmm.fence(TX)?;
    vmm.wire.drain()?;
    let came = vmm.rx.drain_some()?;
    vmm.post_rx(came, &[2048])?;
    vmm.check_alive()
}

/// Queue pairs that came by a socket, and one that did not.
fn port(ctx: &Ctx) -> Result<()> {
    let one = on_veth(ctx, V1, &ASKED)?;
    let two = netdev::stopped(ctx, V1, "vt1")?;
    expect("asked", ask(&two, &ASKED), Ok(0))?;
    run_on(&two, &Wire::open(NEAR)?)?;
    let three = netdev::stopped(ctx, V1, "vt2")?;
    netdev::bind(&three, &netdev::wanted(NEAR)?)?;
    let mut rss = Rss::none();
    for vmm in [&one, &two, &three] {
        let got = vmm.vhost.raw().get(ioctl::RVHOST_NET_GET_RSS(), &mut rss);
        expect("RVHOST_NET_GET_RSS", got, Ok(0))?;
        let there: std::collections::BTreeSet<_> = rss.table.iter().copied().collect();
        expect("queues", there.into_iter().collect(), vec![0u16, 1, 2])?;
    }
    Ok(())
}

fn arguments(ctx: &Ctx) -> Result<()> {
    let vmm = netdev::stopped(ctx, V1, "vt0")?;
    netdev::pair()?;
    let near = Wire::open(NEAR)?;
    for (what, bad) in [
        (
            "a device",
            Netdev {
                ifindex: 1,
                ..ASKED
            },
        ),
        ("a flag", Netdev { flags: 2, ..ASKED }),
        (
            "reserved",
            Netdev {
                reserved: [1, 0],
                ..ASKED
            },
        ),
        (
            "a limit",
            Netdev {
                sndbuf: 1 << 31,
                ..ASKED
            },
        ),
    ] {
        expect(what, ask(&vmm, &bad), Err(Errno(libc::EINVAL)))?;
    }
    let number = ioctl::RVHOST_NET_SET_SOCKET_NETDEV();
    let nowhere = vmm.vhost.raw().call(number, 8);
    expect("a bad address", nowhere, Err(Errno(libc::EFAULT)))?;
    // The rest is seen when there is something to run.
    for (what, bad) in [
        (
            "queue 256",
            Netdev {
                queue: 256,
                ..ASKED
            },
        ),
        (
            "an offload",
            Netdev {
                offloads: 1 << 7,
                ..ASKED
            },
        ),
        (
            "a long ring",
            Netdev {
                ring: 65_537,
                ..ASKED
            },
        ),
    ] {
        expect(what, ask(&vmm, &bad), Ok(0))?;
        let seen = set(&vmm, RX, &near);
        expect(what, seen, Err(Errno(libc::EINVAL)))?;
        ensure!(!is_taken()?, "{what}: the device is taken");
    }
    let strange = device::open(&ctx.device)?;
    let seen = Raw::of(&strange).put(number, &ASKED);
    expect("without an owner", seen, Err(Errno(libc::EPERM)))?;
    // A new owner has said nothing.
    expect("asked", ask(&vmm, &ASKED), Ok(0))?;
    let raw = vmm.vhost.raw();
    expect("RESET_OWNER", raw.reset_owner(), Ok(0))?;
    expect("SET_OWNER", raw.set_owner(), Ok(0))?;
    vmm.set_features(BARE)?;
    vmm.configure([0, 0])?;
    expect("a socket", set(&vmm, RX, &near), Ok(0))?;
    is_on(&vmm, "rx", "packet")
}
