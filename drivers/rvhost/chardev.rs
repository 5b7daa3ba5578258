// SPDX-License-Identifier: GPL-2.0
//! The character device: each open file is a device of its own.

use kernel::{
    prelude::*,
    sync::{
        Arc,
        ArcBorrow, //
    },
};

use crate::{
    device::Device,
    ioctl,
    kext::chrdev::OpenFile, //
};

/// `/dev/vhost-net`.
pub(crate) struct VhostNet;

impl OpenFile for VhostNet {
    type Ptr = Arc<Device>;

    const MODULE: &'static ThisModule = &crate::THIS_MODULE;

    fn open() -> Result<Arc<Device>> {
        Device::new()
    }

    fn ioctl(device: ArcBorrow<'_, Device>, cmd: u32, arg: usize) -> Result<isize> {
        ioctl::dispatch(&device, cmd, arg)
    }
}
