// SPDX-License-Identifier: GPL-2.0
//! The character device: each open file is a device of its own.

use kernel::{
    iov::{
        IovIterDest,
        IovIterSource, //
    },
    prelude::*,
    seq_file::SeqFile,
    sync::{
        poll::PollTable,
        Arc,
        ArcBorrow, //
    },
};

use crate::{
    device::Device,
    ioctl,
    kext::{
        chrdev::{
            OpenFile,
            OpenedFile,
            Operations, //
        },
        poll::ready, //
    },
    message, //
};

/// `/dev/vhost-net`.
pub(crate) struct VhostNet;

impl OpenFile for VhostNet {
    type Ptr = Arc<Device>;

    const MODULE: &'static ThisModule = &crate::THIS_MODULE;

    fn operations() -> &'static Operations<Self> {
        static OPERATIONS: Operations<VhostNet> = Operations::new();
        &OPERATIONS
    }

    fn open() -> Result<Arc<Device>> {
        Device::new()
    }

    fn ioctl(device: ArcBorrow<'_, Device>, cmd: u32, arg: usize) -> Result<isize> {
        ioctl::dispatch(&device, cmd, arg)
    }

    fn read(device: ArcBorrow<'_, Device>, wait: bool, to: &mut IovIterDest<'_>) -> Result<usize> {
        message::read(&device, wait, to)
    }

    fn write(device: ArcBorrow<'_, Device>, from: &mut IovIterSource<'_>) -> Result<usize> {
        message::write(&device, from)
    }

    fn poll(device: ArcBorrow<'_, Device>, file: &OpenedFile<'_>, table: PollTable<'_>) -> u32 {
        if device.iotlb().poll(file, table) {
            ready::IN
        } else {
            0
        }
    }

    fn show(device: ArcBorrow<'_, Device>, out: &SeqFile) {
        device.show(out);
    }
}
