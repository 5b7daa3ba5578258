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
    iotlb::{
        Iotlb,
        Presence, //
    },
    kext::{
        usermem::UserMem,
        wait::Bell, //
    },
    log::Log,
    memtable::MemTable,
    stats::Stats,
    vcore::{
        addr::{
            Gpa,
            Hva,
            RingAddr,
            Seg, //
        },
        iotlb::{
            Cache,
            Kept, //
        },
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

/// What one queue knows of the guest's memory: immutable snapshots, and what it remembers of them.
pub(crate) struct Memory {
    table: Option<Arc<MemTable>>,
    iotlb: Option<Arc<Iotlb>>,
    /// The queue, as the IOTLB knows it.
    presence: Arc<Presence>,
    lookup: Lookup,
    cache: Cache,
    /// Where the ring is, if addresses are I/O virtual ones.
    kept: Kept,
    /// The generation of the IOTLB that the cache is of.
    generation: u32,
    pub(crate) log: Log,
}

impl Memory {
    /// Knows nothing yet, and logs nothing.
    pub(crate) fn new(presence: Arc<Presence>, stats: Arc<Stats>) -> Self {
        Self {
            table: None,
            iotlb: None,
            presence,
            lookup: Lookup::default(),
            cache: Cache::default(),
            kept: Kept::default(),
            generation: 0,
            log: Log::new(stats),
        }
    }

    /// Sees the guest's memory through another table.
    pub(crate) fn set_table(&mut self, table: Option<Arc<MemTable>>) {
        self.table = table;
        self.lookup = Lookup::default();
    }

    /// Takes addresses to be I/O virtual ones that `iotlb` translates, which rings `bell` for the
    /// queue's thread; or not any more.
    pub(crate) fn set_iotlb(&mut self, iotlb: Option<Arc<Iotlb>>, bell: &Arc<Bell>) {
        if let Some(iotlb) = &iotlb {
            iotlb.belongs_to(&self.presence, bell);
        }
        self.iotlb = iotlb;
        self.forget();
    }

    /// Forgets what it remembers of the IOTLB.
    pub(crate) fn forget(&mut self) {
        self.cache = Cache::default();
        self.kept = Kept::default();
    }

    /// Says that the queue uses the memory from here on. If mappings were removed meanwhile, the
    /// cache is empty: returns `true`, and the caller has to forget what else was translated before,
    /// and [accept](Self::accept).
    #[inline]
    pub(crate) fn enter(&mut self) -> bool {
        let Some(iotlb) = &self.iotlb else {
            return false;
        };
        let generation = iotlb.enter(&self.presence);
        let changed = generation != self.generation;
        if changed {
            self.generation = generation;
            self.forget();
        }
        changed
    }

    /// Says that the queue has forgotten what was translated before.
    pub(crate) fn accept(&self) {
        if let Some(iotlb) = &self.iotlb {
            iotlb.accept(&self.presence, self.generation);
        }
    }

    /// Says that the queue does not use the memory until it enters again.
    #[inline]
    pub(crate) fn leave(&self) {
        if let Some(iotlb) = &self.iotlb {
            iotlb.leave(&self.presence, self.generation);
        }
    }

    /// The memory table.
    pub(crate) fn table(&self) -> Option<&Arc<MemTable>> {
        self.table.as_ref()
    }

    /// Whether addresses are I/O virtual ones.
    pub(crate) fn is_virtual(&self) -> bool {
        self.iotlb.is_some()
    }

    /// Logs that a packet of `len` bytes was written to `segs`. To be called if `log.buffers`.
    #[cold]
    pub(crate) fn log_packet(&self, user: &mut UserMem<'_>, segs: &[Seg], len: usize) -> Result {
        match &self.table {
            Some(table) => self.log.mark_buffers(user, table, segs, len),
            None => Ok(()),
        }
    }
}

/// One queue's access to the guest's memory.
pub(crate) struct Guest<'a, 'u> {
    user: &'a mut UserMem<'u>,
    /// Where the used ring starts.
    used: RingAddr,
    regions: &'a [Region],
    table: Option<&'a MemTable>,
    iotlb: Option<&'a Iotlb>,
    presence: &'a Presence,
    lookup: &'a mut Lookup,
    cache: &'a mut Cache,
    kept: &'a mut Kept,
    log: &'a Log,
}

impl<'a, 'u> Guest<'a, 'u> {
    #[inline]
    pub(crate) fn new(user: &'a mut UserMem<'u>, memory: &'a mut Memory, used: RingAddr) -> Self {
        let table: Option<&MemTable> = memory.table.as_deref();
        Self {
            user,
            used,
            regions: table.map_or(&[], |t| t.regions()),
            table,
            iotlb: memory.iotlb.as_deref(),
            presence: &memory.presence,
            lookup: &mut memory.lookup,
            cache: &mut memory.cache,
            kept: &mut memory.kept,
            log: &memory.log,
        }
    }

    /// The owner address of the first part of `len` bytes of a ring.
    #[inline]
    fn place(&mut self, at: RingAddr, len: usize, access: Access) -> Result<(Hva, usize)> {
        match self.iotlb {
            None => Ok((Hva(at.0), len)),
            Some(iotlb) => {
                let seg = match self.kept.segment(at.0, len as u64, access) {
                    Some(seg) => seg,
                    None => iotlb.segment(self.presence, self.cache, at.0, len as u64, access)?,
                };
                // CAST: a segment is never longer than what was asked for.
                Ok((seg.at, seg.len as usize))
            }
        }
    }

    /// Whether all of an area of the ring can be accessed, which then stays so for as long as the
    /// queue works; asks user space for what is missing.
    pub(crate) fn covers(&mut self, at: RingAddr, len: u64, access: Access) -> Result {
        let mut done = 0;
        while done < len {
            let from = at.at(done);
            // CAST: a ring area has less than a MiB.
            let (at, n) = self.place(from, (len - done) as usize, access)?;
            let len = n as u64;
            self.kept.keep(from.0, Seg { at, len }, access);
            done += len.max(1);
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

    #[inline(always)]
    fn segment(&mut self, at: Gpa, len: u64, access: Access) -> Result<Seg> {
        match self.iotlb {
            None => self.lookup.segment(self.regions, at, len),
            Some(iotlb) => iotlb.segment(self.presence, self.cache, at.0, len, access),
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

    #[inline]
    fn read_descs(&mut self, table: RingAddr, index: &[u16], out: &mut [Desc]) -> Result {
        if self.iotlb.is_none() {
            return self.user.read_descs(Hva(table.0), index, out);
        }
        let mut raw = [0; DESC_BYTES];
        for (&i, desc) in index.iter().zip(out) {
            self.read(table.at(u64::from(i) * DESC_BYTES as u64), &mut raw)?;
            *desc = Desc::from_bytes(&raw);
        }
        Ok(())
    }
}
