// SPDX-License-Identifier: GPL-2.0
//! Packets in batches: one buffer each, from a page-fragment cache, with room in front as a TAP's
//! socket wants it.
//!
//! C headers: `include/net/xdp.h`, `include/linux/page_frag_cache.h`.

use core::slice;

use kernel::prelude::*;

use super::{
    bindings,
    usermem::UserMem, //
};
use crate::vcore::{
    addr::{
        Hva,
        Seg, //
    },
    hdr,
    recent::Recent,
    Error, //
};

/// Packets in a batch.
pub(crate) const BATCH: usize = bindings::RVH_TX_BATCH as usize;

/// `len`, a few pages at most, and what is missing to whole cache lines.
#[inline]
const fn cache_aligned(len: usize) -> usize {
    len.wrapping_add(bindings::RVH_SMP_CACHE_BYTES - 1) & !(bindings::RVH_SMP_CACHE_BYTES - 1)
}

/// Pieces of user memory that a batch may consist of; packets in more pieces than are left are
/// copied one by one.
const PIECES: usize = 2 * BATCH;

/// Buffers from one cache of pages, to be sent together.
///
/// Packets are added first, and copied into their buffers all at once when the batch is
/// [filled](Self::fill).
///
/// # Invariants
///
/// - Of `bufs`, those from the `gone`th on, up to the first `filled + added.len()`, describe fragments
///   that this value owns. `gone` is zero but while a batch is being sent.
/// - Each has its header of `header` bytes in front of its frame, and at least
///   [`hdr::MAX_BYTES`] more at its start.
/// - `copies` writes to fragments that were added, within their bounds.
/// - `pad` exceeds `header` by [`hdr::MAX_BYTES`] at least. A packet of `longest` bytes behind it, with
///   what the stack appends, takes a page at most.
pub(crate) struct TxBatch {
    bufs: KVec<bindings::xdp_buff>,
    /// Packets that are complete.
    filled: usize,
    /// How many of them were given away.
    gone: usize,
    /// Flows that were sent lately.
    recent: KBox<Recent>,
    /// Bytes of the header of each packet.
    header: usize,
    /// Bytes in front of each frame: room for the stack, for an XDP program, and the header.
    pad: usize,
    /// The longest packet, its header included.
    longest: usize,
    /// For each packet that is to be copied yet, how many copies there are up to its end.
    added: KVec<usize>,
    copies: KVec<bindings::rvh_copy>,
    pages: bindings::page_frag_cache,
}

// SAFETY: Pages and their fragments may be used and freed by any thread.
unsafe impl Send for TxBatch {}

impl TxBatch {
    /// Bytes that one takes, without the packets in it.
    pub(crate) const BYTES: usize = BATCH * (size_of::<bindings::xdp_buff>() + size_of::<usize>())
        + PIECES * size_of::<bindings::rvh_copy>()
        + size_of::<Recent>();

    /// An empty batch.
    pub(crate) fn new() -> Result<Self> {
        let mut bufs = KVec::with_capacity(BATCH, GFP_KERNEL)?;
        for _ in 0..BATCH {
            // SAFETY: The structure holds pointers and numbers, for which zero is a value.
            bufs.push(unsafe { core::mem::zeroed() }, GFP_KERNEL)?;
        }
        Ok(Self {
            bufs,
            filled: 0,
            gone: 0,
            recent: KBox::new(Recent::default(), GFP_KERNEL)?,
            header: 0,
            pad: 0,
            longest: 0,
            added: KVec::with_capacity(BATCH, GFP_KERNEL)?,
            copies: KVec::with_capacity(PIECES, GFP_KERNEL)?,
            pages: pin_init::zeroed(),
        })
    }

