// SPDX-License-Identifier: GPL-2.0

//! Every vhost-net ioctl, raw: any argument, right or wrong, and the errno
//! that came back. For set-ups that must work, see the `vhost` crate's traits
//! on [`crate::device::VhostNet`].

use std::os::fd::AsRawFd;
use std::os::fd::RawFd;

use vmm_sys_util::ioctl_io_nr;
use vmm_sys_util::ioctl_ior_nr;
use vmm_sys_util::ioctl_iow_nr;
use vmm_sys_util::ioctl_iowr_nr;

use crate::errno::Errno;

/// What an ioctl returned.
pub(crate) type Outcome = Result<i32, Errno>;

/// `struct vhost_vring_state`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct VringState {
    pub(crate) index: u32,
    pub(crate) num: u32,
}

/// `struct vhost_vring_file`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct VringFile {
    pub(crate) index: u32,
    pub(crate) fd: i32,
}

/// `struct vhost_vring_addr`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct VringAddr {
    pub(crate) index: u32,
    pub(crate) flags: u32,
    pub(crate) desc: u64,
    pub(crate) used: u64,
    pub(crate) avail: u64,
    pub(crate) log: u64,
}

/// `struct vhost_memory_region`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct MemoryRegion {
    pub(crate) gpa: u64,
    pub(crate) size: u64,
    pub(crate) uaddr: u64,
    pub(crate) flags_padding: u64,
}

impl MemoryRegion {
    /// `size` bytes at guest address `gpa`, which the owner has at `uaddr`.
    pub(crate) fn new(gpa: u64, size: u64, uaddr: u64) -> Self {
        Self {
            gpa,
            size,
            uaddr,
            flags_padding: 0,
        }
    }
}

/// `struct rvhost_net_netdev`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Netdev {
    pub(crate) ifindex: u32,
    pub(crate) flags: u32,
    pub(crate) queue: u32,
    pub(crate) offloads: u32,
    pub(crate) ring: u32,
    pub(crate) sndbuf: u32,
    pub(crate) reserved: [u32; 2],
}

/// `struct rvhost_net_rss`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rss {
    pub(crate) flags: u32,
    pub(crate) hash_types: u32,
    pub(crate) unclassified: u16,
    pub(crate) table_len: u16,
    pub(crate) key_len: u16,
    pub(crate) reserved: u16,
    pub(crate) key: [u8; 40],
    pub(crate) table: [u16; 128],
    pub(crate) carried: [u64; 128],
}

impl Rss {
    /// One that changes nothing.
    pub(crate) fn none() -> Self {
        Self {
            flags: 0,
            hash_types: 0,
            unclassified: 0,
            table_len: 0,
            key_len: 0,
            reserved: 0,
            key: [0; 40],
            table: [0; 128],
            carried: [0; 128],
        }
    }
}

/// `struct rvhost_net_cpus`.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub(crate) struct CpuSet {
    pub(crate) queue: u32,
    pub(crate) bytes: u32,
    pub(crate) mask: u64,
}

const VHOST: libc::c_uint = 0xaf;

