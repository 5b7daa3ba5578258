// SPDX-License-Identifier: GPL-2.0
//! Guest memory and the driver's side of a ring, for tests and fuzzing.

use super::{
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
    split::Layout,
    wire::Desc,
    Error,
    Result,
};

/// Bytes of memory; few enough for a kernel stack.
pub const MEM_BYTES: usize = 2048;
/// Where owner memory starts, so that guest and owner addresses differ.
const HVA_BASE: u64 = 0x7000_0000;

const DESC_AT: u64 = 0;
const AVAIL_AT: u64 = 0x400;
const USED_AT: u64 = 0x500;

/// Guest memory from address 0, in two regions that are neighbours in guest addresses only.
pub struct MockMem {
    bytes: [u8; MEM_BYTES],
    table: [Region; 2],
    lookup: Lookup,
}

impl Default for MockMem {
    fn default() -> Self {
        Self::new()
    }
}

impl MockMem {
    /// Zeroed memory.
    pub fn new() -> Self {
        let half = MEM_BYTES as u64 / 2;
        Self {
            bytes: [0; MEM_BYTES],
            table: [
                Region {
                    first: 0,
                    last: half - 1,
                    hva: HVA_BASE,
                },
                Region {
                    first: half,
                    last: 2 * half - 1,
                    hva: HVA_BASE + half,
                },
            ],
            lookup: Lookup::default(),
        }
    }

    /// All bytes, for a test to scribble on.
    pub fn bytes(&mut self) -> &mut [u8; MEM_BYTES] {
        &mut self.bytes
    }

    fn range(&self, at: Hva, len: usize) -> Result<core::ops::Range<usize>> {
        let from = at.0.checked_sub(HVA_BASE).ok_or(Error::Fault)? as usize;
        let to = from.checked_add(len).ok_or(Error::Fault)?;
        if to > MEM_BYTES {
            return Err(Error::Fault);
        }
        Ok(from..to)
    }

    /// Writes a descriptor at a guest address.
    pub fn put_desc(&mut self, at: u64, desc: Desc) {
        let _ = self.write(Hva(HVA_BASE + at), &desc.to_bytes());
    }

    fn put(&mut self, at: u64, value: u16) {
        let _ = self.store_u16(Hva(HVA_BASE + at), value);
    }

    fn get(&self, at: u64) -> u16 {
        let at = at as usize;
        u16::from_le_bytes([self.bytes[at], self.bytes[at + 1]])
    }
}

impl GuestMem for MockMem {
    fn read(&mut self, at: Hva, out: &mut [u8]) -> Result {
        let range = self.range(at, out.len())?;
        out.copy_from_slice(&self.bytes[range]);
        Ok(())
    }

    fn write(&mut self, at: Hva, data: &[u8]) -> Result {
        let range = self.range(at, data.len())?;
        self.bytes[range].copy_from_slice(data);
        Ok(())
    }

    fn load_u16(&mut self, at: Hva) -> Result<u16> {
        let mut raw = [0; 2];
        self.read(at, &mut raw)?;
        Ok(u16::from_le_bytes(raw))
    }

    fn store_u16(&mut self, at: Hva, value: u16) -> Result {
        self.write(at, &value.to_le_bytes())
    }

    fn segment(&mut self, at: Gpa, len: u64) -> Result<Seg> {
        self.lookup.segment(&self.table, at, len)
    }

    fn fence(&self, _kind: Fence) {}
}

/// The driver's side of a ring at fixed places in a [`MockMem`].
pub struct MockRing {
    num: u16,
    avail: u16,
}

impl MockRing {
    /// A ring of `num` descriptors, of which there is room for 64.
    pub fn new(num: u16) -> Self {
        Self { num, avail: 0 }
    }

    /// Where the ring lies.
    pub fn layout(&self) -> Layout {
        let hva = |at| Hva(HVA_BASE + at);
        match Layout::new(
            u32::from(self.num),
            hva(DESC_AT),
            hva(AVAIL_AT),
            hva(USED_AT),
        ) {
            Some(layout) => layout,
            None => panic!("tests use valid sizes"),
        }
    }

    /// Writes a descriptor of the table.
    pub fn set_desc(&self, mem: &mut MockMem, i: u16, desc: Desc) {
        mem.put_desc(DESC_AT + 16 * u64::from(i), desc);
    }

    /// Makes the chain at `head` available.
    pub fn offer(&mut self, mem: &mut MockMem, head: u16) {
        let slot = u64::from(self.avail & (self.num - 1));
        mem.put(AVAIL_AT + 4 + 2 * slot, head);
        self.set_avail(mem, self.avail.wrapping_add(1));
    }

    /// Sets the available index.
    pub fn set_avail(&mut self, mem: &mut MockMem, idx: u16) {
        self.avail = idx;
        mem.put(AVAIL_AT + 2, idx);
    }

    /// Sets `avail->flags`.
    pub fn set_avail_flags(&self, mem: &mut MockMem, flags: u16) {
        mem.put(AVAIL_AT, flags);
    }

    /// Sets the used event.
    pub fn set_used_event(&self, mem: &mut MockMem, idx: u16) {
        mem.put(AVAIL_AT + 4 + 2 * u64::from(self.num), idx);
    }

    /// Sets the used index, as an earlier device left it.
    pub fn set_used_idx(&self, mem: &mut MockMem, idx: u16) {
        mem.put(USED_AT + 2, idx);
    }

    /// The used index.
    pub fn used_idx(&self, mem: &MockMem) -> u16 {
        mem.get(USED_AT + 2)
    }

    /// `used->flags`.
    pub fn used_flags(&self, mem: &MockMem) -> u16 {
        mem.get(USED_AT)
    }

    /// The available event.
    pub fn avail_event(&self, mem: &MockMem) -> u16 {
        mem.get(USED_AT + 4 + 8 * u64::from(self.num))
    }

    /// Head and length of a used element.
    pub fn used(&self, mem: &MockMem, slot: u16) -> (u16, u16) {
        let at = USED_AT + 4 + 8 * u64::from(slot);
        (mem.get(at), mem.get(at + 4))
    }
}
