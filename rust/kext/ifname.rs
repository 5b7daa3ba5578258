// SPDX-License-Identifier: GPL-2.0
//! Which network device a backend's file stands for.
//!
//! C headers: `include/linux/if_tun.h`, `include/linux/if_tap.h`, `include/linux/netdevice.h`.

use super::{
    bindings,
    file::FileRef,
    netdev::Present, //
};

/// What a file stands for.
pub(crate) struct Netdev {
    kind: u32,
    name: [u8; bindings::IFNAMSIZ as usize],
}

/// What `file` stands for now. May wait for the network's configuration lock.
pub(crate) fn of(file: &FileRef) -> Netdev {
    let mut name = [0; bindings::IFNAMSIZ as usize];
    // SAFETY: The file is referenced, and there is room for a name.
    let kind = unsafe { bindings::rvh_netdev(file.as_ptr(), name.as_mut_ptr().cast()) };
    Netdev { kind, name }
}

/// What `dev` is called.
pub(super) fn of_device(dev: Option<Present<'_>>) -> Netdev {
    let mut name = [0; bindings::IFNAMSIZ as usize];
    if let Some(dev) = dev {
        // SAFETY: The device is there, and there is room for a name.
        unsafe { bindings::rvh_dev_name(dev.as_ptr(), name.as_mut_ptr().cast()) };
    }
    Netdev {
        kind: bindings::rvh_netdev_kind_RVH_NETDEV_DEVICE,
        name,
    }
}

impl Netdev {
    /// The kind of backend.
    pub(crate) fn kind(&self) -> &'static str {
        match self.kind {
            bindings::rvh_netdev_kind_RVH_NETDEV_PACKET => "packet",
            bindings::rvh_netdev_kind_RVH_NETDEV_TAP => "tap",
            bindings::rvh_netdev_kind_RVH_NETDEV_MACVTAP => "macvtap",
            bindings::rvh_netdev_kind_RVH_NETDEV_DEVICE => "netdev",
            _ => "unknown",
        }
    }

    /// The name of the interface, in its network namespace.
    pub(crate) fn name(&self) -> Option<&str> {
        let end = self.name.iter().position(|&b| b == 0)?;
        let name = core::str::from_utf8(self.name.get(..end)?).ok()?;
        (!name.is_empty()).then_some(name)
    }
}
