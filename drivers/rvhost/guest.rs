// SPDX-License-Identifier: GPL-2.0
//! The guest's memory as the core wants it: owner memory, seen through the memory table.

use kernel::sync::barrier::{
    smp_mb,
    smp_rmb,
    smp_wmb, //
};

use crate::{
    kext::usermem::UserMem,
    vcore::{
        addr::{
            Gpa,
            Hva,
            Seg, //
        },
        map::{
            Lookup,
            Region, //
        },
        mem::{
            Fence,
            GuestMem, //
        },
        wire::{
            Desc,
            DESC_BYTES, //
        },
        Result,
    },
};

/// Descriptors gathered in one window of user access.
const GATHER: usize = 16;

/// One queue's view of the guest's memory.
pub(crate) struct Guest<'a, 'u> {
    pub(crate) user: &'a mut UserMem<'u>,
    pub(crate) regions: &'a [Region],
    pub(crate) lookup: &'a mut Lookup,
}

impl GuestMem for Guest<'_, '_> {
    #[inline]
    fn read(&mut self, at: Hva, out: &mut [u8]) -> Result {
        self.user.read(at, out)
    }

    #[inline]
    fn write(&mut self, at: Hva, data: &[u8]) -> Result {
        self.user.write(at, data)
    }

    #[inline]
    fn load_u16(&mut self, at: Hva) -> Result<u16> {
        self.user.load_u16(at)
    }

    #[inline]
    fn store_u16(&mut self, at: Hva, value: u16) -> Result {
        self.user.store_u16(at, value)
    }

    #[inline]
    fn segment(&mut self, at: Gpa, len: u64) -> Result<Seg> {
        self.lookup.segment(self.regions, at, len)
    }

    #[inline]
    fn fence(&self, kind: Fence) {
        match kind {
            Fence::Read => smp_rmb(),
            Fence::Write => smp_wmb(),
            Fence::Full => smp_mb(),
        }
    }

    fn read_descs(&mut self, table: Hva, index: &[u16], out: &mut [Desc]) -> Result {
        let mut raw = [[0; DESC_BYTES]; GATHER];
        for (index, out) in index.chunks(GATHER).zip(out.chunks_mut(GATHER)) {
            self.user.read_descs(table, index, &mut raw)?;
            for (desc, bytes) in out.iter_mut().zip(&raw) {
                *desc = Desc::from_bytes(bytes);
            }
        }
        Ok(())
    }
}
