// SPDX-License-Identifier: GPL-2.0

//! The far end: a packet socket on the TAP's interface. What it sends goes to
//! the guest, what the guest sends arrives on it, virtio-net headers included.

use std::cell::RefCell;
use std::io;
use std::mem::size_of;
use std::os::fd::AsRawFd;
use std::os::fd::FromRawFd;
use std::os::fd::OwnedFd;
use std::os::fd::RawFd;
use std::time::Duration;

use anyhow::bail;
use anyhow::Context;
use anyhow::Result;

use crate::frame::NetHdr;
use crate::net;
use crate::poll;

/// `PACKET_IGNORE_OUTGOING` of linux/if_packet.h.
const PACKET_IGNORE_OUTGOING: libc::c_int = 23;
/// `PACKET_VNET_HDR` of linux/if_packet.h.
const PACKET_VNET_HDR: libc::c_int = 15;
/// Header bytes the kernel puts before each packet.
const HDR: usize = 10;

/// A raw packet socket bound to one interface.
pub(crate) struct Wire {
    fd: OwnedFd,
    buffer: RefCell<Vec<u8>>,
}

impl Wire {
    /// Opens a socket on interface `name`.
    pub(crate) fn open(name: &str) -> Result<Self> {
        let protocol = (libc::ETH_P_ALL as u16).to_be();
        let wire = Self::unbound()?;
        wire.option(libc::SOL_PACKET, PACKET_VNET_HDR, 1)?;
        wire.option(libc::SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)?;
        wire.option(libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, 64 << 20)?;
        wire.option(libc::SOL_SOCKET, libc::SO_SNDBUFFORCE, 64 << 20)?;
        wire.bind(name, protocol)?;
        Ok(wire)
    }

    /// Opens a socket that has packets without a header.
    pub(crate) fn headerless(name: &str) -> Result<Self> {
        let wire = Self::unbound()?;
        wire.option(libc::SOL_PACKET, PACKET_IGNORE_OUTGOING, 1)?;
        wire.option(libc::SOL_SOCKET, libc::SO_RCVBUFFORCE, 64 << 20)?;
        wire.bind(name, (libc::ETH_P_ALL as u16).to_be())?;
        Ok(wire)
    }

    fn bind(&self, name: &str, protocol: u16) -> Result<()> {
        // SAFETY: sockaddr_ll is plain data for which all zeroes are valid.
        let mut addr: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        addr.sll_family = libc::AF_PACKET as u16;
        addr.sll_protocol = protocol;
        addr.sll_ifindex = net::index(name)?;
        // SAFETY: `addr` is a valid sockaddr_ll of the length given.
        let rc = unsafe {
            libc::bind(
                self.fd.as_raw_fd(),
                std::ptr::from_ref(&addr).cast(),
                size_of::<libc::sockaddr_ll>() as libc::socklen_t,
            )
        };
        if rc != 0 {
            return Err(io::Error::last_os_error()).context("binding the packet socket");
        }
        Ok(())
    }

    /// Opens a raw packet socket that receives nothing.
    pub(crate) fn unbound() -> Result<Self> {
        // SAFETY: Plain system call without pointers.
        let fd = unsafe {
            libc::socket(
                libc::AF_PACKET,
                libc::SOCK_RAW | libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK,
                0,
            )
        };
        if fd < 0 {
            return Err(io::Error::last_os_error()).context("socket(AF_PACKET)");
        }
        // SAFETY: `fd` was just opened and belongs to nobody else.
        let fd = unsafe { OwnedFd::from_raw_fd(fd) };
        let buffer = RefCell::new(vec![0; 1 << 17]);
        Ok(Self { fd, buffer })
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

    /// Sends a frame to the guest; the interface accepting it is not yet the
    /// guest receiving it.
    pub(crate) fn send(&self, hdr: &NetHdr, frame: &[u8]) -> Result<()> {
        let hdr = hdr.bytes(HDR);
        let mut parts = [
            libc::iovec {
                iov_base: hdr.as_ptr().cast_mut().cast(),
                iov_len: hdr.len(),
            },
            libc::iovec {
                iov_base: frame.as_ptr().cast_mut().cast(),
                iov_len: frame.len(),
            },
        ];
        // SAFETY: msghdr is plain data for which all zeroes are valid.
        let mut msg: libc::msghdr = unsafe { std::mem::zeroed() };
        msg.msg_iov = parts.as_mut_ptr();
        msg.msg_iovlen = 2;
        // SAFETY: `msg` points to two valid buffers, which are only read.
        let sent = unsafe { libc::sendmsg(self.fd.as_raw_fd(), &msg, 0) };
        if sent < 0 {
            return Err(io::Error::last_os_error())
                .with_context(|| format!("sending a frame of {} bytes", frame.len()));
        }
        if sent as usize != HDR + frame.len() {
            bail!("sent {sent} of {} bytes", HDR + frame.len());
        }
        Ok(())
    }

    /// Throws away all frames that have arrived, also those whose header, made up by
    /// the guest, the socket cannot put into words.
    pub(crate) fn drain(&self) -> Result<()> {
        loop {
            match self.try_recv() {
                Ok(Some(_)) => {}
                Ok(None) => return Ok(()),
                Err(e) => match e.downcast_ref::<io::Error>() {
                    Some(cause) if cause.raw_os_error() == Some(libc::EINVAL) => {}
                    _ => return Err(e),
                },
            }
        }
    }

    /// Takes a frame from the guest where one has arrived; what exceeds 128 KiB
    /// is cut off.
    pub(crate) fn try_recv(&self) -> Result<Option<(NetHdr, Vec<u8>)>> {
        let mut buffer = self.buffer.borrow_mut();
        // SAFETY: The buffer is valid for the length given.
        let len = unsafe {
            libc::recv(
                self.fd.as_raw_fd(),
                buffer.as_mut_ptr().cast(),
                buffer.len(),
                libc::MSG_TRUNC,
            )
        };
        if len < 0 {
            let error = io::Error::last_os_error();
            if error.kind() == io::ErrorKind::WouldBlock {
                return Ok(None);
            }
            // An interface going down is reported once, before what came until then.
            if error.raw_os_error() == Some(libc::ENETDOWN) {
                drop(buffer);
                return self.try_recv();
            }
            return Err(error).context("receiving from the packet socket");
        }
        let len = len as usize;
        if len < HDR {
            bail!("packet socket returned {len} bytes");
        }
        let len = len.min(buffer.len());
        let (hdr, frame) = buffer[..len].split_at(HDR);
        Ok(Some((NetHdr::parse(hdr), frame.to_vec())))
    }

    /// Waits for a frame from the guest.
    pub(crate) fn recv(&self) -> Result<(NetHdr, Vec<u8>)> {
        loop {
            if let Some(packet) = self.try_recv()? {
                return Ok(packet);
            }
            if !poll::readable(&self.fd, poll::PATIENCE)? {
                bail!(
                    "no frame from the guest arrived on the interface in {:?}",
                    poll::PATIENCE
                );
            }
        }
    }

    /// Fails if a frame has arrived.
    pub(crate) fn expect_silence(&self) -> Result<()> {
        if poll::readable(&self.fd, Duration::ZERO)? {
            let (hdr, frame) = self.recv()?;
            bail!(
                "a frame of {} bytes arrived that should not: {hdr:?}",
                frame.len()
            );
        }
        Ok(())
    }
}

impl AsRawFd for Wire {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}
