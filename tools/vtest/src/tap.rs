// SPDX-License-Identifier: GPL-2.0

//! A TAP interface: what vhost-net sends to and receives from.

use std::fs::File;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::AsRawFd;
use std::os::fd::RawFd;
use std::os::unix::fs::OpenOptionsExt;

use anyhow::Context;
use anyhow::Result;
use vmm_sys_util::ioctl::ioctl_with_ref;
use vmm_sys_util::ioctl::ioctl_with_val;
use vmm_sys_util::ioctl_ior_nr;
use vmm_sys_util::ioctl_iow_nr;

use crate::bpf::SocketFilter;
use crate::net;
use crate::net::Vtap;

const TUN: libc::c_uint = b'T' as libc::c_uint;
ioctl_iow_nr!(TUNSETIFF, TUN, 202, libc::c_int);
ioctl_iow_nr!(TUNSETOFFLOAD, TUN, 208, libc::c_uint);
ioctl_iow_nr!(TUNSETSNDBUF, TUN, 212, libc::c_int);
ioctl_iow_nr!(TUNATTACHFILTER, TUN, 213, libc::sock_fprog);
ioctl_iow_nr!(TUNDETACHFILTER, TUN, 214, libc::sock_fprog);
ioctl_iow_nr!(TUNSETVNETHDRSZ, TUN, 216, libc::c_int);
ioctl_iow_nr!(TUNSETQUEUE, TUN, 217, libc::c_int);
ioctl_ior_nr!(TUNSETSTEERINGEBPF, TUN, 224, libc::c_int);
ioctl_ior_nr!(TUNSETFILTEREBPF, TUN, 225, libc::c_int);

/// Checksum offload to the guest.
pub(crate) const TUN_F_CSUM: u32 = 1;
/// TCP segmentation offload to the guest, IPv4.
pub(crate) const TUN_F_TSO4: u32 = 2;

/// How a TAP is made.
#[derive(Clone, Debug)]
pub(crate) struct TapOptions {
    /// Size of the virtio-net header between us and the TAP; 0 for none.
    pub(crate) header: usize,
    /// `TUN_F_*`.
    pub(crate) offloads: u32,
    /// Several queues.
    pub(crate) multi_queue: bool,
    /// Through NAPI, as drivers receive.
    pub(crate) napi: bool,
    /// Send buffer limit.
    pub(crate) sndbuf: i32,
    /// Largest packet the interface takes without segmentation, or the default.
    pub(crate) mtu: Option<i32>,
}

impl Default for TapOptions {
    fn default() -> Self {
        Self {
            header: 12,
            offloads: 0,
            multi_queue: false,
            napi: false,
            sndbuf: i32::MAX,
            mtu: Some(65521),
        }
    }
}

/// One queue of a TAP interface.
pub(crate) struct Tap {
    file: File,
    name: String,
}

impl Tap {
    /// Opens a queue of the interface `name`, making it where it does not exist.
    pub(crate) fn open(name: &str, options: &TapOptions) -> Result<Self> {
        let tap = Self {
            file: Self::open_unattached()?,
            name: name.to_owned(),
        };
        tap.make(options)?;
        Ok(tap)
    }

    /// Makes the interface, where it does not exist or was deleted, and joins it.
    pub(crate) fn make(&self, options: &TapOptions) -> Result<()> {
        let mut req = net::ifreq(&self.name)?;
        let mut flags = libc::IFF_TAP | libc::IFF_NO_PI;
        if options.header != 0 {
            flags |= libc::IFF_VNET_HDR;
        }
        if options.multi_queue {
            flags |= libc::IFF_MULTI_QUEUE;
        }
        if options.napi {
            flags |= libc::IFF_NAPI;
        }
        req.ifr_ifru.ifru_flags = flags as libc::c_short;
        // SAFETY: The fd is a tun file and `req` a valid ifreq.
        check("TUNSETIFF", unsafe {
            ioctl_with_ref(&self.file, TUNSETIFF(), &req)
        })?;
        if options.header != 0 {
            self.set_header(options.header)?;
        }
        self.set_sndbuf(options.sndbuf)?;
        self.set_offloads(options.offloads)?;
        if let Some(mtu) = options.mtu {
            net::set_mtu(&self.name, mtu)?;
        }
        net::set_up(&self.name, true)
    }

    /// Makes a MacVTap or IPVTap on `parent` and opens it.
    pub(crate) fn open_vtap(
        kind: Vtap,
        name: &str,
        parent: &str,
        options: &TapOptions,
    ) -> Result<Self> {
        // The node is named after the index, whatever the namespace.
        let index = 100_000 + std::process::id() as i32;
        net::add_vtap(kind, parent, name, index)?;
        net::set_up(name, true)?;
        Self::open_vtap_queue(name, options)
    }

