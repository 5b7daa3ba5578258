// SPDX-License-Identifier: GPL-2.0
//! The guest's memory as the core wants it: owner memory, seen through the memory table or the
//! IOTLB, with a log of what is written.

use kernel::sync::{
    barrier::{
        smp_mb,
        smp_rmb,
        smp_wmb, //
    },
    Arc,
};

use crate::{
    iotlb::Iotlb,
    kext::usermem::UserMem,
    log::Log,
    memtable::MemTable,
    vcore::{
        addr::{
            Gpa,
            Hva,
            RingAddr,
            Seg, //
        },
        iotlb::Cache,
        map::{
            Lookup,
            Region, //
        },
        mem::{
            Access,
            Fence,
            GuestMem, //
        },
        wire::{
            Desc,
            DESC_BYTES, //
        },
        Error, Result,
    },
};

/// Descriptors gathered in one window of user access.
const GATHER: usize = 16;

/// What one queue knows of the guest's memory: immutable snapshots, and what it remembers of them.
#[derive(Default)]
pub(crate) struct Memory {
    table: Option<Arc<MemTable>>,
    iotlb: Option<Arc<Iotlb>>,
    lookup: Lookup,
    cache: Cache,
    pub(crate) log: Log,
}

impl Memory {
    /// Sees the guest's memory through another table.
    pub(crate) fn set_table(&mut self, table: Option<Arc<MemTable>>) {
        self.table = table;
        self.lookup = Lookup::default();
    }

    /// Takes addresses to be I/O virtual ones, or not any more.
    pub(crate) fn set_iotlb(&mut self, iotlb: Option<Arc<Iotlb>>) {
        self.iotlb = iotlb;
        self.forget();
    }

    /// Forgets what it remembers of the IOTLB, which has changed.
    pub(crate) fn forget(&mut self) {
        self.cache = Cache::default();
    }

    /// The memory table.
    pub(crate) fn table(&self) -> Option<&Arc<MemTable>> {
        self.table.as_ref()
    }

    /// Whether addresses are I/O virtual ones.
    pub(crate) fn is_virtual(&self) -> bool {
        self.iotlb.is_some()
    }

    /// Logs that a packet of `len` bytes was written to `segs`, if that is to be logged.
    #[inline]
    pub(crate) fn log_packet(&self, user: &mut UserMem<'_>, segs: &[Seg], len: usize) -> Result {
        if self.log.buffers {
            if let Some(table) = &self.table {
                return self.log.mark_buffers(user, table, segs, len);
            }
        }
        Ok(())
    }
}

/// One queue's access to the guest's memory.
pub(crate) struct Guest<'a, 'u> {
    user: &'a mut UserMem<'u>,
    /// The queue's number.
    index: u32,
    /// Where the used ring starts.
    used: RingAddr,
    regions: &'a [Region],
    table: Option<&'a MemTable>,
    iotlb: Option<&'a Iotlb>,
    lookup: &'a mut Lookup,
    cache: &'a mut Cache,
    log: &'a Log,
}

impl<'a, 'u> Guest<'a, 'u> {
    #[inline]
    pub(crate) fn new(
        user: &'a mut UserMem<'u>,
        memory: &'a mut Memory,
        index: u32,
        used: RingAddr,
    ) -> Self {
        let table: Option<&MemTable> = memory.table.as_deref();
        Self {
            user,
            index,
            used,
            regions: table.map_or(&[], |t| t.regions()),
            table,
            iotlb: memory.iotlb.as_deref(),
            lookup: &mut memory.lookup,
            cache: &mut memory.cache,
            log: &memory.log,
        }
    }

    /// The owner address of the first part of `len` bytes of a ring.
    #[inline]
    fn place(&mut self, at: RingAddr, len: usize, access: Access) -> Result<(Hva, usize)> {
        match self.iotlb {
            None => Ok((Hva(at.0), len)),
            Some(iotlb) => {
                let seg = iotlb.segment(self.index, self.cache, at.0, len as u64, access)?;
                // CAST: a segment is never longer than what was asked for.
                Ok((seg.at, seg.len as usize))
            }
        }
    }

