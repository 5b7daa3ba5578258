// SPDX-License-Identifier: GPL-2.0
//! Packets laid out as a TAP takes them in batches: one buffer each, from a page-fragment cache.
//!
//! C headers: `include/net/xdp.h`, `include/linux/page_frag_cache.h`.

use core::{
    ptr,
    slice, //
};

use kernel::prelude::*;

use super::{
    bindings,
    usermem::UserMem, //
};
use crate::vcore::{
    addr::Seg,
    hdr,
    Error, //
};

/// Packets in a batch.
pub(crate) const BATCH: usize = 64;

const fn cache_aligned(len: usize) -> usize {
    len.next_multiple_of(bindings::RVH_SMP_CACHE_BYTES)
}

/// Buffers from one cache of pages, to be sent together.
///
/// # Invariants
///
/// The first `count` of `bufs` describe fragments that this value owns.
pub(crate) struct TxBatch {
    bufs: KVec<bindings::xdp_buff>,
    count: usize,
    pages: bindings::page_frag_cache,
}

// SAFETY: Pages and their fragments may be used and freed by any thread.
unsafe impl Send for TxBatch {}

impl TxBatch {
    /// An empty batch.
    pub(crate) fn new() -> Result<Self> {
        let mut bufs = KVec::with_capacity(BATCH, GFP_KERNEL)?;
        for _ in 0..BATCH {
            // SAFETY: The structure holds pointers and numbers, for which zero is a value.
            bufs.push(unsafe { core::mem::zeroed() }, GFP_KERNEL)?;
        }
        Ok(Self {
            bufs,
            count: 0,
            pages: pin_init::zeroed(),
        })
    }

    /// Whether a packet of `len` bytes, `header` of them its header, fits a buffer.
    #[inline]
    pub(crate) fn fits(len: usize, header: usize, headroom: bool) -> bool {
        len <= bindings::RVH_PAGE_SIZE
            && cache_aligned(Self::pad(header, headroom) + len) + bindings::RVH_SHARED_INFO
                <= bindings::RVH_PAGE_SIZE
    }

    /// Bytes in front of the frame: room for the stack, for an XDP program, and the header.
    #[inline]
    fn pad(header: usize, headroom: bool) -> usize {
        let xdp = if headroom {
            bindings::RVH_XDP_HEADROOM
        } else {
            0
        };
        cache_aligned(bindings::RVH_SKB_PAD + xdp + header)
    }

    /// Copies a packet into a new buffer, and lets `fix` change its header before the device sees
    /// it; `false` from that refuses the packet.
    ///
    /// The packet must [fit](Self::fits), and the batch must not be full.
    pub(crate) fn add(
        &mut self,
        user: &mut UserMem<'_>,
        packet: &Source<'_>,
        headroom: bool,
        fix: impl FnOnce(&mut [u8; hdr::BASE_BYTES]) -> bool,
    ) -> Result<(), Refused> {
        let &Source { len, header, .. } = packet;
        if header > hdr::MAX_BYTES || header > len || !Self::fits(len, header, headroom) {
            return Err(Refused::Length);
        }
        let slot = self.bufs.get_mut(self.count).ok_or(Refused::Length)?;
        let pad = Self::pad(header, headroom);
        let size = cache_aligned(pad + len - header) + bindings::RVH_SHARED_INFO;
        // SAFETY: The cache is ours; the size is a page at most.
        // CAST: a page's size fits 32 bits; the mask is that of a power of two.
        let start = unsafe {
            bindings::__page_frag_alloc_align(
                &mut self.pages,
                size as u32,
                bindings::GFP_KERNEL,
                (bindings::RVH_SMP_CACHE_BYTES as u32).wrapping_neg(),
            )
        }
        .cast::<u8>();
        if start.is_null() {
            return Err(Refused::Memory);
        }
        let fragment = Fragment(start);
        // SAFETY: `pad` exceeds the header, and `pad + len - header` is within the fragment.
        let (from, data, end) = unsafe {
            (
                start.add(pad - header),
                start.add(pad),
                start.add(pad + len - header),
            )
        };
        // SAFETY: `len` bytes from `from` on are within the fragment.
        unsafe { packet.copy(user, from) }.map_err(|_| Refused::Fault)?;
        // The device looks for the header at the start, and reads the longest it knows.
        let mut head = [0; hdr::MAX_BYTES];
        // SAFETY: The header was just written there.
        let copied = unsafe { slice::from_raw_parts(from, header) };
        if let Some(to) = head.get_mut(..header) {
            to.copy_from_slice(copied);
        }
        if header >= hdr::BASE_BYTES {
            if let Some(base) = head.first_chunk_mut() {
                if !fix(base) {
                    return Err(Refused::Header);
                }
            }
        }
        // SAFETY: The fragment starts with a cache line of padding, which is longer.
        unsafe { ptr::copy_nonoverlapping(head.as_ptr(), start, head.len()) };
        // INVARIANT: The slot describes the fragment, which now belongs to the batch.
        slot.data_hard_start = fragment.keep().cast();
        slot.data = data.cast();
        slot.data_meta = data.cast();
        slot.data_end = end.cast();
        slot.rxq = ptr::null_mut();
        slot.txq = ptr::null_mut();
        // SAFETY: A number may be written to this field of the union.
        // CAST: a page at most. The high half, the flags, is zero.
        unsafe { *slot.__bindgen_anon_1.frame_sz_flags_init.as_mut() = size as u64 };
        self.count += 1;
        Ok(())
    }

