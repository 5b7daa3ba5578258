// SPDX-License-Identifier: GPL-2.0

//! Network interfaces of this process's own network namespace.

use std::ffi::CString;
use std::fs;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::fd::FromRawFd;
use std::os::fd::OwnedFd;

use anyhow::bail;
use anyhow::Context;
use anyhow::Result;

use crate::frame::GUEST_MAC;
use crate::poll;

/// Moves this process into a fresh network namespace in which nothing sends
/// unless told to.
pub(crate) fn own_namespace() -> Result<()> {
    // SAFETY: No memory is involved; the process is single-threaded.
    if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
        return Err(io::Error::last_os_error()).context("unshare(CLONE_NEWNET)");
    }
    for scope in ["all", "default"] {
        // Absent where the kernel has no IPv6: then it is quiet as it is.
        let _ = fs::write(format!("/proc/sys/net/ipv6/conf/{scope}/disable_ipv6"), "1");
    }
    Ok(())
}

/// The network namespace of a process.
pub(crate) fn namespace_of(pid: libc::pid_t) -> Result<File> {
    let path = format!("/proc/{pid}/ns/net");
    File::open(&path).context(path)
}

/// Does `body` in another network namespace.
pub(crate) fn inside<T>(namespace: &File, body: impl FnOnce() -> Result<T>) -> Result<T> {
    let own = namespace_of(std::process::id() as libc::pid_t)?;
    enter(namespace)?;
    let result = body();
    enter(&own)?;
    result
}

/// A fresh namespace beside this process's own; it goes with its last file, socket or process.
pub(crate) fn another_namespace() -> Result<File> {
    let pid = std::process::id() as libc::pid_t;
    let own = namespace_of(pid)?;
    own_namespace()?;
    let other = namespace_of(pid);
    enter(&own)?;
    other
}

fn enter(namespace: &File) -> Result<()> {
    // SAFETY: No memory is involved; the process is single-threaded.
    if unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) } != 0 {
        return Err(io::Error::last_os_error()).context("setns(CLONE_NEWNET)");
    }
    Ok(())
}

/// An interface name in the form ioctls take.
pub(crate) fn ifreq(name: &str) -> Result<libc::ifreq> {
    // SAFETY: ifreq is plain data for which all zeroes are valid.
    let mut req: libc::ifreq = unsafe { std::mem::zeroed() };
    if name.len() >= req.ifr_name.len() {
        bail!("interface name {name} is too long");
    }
    for (to, from) in req.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from as libc::c_char;
    }
    Ok(req)
}

fn control() -> Result<OwnedFd> {
    // SAFETY: Plain system call without pointers.
    let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error()).context("socket(AF_INET)");
    }
    // SAFETY: `fd` was just opened and belongs to nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn request(what: &str, number: libc::c_ulong, req: &mut libc::ifreq) -> Result<()> {
    let socket = control()?;
    // SAFETY: `req` is a valid ifreq for the duration of the call.
    if unsafe { libc::ioctl(socket.as_raw_fd(), number as _, req) } != 0 {
        return Err(io::Error::last_os_error()).with_context(|| what.to_owned());
    }
    Ok(())
}

/// The `IFF_*` flags of an interface.
pub(crate) fn flags(name: &str) -> Result<libc::c_int> {
    let mut req = ifreq(name)?;
    request("SIOCGIFFLAGS", libc::SIOCGIFFLAGS, &mut req)?;
    // SAFETY: The kernel has just filled in the flags member of the union.
    Ok(unsafe { req.ifr_ifru.ifru_flags }.into())
}

/// Brings an interface up or down.
pub(crate) fn set_up(name: &str, up: bool) -> Result<()> {
    let mut req = ifreq(name)?;
    // CAST: the structure has 16 of the bits.
    let mut flags = self::flags(name)? as libc::c_short;
    if up {
        flags |= libc::IFF_UP as libc::c_short;
    } else {
        flags &= !(libc::IFF_UP as libc::c_short);
    }
    req.ifr_ifru.ifru_flags = flags;
    request("SIOCSIFFLAGS", libc::SIOCSIFFLAGS, &mut req)
}

/// Sets the MTU of an interface.
pub(crate) fn set_mtu(name: &str, mtu: i32) -> Result<()> {
    let mut req = ifreq(name)?;
    req.ifr_ifru.ifru_mtu = mtu;
    request("SIOCSIFMTU", libc::SIOCSIFMTU, &mut req)
}

