// SPDX-License-Identifier: GPL-2.0
//! IOTLB messages, as user space reads and writes them (`struct vhost_msg`, `struct vhost_msg_v2`).

use kernel::{
    iov::{
        IovIterDest,
        IovIterSource, //
    },
    prelude::*,
};

use crate::{
    device::Device,
    vcore::iotlb::Entry, //
};

/// Bytes of a message of either version. One that is written counts as so long.
const MESSAGE: usize = 72;
/// The part of it that matters, with the 8 bytes before it.
const BODY: usize = 32;

const V1: u32 = 1;
const V2: u32 = 2;

const MISS: u8 = 1;
const UPDATE: u8 = 2;
const INVALIDATE: u8 = 3;

/// Reads the next message; nothing if there is no room for a whole one.
pub(crate) fn read(device: &Device, wait: bool, to: &mut IovIterDest<'_>) -> Result<usize> {
    if to.len() < MESSAGE {
        return Ok(0);
    }
    let version = if device.messages_are_v2() { V2 } else { V1 };
    device.iotlb().read(wait, |miss| {
        let mut raw = [0; MESSAGE];
        let mut put = |at: usize, bytes: &[u8]| {
            if let Some(field) = raw.get_mut(at..at + bytes.len()) {
                field.copy_from_slice(bytes);
            }
        };
        put(0, &version.to_ne_bytes());
        put(8, &miss.iova.to_ne_bytes());
        put(32, &[miss.perm, MISS]);
        if to.copy_to_iter(&raw) == MESSAGE {
            Ok(MESSAGE)
        } else {
            Err(EFAULT)
        }
    })
}

/// Takes a message of either version.
pub(crate) fn write(device: &Device, from: &mut IovIterSource<'_>) -> Result<usize> {
    let mut head = [0; 8];
    if from.copy_from_iter(&mut head) < 4 {
        return Err(EINVAL);
    }
    let [a, b, c, d, ..] = head;
    if ![V1, V2].contains(&u32::from_ne_bytes([a, b, c, d])) {
        return Err(EINVAL);
    }
    let mut body = [0; BODY];
    if from.copy_from_iter(&mut body) != BODY {
        return Err(EINVAL);
    }
    let word = |i: usize| {
        let bytes = body.get(8 * i..).and_then(|b| b.first_chunk());
        u64::from_ne_bytes(bytes.copied().unwrap_or_default())
    };
    let (iova, size, hva) = (word(0), word(1), word(2));
    let [.., perm, kind, _, _, _, _, _, _] = body;
    match kind {
        UPDATE if size == 0 => return Err(EINVAL),
        UPDATE => {
            let entry = Entry::new(iova, size, hva, perm).ok_or(EFAULT)?;
            device.add_mapping(entry, size)?;
        }
        INVALIDATE => device.remove_mappings(iova, size)?,
        _ => return Err(EFAULT),
    }
    Ok(MESSAGE)
}
