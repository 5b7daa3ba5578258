// SPDX-License-Identifier: GPL-2.0

//! A file of `/dev/rvhost-tap`, which stands for a queue of a network device as a TAP's does.

use std::fs::File;
use std::fs::OpenOptions;
use std::io;
use std::io::Read;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;

use anyhow::Context;
use anyhow::Result;

use crate::errno::Errno;
use crate::ioctl::Outcome;
use crate::ioctl::Raw;
use crate::net;

/// The node.
pub(crate) const PATH: &str = "/dev/rvhost-tap";

/// Numbers of `linux/if_tun.h`.
pub(crate) mod tun {
    pub(crate) const SETNOCSUM: libc::c_ulong = 0x4004_54c8;
    pub(crate) const SETIFF: libc::c_ulong = 0x4004_54ca;
    pub(crate) const SETPERSIST: libc::c_ulong = 0x4004_54cb;
    pub(crate) const GETFEATURES: libc::c_ulong = 0x8004_54cf;
    pub(crate) const SETOFFLOAD: libc::c_ulong = 0x4004_54d0;
    pub(crate) const GETIFF: libc::c_ulong = 0x8004_54d2;
    pub(crate) const GETSNDBUF: libc::c_ulong = 0x8004_54d3;
    pub(crate) const SETSNDBUF: libc::c_ulong = 0x4004_54d4;
    pub(crate) const GETVNETHDRSZ: libc::c_ulong = 0x8004_54d7;
    pub(crate) const SETVNETHDRSZ: libc::c_ulong = 0x4004_54d8;
    pub(crate) const SETQUEUE: libc::c_ulong = 0x4004_54d9;
    pub(crate) const SETVNETLE: libc::c_ulong = 0x4004_54dc;
    pub(crate) const GETVNETLE: libc::c_ulong = 0x8004_54dd;
    pub(crate) const SETVNETBE: libc::c_ulong = 0x4004_54de;
    pub(crate) const GETVNETBE: libc::c_ulong = 0x8004_54df;
    pub(crate) const GIFHWADDR: libc::c_ulong = 0x8927;
}

/// What QEMU and libvirt ask for, for one queue and for several.
pub(crate) const ONE: i32 = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
pub(crate) const MANY: i32 = ONE | libc::IFF_MULTI_QUEUE;

/// Opens the node, or another that answers alike.
pub(crate) fn open(path: &str, wait: bool) -> Result<File> {
    let flags = if wait { 0 } else { libc::O_NONBLOCK };
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_CLOEXEC | flags)
        .open(path)
        .context(path.to_owned())
}

/// A request with these flags.
fn request(name: &str, flags: i32) -> Result<libc::ifreq> {
    let mut req = net::ifreq(name)?;
    req.ifr_ifru.ifru_flags = flags as libc::c_short;
    Ok(req)
}

/// TUNSETIFF.
pub(crate) fn set(file: &File, name: &str, flags: i32) -> Result<Outcome> {
    Ok(Raw::of(file).put(tun::SETIFF, &request(name, flags)?))
}

/// TUNSETQUEUE.
pub(crate) fn attach(file: &File, attached: bool) -> Result<Outcome> {
    let flag = if attached {
        libc::IFF_ATTACH_QUEUE
    } else {
        libc::IFF_DETACH_QUEUE
    };
    Ok(Raw::of(file).put(tun::SETQUEUE, &request("", flag)?))
}

/// TUNGETIFF: the name and the flags.
pub(crate) fn get(file: &File) -> Result<(String, i32), Errno> {
    let mut req = [0u8; 40];
    Raw::of(file).get(tun::GETIFF, &mut req)?;
    let end = req.iter().position(|&byte| byte == 0).unwrap_or(16);
    let name = String::from_utf8_lossy(&req[..end.min(16)]).into_owned();
    Ok((name, u16::from_ne_bytes([req[16], req[17]]).into()))
}

/// A queue of the device `name`.
pub(crate) fn on(name: &str, flags: i32) -> Result<File> {
    let file = open(PATH, false)?;
    set(&file, name, flags)?.context("TUNSETIFF")?;
    Ok(file)
}

/// Writes a packet.
pub(crate) fn write(mut file: &File, bytes: &[u8]) -> Result<usize, Errno> {
    file.write(bytes).map_err(errno)
}

/// Reads a packet into so many bytes.
pub(crate) fn read(mut file: &File, room: usize) -> Result<Vec<u8>, Errno> {
    let mut bytes = vec![0; room];
    let len = file.read(&mut bytes).map_err(errno)?;
    bytes.truncate(len);
    Ok(bytes)
}

fn errno(error: io::Error) -> Errno {
    Errno(error.raw_os_error().unwrap_or(0))
}

/// What the file is ready for.
pub(crate) fn ready(file: &File) -> Result<i16> {
    use std::os::fd::AsRawFd;
    let mut entry = libc::pollfd {
        fd: file.as_raw_fd(),
        events: libc::POLLIN | libc::POLLOUT,
        revents: 0,
    };
    // SAFETY: `entry` is one valid pollfd that outlives the call.
    if unsafe { libc::poll(&mut entry, 1, 0) } < 0 {
        return Err(io::Error::last_os_error()).context("poll");
    }
    Ok(entry.revents)
}
