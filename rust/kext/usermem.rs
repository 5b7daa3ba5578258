// SPDX-License-Identifier: GPL-2.0
//! Memory of the address space that is current.
//!
//! User memory changes at any time, so that no reference ever points at it: everything is
//! copied. All accesses may sleep for a page fault, and fail where nothing is mapped.
//!
//! C header: `include/linux/uaccess.h`.

use core::{
    marker::PhantomData,
    mem::MaybeUninit, //
};

use kernel::types::NotThreadSafe;

use super::bindings;
use crate::vcore::{
    addr::{
        Hva,
        Seg, //
    },
    wire::{
        Desc,
        DESC_BYTES, //
    },
    Error, Result,
};

/// Whether `seg` lies where user memory may be; says nothing about what is mapped there.
pub(crate) fn in_user_range(seg: Seg) -> bool {
    // SAFETY: Compares addresses only.
    unsafe { bindings::rvh_access_ok(seg.at.0, seg.len) }
}

/// Whether `segs` have `len` bytes behind the first `skip`: C code that is handed them as an iovec
/// believes the sum it is told.
#[inline]
pub(super) fn has_room(segs: &[Seg], skip: usize, len: usize) -> bool {
    let all = segs
        .iter()
        .fold(0u64, |sum, seg| sum.saturating_add(seg.len));
    // CAST: usize to u64 widens.
    all >= (skip as u64).saturating_add(len as u64)
}

/// Access to the memory of the current address space.
///
/// # Invariants
///
/// The address space stays current for `'a`.
pub(crate) struct UserMem<'a>(PhantomData<&'a ()>, NotThreadSafe);

impl UserMem<'_> {
    /// # Safety
    ///
    /// The address space must stay current for as long as the value lives.
    pub(super) unsafe fn new() -> Self {
        // INVARIANT: By the function's contract.
        Self(PhantomData, NotThreadSafe)
    }

    /// Copies `out.len()` bytes from `at`.
    #[inline]
    pub(crate) fn read(&mut self, at: Hva, out: &mut [u8]) -> Result {
        // SAFETY: `out` may be written.
        unsafe { self.read_raw(at, out.as_mut_ptr(), out.len()) }
    }

    /// Copies `len` bytes from `at` to `to`, which need not be initialised.
    ///
    /// # Safety
    ///
    /// `len` bytes at `to` must be valid for writing.
    #[inline]
    pub(super) unsafe fn read_raw(&mut self, at: Hva, to: *mut u8, len: usize) -> Result {
        // SAFETY: By the function's contract; the function checks `at`.
        match unsafe { bindings::rvh_copy_from_user(to.cast(), at.0, len) } {
            0 => Ok(()),
            _ => Err(Error::Fault),
        }
    }

    /// Copies `data` to `at`.
    #[inline]
    pub(crate) fn write(&mut self, at: Hva, data: &[u8]) -> Result {
        // SAFETY: `data` may be read; the function checks `at`.
        match unsafe { bindings::rvh_copy_to_user(at.0, data.as_ptr().cast(), data.len()) } {
            0 => Ok(()),
            _ => Err(Error::Fault),
        }
    }

    /// Copies what `puts` holds, in order. Returns how many were copied: fewer than there are if
    /// the next one faulted.
    #[inline]
    pub(crate) fn put_all<const N: usize>(&mut self, puts: &Puts<'_, N>) -> usize {
        // SAFETY: By the type's invariant the first `len` copies are valid, and what they copy
        // may be read; the function checks the user addresses.
        // CAST: far fewer than 2^32; u32 to usize widens.
        unsafe {
            bindings::rvh_copy_all_to_user(puts.list.as_ptr().cast(), puts.len as u32) as usize
        }
    }

    /// Carries out `copies` from user memory, in order. Returns how many were done: fewer than
    /// there are if the next one faulted.
    ///
    /// # Safety
    ///
    /// The kernel memory that the copies name must be valid for writing.
    #[inline]
    pub(super) unsafe fn get_all(&mut self, copies: &[bindings::rvh_copy]) -> usize {
        // SAFETY: By the function's contract; the function checks the user addresses.
        // CAST: far fewer than 2^32; u32 to usize widens.
        unsafe { bindings::rvh_copy_all_from_user(copies.as_ptr(), copies.len() as u32) as usize }
    }

    /// Reads 16 bits in one access.
    #[inline]
    pub(crate) fn load_u16(&mut self, at: Hva) -> Result<u16> {
        let mut value = 0;
        // SAFETY: `value` may be written; the function checks `at`.
        match unsafe { bindings::rvh_load_u16(at.0, &mut value) } {
            0 => Ok(u16::from_le(value)),
            _ => Err(Error::Fault),
        }
    }

    /// Writes 16 bits in one access.
    #[inline]
    pub(crate) fn store_u16(&mut self, at: Hva, value: u16) -> Result {
        // SAFETY: The function checks `at`.
        match unsafe { bindings::rvh_store_u16(at.0, value.to_le()) } {
            0 => Ok(()),
            _ => Err(Error::Fault),
        }
    }

    /// Sets bits of a little-endian 32-bit word, atomically against whoever else changes it. `at`
    /// must be a multiple of four.
    pub(crate) fn set_bits(&mut self, at: Hva, bits: u32) -> Result {
        // SAFETY: The function checks `at`.
        match unsafe { bindings::rvh_set_bits(at.0, bits.to_le()) } {
            0 => Ok(()),
            _ => Err(Error::Fault),
        }
    }

    /// Reads the descriptors `index` of the table at `table`, as far as `index` and `out` go.
    #[inline]
    pub(crate) fn read_descs(&mut self, table: Hva, index: &[u16], out: &mut [Desc]) -> Result {
        let count = index.len().min(out.len());
        // SAFETY: `count` indices may be read and as many entries written; the function checks
        // the user addresses.
        // CAST: far fewer than 2^32.
        match unsafe {
            bindings::rvh_gather_descs(
                table.0,
                index.as_ptr(),
                out.as_mut_ptr().cast(),
                count as u32,
            )
        } {
            0 => Ok(()),
            _ => Err(Error::Fault),
        }
    }
}