/// Sets the transmit queue length of an interface: for a TAP, the entries of
/// the ring that a backend reads from.
pub(crate) fn set_queue_len(name: &str, len: i32) -> Result<()> {
    let mut req = ifreq(name)?;
    req.ifr_ifru.ifru_metric = len;
    request("SIOCSIFTXQLEN", libc::SIOCSIFTXQLEN, &mut req)
}

/// The index of an interface.
pub(crate) fn index(name: &str) -> Result<i32> {
    let name_c = CString::new(name)?;
    // SAFETY: `name_c` is a valid C string.
    let index = unsafe { libc::if_nametoindex(name_c.as_ptr()) };
    if index == 0 {
        return Err(io::Error::last_os_error()).with_context(|| format!("no interface {name}"));
    }
    Ok(index as i32)
}

/// Waits until nobody holds an interface any more.
pub(crate) fn wait_gone(name: &str) -> Result<()> {
    poll::wait_for(&format!("interface {name} to go"), || {
        Ok(index(name).is_err().then_some(()))
    })
}

/// Deletes an interface, whoever holds it.
pub(crate) fn delete(name: &str) -> Result<()> {
    link_request(libc::RTM_DELLINK, 0, index(name)?, &[])
        .with_context(|| format!("deleting {name}"))
}

/// Makes a VLAN interface `name` with tag `id` on top of `parent`.
pub(crate) fn add_vlan(parent: &str, name: &str, id: u16) -> Result<()> {
    const IFLA_VLAN_ID: u16 = 1;
    let data = attribute(IFLA_VLAN_ID, &id.to_ne_bytes());
    let mut info = attribute(libc::IFLA_INFO_KIND, b"vlan");
    info.extend(attribute(libc::IFLA_INFO_DATA, &data));
    let mut attributes = attribute(libc::IFLA_LINK, &index(parent)?.to_ne_bytes());
    attributes.extend(attribute(libc::IFLA_IFNAME, name.as_bytes()));
    attributes.extend(attribute(libc::IFLA_LINKINFO, &info));
    let flags = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
    link_request(libc::RTM_NEWLINK, flags, 0, &attributes).with_context(|| format!("making {name}"))
}

/// Moves an interface into the network namespace of a process.
pub(crate) fn move_to(name: &str, pid: libc::pid_t) -> Result<()> {
    let attributes = attribute(libc::IFLA_NET_NS_PID, &pid.to_ne_bytes());
    link_request(libc::RTM_NEWLINK, 0, index(name)?, &attributes)
        .with_context(|| format!("moving {name}"))
}

/// Moves an interface into a network namespace that is open.
pub(crate) fn move_into(name: &str, namespace: &File) -> Result<()> {
    let attributes = attribute(libc::IFLA_NET_NS_FD, &namespace.as_raw_fd().to_ne_bytes());
    link_request(libc::RTM_NEWLINK, 0, index(name)?, &attributes)
        .with_context(|| format!("moving {name}"))
}

/// Gives an interface a hardware address.
pub(crate) fn set_address(name: &str, mac: [u8; 6]) -> Result<()> {
    let attributes = attribute(libc::IFLA_ADDRESS, &mac);
    link_request(libc::RTM_NEWLINK, 0, index(name)?, &attributes)
        .with_context(|| format!("address of {name}"))
}

/// Waits until an interface that is up can carry packets.
pub(crate) fn wait_carrier(name: &str) -> Result<()> {
    // Drivers of cards look every two seconds.
    let limit = 3 * poll::PATIENCE;
    poll::wait_at_most(limit, &format!("the carrier of {name}"), || {
        Ok((flags(name)? & libc::IFF_RUNNING != 0).then_some(()))
    })
}

/// Makes a bridge that sends nothing of its own: no reports of multicast groups either.
pub(crate) fn add_bridge(name: &str) -> Result<()> {
    const MCAST_SNOOPING: u16 = 23; // IFLA_BR_MCAST_SNOOPING
    let mut info = attribute(libc::IFLA_INFO_KIND, b"bridge");
    info.extend(attribute(
        libc::IFLA_INFO_DATA,
        &attribute(MCAST_SNOOPING, &[0]),
    ));
    let mut attributes = attribute(libc::IFLA_IFNAME, name.as_bytes());
    attributes.extend(attribute(libc::IFLA_LINKINFO, &info));
    let flags = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
    link_request(libc::RTM_NEWLINK, flags, 0, &attributes).with_context(|| format!("making {name}"))
}

