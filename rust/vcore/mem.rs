// SPDX-License-Identifier: GPL-2.0
//! The only door to guest memory.

use super::{
    addr::{
        Gpa,
        Hva,
        RingAddr,
        Seg, //
    },
    wire::{
        Desc,
        DESC_BYTES, //
    },
    Error,
    Result, //
};

/// What the device does with a buffer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Reads it (TX).
    Read,
    /// Writes it (RX).
    Write,
}

/// Ordering between accesses to a ring; each use names its pair in the driver.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fence {
    /// Earlier reads before later reads.
    Read,
    /// Earlier writes before later writes.
    Write,
    /// Everything before everything.
    Full,
}

/// Access to the owner's memory, in which the guest's memory and the rings lie.
///
/// The memory changes at any time under the reader's feet: what matters is read once.
pub trait GuestMem {
    /// Copies `out.len()` bytes of a ring.
    fn read(&mut self, at: RingAddr, out: &mut [u8]) -> Result;

    /// Copies `data` to a ring. The device writes only the used ring.
    fn write(&mut self, at: RingAddr, data: &[u8]) -> Result;

    /// Reads an aligned 16-bit ring field in one access.
    fn load_u16(&mut self, at: RingAddr) -> Result<u16>;

    /// Writes an aligned 16-bit ring field in one access.
    fn store_u16(&mut self, at: RingAddr, value: u16) -> Result;

    /// The first part of the buffer of `len` bytes at `at` that is contiguous in owner memory;
    /// never empty.
    fn segment(&mut self, at: Gpa, len: u64, access: Access) -> Result<Seg>;

    /// Copies `out.len()` bytes of a buffer.
    fn read_segment(&mut self, at: Hva, out: &mut [u8]) -> Result;

    /// Orders ring accesses.
    fn fence(&self, kind: Fence);

    /// Reads the descriptors `index` of the table at `table` into `out`, as far as both go.
    ///
    /// # Errors
    ///
    /// After an error any part of `out` may have been written.
    #[inline]
    fn read_descs(&mut self, table: RingAddr, index: &[u16], out: &mut [Desc]) -> Result {
        for (slot, &i) in out.iter_mut().zip(index) {
            let mut raw = [0; DESC_BYTES];
            self.read(table.at(u64::from(i) * DESC_BYTES as u64), &mut raw)?;
            *slot = Desc::from_bytes(&raw);
        }
        Ok(())
    }

    /// Copies `out.len()` bytes from a guest address, across segments.
    fn read_guest(&mut self, mut at: Gpa, mut out: &mut [u8]) -> Result {
        while !out.is_empty() {
            let seg = self.segment(at, out.len() as u64, Access::Read)?;
            // CAST: a segment is never longer than what was asked for.
            let n = (seg.len as usize).clamp(1, out.len());
            let (now, rest) = out.split_at_mut(n);
            self.read_segment(seg.at, now)?;
            out = rest;
            if !out.is_empty() {
                at = Gpa(at.0.checked_add(n as u64).ok_or(Error::Unmapped)?);
            }
        }
        Ok(())
    }
}