    /// The filled buffers, for the device.
    pub(super) fn filled(&mut self) -> (*mut bindings::xdp_buff, u16) {
        // CAST: at most `BATCH`.
        (self.bufs.as_mut_ptr(), self.count as u16)
    }

    /// Empties the batch without freeing its buffers.
    ///
    /// # Safety
    ///
    /// The buffers must have been given away.
    pub(super) unsafe fn forget(&mut self) {
        self.count = 0;
    }

    /// Frees all buffers.
    pub(crate) fn clear(&mut self) {
        for buf in self.bufs.iter().take(self.count) {
            drop(Fragment(buf.data_hard_start.cast()));
        }
        self.count = 0;
    }
}

/// What tests look at.
#[cfg(rv_kunit)]
impl TxBatch {
    /// How many packets it holds.
    pub(crate) fn len(&self) -> usize {
        self.count
    }

    /// The start of a buffer, where the device looks for the header.
    pub(crate) fn start(&self, i: usize) -> Option<[u8; hdr::MAX_BYTES]> {
        let buf = self.bufs.get(..self.count)?.get(i)?;
        // SAFETY: By the type's invariant the fragment is ours, and starts with a header.
        Some(unsafe { buf.data_hard_start.cast::<[u8; hdr::MAX_BYTES]>().read() })
    }
}

impl Drop for TxBatch {
    fn drop(&mut self) {
        self.clear();
        // SAFETY: The cache is ours; fragments that others still hold keep their pages.
        unsafe { bindings::page_frag_cache_drain(&mut self.pages) };
    }
}

/// Why a packet was not added.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// It is too long or too short.
    Length,
    /// There is no memory.
    Memory,
    /// Its buffers could not be read.
    Fault,
    /// Its header was found bad.
    Header,
}

/// An owned page fragment.
struct Fragment(*mut u8);

impl Fragment {
    fn keep(self) -> *mut u8 {
        core::mem::ManuallyDrop::new(self).0
    }
}

impl Drop for Fragment {
    fn drop(&mut self) {
        // SAFETY: The fragment is owned, and was allocated as one.
        unsafe { bindings::page_frag_free(self.0.cast()) };
    }
}

/// A packet in user memory: `len` bytes behind the first `skip` of `segs`, the first `header` of
/// them its header.
pub(crate) struct Source<'a> {
    pub(crate) segs: &'a [Seg],
    pub(crate) skip: usize,
    pub(crate) len: usize,
    pub(crate) header: usize,
}

impl Source<'_> {
    /// Copies all of it to `to`.
    ///
    /// # Safety
    ///
    /// `len` bytes at `to` must be valid for writing.
    unsafe fn copy(&self, user: &mut UserMem<'_>, mut to: *mut u8) -> Result<(), Error> {
        let mut skip = self.skip as u64;
        let mut left = self.len;
        for seg in self.segs {
            if seg.len <= skip {
                skip -= seg.len;
                continue;
            }
            // CAST: the smaller of the two fits.
            let n = (seg.len - skip).min(left as u64) as usize;
            // SAFETY: By the function's contract: the lengths copied add up to `len` at most.
            unsafe {
                user.read_raw(seg.at.at(skip), to, n)?;
                to = to.add(n);
            }
            skip = 0;
            left -= n;
            if left == 0 {
                return Ok(());
            }
        }
        Err(Error::Fault)
    }
}

// The header is copied to the very start, which must not reach into the packet.
const _: () = assert!(bindings::RVH_SKB_PAD >= hdr::MAX_BYTES);
