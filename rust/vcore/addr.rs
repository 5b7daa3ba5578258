// SPDX-License-Identifier: GPL-2.0
//! Address spaces as types, so that one cannot be taken for another.

/// An address as the driver writes it into a descriptor: guest-physical or, where an IOTLB stands
/// between, I/O virtual.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Gpa(pub u64);

/// Where the owner says a part of a ring is: a virtual address of its own or, where an IOTLB
/// stands between, an I/O virtual address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct RingAddr(pub u64);

impl RingAddr {
    /// The address `offset` bytes further on. An address that wraps is refused by every access.
    #[inline]
    pub fn at(self, offset: u64) -> RingAddr {
        RingAddr(self.0.wrapping_add(offset))
    }
}

/// A virtual address in the owner's address space.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
#[repr(transparent)]
pub struct Hva(pub u64);

impl Hva {
    /// The address `offset` bytes further on. An address that wraps is refused by every access.
    #[inline]
    pub fn at(self, offset: u64) -> Hva {
        Hva(self.0.wrapping_add(offset))
    }
}

/// A piece of owner memory. Laid out like `struct iovec` of a 64-bit kernel.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(C)]
pub struct Seg {
    /// Where it starts.
    pub at: Hva,
    /// Its length in bytes.
    pub len: u64,
}