ioctl_ior_nr!(GET_FEATURES, VHOST, 0x00, u64);
ioctl_iow_nr!(SET_FEATURES, VHOST, 0x00, u64);
ioctl_io_nr!(SET_OWNER, VHOST, 0x01);
ioctl_io_nr!(RESET_OWNER, VHOST, 0x02);
ioctl_iow_nr!(SET_MEM_TABLE, VHOST, 0x03, [u32; 2]);
ioctl_iow_nr!(SET_LOG_BASE, VHOST, 0x04, u64);
ioctl_iow_nr!(SET_LOG_FD, VHOST, 0x07, i32);
ioctl_ior_nr!(NEW_WORKER, VHOST, 0x08, u32);
ioctl_iow_nr!(FREE_WORKER, VHOST, 0x09, u32);
ioctl_iow_nr!(SET_VRING_NUM, VHOST, 0x10, VringState);
ioctl_iow_nr!(SET_VRING_ADDR, VHOST, 0x11, VringAddr);
ioctl_iow_nr!(SET_VRING_BASE, VHOST, 0x12, VringState);
ioctl_iowr_nr!(GET_VRING_BASE, VHOST, 0x12, VringState);
ioctl_iow_nr!(SET_VRING_ENDIAN, VHOST, 0x13, VringState);
ioctl_iow_nr!(ATTACH_VRING_WORKER, VHOST, 0x15, VringState);
ioctl_iowr_nr!(GET_VRING_WORKER, VHOST, 0x16, VringState);
ioctl_iow_nr!(SET_VRING_KICK, VHOST, 0x20, VringFile);
ioctl_iow_nr!(SET_VRING_CALL, VHOST, 0x21, VringFile);
ioctl_iow_nr!(SET_VRING_ERR, VHOST, 0x22, VringFile);
ioctl_iow_nr!(SET_VRING_BUSYLOOP_TIMEOUT, VHOST, 0x23, VringState);
ioctl_iow_nr!(GET_VRING_BUSYLOOP_TIMEOUT, VHOST, 0x24, VringState);
ioctl_iow_nr!(SET_BACKEND_FEATURES, VHOST, 0x25, u64);
ioctl_ior_nr!(GET_BACKEND_FEATURES, VHOST, 0x26, u64);
ioctl_iow_nr!(NET_SET_BACKEND, VHOST, 0x30, VringFile);
ioctl_ior_nr!(GET_FEATURES_ARRAY, VHOST, 0x83, u64);
ioctl_iow_nr!(SET_FEATURES_ARRAY, VHOST, 0x83, u64);
ioctl_iow_nr!(SET_FORK_FROM_OWNER, VHOST, 0x84, u8);
ioctl_ior_nr!(GET_FORK_FROM_OWNER, VHOST, 0x85, u8);
ioctl_iow_nr!(RVHOST_NET_SET_NETDEV, VHOST, 0xe0, Netdev);
ioctl_iow_nr!(RVHOST_NET_SET_RSS, VHOST, 0xe1, Rss);
ioctl_ior_nr!(RVHOST_NET_GET_RSS, VHOST, 0xe1, Rss);
ioctl_iow_nr!(RVHOST_NET_REBALANCE, VHOST, 0xe2, u32);
ioctl_iow_nr!(RVHOST_NET_SET_CPUS, VHOST, 0xe3, CpuSet);
ioctl_iow_nr!(RVHOST_NET_SET_SOCKET_NETDEV, VHOST, 0xe4, Netdev);

/// What an ioctl is called.
pub(crate) fn name(number: libc::c_ulong) -> String {
    let names: [(libc::c_ulong, &str); 28] = [
        (GET_FEATURES(), "GET_FEATURES"),
        (SET_FEATURES(), "SET_FEATURES"),
        (SET_OWNER(), "SET_OWNER"),
        (RESET_OWNER(), "RESET_OWNER"),
        (SET_MEM_TABLE(), "SET_MEM_TABLE"),
        (SET_LOG_BASE(), "SET_LOG_BASE"),
        (SET_LOG_FD(), "SET_LOG_FD"),
        (NEW_WORKER(), "NEW_WORKER"),
        (FREE_WORKER(), "FREE_WORKER"),
        (SET_VRING_NUM(), "SET_VRING_NUM"),
        (SET_VRING_ADDR(), "SET_VRING_ADDR"),
        (SET_VRING_BASE(), "SET_VRING_BASE"),
        (GET_VRING_BASE(), "GET_VRING_BASE"),
        (SET_VRING_ENDIAN(), "SET_VRING_ENDIAN"),
        (ATTACH_VRING_WORKER(), "ATTACH_VRING_WORKER"),
        (GET_VRING_WORKER(), "GET_VRING_WORKER"),
        (SET_VRING_KICK(), "SET_VRING_KICK"),
        (SET_VRING_CALL(), "SET_VRING_CALL"),
        (SET_VRING_ERR(), "SET_VRING_ERR"),
        (SET_VRING_BUSYLOOP_TIMEOUT(), "SET_VRING_BUSYLOOP_TIMEOUT"),
        (GET_VRING_BUSYLOOP_TIMEOUT(), "GET_VRING_BUSYLOOP_TIMEOUT"),
        (SET_BACKEND_FEATURES(), "SET_BACKEND_FEATURES"),
        (GET_BACKEND_FEATURES(), "GET_BACKEND_FEATURES"),
        (NET_SET_BACKEND(), "NET_SET_BACKEND"),
        (GET_FEATURES_ARRAY(), "GET_FEATURES_ARRAY"),
        (SET_FEATURES_ARRAY(), "SET_FEATURES_ARRAY"),
        (SET_FORK_FROM_OWNER(), "SET_FORK_FROM_OWNER"),
        (GET_FORK_FROM_OWNER(), "GET_FORK_FROM_OWNER"),
    ];
    let known = names.iter().find(|(known, _)| *known == number);
    known.map_or(format!("ioctl {number:#x}"), |(_, name)| (*name).to_owned())
}

