// SPDX-License-Identifier: GPL-2.0
//! Guest memory and the driver's side of a ring, for tests and fuzzing.

use core::ops::Range;

use super::{
    addr::{
        Gpa,
        Hva,
        RingAddr,
        Seg, //
    },
    map::{
        self,
        Lookup,
        Region, //
    },
    mem::{
        Access,
        Fence,
        GuestMem, //
    },
    split::Layout,
    wire::{
        Desc,
        DESC_BYTES,
        USED_BYTES, //
    },
    Error, Result,
};

/// Bytes of memory unless a test asks for more; few enough for a kernel stack.
pub const MEM_BYTES: usize = 2048;
/// Where owner memory starts, so that guest and owner addresses differ.
pub const HVA_BASE: u64 = 0x7000_0000;
/// Regions that a memory table may have.
pub const MAX_REGIONS: usize = 4;

/// Owner memory, and the table by which guest addresses lie in it: at first two regions from
/// address 0 that are neighbours in guest addresses only.
pub struct MockMem<const BYTES: usize = MEM_BYTES> {
    bytes: [u8; BYTES],
    table: [Region; MAX_REGIONS],
    regions: usize,
    lookup: Lookup,
    faulty: Range<usize>,
}

impl<const BYTES: usize> Default for MockMem<BYTES> {
    fn default() -> Self {
        Self::new()
    }
}

impl<const BYTES: usize> MockMem<BYTES> {
    /// Zeroed memory.
    pub fn new() -> Self {
        let half = BYTES as u64 / 2;
        let mut table = [Region::default(); MAX_REGIONS];
        for (slot, first) in table.iter_mut().zip([0, half]) {
            *slot = Region {
                first,
                last: first + half - 1,
                hva: HVA_BASE + first,
            };
        }
        Self {
            bytes: [0; BYTES],
            table,
            regions: 2,
            lookup: Lookup::default(),
            faulty: 0..0,
        }
    }

    /// All bytes, for a test to look at and to scribble on.
    pub fn bytes(&mut self) -> &mut [u8; BYTES] {
        &mut self.bytes
    }

    /// The memory table.
    pub fn table(&self) -> &[Region] {
        &self.table[..self.regions]
    }

    /// Replaces the memory table; of more than [`MAX_REGIONS`] regions takes the first.
    pub fn set_table(&mut self, regions: &[Region]) {
        let count = regions.len().min(MAX_REGIONS);
        self.table[..count].copy_from_slice(&regions[..count]);
        self.regions = map::normalize(&mut self.table[..count]);
        self.lookup = Lookup::default();
    }

    /// Makes accesses to these bytes fail, and those to all others succeed.
    pub fn set_faulty(&mut self, range: Range<usize>) {
        self.faulty = range;
    }

    fn range(&self, at: u64, len: usize) -> Result<Range<usize>> {
        let from = usize::try_from(at.checked_sub(HVA_BASE).ok_or(Error::Fault)?)
            .map_err(|_| Error::Fault)?;
        let to = from.checked_add(len).ok_or(Error::Fault)?;
        let broken = from.max(self.faulty.start) < to.min(self.faulty.end);
        if to > BYTES || broken {
            return Err(Error::Fault);
        }
        Ok(from..to)
    }

    /// Writes a descriptor at an offset in owner memory.
    pub fn put_desc(&mut self, at: u64, desc: Desc) {
        let _ = self.write(RingAddr(HVA_BASE + at), &desc.to_bytes());
    }

    fn put(&mut self, at: u64, value: u16) {
        let at = at as usize;
        self.bytes[at..at + 2].copy_from_slice(&value.to_le_bytes());
    }

    fn get(&self, at: u64) -> u16 {
        let at = at as usize;
        u16::from_le_bytes([self.bytes[at], self.bytes[at + 1]])
    }
}

impl<const BYTES: usize> GuestMem for MockMem<BYTES> {
    fn read(&mut self, at: RingAddr, out: &mut [u8]) -> Result {
        let range = self.range(at.0, out.len())?;
        out.copy_from_slice(&self.bytes[range]);
        Ok(())
    }

    fn write(&mut self, at: RingAddr, data: &[u8]) -> Result {
        let range = self.range(at.0, data.len())?;
        self.bytes[range].copy_from_slice(data);
        Ok(())
    }

    fn load_u16(&mut self, at: RingAddr) -> Result<u16> {
        let mut raw = [0; 2];
        self.read(at, &mut raw)?;
        Ok(u16::from_le_bytes(raw))
    }