    /// Opens one more queue of a MacVTap or IPVTap.
    pub(crate) fn open_vtap_queue(name: &str, options: &TapOptions) -> Result<Self> {
        let path = format!("/dev/tap{}", net::index(name)?);
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_CLOEXEC | libc::O_NONBLOCK)
            .open(&path)
            .context(path)?;
        let mut req = net::ifreq(name)?;
        let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_MULTI_QUEUE;
        req.ifr_ifru.ifru_flags = flags as libc::c_short;
        // SAFETY: The fd is a macvtap file and `req` a valid ifreq.
        check("TUNSETIFF", unsafe {
            ioctl_with_ref(&file, TUNSETIFF(), &req)
        })?;
        let tap = Self {
            file,
            name: name.to_owned(),
        };
        tap.set_header(options.header)?;
        tap.set_sndbuf(options.sndbuf)?;
        Ok(tap)
    }

    /// Opens a tun file that belongs to no interface.
    pub(crate) fn open_unattached() -> Result<File> {
        OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_CLOEXEC | libc::O_NONBLOCK)
            .open("/dev/net/tun")
            .context("opening /dev/net/tun")
    }

    /// The interface's name.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }

    /// The open file, as a backend.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// Closes our descriptor; whoever else holds the queue keeps it.
    pub(crate) fn close(&mut self) -> Result<()> {
        self.file = File::open("/dev/null").context("opening /dev/null")?;
        Ok(())
    }

    /// Sets the size of the virtio-net header.
    pub(crate) fn set_header(&self, size: usize) -> Result<()> {
        let size = size as libc::c_int;
        // SAFETY: The fd is a tun file and the argument a valid int.
        check("TUNSETVNETHDRSZ", unsafe {
            ioctl_with_ref(&self.file, TUNSETVNETHDRSZ(), &size)
        })
    }

    /// Attaches this queue of a multiqueue interface, or detaches it.
    pub(crate) fn attach(&self, attached: bool) -> Result<()> {
        let mut req = net::ifreq("")?;
        let flag = if attached {
            libc::IFF_ATTACH_QUEUE
        } else {
            libc::IFF_DETACH_QUEUE
        };
        req.ifr_ifru.ifru_flags = flag as libc::c_short;
        // SAFETY: The fd is a tun file and `req` a valid ifreq.
        check("TUNSETQUEUE", unsafe {
            ioctl_with_ref(&self.file, TUNSETQUEUE(), &req)
        })
    }

    /// Lets no packet through to the guest, or all of them again.
    pub(crate) fn filter_all(&self, on: bool) -> Result<()> {
        // Returns a constant: how many bytes of a packet to keep.
        let mut none = [libc::sock_filter {
            code: 0x06,
            jt: 0,
            jf: 0,
            k: 0,
        }];
        let program = libc::sock_fprog {
            len: 1,
            filter: none.as_mut_ptr(),
        };
        let (what, number) = match on {
            true => ("TUNATTACHFILTER", TUNATTACHFILTER()),
            false => ("TUNDETACHFILTER", TUNDETACHFILTER()),
        };
        // SAFETY: The fd is a tun file, the program valid, and copied.
        check(what, unsafe {
            ioctl_with_ref(&self.file, number, &program)
        })
    }

    /// Has a program choose the queue of each packet to the guest, or none.
    pub(crate) fn steer(&self, program: Option<&SocketFilter>) -> Result<()> {
        self.program("TUNSETSTEERINGEBPF", TUNSETSTEERINGEBPF(), program)
    }

    /// Has a program say how much of each packet the guest gets, or none.
    pub(crate) fn filter(&self, program: Option<&SocketFilter>) -> Result<()> {
        self.program("TUNSETFILTEREBPF", TUNSETFILTEREBPF(), program)
    }

    fn program(
        &self,
        what: &str,
        number: libc::c_ulong,
        program: Option<&SocketFilter>,
    ) -> Result<()> {
        let fd: libc::c_int = program.map_or(-1, AsRawFd::as_raw_fd);
        // SAFETY: The fd is a tun file and the argument a valid int.
        check(what, unsafe { ioctl_with_ref(&self.file, number, &fd) })
    }

    /// Says what its reader takes: `TUN_F_*`.
    pub(crate) fn set_offloads(&self, offloads: u32) -> Result<()> {
        // SAFETY: The fd is a tun file; the argument is passed by value.
        check("TUNSETOFFLOAD", unsafe {
            ioctl_with_val(&self.file, TUNSETOFFLOAD(), libc::c_ulong::from(offloads))
        })
    }

    /// Limits what may be in flight.
    pub(crate) fn set_sndbuf(&self, bytes: i32) -> Result<()> {
        // SAFETY: The fd is a tun file and the argument a valid int.
        check("TUNSETSNDBUF", unsafe {
            ioctl_with_ref(&self.file, TUNSETSNDBUF(), &bytes)
        })
    }

    /// Reads one packet with its header as a process without vhost would;
    /// nothing when there is none.
    pub(crate) fn read(&self) -> Result<Option<Vec<u8>>> {
        let mut buffer = vec![0; 70_000];
        match io::Read::read(&mut &self.file, &mut buffer) {
            Ok(len) => {
                buffer.truncate(len);
                Ok(Some(buffer))
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error).context("reading the tap"),
        }
    }
}

impl AsRawFd for Tap {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

fn check(what: &str, rc: libc::c_int) -> Result<()> {
    if rc < 0 {
        return Err(io::Error::last_os_error()).with_context(|| what.to_owned());
    }
    Ok(())
}