/// Issues vhost ioctls on a file descriptor.
#[derive(Clone, Copy)]
pub(crate) struct Raw(pub(crate) RawFd);

impl Raw {
    /// Ioctls on the device `file`.
    pub(crate) fn of(file: &impl AsRawFd) -> Self {
        Self(file.as_raw_fd())
    }

    /// Any ioctl with any argument, be it a pointer or not.
    pub(crate) fn call(self, number: libc::c_ulong, arg: usize) -> Outcome {
        // SAFETY: Whoever passes a pointer passes one to memory that the ioctl
        // may use; a bad address makes the kernel return EFAULT.
        let rc = unsafe { libc::ioctl(self.0, number as _, arg) };
        if rc < 0 {
            Err(Errno::last())
        } else {
            Ok(rc)
        }
    }

    /// An ioctl that reads its argument.
    pub(crate) fn put<T>(self, number: libc::c_ulong, arg: &T) -> Outcome {
        self.call(number, std::ptr::from_ref(arg) as usize)
    }

    /// An ioctl that writes its argument.
    pub(crate) fn get<T>(self, number: libc::c_ulong, arg: &mut T) -> Outcome {
        self.call(number, std::ptr::from_mut(arg) as usize)
    }

    /// VHOST_SET_OWNER.
    pub(crate) fn set_owner(self) -> Outcome {
        self.call(SET_OWNER(), 0)
    }

    /// VHOST_RESET_OWNER.
    pub(crate) fn reset_owner(self) -> Outcome {
        self.call(RESET_OWNER(), 0)
    }

    /// VHOST_GET_FEATURES.
    pub(crate) fn features(self) -> Result<u64, Errno> {
        let mut features = 0u64;
        self.get(GET_FEATURES(), &mut features).map(|_| features)
    }

    /// VHOST_SET_FEATURES.
    pub(crate) fn set_features(self, features: u64) -> Outcome {
        self.put(SET_FEATURES(), &features)
    }

    /// VHOST_SET_MEM_TABLE with the given count and padding, whatever the
    /// number of regions.
    pub(crate) fn set_mem_table(self, padding: u32, regions: &[MemoryRegion]) -> Outcome {
        let mut table = vec![(regions.len() as u64) | (u64::from(padding) << 32)];
        for region in regions {
            table.extend([region.gpa, region.size, region.uaddr, region.flags_padding]);
        }
        self.call(SET_MEM_TABLE(), table.as_ptr() as usize)
    }

    /// VHOST_SET_VRING_NUM.
    pub(crate) fn set_vring_num(self, index: u32, num: u32) -> Outcome {
        self.put(SET_VRING_NUM(), &VringState { index, num })
    }

