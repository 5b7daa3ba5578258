// SPDX-License-Identifier: GPL-2.0

//! What administrators do to the network device that queues run on.

use std::process::Command;

use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;

use super::netdev::bind;
use super::netdev::on_veth;
use super::netdev::tool;
use super::netdev::wanted;
use super::netdev::FAR;
use super::netdev::NEAR;
use super::netdev::V1;
use crate::case::skip;
use crate::case::Ctx;
use crate::case::Table;
use crate::fdinfo::Fdinfo;
use crate::frame::NetHdr;
use crate::frame::GUEST_MAC;
use crate::ioctl::Netdev;
use crate::net;
use crate::traffic::expect;
use crate::traffic::Split;

const PROMISC: u32 = 1;

pub(super) fn register(table: &mut Table) {
    table.add("netdev::down_and_up_resumes", down);
    table.add("netdev::renamed_while_it_runs", renamed);
    table.add("netdev::cannot_be_enslaved_meanwhile", enslaved);
    table.add("netdev::promiscuity_is_set_only_if_asked_for", promiscuity);
}

fn down(ctx: &Ctx) -> Result<()> {
    let mut vmm = on_veth(ctx, V1, 0)?;
    vmm.post_rx(64, &[2048])?;
    for _ in 0..5 {
        vmm.check_alive()?;
        net::set_up(NEAR, false)?;
        for len in [60, 1514, 5000] {
            let frame = vmm.tx_frames.plain(len);
            vmm.queue_tx(&NetHdr::default(), &frame, &Split::HeaderAlone)?;
            vmm.tx.flush()?;
            vmm.tx.wait_used()?;
        }
        up_again()?;
    }
    vmm.check_alive()?;
    vmm.check_quiet()
}

/// Brings the device up. The carrier takes a moment, at each end.
pub(super) fn up_again() -> Result<()> {
    net::set_up(NEAR, true)?;
    for name in [NEAR, FAR] {
        net::wait_carrier(name)?;
    }
    Ok(())
}

fn renamed(ctx: &Ctx) -> Result<()> {
    let mut vmm = on_veth(ctx, V1, 0)?;
    vmm.post_rx(8, &[2048])?;
    for (from, to) in [(NEAR, "renamed"), ("renamed", NEAR)] {
        vmm.check_alive()?;
        tool("ip", &["link", "set", from, "name", to])?;
        vmm.check_alive()?;
        let info = Fdinfo::of(&vmm.vhost)?;
        for queue in ["rx", "tx"] {
            let line = format!("{queue}-netdev");
            expect(&line, info.text(&line), Some(to))?;
        }
    }
    vmm.check_quiet()
}

fn enslaved(ctx: &Ctx) -> Result<()> {
    let mut vmm = on_veth(ctx, V1, 0)?;
    vmm.post_rx(8, &[2048])?;
    ensure!(
        net::add_macvlan(NEAR, "mv", GUEST_MAC).is_err(),
        "a MacVLAN was put on a device that is in use"
    );
    net::add_bridge("bridge")?;
    tool("ip", &["link", "add", "bond", "type", "bond"])?;
    for master in ["bridge", "bond"] {
        // A bond takes none that is up.
        net::set_up(NEAR, false)?;
        ensure!(
            net::enslave(NEAR, master).is_err(),
            "a device that is in use was put into a {master}"
        );
        net::set_up(NEAR, true)?;
        for name in [NEAR, FAR] {
            net::wait_carrier(name)?;
        }
        vmm.check_alive()?;
    }
    vmm.stop()?;
    net::enslave(NEAR, "bridge")
}

/// How many want all that passes the device.
fn promiscuous(name: &str) -> Result<u32> {
    let Ok(output) = Command::new("ip")
        .args(["-d", "link", "show", "dev", name])
        .output()
    else {
        return skip("there is no ip");
    };
    ensure!(output.status.success(), "ip -d link show dev {name}");
    let text = String::from_utf8_lossy(&output.stdout);
    let mut words = text.split_whitespace();
    words
        .find(|word| *word == "promiscuity")
        .and_then(|_| words.next()?.parse().ok())
        .with_context(|| format!("no promiscuity in {text:?}"))
}

fn promiscuity(ctx: &Ctx) -> Result<()> {
    let vmm = on_veth(ctx, V1, 0)?;
    expect("promiscuous unasked", promiscuous(NEAR)?, 0)?;
    vmm.stop()?;
    let asked = Netdev {
        flags: PROMISC,
        ..wanted(NEAR)?
    };
    bind(&vmm, &asked)?;
    expect("promiscuous", promiscuous(NEAR)?, 1)?;
    vmm.stop()?;
    expect("promiscuous afterwards", promiscuous(NEAR)?, 0)
}
