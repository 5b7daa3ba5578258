// SPDX-License-Identifier: GPL-2.0

//! A virtual function of a network card as what queues run on, or as the device below it. The card
//! is given by `--card`, what its port is connected to by `--peer`.

use std::fs;
use std::path::Path;
use std::path::PathBuf;

use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;

use super::netdev;
use super::netdev::tool;
use super::netdev::V1;
use crate::case::skip;
use crate::case::Ctx;
use crate::case::Table;
use crate::device::feature;
use crate::device::RX;
use crate::device::TX;
use crate::frame::compare;
use crate::frame::NetHdr;
use crate::frame::GUEST_MAC;
use crate::frame::NEEDS_CSUM;
use crate::frame::TCP4_HLEN;
use crate::front;
use crate::ioctl::Netdev;
use crate::net;
use crate::net::Mode;
use crate::net::Vtap;
use crate::poll;
use crate::tap::Tap;
use crate::tap::TapOptions;
use crate::tap::TUN_F_CSUM;
use crate::tap::TUN_F_TSO4;
use crate::traffic::expect;
use crate::traffic::Split;
use crate::vmm::Setup;
use crate::vmm::Vmm;
use crate::wire::Wire;

/// `RVHOST_NETDEV_F_PROMISC`.
const PROMISC: u32 = 1;
const THEIR_MAC: [u8; 6] = [2, 0, 0, 0, 0, 9];
const MACVLAN: &str = "mv";

pub(super) fn register(table: &mut Table) {
    table.add("sriov::function_carries_traffic", |ctx| {
        traffic(&mut on_function(ctx, V1, 0)?.0)
    });
    table.add("sriov::front_on_a_function_carries_traffic", front_on);
    table.add("sriov::macvlan_on_a_function_carries_traffic", |ctx| {
        traffic(&mut on_macvlan(ctx)?.0)
    });
    for mode in [Mode::Bridge, Mode::Passthru] {
        let name = format!("{mode:?}").to_lowercase();
        table.add(
            format!("sriov::macvtap_{name}_on_a_function_carries_traffic"),
            move |ctx| macvtap(ctx, mode),
        );
    }
    table.add("sriov::card_sums_and_cuts_what_is_sent", cut);
    table.add("sriov::segments_come_to_a_guest_that_takes_them", joined);
    table.add("sriov::function_taken_away_ends_cleanly", |ctx| {
        let (vmm, lab) = on_function(ctx, V1, 0)?;
        taken_away(vmm, &lab)
    });
    table.add("sriov::function_below_a_macvlan_taken_away", |ctx| {
        let (vmm, lab) = on_macvlan(ctx)?;
        taken_away(vmm, &lab)
    });
    table.add("sriov::promiscuity_opens_the_filter_of_a_card", promiscuity);
}

/// A virtual function and what it is connected to, both up, in this process's namespace. They go
/// home with the namespace.
struct Lab {
    device: PathBuf,
    function: String,
    peer: String,
}

impl Lab {
    fn new(ctx: &Ctx) -> Result<Self> {
        let Some(card) = &ctx.card else {
            return skip("no card with virtual functions is given (--card)");
        };
        let device = Path::new("/sys/bus/pci/devices").join(&card.address);
        // SAFETY: Plain system calls without pointers.
        let (pid, parent) = unsafe { (libc::getpid(), libc::getppid()) };
        let (here, home) = (net::namespace_of(pid)?, net::namespace_of(parent)?);
        load_driver(&device)?;
        let physical = interface(&device)?;
        net::inside(&home, || net::set_up(&physical, true))?;
        let count = device.join("sriov_numvfs");
        // A new one each time: what was used before keeps an address, and no filter for it.
        for functions in ["0", "1"] {
            fs::write(&count, functions).context("making a virtual function")?;
        }
        let virtual_function = device.join("virtfn0");
        load_driver(&virtual_function)?;
        let function = interface(&virtual_function)?;
        let peer = card.peer.clone();
        for name in [&function, &peer] {
            // The last case's namespace may not be gone yet.
            poll::wait_for(&format!("{name} to come home"), || {
                Ok(net::inside(&home, || net::index(name)).ok())
            })?;
            net::inside(&home, || net::move_into(name, &here))?;
            net::set_up(name, true)?;
        }
        for name in [&function, &peer] {
            net::wait_carrier(name)?;
        }
        tool("ip", &["link", "set", &peer, "promisc", "on"])?;
        wait_for_frames(&function, &peer)?;
        wait_for_frames(&peer, &function)?;
        Ok(Self {
            device,
            function,
            peer,
        })
    }

