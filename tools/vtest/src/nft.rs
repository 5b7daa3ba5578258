// SPDX-License-Identifier: GPL-2.0

//! Just enough of nftables' netlink for a chain that drops all that passes a network device.

use std::io;
use std::os::fd::AsRawFd;
use std::os::fd::FromRawFd;
use std::os::fd::OwnedFd;

use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;

use crate::net::attribute;

/// Header of a netlink message.
const HEADER: usize = 16;
/// `NFNL_SUBSYS_NFTABLES` of linux/netfilter/nfnetlink.h.
const NFTABLES: u16 = 10;
const NEW_TABLE: u16 = NFTABLES << 8;
const DELETE_TABLE: u16 = NFTABLES << 8 | 2;
const NEW_CHAIN: u16 = NFTABLES << 8 | 3;
const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
/// `NFPROTO_NETDEV`.
const NETDEV: u8 = 5;
const NESTED: u16 = 1 << 15;
const TABLE: &[u8] = b"vtest\0";

/// Where a device's hooks are.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Hook {
    /// What it receives.
    Ingress = 0,
    /// What it sends.
    Egress = 1,
}

/// A chain on a device that drops everything, taken off when dropped.
pub(crate) struct DropAll(());

impl DropAll {
    /// Puts it there. At most one in a namespace.
    pub(crate) fn on(device: &str, hook: Hook) -> Result<Self> {
        let mut place = attribute(1, &(hook as u32).to_be_bytes());
        place.extend(attribute(2, &0u32.to_be_bytes()));
        place.extend(attribute(3, format!("{device}\0").as_bytes()));
        let mut chain = attribute(1, TABLE);
        chain.extend(attribute(3, b"all\0"));
        chain.extend(attribute(4 | NESTED, &place));
        // NF_DROP.
        chain.extend(attribute(5, &0u32.to_be_bytes()));
        chain.extend(attribute(7, b"filter\0"));
        request(&[(NEW_TABLE, attribute(1, TABLE)), (NEW_CHAIN, chain)])
            .with_context(|| format!("{hook:?} chain on {device}"))?;
        Ok(Self(()))
    }
}

impl Drop for DropAll {
    fn drop(&mut self) {
        // The namespace goes with the case.
        let _ = request(&[(DELETE_TABLE, attribute(1, TABLE))]);
    }
}

fn message(kind: u16, flags: libc::c_int, family: u8, resource: u16, attributes: &[u8]) -> Vec<u8> {
    let mut message = Vec::new();
    message.extend(((HEADER + 4 + attributes.len()) as u32).to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(((libc::NLM_F_REQUEST | flags) as u16).to_ne_bytes());
    message.resize(HEADER, 0);
    message.extend([family, 0]);
    message.extend(resource.to_be_bytes());
    message.extend(attributes);
    message
}

/// Carries out all of these, or none.
fn request(parts: &[(u16, Vec<u8>)]) -> Result<()> {
    // SAFETY: Plain system call without pointers.
    let fd = unsafe {
        libc::socket(
            libc::AF_NETLINK,
            libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK,
            libc::NETLINK_NETFILTER,
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error()).context("socket(AF_NETLINK)");
    }
    // SAFETY: `fd` was just opened and belongs to nobody else.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    let mut batch = message(BATCH_BEGIN, 0, 0, NFTABLES, &[]);
    for (kind, attributes) in parts {
        let flags = libc::NLM_F_ACK | libc::NLM_F_CREATE;
        batch.extend(message(*kind, flags, NETDEV, 0, attributes));
    }
    batch.extend(message(BATCH_END, 0, 0, NFTABLES, &[]));
    // SAFETY: The buffer is valid for its length.
    let sent = unsafe { libc::send(socket.as_raw_fd(), batch.as_ptr().cast(), batch.len(), 0) };
    ensure!(
        sent == batch.len() as isize,
        "netlink: {}",
        io::Error::last_os_error()
    );
    // The batch was carried out meanwhile, and each part answered.
    for _ in parts {
        let mut reply = [0u8; 1024];
        // SAFETY: The buffer is valid for its length.
        let len = unsafe {
            libc::recv(
                socket.as_raw_fd(),
                reply.as_mut_ptr().cast(),
                reply.len(),
                0,
            )
        };
        ensure!(len >= HEADER as isize + 4, "netlink: no answer");
        let error = <[u8; 4]>::try_from(&reply[HEADER..HEADER + 4]).map_or(0, i32::from_ne_bytes);
        ensure!(
            error == 0,
            "netlink: {}",
            io::Error::from_raw_os_error(-error)
        );
    }
    Ok(())
}