    fn store_u16(&mut self, at: RingAddr, value: u16) -> Result {
        self.write(at, &value.to_le_bytes())
    }

    fn segment(&mut self, at: Gpa, len: u64, _access: Access) -> Result<Seg> {
        let Self {
            lookup,
            table,
            regions,
            ..
        } = self;
        lookup.segment(&table[..*regions], at, len)
    }

    fn read_segment(&mut self, at: Hva, out: &mut [u8]) -> Result {
        self.read(RingAddr(at.0), out)
    }

    fn fence(&self, _kind: Fence) {}
}

/// The driver's side of a ring at the start of a [`MockMem`].
pub struct MockRing {
    num: u16,
    avail: u16,
}

impl MockRing {
    /// A ring of `num` descriptors, for which there must be room.
    pub fn new(num: u16) -> Self {
        Self { num, avail: 0 }
    }

    /// The ring's size.
    pub fn num(&self) -> u16 {
        self.num
    }

    fn avail_at(&self) -> u64 {
        DESC_BYTES as u64 * u64::from(self.num)
    }

    fn used_at(&self) -> u64 {
        // The available ring ends with an event, and the used ring is aligned to 4 bytes.
        (self.avail_at() + 6 + 2 * u64::from(self.num)).next_multiple_of(4)
    }

    /// Where the ring ends, as an offset in owner memory.
    pub fn end(&self) -> u64 {
        self.used_at() + 6 + USED_BYTES as u64 * u64::from(self.num)
    }

    /// Where the ring lies.
    pub fn layout(&self) -> Layout {
        let addr = |at| RingAddr(HVA_BASE + at);
        match Layout::new(
            u32::from(self.num),
            addr(0),
            addr(self.avail_at()),
            addr(self.used_at()),
        ) {
            Some(layout) => layout,
            None => panic!("tests use valid sizes"),
        }
    }

    /// Writes a descriptor of the table.
    pub fn set_desc<const N: usize>(&self, mem: &mut MockMem<N>, i: u16, desc: Desc) {
        mem.put_desc(DESC_BYTES as u64 * u64::from(i), desc);
    }

    /// Makes the chain at `head` available.
    pub fn offer<const N: usize>(&mut self, mem: &mut MockMem<N>, head: u16) {
        let slot = u64::from(self.avail & (self.num - 1));
        mem.put(self.avail_at() + 4 + 2 * slot, head);
        self.set_avail(mem, self.avail.wrapping_add(1));
    }

    /// The available index.
    pub fn avail(&self) -> u16 {
        self.avail
    }

    /// Sets the available index.
    pub fn set_avail<const N: usize>(&mut self, mem: &mut MockMem<N>, idx: u16) {
        self.avail = idx;
        mem.put(self.avail_at() + 2, idx);
    }

    /// Sets `avail->flags`.
    pub fn set_avail_flags<const N: usize>(&self, mem: &mut MockMem<N>, flags: u16) {
        mem.put(self.avail_at(), flags);
    }

    /// Sets the used event.
    pub fn set_used_event<const N: usize>(&self, mem: &mut MockMem<N>, idx: u16) {
        mem.put(self.avail_at() + 4 + 2 * u64::from(self.num), idx);
    }

    /// Sets the used index, as an earlier device left it.
    pub fn set_used_idx<const N: usize>(&self, mem: &mut MockMem<N>, idx: u16) {
        mem.put(self.used_at() + 2, idx);
    }

    /// The used index.
    pub fn used_idx<const N: usize>(&self, mem: &MockMem<N>) -> u16 {
        mem.get(self.used_at() + 2)
    }

    /// `used->flags`.
    pub fn used_flags<const N: usize>(&self, mem: &MockMem<N>) -> u16 {
        mem.get(self.used_at())
    }

    /// The available event.
    pub fn avail_event<const N: usize>(&self, mem: &MockMem<N>) -> u16 {
        mem.get(self.used_at() + 4 + USED_BYTES as u64 * u64::from(self.num))
    }

    /// Head and length, of which the lower half, of a used element.
    pub fn used<const N: usize>(&self, mem: &MockMem<N>, slot: u16) -> (u16, u16) {
        let at = self.used_at() + 4 + USED_BYTES as u64 * u64::from(slot);
        (mem.get(at), mem.get(at + 4))
    }
}