    fn remove_functions(&self) -> Result<()> {
        fs::write(self.device.join("sriov_numvfs"), "0").context("removing virtual functions")
    }
}

/// Waits until broadcasts come through: a function that has a carrier may lose what is sent first.
fn wait_for_frames(from: &str, to: &str) -> Result<()> {
    let (from, to) = (Wire::open(from)?, Wire::open(to)?);
    let mut frame = [0; 60];
    frame[..6].fill(0xff);
    frame[6..12].copy_from_slice(&THEIR_MAC);
    frame[12..14].copy_from_slice(&[0x88, 0xb5]);
    poll::wait_for("frames through the card", || {
        from.send(&NetHdr::default(), &frame)?;
        to.try_recv()
    })?;
    Ok(())
}

fn load_driver(device: &Path) -> Result<()> {
    if !device.join("driver").exists() {
        let alias = fs::read_to_string(device.join("modalias")).context("modalias")?;
        tool("modprobe", &[alias.trim()])?;
    }
    Ok(())
}

/// The name of a PCI device's interface, once it is where it was made.
fn interface(device: &Path) -> Result<String> {
    poll::wait_for(&format!("an interface of {}", device.display()), || {
        let Ok(mut names) = fs::read_dir(device.join("net")) else {
            return Ok(None);
        };
        let name = names.next().transpose()?;
        Ok(name.map(|name| name.file_name().to_string_lossy().into_owned()))
    })
}

/// A machine whose queues have no backend yet, and the function.
fn stopped(ctx: &Ctx, features: u64) -> Result<(Vmm, Lab)> {
    let mut vmm = netdev::stopped(ctx, features, "vt0")?;
    let lab = Lab::new(ctx)?;
    vmm.wire = Wire::open(&lab.peer)?;
    Ok((vmm, lab))
}

/// A machine on the function itself, which has the guest's address.
fn on_function(ctx: &Ctx, features: u64, offloads: u32) -> Result<(Vmm, Lab)> {
    let (vmm, lab) = stopped(ctx, features)?;
    net::set_address(&lab.function, GUEST_MAC)?;
    let wanted = Netdev {
        offloads,
        ..netdev::wanted(&lab.function)?
    };
    netdev::bind(&vmm, &wanted)?;
    Ok((vmm, lab))
}

/// A machine on a MacVLAN over the function, which has another address: the card is told of both.
fn on_macvlan(ctx: &Ctx) -> Result<(Vmm, Lab)> {
    let (vmm, lab) = stopped(ctx, V1)?;
    net::add_macvlan(&lab.function, MACVLAN, GUEST_MAC)?;
    net::set_up(MACVLAN, true)?;
    netdev::bind(&vmm, &netdev::wanted(MACVLAN)?)?;
    Ok((vmm, lab))
}

/// What Ethernet has room for, one by one and in batches.
fn traffic(vmm: &mut Vmm) -> Result<()> {
    vmm.post_rx(200, &[1600])?;
    for len in [60, 61, 64, 100, 1000, 1514] {
        for split in [Split::Whole, Split::HeaderAlone, Split::Every(700)] {
            vmm.check_tx(len, &split)?;
        }
        let received = vmm.check_rx(len)?;
        vmm.repost(&received)?;
    }
    for _ in 0..3 {
        netdev::exchange(vmm, 100)?;
    }
    // What is for somebody else does not reach it.
    let other = to(THEIR_MAC, vmm.rx_frames.plain(100));
    vmm.wire.send(&NetHdr::default(), &other)?;
    vmm.check_alive()?;
    vmm.check_quiet()
}

fn to(mac: [u8; 6], mut frame: Vec<u8>) -> Vec<u8> {
    frame[..6].copy_from_slice(&mac);
    frame
}

fn front_on(ctx: &Ctx) -> Result<()> {
    let (mut vmm, lab) = stopped(ctx, V1)?;
    net::set_address(&lab.function, GUEST_MAC)?;
    let file = front::on(&lab.function, front::ONE)?;
    vmm.set_backend(RX, Some(&file))?;
    vmm.set_backend(TX, Some(&file))?;
    traffic(&mut vmm)
}

