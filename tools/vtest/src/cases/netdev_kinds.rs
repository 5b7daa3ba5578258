// SPDX-License-Identifier: GPL-2.0

//! Queue pairs on network devices of several kinds, each over a veth pair.

use anyhow::Result;

use super::netdev;
use super::netdev::pair;
use super::netdev::tool;
use super::netdev::FAR;
use super::netdev::NEAR;
use super::netdev::V1;
use crate::case::Ctx;
use crate::case::Table;
use crate::net;
use crate::wire::Wire;

/// The device that the queues run on.
const ON: &str = "on";
/// What is made of the far end, where the packets are looked at.
const SEEN: &str = "seen";

/// Makes `ON` over `NEAR`, and returns a socket where its packets can be looked at as they are.
type Make = fn() -> Result<Wire>;

const KINDS: [(&str, Make); 6] = [
    ("vlan", vlan),
    ("bond", || bond("balance-rr")),
    ("active_backup_bond", || bond("active-backup")),
    ("vxlan", || tunnel(&["vxlan", "id", "7", "dstport", "4789"])),
    ("geneve", || tunnel(&["geneve", "id", "7"])),
    ("macvlan_on_a_vlan_on_a_bond", stack),
];

pub(super) fn register(table: &mut Table) {
    for (name, make) in KINDS {
        table.add(format!("netdev::{name}_carries_traffic"), move |ctx| {
            carries(ctx, make)
        });
    }
}

fn carries(ctx: &Ctx, make: Make) -> Result<()> {
    let mut vmm = netdev::stopped(ctx, V1, "vt0")?;
    pair()?;
    vmm.wire = make()?;
    net::set_up(ON, true)?;
    net::wait_carrier(ON)?;
    netdev::bind(&vmm, &netdev::wanted(ON)?)?;
    netdev::sizes(&mut vmm)?;
    vmm.stop()?;
    netdev::bind(&vmm, &netdev::wanted(ON)?)?;
    vmm.check_alive()?;
    vmm.check_quiet()
}

fn vlan() -> Result<Wire> {
    net::add_vlan(NEAR, ON, 5)?;
    net::add_vlan(FAR, SEEN, 5)?;
    net::set_up(SEEN, true)?;
    Wire::open(SEEN)
}

fn add_bond(name: &str, mode: &str) -> Result<()> {
    tool("ip", &["link", "add", name, "type", "bond", "mode", mode])?;
    net::set_up(NEAR, false)?;
    net::enslave(NEAR, name)?;
    net::set_mtu(name, 9000)?;
    net::set_up(name, true)?;
    net::wait_carrier(name)?;
    net::wait_carrier(FAR)
}

fn bond(mode: &str) -> Result<Wire> {
    add_bond(ON, mode)?;
    Wire::open(FAR)
}

fn stack() -> Result<Wire> {
    add_bond("below", "balance-rr")?;
    net::add_vlan("below", "tagged", 5)?;
    net::set_up("tagged", true)?;
    net::add_macvlan("tagged", ON, crate::frame::GUEST_MAC)?;
    net::add_vlan(FAR, SEEN, 5)?;
    net::set_up(SEEN, true)?;
    Wire::open(SEEN)
}

/// Its far end is in a namespace of its own: addresses are local to one.
fn tunnel(kind: &[&str]) -> Result<Wire> {
    let add = |name: &str, local: &str, below: &str, remote: &str| -> Result<()> {
        net::set_mtu(below, 9200)?;
        net::set_up(below, true)?;
        tool("ip", &["addr", "add", local, "dev", below])?;
        let link = [&["link", "add", name, "type"], kind, &["remote", remote]].concat();
        tool("ip", &link)?;
        net::set_mtu(name, 9000)?;
        net::set_up(name, true)
    };
    let beyond = net::another_namespace()?;
    net::move_into(FAR, &beyond)?;
    add(ON, "10.99.0.1/24", NEAR, "10.99.0.2")?;
    net::inside(&beyond, || {
        add(SEEN, "10.99.0.2/24", FAR, "10.99.0.1")?;
        net::wait_carrier(FAR)?;
        Wire::open(SEEN)
    })
}