    /// VHOST_SET_VRING_BASE.
    pub(crate) fn set_vring_base(self, index: u32, num: u32) -> Outcome {
        self.put(SET_VRING_BASE(), &VringState { index, num })
    }

    /// VHOST_GET_VRING_BASE.
    pub(crate) fn vring_base(self, index: u32) -> Result<u32, Errno> {
        let mut state = VringState { index, num: 0 };
        self.get(GET_VRING_BASE(), &mut state).map(|_| state.num)
    }

    /// VHOST_SET_VRING_ADDR.
    pub(crate) fn set_vring_addr(self, addr: &VringAddr) -> Outcome {
        self.put(SET_VRING_ADDR(), addr)
    }

    /// One of the ioctls that take a queue index and a file descriptor.
    pub(crate) fn set_vring_file(self, number: libc::c_ulong, index: u32, fd: RawFd) -> Outcome {
        self.put(number, &VringFile { index, fd })
    }

    /// VHOST_NET_SET_BACKEND.
    pub(crate) fn set_backend(self, index: u32, fd: RawFd) -> Outcome {
        self.set_vring_file(NET_SET_BACKEND(), index, fd)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_those_of_the_abi() {
        assert_eq!(GET_FEATURES(), 0x8008_af00);
        assert_eq!(SET_FEATURES(), 0x4008_af00);
        assert_eq!(SET_OWNER(), 0x0000_af01);
        assert_eq!(RESET_OWNER(), 0x0000_af02);
        assert_eq!(SET_MEM_TABLE(), 0x4008_af03);
        assert_eq!(SET_LOG_BASE(), 0x4008_af04);
        assert_eq!(SET_LOG_FD(), 0x4004_af07);
        assert_eq!(NEW_WORKER(), 0x8004_af08);
        assert_eq!(FREE_WORKER(), 0x4004_af09);
        assert_eq!(SET_VRING_NUM(), 0x4008_af10);
        assert_eq!(SET_VRING_ADDR(), 0x4028_af11);
        assert_eq!(SET_VRING_BASE(), 0x4008_af12);
        assert_eq!(GET_VRING_BASE(), 0xc008_af12);
        assert_eq!(SET_VRING_ENDIAN(), 0x4008_af13);
        assert_eq!(ATTACH_VRING_WORKER(), 0x4008_af15);
        assert_eq!(GET_VRING_WORKER(), 0xc008_af16);
        assert_eq!(SET_VRING_KICK(), 0x4008_af20);
        assert_eq!(SET_VRING_CALL(), 0x4008_af21);
        assert_eq!(SET_VRING_ERR(), 0x4008_af22);
        assert_eq!(SET_VRING_BUSYLOOP_TIMEOUT(), 0x4008_af23);
        assert_eq!(GET_VRING_BUSYLOOP_TIMEOUT(), 0x4008_af24);
        assert_eq!(SET_BACKEND_FEATURES(), 0x4008_af25);
        assert_eq!(GET_BACKEND_FEATURES(), 0x8008_af26);
        assert_eq!(NET_SET_BACKEND(), 0x4008_af30);
        assert_eq!(GET_FEATURES_ARRAY(), 0x8008_af83);
        assert_eq!(SET_FEATURES_ARRAY(), 0x4008_af83);
        assert_eq!(SET_FORK_FROM_OWNER(), 0x4001_af84);
        assert_eq!(GET_FORK_FROM_OWNER(), 0x8001_af85);
        assert_eq!(RVHOST_NET_SET_NETDEV(), 0x4020_afe0);
        assert_eq!(RVHOST_NET_SET_RSS(), 0x4538_afe1);
        assert_eq!(RVHOST_NET_GET_RSS(), 0x8538_afe1);
        assert_eq!(RVHOST_NET_REBALANCE(), 0x4004_afe2);
        assert_eq!(RVHOST_NET_SET_CPUS(), 0x4010_afe3);
        assert_eq!(RVHOST_NET_SET_SOCKET_NETDEV(), 0x4020_afe4);
    }
}
