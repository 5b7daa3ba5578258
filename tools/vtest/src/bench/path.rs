// SPDX-License-Identifier: GPL-2.0

//! What packets pass between a guest's queues and the network.

use std::fs;

use anyhow::Context;
use anyhow::Result;
use clap::ValueEnum;

use crate::bench::rig::OFFLOADS;
use crate::bench::Way;
use crate::frame::GUEST_MAC;
use crate::ioctl;
use crate::ioctl::Netdev;
use crate::ioctl::Rss;
use crate::net;
use crate::net::Mode;
use crate::tap::Tap;
use crate::tap::TapOptions;
use crate::vmm::Vmm;

/// The device that stands for the network card: it drops what it is to send, or is one end of a
/// pair, where packets for the guest enter at the other.
const CARD: &str = "near";
const OTHER_END: &str = "far";

/// What there is between the queues and the card.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Path {
    /// A TAP, and no card behind it.
    Tap,
    /// A TAP in a bridge with the card.
    Bridge,
    /// A MacVTap on the card: it has all of it to receive, and is in VEPA mode to send.
    Macvtap,
    /// The same, its packets steered by rvhost.
    MacvtapRss,
    /// A MacVLAN likewise, by RVHOST_NET_SET_NETDEV.
    Macvlan,
    /// Nothing: RVHOST_NET_SET_NETDEV names the card.
    Netdev,
}

/// Where the packets of a machine enter and leave the path.
pub(crate) struct Ends {
    /// The interface by which packets for the guest are sent.
    pub(crate) source: String,
    /// The interface that counts what the guest sends, and whether as sent.
    pub(crate) count: (String, bool),
}

impl Ends {
    /// How many packets have left the guest.
    pub(crate) fn left(&self) -> Result<u64> {
        let counters = net::counters(&self.count.0)?;
        Ok(match self.count.1 {
            true => counters.tx_packets,
            false => counters.rx_packets,
        })
    }
}

impl Path {
    /// Puts the queues of `vmm`, which are stopped, on the path. `queue` packets for the guest may
    /// wait in it.
    pub(crate) fn set_up(self, vmm: &mut Vmm, way: Way, queue: u32) -> Result<Ends> {
        let name = vmm.tap.name().to_owned();
        if self == Self::Tap {
            net::set_queue_len(&name, queue as i32)?;
            vmm.start()?;
            return Ok(Ends {
                source: name.clone(),
                count: (name, false),
            });
        }
        be_silent()?;
        let (mode, source) = match way {
            Way::Tx => {
                net::add_dummy(CARD)?;
                (Mode::Vepa, CARD)
            }
            Way::Rx | Way::Both => {
                net::add_veth(CARD, OTHER_END)?;
                net::set_up(OTHER_END, true)?;
                (Mode::Passthru, OTHER_END)
            }
        };
        net::set_up(CARD, true)?;
        match self {
            Self::Tap => {}
            Self::Bridge => {
                net::add_bridge("bridge")?;
                net::enslave(&name, "bridge")?;
                net::enslave(CARD, "bridge")?;
                net::set_up("bridge", true)?;
                net::set_queue_len(&name, queue as i32)?;
                vmm.start()?;
            }
            Self::Macvtap | Self::MacvtapRss => {
                let options = TapOptions {
                    header: vmm.hdr_len,
                    ..TapOptions::default()
                };
                vmm.tap = Tap::open_vtap(net::Vtap::In(mode), "mvt", CARD, &options)?;
                net::set_queue_len("mvt", queue as i32)?;
                vmm.start()?;
                if self == Self::MacvtapRss {
                    vmm.vhost
                        .raw()
                        .put(ioctl::RVHOST_NET_SET_RSS(), &Rss::none())
                        .context("RVHOST_NET_SET_RSS")?;
                }
            }
            Self::Macvlan => {
                net::add_macvlan_in(mode, CARD, "mvl", GUEST_MAC)?;
                net::set_up("mvl", true)?;
                bind(vmm, "mvl", queue)?;
            }
            Self::Netdev => bind(vmm, CARD, queue)?,
        }
        Ok(Ends {
            source: source.to_owned(),
            count: (CARD.to_owned(), true),
        })
    }
}

/// Keeps the interfaces of this network namespace from speaking IPv6, where there is any.
fn be_silent() -> Result<()> {
    for scope in ["all", "default"] {
        let file = format!("/proc/sys/net/ipv6/conf/{scope}/disable_ipv6");
        if fs::exists(&file)? {
            fs::write(&file, "1").context(file)?;
        }
    }
    Ok(())
}

fn bind(vmm: &Vmm, name: &str, ring: u32) -> Result<()> {
    let wanted = Netdev {
        ifindex: net::index(name)? as u32,
        flags: 0,
        queue: u32::MAX,
        offloads: OFFLOADS,
        ring,
        sndbuf: 0,
        reserved: [0; 2],
    };
    vmm.vhost
        .raw()
        .put(ioctl::RVHOST_NET_SET_NETDEV(), &wanted)
        .context("RVHOST_NET_SET_NETDEV")?;
    Ok(())
}