/// Makes an interface a port of a bridge.
pub(crate) fn enslave(name: &str, bridge: &str) -> Result<()> {
    let attributes = attribute(libc::IFLA_MASTER, &index(bridge)?.to_ne_bytes());
    link_request(libc::RTM_NEWLINK, 0, index(name)?, &attributes)
        .with_context(|| format!("{name} into {bridge}"))
}

/// Makes a pair of interfaces, of which each receives what the other sends.
pub(crate) fn add_veth(name: &str, peer: &str) -> Result<()> {
    const VETH_INFO_PEER: u16 = 1;
    // struct ifinfomsg, then the attributes of the peer.
    let mut other = vec![0; 16];
    other.extend(attribute(libc::IFLA_IFNAME, peer.as_bytes()));
    let data = attribute(VETH_INFO_PEER, &other);
    let mut info = attribute(libc::IFLA_INFO_KIND, b"veth");
    info.extend(attribute(libc::IFLA_INFO_DATA, &data));
    let mut attributes = attribute(libc::IFLA_IFNAME, name.as_bytes());
    attributes.extend(attribute(libc::IFLA_LINKINFO, &info));
    let flags = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
    link_request(libc::RTM_NEWLINK, flags, 0, &attributes).with_context(|| format!("making {name}"))
}

/// Makes an interface that drops all it is to send.
pub(crate) fn add_dummy(name: &str) -> Result<()> {
    let info = attribute(libc::IFLA_INFO_KIND, b"dummy");
    let mut attributes = attribute(libc::IFLA_IFNAME, name.as_bytes());
    attributes.extend(attribute(libc::IFLA_LINKINFO, &info));
    let flags = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
    link_request(libc::RTM_NEWLINK, flags, 0, &attributes).with_context(|| format!("making {name}"))
}

/// Whom MacVLANs and MacVTaps on one device hear: their `IFLA_MACVLAN_MODE`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Not each other.
    Private = 1,
    /// Each other by the switch that the device is connected to.
    Vepa = 2,
    /// Each other.
    Bridge = 4,
    /// There is only one, which has all packets of its parent.
    Passthru = 8,
}

/// `IFLA_MACVLAN_MODE` and `IFLA_IPVLAN_MODE` alike.
const MODE: u16 = 1;

/// Makes a MacVLAN on `parent`, in bridge mode, that has what is sent to `mac`.
pub(crate) fn add_macvlan(parent: &str, name: &str, mac: [u8; 6]) -> Result<()> {
    add_macvlan_in(Mode::Bridge, parent, name, mac)
}

/// Makes a MacVLAN of this mode.
pub(crate) fn add_macvlan_in(mode: Mode, parent: &str, name: &str, mac: [u8; 6]) -> Result<()> {
    let data = attribute(MODE, &(mode as u32).to_ne_bytes());
    let mut info = attribute(libc::IFLA_INFO_KIND, b"macvlan");
    info.extend(attribute(libc::IFLA_INFO_DATA, &data));
    let mut attributes = attribute(libc::IFLA_LINK, &self::index(parent)?.to_ne_bytes());
    attributes.extend(attribute(libc::IFLA_IFNAME, name.as_bytes()));
    attributes.extend(attribute(libc::IFLA_ADDRESS, &mac));
    attributes.extend(attribute(libc::IFLA_LINKINFO, &info));
    let flags = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
    link_request(libc::RTM_NEWLINK, flags, 0, &attributes).with_context(|| format!("making {name}"))
}

/// What a file-backed interface on top of another one is.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Vtap {
    /// A MacVTap that has all packets of its parent.
    Mac,
    /// A MacVTap of this mode, with the guest's address.
    In(Mode),
    /// An IPVTap, which has its parent's address.
    Ip,
}