/// Up to `N` pieces of kernel memory, each with a place in user memory to be copied to.
///
/// # Invariants
///
/// The first `len` entries of `list` are initialised, and name kernel memory that is borrowed for
/// `'a`.
pub(crate) struct Puts<'a, const N: usize> {
    list: [MaybeUninit<bindings::rvh_copy>; N],
    len: usize,
    _from: PhantomData<&'a [u8]>,
}

impl<'a, const N: usize> Puts<'a, N> {
    /// None yet.
    #[inline]
    pub(crate) fn new() -> Self {
        Self {
            list: [const { MaybeUninit::uninit() }; N],
            len: 0,
            _from: PhantomData,
        }
    }

    /// How many there are.
    #[inline]
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Forgets all but the first `len`.
    #[inline]
    pub(crate) fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// Adds one. Returns whether there was room.
    #[inline]
    pub(crate) fn push(&mut self, to: Hva, from: &'a [u8]) -> bool {
        let Some(slot) = self.list.get_mut(self.len) else {
            return false;
        };
        // INVARIANT: The slice is borrowed for `'a`. Nothing is written through the pointer.
        slot.write(bindings::rvh_copy {
            user: to.0,
            kernel: from.as_ptr().cast_mut().cast(),
            len: from.len() as u64,
        });
        self.len += 1;
        true
    }
}

// `Seg` is handed to C as an iovec, and descriptors are copied as they are.
const _: () = {
    use core::mem::{
        offset_of,
        size_of, //
    };
    use kernel::bindings::iovec;
    assert!(size_of::<Seg>() == size_of::<iovec>());
    assert!(offset_of!(Seg, at) == offset_of!(iovec, iov_base));
    assert!(offset_of!(Seg, len) == offset_of!(iovec, iov_len));
    assert!(size_of::<Desc>() == DESC_BYTES && cfg!(target_endian = "little"));
};
