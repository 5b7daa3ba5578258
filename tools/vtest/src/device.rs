// SPDX-License-Identifier: GPL-2.0

//! A vhost-net device of any path, on the traits of the `vhost` crate, whose
//! own type opens one path only.

use std::fs::File;
use std::fs::OpenOptions;
use std::os::fd::AsRawFd;
use std::os::fd::RawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use anyhow::Result;
use vhost::net::VhostNet as NetBackend;
use vhost::vhost_kern::VhostKernBackend;
use vm_memory::GuestMemoryMmap;

use crate::ioctl::Raw;
use crate::mem::Memory;
use crate::traffic::expect;

/// Feature bits, as masks.
pub(crate) mod feature {
    use crate::case::Module;

    /// VIRTIO_NET_F_MRG_RXBUF
    pub(crate) const MRG_RXBUF: u64 = 1 << 15;
    /// VIRTIO_F_NOTIFY_ON_EMPTY
    pub(crate) const NOTIFY_ON_EMPTY: u64 = 1 << 24;
    /// VHOST_F_LOG_ALL
    pub(crate) const LOG_ALL: u64 = 1 << 26;
    /// VHOST_NET_F_VIRTIO_NET_HDR
    pub(crate) const NET_HDR: u64 = 1 << 27;
    /// VIRTIO_RING_F_INDIRECT_DESC
    pub(crate) const INDIRECT_DESC: u64 = 1 << 28;
    /// VIRTIO_RING_F_EVENT_IDX
    pub(crate) const EVENT_IDX: u64 = 1 << 29;
    /// VIRTIO_F_VERSION_1
    pub(crate) const VERSION_1: u64 = 1 << 32;
    /// VIRTIO_F_ACCESS_PLATFORM
    pub(crate) const ACCESS_PLATFORM: u64 = 1 << 33;
    /// VIRTIO_NET_F_GUEST_UDP_TUNNEL_GSO and its HOST counterpart, from bit 64 on
    pub(crate) const UDP_TUNNEL_GSO: u64 = 1 << 1 | 1 << 3;
    /// VIRTIO_F_IN_ORDER
    pub(crate) const IN_ORDER: u64 = 1 << 35;
    /// VIRTIO_NET_F_HASH_REPORT
    pub(crate) const HASH_REPORT: u64 = 1 << 57;

    /// Word 0 and word 1 of what the module offers.
    pub(crate) const fn offered(module: Module) -> [u64; 2] {
        match module {
            Module::C => [0x0000_010b_3d00_8000, 0xa],
            Module::Rust => [0x0000_010b_3d00_8000 | HASH_REPORT, 0xa],
        }
    }
}

/// Index of the virtqueue that carries packets to the guest.
pub(crate) const RX: usize = 0;
/// Index of the virtqueue that carries packets from the guest.
pub(crate) const TX: usize = 1;

/// An open vhost-net device.
pub(crate) struct VhostNet {
    file: File,
    mem: Arc<GuestMemoryMmap<()>>,
}

impl VhostNet {
    /// Opens the device for a guest with memory `mem`.
    pub(crate) fn open(path: &Path, mem: &Memory) -> Result<Self> {
        Ok(Self {
            file: open(path)?,
            mem: mem.address_space(),
        })
    }

    /// The open file.
    pub(crate) fn file(&self) -> &File {
        &self.file
    }

    /// The same device for ioctls with arguments of any kind.
    pub(crate) fn raw(&self) -> Raw {
        Raw::of(&self.file)
    }
}

/// Opens the device node and no more.
pub(crate) fn open(path: &Path) -> Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_CLOEXEC | libc::O_NONBLOCK)
        .open(path)
        .with_context(|| format!("opening {}", path.display()))
}

/// Opens the device node and becomes the owner.
pub(crate) fn owned(path: &Path) -> Result<File> {
    let file = open(path)?;
    expect("SET_OWNER", Raw::of(&file).set_owner(), Ok(0))?;
    Ok(file)
}

impl AsRawFd for VhostNet {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

impl VhostKernBackend for VhostNet {
    type AS = Arc<GuestMemoryMmap<()>>;

    fn mem(&self) -> &Self::AS {
        &self.mem
    }
}

impl NetBackend for VhostNet {
    fn set_backend(&self, queue_idx: usize, fd: Option<&File>) -> vhost::Result<()> {
        let fd = fd.map_or(-1, AsRawFd::as_raw_fd);
        match self.raw().set_backend(queue_idx as u32, fd) {
            Ok(_) => Ok(()),
            Err(errno) => Err(vhost::Error::IoctlError(std::io::Error::from_raw_os_error(
                errno.0,
            ))),
        }
    }
}