    /// Frees what is in it, and takes packets with a header of so many bytes from now on, with room
    /// for an XDP program in front or not.
    #[inline]
    pub(crate) fn begin(&mut self, header: usize, headroom: bool) {
        self.clear();
        let xdp = match headroom {
            true => bindings::RVH_XDP_HEADROOM,
            false => 0,
        };
        let known = header.min(hdr::MAX_BYTES);
        let pad = cache_aligned(bindings::RVH_SKB_PAD + xdp + known);
        // The limit is that of C vhost-net, which takes the header for a part of the frame. Nothing
        // fits behind a header that no device knows.
        let longest = match header == known {
            true => bindings::RVH_PAGE_SIZE.saturating_sub(bindings::RVH_SHARED_INFO + pad),
            false => 0,
        };
        // INVARIANT: Whole cache lines up to a page's end, as all others are.
        (self.header, self.pad, self.longest) = (known, pad, longest);
    }

    /// Adds a packet, to be copied when the batch is filled; [`Refused::Length`] if it is too long
    /// for a batch, or the batch is full.
    #[inline(always)]
    pub(crate) fn add(
        &mut self,
        user: &mut UserMem<'_>,
        packet: &Source<'_>,
    ) -> Result<(), Refused> {
        let frame = packet.len.checked_sub(self.header).ok_or(Refused::Length)?;
        let at = self.filled.wrapping_add(self.added.len());
        let slot = self.bufs.get_mut(at).ok_or(Refused::Length)?;
        if packet.len > self.longest {
            return Err(Refused::Length);
        }
        // A page at most, by the type's invariant.
        let size =
            cache_aligned(self.pad.wrapping_add(frame)).wrapping_add(bindings::RVH_SHARED_INFO);
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
        // SAFETY: `pad` exceeds the header, and `pad + frame` is within the fragment.
        let (from, data, end) = unsafe {
            let data = start.add(self.pad);
            (data.sub(self.header), data, data.add(frame))
        };
        // INVARIANT: The copies go to `len` bytes from `from` on, which are within the fragment.
        if !packet.plan(&mut self.copies, from) {
            // SAFETY: `len` bytes from `from` on are within the fragment.
            unsafe { packet.copy(user, from) }.map_err(|_| Refused::Fault)?;
        }
        if self.added.push_within_capacity(self.copies.len()).is_err() {
            return Err(Refused::Length);
        }
        // INVARIANT: The slot describes the fragment, which now belongs to the batch.
        slot.data_hard_start = fragment.keep().cast();
        slot.data = data.cast();
        slot.data_meta = data.cast();
        slot.data_end = end.cast();
        // SAFETY: A number may be written to this field of the union.
        // CAST: a page at most. The high half, the flags, is zero.
        unsafe { *slot.__bindgen_anon_1.frame_sz_flags_init.as_mut() = size as u64 };
        Ok(())
    }

    /// Copies the packets that were added. `fix` may change the header of each before the device
    /// sees it, and is told the length of header and frame; `false` from it refuses the packet.
    /// `refused` is told of each packet that is left out.
    #[inline]
    pub(crate) fn fill(
        &mut self,
        user: &mut UserMem<'_>,
        mut fix: impl FnMut(&mut [u8; hdr::BASE_BYTES], usize) -> bool,
        mut refused: impl FnMut(Refused),
    ) {
        let first = self.filled;
        let mut copied = self.carry_out(user, 0);
        for (i, &copies) in self.added.iter().enumerate() {
            let Some(buf) = self.bufs.get(first + i) else {
                break;
            };
            let start = buf.data_hard_start;
            let outcome = if copied < copies {
                // Those of the packets behind it may succeed.
                copied = self.carry_out(user, copies);
                Err(Refused::Fault)
            } else {
                // SAFETY: The fragment is ours, and all of the packet was copied to it.
                let header = unsafe { header_of(buf, self.header) }.first_chunk_mut();
                match header.is_none_or(|base| fix(base, self.header + frame_of(buf))) {
                    true => Ok(()),
                    false => Err(Refused::Header),
                }
            };
            // The places of packets that were left out are taken by those behind them.
            if self.filled < first + i {
                self.bufs.swap(self.filled, first + i);
            }
            match outcome {
                Ok(()) => self.filled += 1,
                Err(e) => {
                    refused(e);
                    drop(Fragment(start.cast()));
                }
            }
        }
        // INVARIANT: What was added is filled, or freed.
        self.added.clear();
        self.copies.clear();
    }