/// Makes such an interface, with this index.
pub(crate) fn add_vtap(kind: Vtap, parent: &str, name: &str, index: i32) -> Result<()> {
    const L2: u16 = 0;
    let (what, data) = match kind {
        Vtap::Mac => (
            "macvtap",
            attribute(MODE, &(Mode::Passthru as u32).to_ne_bytes()),
        ),
        Vtap::In(mode) => ("macvtap", attribute(MODE, &(mode as u32).to_ne_bytes())),
        Vtap::Ip => ("ipvtap", attribute(MODE, &L2.to_ne_bytes())),
    };
    let mut info = attribute(libc::IFLA_INFO_KIND, what.as_bytes());
    info.extend(attribute(libc::IFLA_INFO_DATA, &data));
    let mut attributes = attribute(libc::IFLA_LINK, &self::index(parent)?.to_ne_bytes());
    attributes.extend(attribute(libc::IFLA_IFNAME, name.as_bytes()));
    if let Vtap::In(_) = kind {
        attributes.extend(attribute(libc::IFLA_ADDRESS, &GUEST_MAC));
    }
    attributes.extend(attribute(libc::IFLA_LINKINFO, &info));
    let flags = libc::NLM_F_CREATE | libc::NLM_F_EXCL;
    link_request(libc::RTM_NEWLINK, flags, index, &attributes)
        .with_context(|| format!("making {name}"))
}

/// A netlink attribute, padded to a multiple of 4 bytes.
pub(crate) fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = ((4 + value.len()) as u16).to_ne_bytes().to_vec();
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

/// Asks the kernel to change interfaces and waits for its answer.
fn link_request(kind: u16, flags: libc::c_int, index: i32, attributes: &[u8]) -> Result<()> {
    const HEADER: usize = 16;
    const IFINFO: usize = 16;
    // SAFETY: Plain system call without pointers.
    let fd = unsafe {
        libc::socket(
            libc::AF_NETLINK,
            libc::SOCK_RAW | libc::SOCK_CLOEXEC,
            libc::NETLINK_ROUTE,
        )
    };
    if fd < 0 {
        return Err(io::Error::last_os_error()).context("socket(AF_NETLINK)");
    }
    // SAFETY: `fd` was just opened and belongs to nobody else.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // struct nlmsghdr, then struct ifinfomsg with nothing but the index.
    let mut message = Vec::new();
    message.extend(((HEADER + IFINFO + attributes.len()) as u32).to_ne_bytes());
    message.extend(kind.to_ne_bytes());
    message.extend(((libc::NLM_F_REQUEST | libc::NLM_F_ACK | flags) as u16).to_ne_bytes());
    message.resize(HEADER + 4, 0);
    message.extend(index.to_ne_bytes());
    message.resize(HEADER + IFINFO, 0);
    message.extend(attributes);
    let mut reply = [0u8; 1024];
    // SAFETY: Both buffers are valid for the lengths given.
    let len = unsafe {
        libc::send(
            socket.as_raw_fd(),
            message.as_ptr().cast(),
            message.len(),
            0,
        );
        libc::recv(
            socket.as_raw_fd(),
            reply.as_mut_ptr().cast(),
            reply.len(),
            0,
        )
    };
    // The answer is a struct nlmsgerr: 0 or a negative errno.
    let error = <[u8; 4]>::try_from(&reply[HEADER..HEADER + 4]).map_or(0, i32::from_ne_bytes);
    if len < HEADER as isize + 4 || error != 0 {
        bail!("netlink: {}", io::Error::from_raw_os_error(-error));
    }
    Ok(())
}

/// Packet counters of an interface, as the host sees them.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counters {
    /// Packets that came from the guest.
    pub(crate) rx_packets: u64,
    /// Packets the interface received that found no place.
    pub(crate) rx_dropped: u64,
    /// Packets the interface sent: for the guest, if it is a TAP.
    pub(crate) tx_packets: u64,
    /// Bytes of those.
    pub(crate) tx_bytes: u64,
    /// Packets for the guest that found no place.
    pub(crate) tx_dropped: u64,
}

/// Reads the counters of an interface.
pub(crate) fn counters(name: &str) -> Result<Counters> {
    let table = fs::read_to_string("/proc/net/dev").context("/proc/net/dev")?;
    let line = table
        .lines()
        .find_map(|line| line.trim_start().strip_prefix(name)?.strip_prefix(':'))
        .with_context(|| format!("no counters for {name}"))?;
    let fields: Vec<u64> = line
        .split_ascii_whitespace()
        .map(|field| field.parse().unwrap_or(0))
        .collect();
    let field = |i: usize| fields.get(i).copied().unwrap_or(0);
    Ok(Counters {
        rx_packets: field(1),
        rx_dropped: field(3),
        tx_bytes: field(8),
        tx_packets: field(9),
        tx_dropped: field(11),
    })
}
