// SPDX-License-Identifier: GPL-2.0
//! Layout of a split virtqueue in memory (virtio 1.3, 2.7.5 to 2.7.8).
//!
//! All fields are little endian. Legacy rings are in the guest's native order, which is the same
//! on every architecture that Linux can build Rust for.

/// Bytes of one descriptor.
pub const DESC_BYTES: usize = 16;
/// Bytes of one used element.
pub const USED_BYTES: usize = 8;
/// The chain goes on at `next`.
pub const DESC_F_NEXT: u16 = 1;
/// The buffer is device-writable.
pub const DESC_F_WRITE: u16 = 2;
/// The buffer holds a table of descriptors.
pub const DESC_F_INDIRECT: u16 = 4;
/// `avail->flags`: the driver wants no interrupt.
pub const AVAIL_F_NO_INTERRUPT: u16 = 1;
/// `used->flags`: the device wants no kick.
pub const USED_F_NO_NOTIFY: u16 = 1;

/// A descriptor. On little-endian machines it is laid out as in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Desc {
    /// Address of the buffer, as the driver sees it.
    pub addr: u64,
    /// Length of the buffer in bytes.
    pub len: u32,
    /// `DESC_F_*` bits.
    pub flags: u16,
    /// The next descriptor of the chain, if `DESC_F_NEXT` is set.
    pub next: u16,
}

impl Desc {
    /// Decodes a descriptor.
    #[inline]
    pub fn from_bytes(raw: &[u8; DESC_BYTES]) -> Self {
        let word = u128::from_le_bytes(*raw);
        // CAST: each takes just its own bits of the word.
        Self {
            addr: word as u64,
            len: (word >> 64) as u32,
            flags: (word >> 96) as u16,
            next: (word >> 112) as u16,
        }
    }

    /// Encodes a descriptor.
    #[inline]
    pub fn to_bytes(self) -> [u8; DESC_BYTES] {
        (u128::from(self.addr)
            | u128::from(self.len) << 64
            | u128::from(self.flags) << 96
            | u128::from(self.next) << 112)
            .to_le_bytes()
    }

    /// Whether all of `flags` are set.
    #[inline]
    pub fn has(&self, flags: u16) -> bool {
        self.flags & flags == flags
    }
}

/// A used element, encoded.
pub type UsedElem = [u8; USED_BYTES];

/// Encodes the used element for the chain that starts at `head`, with `len` bytes written to it.
#[inline]
pub fn used_elem(head: u16, len: u32) -> UsedElem {
    (u64::from(head) | u64::from(len) << 32).to_le_bytes()
}

#[cfg_attr(rv_kunit, ::kernel::macros::kunit_tests(rvhost_vcore_wire))]
#[cfg(any(test, rv_kunit))]
mod tests {
    use super::*;

    #[test]
    fn descriptor_fields_sit_where_the_spec_puts_them() {
        let raw = [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16];
        let desc = Desc::from_bytes(&raw);
        assert_eq!(desc.addr, 0x0807060504030201);
        assert_eq!(desc.len, 0x0c0b0a09);
        assert_eq!(desc.flags, 0x0e0d);
        assert_eq!(desc.next, 0x100f);
        assert_eq!(desc.to_bytes(), raw);
    }

    #[test]
    fn used_element_is_id_then_length() {
        assert_eq!(used_elem(0x0201, 0x08070605), [1, 2, 0, 0, 5, 6, 7, 8]);
    }
}
