// SPDX-License-Identifier: GPL-2.0

//! Where packets to the guest come from: a packet socket that sends the same
//! frame again and again, past the queueing discipline, and receives nothing.

use std::io;
use std::mem::size_of;
use std::os::fd::AsRawFd;
use std::os::fd::FromRawFd;
use std::os::fd::OwnedFd;

use anyhow::Context;
use anyhow::Result;

use crate::net;

/// Packets in one system call.
const CHUNK: usize = 64;
/// `PACKET_VNET_HDR` and `PACKET_QDISC_BYPASS` of linux/if_packet.h.
const PACKET_VNET_HDR: libc::c_int = 15;
const PACKET_QDISC_BYPASS: libc::c_int = 20;

/// A sender of one packet.
pub(crate) struct Source {
    fd: OwnedFd,
    packet: Vec<u8>,
    headers: bool,
}

impl Source {
    /// Sends `packet` to interface `name`. With `headers` it begins with a
    /// virtio-net header of 10 bytes.
    pub(crate) fn open(name: &str, packet: Vec<u8>, headers: bool) -> Result<Self> {
        // SAFETY: Plain system call without pointers.
        let fd = unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, 0) };
        if fd < 0 {
            return Err(io::Error::last_os_error()).context("socket(AF_PACKET)");
        }
        // SAFETY: `fd` was just opened and belongs to nobody else.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let source = Self {
            fd,
            packet,
            headers,
        };
        source.option(libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, 1 << 30)?;
        source.option(libc::SOL_PACKET, PACKET_VNET_HDR, headers.into())?;
        source.option(libc::SOL_PACKET, PACKET_QDISC_BYPASS, 1)?;
        // SAFETY: sockaddr_ll is plain data for which all zeroes are valid.
        let mut addr: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        addr.sll_family = libc::AF_PACKET as u16;
        addr.sll_ifindex = net::index(name)?;
        // SAFETY: `addr` is a valid sockaddr_ll of the length given.
        let rc = unsafe {
            libc::bind(
                source.fd.as_raw_fd(),
                std::ptr::from_ref(&addr).cast(),
                size_of::<libc::sockaddr_ll>() as libc::socklen_t,
            )
        };
        if rc != 0 {
            return Err(io::Error::last_os_error()).context("binding the packet socket");
        }
        Ok(source)
    }

    /// A sender of the same packet to another interface.
    pub(crate) fn on(&self, name: &str) -> Result<Self> {
        Self::open(name, self.packet.clone(), self.headers)
    }

    fn option(&self, level: libc::c_int, name: libc::c_int, value: libc::c_int) -> Result<()> {
        // SAFETY: The value is a valid int of the length given.
        let rc = unsafe {
            libc::setsockopt(
                self.fd.as_raw_fd(),
                level,
                name,
                std::ptr::from_ref(&value).cast(),
                size_of::<libc::c_int>() as libc::socklen_t,
            )
        };
        if rc != 0 {
            return Err(io::Error::last_os_error())
                .with_context(|| format!("packet socket option {name}"));
        }
        Ok(())
    }

    /// Sends the packet `count` times.
    pub(crate) fn send(&self, count: usize) -> Result<()> {
        let mut part = libc::iovec {
            iov_base: self.packet.as_ptr().cast_mut().cast(),
            iov_len: self.packet.len(),
        };
        // SAFETY: mmsghdr is plain data for which all zeroes are valid.
        let mut messages: [libc::mmsghdr; CHUNK] = unsafe { std::mem::zeroed() };
        for message in &mut messages {
            message.msg_hdr.msg_iov = &mut part;
            message.msg_hdr.msg_iovlen = 1;
        }
        let mut left = count;
        while left > 0 {
            let now = left.min(CHUNK);
            // SAFETY: The first `now` messages point to one valid buffer, which
            // is only read.
            let sent = unsafe {
                libc::sendmmsg(
                    self.fd.as_raw_fd(),
                    messages.as_mut_ptr(),
                    now as libc::c_uint,
                    0,
                )
            };
            if sent <= 0 {
                return Err(io::Error::last_os_error()).context("sendmmsg");
            }
            left -= sent as usize;
        }
        Ok(())
    }
}