fn macvtap(ctx: &Ctx, mode: Mode) -> Result<()> {
    let mut vmm = Setup::new().features(V1).stopped().build(ctx)?;
    let lab = Lab::new(ctx)?;
    if mode == Mode::Passthru {
        net::set_address(&lab.function, GUEST_MAC)?;
    }
    let options = TapOptions {
        header: vmm.hdr_len,
        ..TapOptions::default()
    };
    vmm.tap = Tap::open_vtap(Vtap::In(mode), "mvt", &lab.function, &options)?;
    vmm.wire = Wire::open(&lab.peer)?;
    vmm.start()?;
    traffic(&mut vmm)
}

/// Lengths and segment sizes.
const GSO: [(usize, usize); 4] = [(200, 0), (1514, 0), (3000, 1000), (20_000, 1448)];

fn cut(ctx: &Ctx) -> Result<()> {
    let (mut vmm, lab) = on_function(ctx, V1, 0)?;
    // Or they would be joined again before anybody sees them.
    tool("ethtool", &["-K", &lab.peer, "gro", "off"])?;
    for (len, size) in GSO {
        let (hdr, frame) = vmm.tx_frames.tcp4(len, size as u16);
        vmm.queue_tx(&hdr, &frame, &Split::HeaderAlone)?;
        vmm.tx.flush()?;
        let whole = if size == 0 { len } else { size };
        for (i, payload) in frame[TCP4_HLEN..].chunks(whole).enumerate() {
            let (seen, packet) = vmm
                .wire
                .recv()
                .with_context(|| format!("segment {i} of {len} bytes"))?;
            expect(
                "left to be done",
                (seen.flags & NEEDS_CSUM, seen.gso_type),
                (0, 0),
            )?;
            compare("payload", &packet[TCP4_HLEN..], payload)?;
            ensure!(
                netdev::tcp_sum_is_right(&packet),
                "segment {i} of {len} bytes: bad checksum"
            );
        }
        vmm.tx.wait_used()?;
    }
    vmm.check_quiet()
}

/// The host may join them again on their way.
fn joined(ctx: &Ctx) -> Result<()> {
    let features = V1 | feature::MRG_RXBUF;
    let (mut vmm, _lab) = on_function(ctx, features, TUN_F_CSUM | TUN_F_TSO4)?;
    vmm.post_rx(64, &[4096])?;
    for (len, size) in GSO {
        let (hdr, frame) = vmm.rx_frames.tcp4(len, size as u16);
        vmm.wire.send(&hdr, &frame)?;
        let mut came = Vec::new();
        while came.len() < len - TCP4_HLEN {
            let received = vmm
                .recv()
                .with_context(|| format!("{} of {len} bytes came", came.len()))?;
            came.extend(&received.frame[TCP4_HLEN..]);
            vmm.repost(&received)?;
        }
        compare("payload", &came, &frame[TCP4_HLEN..])?;
    }
    vmm.check_quiet()
}

fn taken_away(mut vmm: Vmm, lab: &Lab) -> Result<()> {
    vmm.post_rx(100, &[2048])?;
    vmm.check_alive()?;
    netdev::load(&mut vmm)?;
    lab.remove_functions()?;
    netdev::load(&mut vmm)?;
    netdev::gone(&mut vmm)
}

fn promiscuity(ctx: &Ctx) -> Result<()> {
    let (mut vmm, lab) = stopped(ctx, V1)?;
    // The other way round: the guest is on the peer, whose filter is its driver's business.
    tool("ip", &["link", "set", &lab.peer, "promisc", "off"])?;
    net::set_address(&lab.peer, GUEST_MAC)?;
    vmm.wire = Wire::open(&lab.function)?;
    vmm.post_rx(64, &[2048])?;
    for flags in [0, PROMISC, 0] {
        let wanted = Netdev {
            flags,
            ..netdev::wanted(&lab.peer)?
        };
        netdev::bind(&vmm, &wanted)?;
        let frame = vmm.rx_frames.plain(100);
        let other = to(THEIR_MAC, vmm.rx_frames.plain(100));
        vmm.wire.send(&NetHdr::default(), &other)?;
        if flags == PROMISC {
            vmm.expect_in_guest(&other)?;
        }
        vmm.wire.send(&NetHdr::default(), &frame)?;
        vmm.expect_in_guest(&frame)?;
        vmm.stop()?;
    }
    vmm.check_quiet()
}