    /// Whether all of an area can be accessed; asks user space for what is missing.
    pub(crate) fn covers(&mut self, at: RingAddr, len: u64, access: Access) -> Result {
        let mut done = 0;
        while done < len {
            // CAST: a ring area has less than a MiB.
            let (_, n) = self.place(at.at(done), (len - done) as usize, access)?;
            done += n.max(1) as u64;
        }
        Ok(())
    }

    /// A 16-bit field's owner address; a field does not straddle mappings.
    #[inline]
    fn field(&mut self, at: RingAddr, access: Access) -> Result<Hva> {
        match self.place(at, 2, access)? {
            (hva, 2) => Ok(hva),
            _ => Err(Error::Fault),
        }
    }

    /// Logs a write to the used ring, if that is to be logged. What cannot be logged is lost: that
    /// is no reason to stop the queue.
    #[inline]
    fn log_used(&mut self, at: RingAddr, hva: Hva, len: usize, publishes: bool) {
        let Some(ring) = self.log.used else {
            return;
        };
        // The data is written before the log says so.
        smp_wmb();
        let _ = match (self.iotlb, self.table) {
            (Some(_), Some(table)) => self.log.mark_owner(self.user, table, hva, len as u64),
            _ => {
                let offset = at.0.wrapping_sub(self.used.0);
                let gpa = Gpa(ring.0.wrapping_add(offset));
                self.log.mark(self.user, gpa, len as u64)
            }
        };
        if publishes {
            self.log.tell();
        }
    }
}

impl GuestMem for Guest<'_, '_> {
    #[inline]
    fn read(&mut self, mut at: RingAddr, mut out: &mut [u8]) -> Result {
        while !out.is_empty() {
            let (hva, n) = self.place(at, out.len(), Access::Read)?;
            let (now, rest) = out.split_at_mut_checked(n.max(1)).ok_or(Error::Fault)?;
            self.user.read(hva, now)?;
            at = at.at(n as u64);
            out = rest;
        }
        Ok(())
    }

    #[inline]
    fn write(&mut self, mut at: RingAddr, mut data: &[u8]) -> Result {
        while !data.is_empty() {
            let (hva, n) = self.place(at, data.len(), Access::Write)?;
            let (now, rest) = data.split_at_checked(n.max(1)).ok_or(Error::Fault)?;
            self.user.write(hva, now)?;
            self.log_used(at, hva, n, false);
            at = at.at(n as u64);
            data = rest;
        }
        Ok(())
    }

    #[inline]
    fn load_u16(&mut self, at: RingAddr) -> Result<u16> {
        let hva = self.field(at, Access::Read)?;
        self.user.load_u16(hva)
    }

    #[inline]
    fn store_u16(&mut self, at: RingAddr, value: u16) -> Result {
        let hva = self.field(at, Access::Write)?;
        self.user.store_u16(hva, value)?;
        self.log_used(at, hva, 2, true);
        Ok(())
    }

    #[inline]
    fn segment(&mut self, at: Gpa, len: u64, access: Access) -> Result<Seg> {
        match self.iotlb {
            None => self.lookup.segment(self.regions, at, len),
            Some(iotlb) => iotlb.segment(self.index, self.cache, at.0, len, access),
        }
    }

    #[inline]
    fn read_segment(&mut self, at: Hva, out: &mut [u8]) -> Result {
        self.user.read(at, out)
    }

    #[inline]
    fn fence(&self, kind: Fence) {
        match kind {
            Fence::Read => smp_rmb(),
            Fence::Write => smp_wmb(),
            Fence::Full => smp_mb(),
        }
    }

    fn read_descs(&mut self, table: RingAddr, index: &[u16], out: &mut [Desc]) -> Result {
        let mut raw = [[0; DESC_BYTES]; GATHER];
        if self.iotlb.is_some() {
            let [one, ..] = &mut raw;
            for (&i, desc) in index.iter().zip(out) {
                self.read(table.at(u64::from(i) * DESC_BYTES as u64), one)?;
                *desc = Desc::from_bytes(one);
            }
            return Ok(());
        }
        for (index, out) in index.chunks(GATHER).zip(out.chunks_mut(GATHER)) {
            self.user.read_descs(Hva(table.0), index, &mut raw)?;
            for (desc, bytes) in out.iter_mut().zip(&raw) {
                *desc = Desc::from_bytes(bytes);
            }
        }
        Ok(())
    }
}