    /// Carries out the copies from the `first`th on. Returns how many are done then, from the very
    /// first on.
    #[inline]
    fn carry_out(&self, user: &mut UserMem<'_>, first: usize) -> usize {
        let copies = self.copies.get(first..).unwrap_or(&[]);
        // SAFETY: By the type's invariant the copies go to fragments of ours.
        first + unsafe { user.get_all(copies) }
    }

    /// The filled buffers that were not given away yet, their number, and the length of the header
    /// in front of each frame. Frees what was added since.
    #[inline]
    pub(super) fn front(&mut self) -> Option<(*mut bindings::xdp_buff, u16, u32)> {
        self.drop_added();
        let bufs = self.bufs.get_mut(self.gone..self.filled)?;
        // CAST: at most `BATCH`, and at most `MAX_BYTES`.
        (!bufs.is_empty()).then_some((bufs.as_mut_ptr(), bufs.len() as u16, self.header as u32))
    }

    /// Copies the headers of the first `n` of those to where a socket looks for them, the very start of
    /// each fragment, with zeroes up to the longest one it knows.
    #[cold]
    pub(super) fn lead(&mut self, n: u16) {
        for buf in self
            .bufs
            .iter()
            .take(self.filled)
            .skip(self.gone)
            .take(n.into())
        {
            let mut head = [0; hdr::MAX_BYTES];
            // SAFETY: By the type's invariant the fragment is ours, and has its header there.
            let header = unsafe { header_of(buf, self.header) };
            if let Some(to) = head.get_mut(..header.len()) {
                to.copy_from_slice(header);
            }
            // SAFETY: By the type's invariant there are so many bytes in front of the header.
            unsafe {
                buf.data_hard_start
                    .cast::<[u8; hdr::MAX_BYTES]>()
                    .write(head)
            };
        }
    }

    /// Whether the flow of the first of those was noted within about the last second before `now`,
    /// and for how many, from the first on, the same is true. Notes the flows that were not.
    pub(super) fn known(&mut self, now: u64) -> (bool, u16) {
        let (mut known, mut count) = (false, 0);
        for buf in self.bufs.get(self.gone..self.filled).unwrap_or(&[]) {
            // SAFETY: By the type's invariant the fragment is ours, and has a frame between these.
            let frame = unsafe { slice::from_raw_parts(buf.data.cast::<u8>(), frame_of(buf)) };
            let this = self.recent.knows(frame, now);
            if count > 0 && this != known {
                break;
            }
            known = this;
            count += 1;
            if !this {
                self.recent.note(frame, now);
            }
        }
        (known, count)
    }

    /// Forgets all flows.
    pub(crate) fn forget_flows(&mut self) {
        *self.recent = Recent::default();
    }

    /// Forgets the first `n` of the filled buffers that were not given away yet, without freeing
    /// them.
    ///
    /// # Safety
    ///
    /// They must have been given away.
    pub(super) unsafe fn forget(&mut self, n: u16) {
        // INVARIANT: By the function's contract they are not ours any more.
        self.gone = self.filled.min(self.gone + usize::from(n));
        if self.gone == self.filled {
            (self.filled, self.gone) = (0, 0);
        }
    }

    /// Frees all buffers.
    pub(crate) fn clear(&mut self) {
        self.drop_added();
        for buf in self.bufs.get(self.gone..self.filled).unwrap_or(&[]) {
            drop(Fragment(buf.data_hard_start.cast()));
        }
        (self.filled, self.gone) = (0, 0);
    }

