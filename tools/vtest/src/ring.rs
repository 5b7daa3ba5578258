// SPDX-License-Identifier: GPL-2.0

//! The bare split virtqueue in guest memory: every field can be read and
//! written, right or wrong. Nothing here knows what a chain is.

use std::sync::atomic::fence;
use std::sync::atomic::AtomicU16;
use std::sync::atomic::Ordering;

use anyhow::Result;

use crate::mem::Memory;

/// The descriptor continues at `next`.
pub(crate) const F_NEXT: u16 = 1;
/// The device writes the buffer.
pub(crate) const F_WRITE: u16 = 2;
/// The buffer holds a table of descriptors.
pub(crate) const F_INDIRECT: u16 = 4;
/// avail->flags: the driver wants no call.
pub(crate) const NO_INTERRUPT: u16 = 1;
/// used->flags: the device wants no kick.
pub(crate) const NO_NOTIFY: u16 = 1;

/// One descriptor as it lies in memory.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Desc {
    /// Guest-physical address of the buffer.
    pub(crate) addr: u64,
    /// Length of the buffer in bytes.
    pub(crate) len: u32,
    /// `F_*`.
    pub(crate) flags: u16,
    /// Index of the next descriptor where `F_NEXT` is set.
    pub(crate) next: u16,
}

impl Desc {
    /// The 16 bytes in guest memory.
    pub(crate) fn bytes(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[0..8].copy_from_slice(&self.addr.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.len.to_le_bytes());
        bytes[12..14].copy_from_slice(&self.flags.to_le_bytes());
        bytes[14..16].copy_from_slice(&self.next.to_le_bytes());
        bytes
    }
}

/// One used element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct UsedElem {
    /// Head of the chain.
    pub(crate) id: u32,
    /// Bytes written by the device.
    pub(crate) len: u32,
}

/// Where the three areas of a ring lie, in guest-physical addresses.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    /// Number of descriptors.
    pub(crate) size: u16,
    /// Descriptor table.
    pub(crate) desc: u64,
    /// Available ring.
    pub(crate) avail: u64,
    /// Used ring.
    pub(crate) used: u64,
}

impl Layout {
    /// Places a ring of `size` descriptors in fresh memory, each area on a
    /// page of its own.
    pub(crate) fn alloc(mem: &Memory, size: u16) -> Result<Self> {
        let n = u64::from(size);
        Ok(Self {
            size,
            desc: mem.alloc(16 * n, 4096)?,
            avail: mem.alloc(6 + 2 * n, 4096)?,
            used: mem.alloc(6 + 8 * n, 4096)?,
        })
    }
}

/// Access to the fields of one ring. Slots are taken modulo the ring size.
pub(crate) struct Ring {
    layout: Layout,
    desc: *mut u8,
    avail: *mut u8,
    used: *mut u8,
    /// Keeps the mapping behind the pointers alive.
    _mem: Memory,
}

impl Ring {
    /// Opens the ring at `layout`.
    ///
    /// Each area must lie within one region of guest memory.
    pub(crate) fn new(mem: &Memory, layout: Layout) -> Result<Self> {
        Ok(Self {
            layout,
            desc: mem.host(layout.desc)?,
            avail: mem.host(layout.avail)?,
            used: mem.host(layout.used)?,
            _mem: mem.clone(),
        })
    }

    /// Where the ring lies.
    pub(crate) fn layout(&self) -> Layout {
        self.layout
    }

    fn slot(&self, index: u16) -> usize {
        usize::from(index) % usize::from(self.layout.size)
    }

    fn word(&self, area: *mut u8, offset: usize) -> &AtomicU16 {
        // SAFETY: The callers in this file pass offsets inside the area, whose
        // mapping `_mem` keeps alive; areas are 2-byte aligned and all accesses
        // by us are atomic, as are the device's.
        unsafe { AtomicU16::from_ptr(area.add(offset).cast()) }
    }

    /// Writes descriptor `index`.
    pub(crate) fn set_desc(&self, index: u16, desc: Desc) {
        // SAFETY: The slot is inside the descriptor table; nothing in this
        // process holds a reference to it.
        unsafe {
            std::ptr::copy_nonoverlapping(
                desc.bytes().as_ptr(),
                self.desc.add(16 * self.slot(index)),
                16,
            )
        }
    }

    /// Writes one entry of the available ring.
    pub(crate) fn set_avail(&self, slot: u16, head: u16) {
        self.word(self.avail, 4 + 2 * self.slot(slot))
            .store(head, Ordering::Relaxed);
    }

    /// Publishes the available index.
    pub(crate) fn set_avail_idx(&self, idx: u16) {
        self.word(self.avail, 2).store(idx, Ordering::Release);
    }

    /// The available index as published.
    pub(crate) fn avail_idx(&self) -> u16 {
        self.word(self.avail, 2).load(Ordering::Relaxed)
    }