    fn drop_added(&mut self) {
        for buf in self.bufs.iter().skip(self.filled).take(self.added.len()) {
            drop(Fragment(buf.data_hard_start.cast()));
        }
        self.added.clear();
        self.copies.clear();
    }
}

/// Bytes of a buffer's frame.
#[inline]
fn frame_of(buf: &bindings::xdp_buff) -> usize {
    buf.data_end.addr().saturating_sub(buf.data.addr())
}

/// The header in front of a buffer's frame.
///
/// # Safety
///
/// There must be `header` initialised bytes in front of the frame, which nobody else uses for `'a`.
#[inline]
unsafe fn header_of<'a>(buf: &bindings::xdp_buff, header: usize) -> &'a mut [u8] {
    // SAFETY: By the function's contract.
    unsafe { slice::from_raw_parts_mut(buf.data.cast::<u8>().sub(header), header) }
}

/// What tests look at.
#[cfg(rv_kunit)]
impl TxBatch {
    /// How many packets it holds.
    pub(crate) fn len(&self) -> usize {
        self.filled
    }

    /// The start of a buffer, where a socket looks for the header.
    pub(crate) fn start(&mut self, i: usize) -> Option<[u8; hdr::MAX_BYTES]> {
        // CAST: at most `BATCH`.
        self.lead(self.filled as u16);
        let buf = self.bufs.get(..self.filled)?.get(i)?;
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

/// A packet in user memory: `len` bytes behind the first `skip` of `segs`, its header first.
pub(crate) struct Source<'a> {
    pub(crate) segs: &'a [Seg],
    pub(crate) skip: usize,
    pub(crate) len: usize,
}

impl Source<'_> {
    /// Plans the copying of all of it to `to`. Returns whether there was room in `copies`; if not,
    /// nothing was added.
    #[inline]
    fn plan(&self, copies: &mut KVec<bindings::rvh_copy>, mut to: *mut u8) -> bool {
        if let (&[seg], 0) = (self.segs, self.skip) {
            // Most packets.
            let copy = bindings::rvh_copy {
                user: seg.at.0,
                kernel: to.cast(),
                len: self.len as u64,
            };
            return seg.len >= copy.len && copies.push_within_capacity(copy).is_ok();
        }
        let before = copies.len();
        let planned = self.pieces(|user, n| {
            let copy = bindings::rvh_copy {
                user: user.0,
                kernel: to.cast(),
                len: n as u64,
            };
            to = to.wrapping_add(n);
            copies.push_within_capacity(copy).is_ok()
        });
        if !planned {
            copies.truncate(before);
        }
        planned
    }

    /// Copies all of it to `to`.
    ///
    /// # Safety
    ///
    /// `len` bytes at `to` must be valid for writing.
    unsafe fn copy(&self, user: &mut UserMem<'_>, mut to: *mut u8) -> Result<(), Error> {
        let copied = self.pieces(|from, n| {
            // SAFETY: By the function's contract: the lengths add up to `len` at most.
            let read = unsafe { user.read_raw(from, to, n) };
            to = to.wrapping_add(n);
            read.is_ok()
        });
        if copied {
            Ok(())
        } else {
            Err(Error::Fault)
        }
    }

    /// Passes its pieces on, `len` bytes in all. Returns whether that many are there, and `f`
    /// succeeded for each.
    #[inline]
    fn pieces(&self, mut f: impl FnMut(Hva, usize) -> bool) -> bool {
        let mut skip = self.skip as u64;
        let mut left = self.len;
        for seg in self.segs {
            if seg.len <= skip {
                skip -= seg.len;
                continue;
            }
            // CAST: the smaller of the two fits.
            let n = (seg.len - skip).min(left as u64) as usize;
            if !f(seg.at.at(skip), n) {
                return false;
            }
            skip = 0;
            left -= n;
            if left == 0 {
                return true;
            }
        }
        false
    }
}

// A header at the very start must not reach into the one in front of the frame.
const _: () = assert!(bindings::RVH_SKB_PAD >= hdr::MAX_BYTES);