    /// Sets avail->flags.
    pub(crate) fn set_avail_flags(&self, flags: u16) {
        self.word(self.avail, 0).store(flags, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// Sets used_event, which lies behind the available ring.
    pub(crate) fn set_used_event(&self, idx: u16) {
        self.word(self.avail, 4 + 2 * usize::from(self.layout.size))
            .store(idx, Ordering::Relaxed);
        fence(Ordering::SeqCst);
    }

    /// used->flags, after a full barrier.
    pub(crate) fn used_flags(&self) -> u16 {
        fence(Ordering::SeqCst);
        self.word(self.used, 0).load(Ordering::Relaxed)
    }

    /// The used index.
    pub(crate) fn used_idx(&self) -> u16 {
        self.steady(2)
    }

    /// A field of the used ring. A device in User-Mode Linux writes it byte by byte: what two looks
    /// agree on is taken to be whole.
    fn steady(&self, offset: usize) -> u16 {
        let look = || self.word(self.used, offset).load(Ordering::Acquire);
        let mut seen = look();
        loop {
            let again = look();
            if again == seen {
                return seen;
            }
            seen = again;
        }
    }

    /// Presets the used index, which belongs to the device once it runs.
    pub(crate) fn preset_used_idx(&self, idx: u16) {
        self.word(self.used, 2).store(idx, Ordering::Release);
    }

    /// One element of the used ring.
    pub(crate) fn used(&self, slot: u16) -> UsedElem {
        let mut bytes = [0u8; 8];
        // SAFETY: The slot is inside the used ring; the bytes are copied, no
        // reference to shared memory is made.
        unsafe {
            std::ptr::copy_nonoverlapping(
                self.used.add(4 + 8 * self.slot(slot)),
                bytes.as_mut_ptr(),
                8,
            )
        };
        let [a, b, c, d, e, f, g, h] = bytes;
        UsedElem {
            id: u32::from_le_bytes([a, b, c, d]),
            len: u32::from_le_bytes([e, f, g, h]),
        }
    }

    /// avail_event, which lies behind the used ring, after a full barrier.
    pub(crate) fn avail_event(&self) -> u16 {
        fence(Ordering::SeqCst);
        self.steady(4 + 8 * usize::from(self.layout.size))
    }

    /// Whether the device wants to be kicked for an available index that moved
    /// from `old` to `new`.
    pub(crate) fn wants_kick(&self, event_idx: bool, new: u16, old: u16) -> bool {
        if event_idx {
            need_event(self.avail_event(), new, old)
        } else {
            self.used_flags() & NO_NOTIFY == 0
        }
    }

    /// The bytes of the used ring, for comparing it with an earlier state.
    pub(crate) fn used_image(&self, mem: &Memory) -> Result<Vec<u8>> {
        mem.read(self.layout.used, 6 + 8 * usize::from(self.layout.size))
    }
}

/// Whether an index moving from `old` to `new` crosses `event` (virtio 1.3, 2.7.10).
pub(crate) fn need_event(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptor_has_the_layout_of_the_specification() {
        let desc = Desc {
            addr: 0x1122_3344_5566_7788,
            len: 0x99aa_bbcc,
            flags: F_NEXT | F_WRITE,
            next: 7,
        };
        assert_eq!(
            desc.bytes(),
            [0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11, 0xcc, 0xbb, 0xaa, 0x99, 3, 0, 7, 0]
        );
    }

    #[test]
    fn fields_lie_where_the_specification_puts_them() {
        let mem = Memory::new().unwrap();
        let layout = Layout::alloc(&mem, 8).unwrap();
        let ring = Ring::new(&mem, layout).unwrap();
        ring.set_avail_flags(1);
        ring.set_avail_idx(2);
        ring.set_avail(9, 5);
        ring.set_used_event(0x1234);
        assert_eq!(mem.read(layout.avail, 4).unwrap(), [1, 0, 2, 0]);
        assert_eq!(mem.read(layout.avail + 6, 2).unwrap(), [5, 0]);
        assert_eq!(mem.read(layout.avail + 20, 2).unwrap(), [0x34, 0x12]);
        mem.write(layout.used + 12, &[3, 0, 0, 0, 4, 0, 0, 0])
            .unwrap();
        mem.write(layout.used + 68, &[9, 0]).unwrap();
        assert_eq!(ring.used(1), UsedElem { id: 3, len: 4 });
        assert_eq!(ring.avail_event(), 9);
    }

    #[test]
    fn events_cross_over_the_wrap() {
        assert!(need_event(0, 1, 0));
        assert!(!need_event(1, 1, 0));
        assert!(need_event(65535, 0, 65535));
        assert!(need_event(2, 5, 65530));
        assert!(!need_event(5, 5, 65530));
    }
}
