// SPDX-License-Identifier: GPL-2.0
//! Transmission by a network device, of no more at a time than is allowed to be in flight.
//!
//! C header: `include/net/sock.h`.

use core::ptr::{
    self,
    NonNull, //
};

use kernel::{
    error::from_err_ptr,
    iov::IovIterSource,
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Full,
            Relaxed, //
        },
        barrier::smp_mb,
        Arc, //
    },
};

use super::bindings;
use crate::{
    kext::{
        errno,
        inlet::Ear,
        netdev::NetDev,
        usermem::{
            has_room,
            UserMem, //
        },
        wait::{
            Bell,
            Waiters, //
        },
        xdp::TxBatch, //
    },
    vcore::{
        addr::Seg,
        hdr, //
    },
};

/// The longest packet that is transmitted, with its header.
const MAX_BYTES: usize = (1 << 16) + 64;

/// Whether somebody wants to hear of room.
const WANTED: u32 = 1;

/// Who hears of room.
struct Gate {
    wanted: Atomic<u32>,
    ear: Ear,
}

impl Gate {
    /// Tells whoever wants to know.
    fn open(&self) {
        if self.wanted.load(Relaxed) == WANTED && self.wanted.xchg(0, Full) == WANTED {
            self.ear.call();
        }
    }
}

/// What one queue has in flight: all that it has sent and that is not yet freed.
///
/// # Invariants
///
/// `raw` is valid and ours to put; it calls [`on_space`] with `gate`, and no more once it was put.
struct Sender {
    raw: NonNull<bindings::rvh_sender>,
    gate: KBox<Gate>,
}

// SAFETY: What is shared with the stack has its own synchronisation.
unsafe impl Send for Sender {}
// SAFETY: As above.
unsafe impl Sync for Sender {}

impl Sender {
    fn new(ear: Ear, limit: i32) -> Result<Self> {
        let gate = Gate {
            wanted: Atomic::new(0),
            ear,
        };
        let gate = KBox::new(gate, GFP_KERNEL)?;
        let data = ptr::from_ref(&*gate).cast_mut().cast();
        // SAFETY: The gate stays where it is until after the sender is put.
        let raw = unsafe { bindings::rvh_sender_new(Some(on_space), data) };
        // INVARIANT: Made just now.
        let this = Self {
            raw: NonNull::new(raw).ok_or(ENOMEM)?,
            gate,
        };
        this.set_limit(limit);
        Ok(this)
    }

    #[inline]
    fn as_ptr(&self) -> *mut bindings::rvh_sender {
        self.raw.as_ptr()
    }

    fn set_limit(&self, bytes: i32) {
        // SAFETY: By the type's invariant.
        unsafe { bindings::rvh_sender_limit(self.as_ptr(), bytes) };
        // Whoever waits looks again.
        smp_mb();
        self.gate.open();
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        // SAFETY: By the type's invariant; whoever drops this may sleep.
        unsafe { bindings::rvh_sender_put(self.as_ptr()) };
    }
}

/// Called when there is room.
///
/// # Safety
///
/// `gate` must be a valid [`Gate`].
unsafe extern "C" fn on_space(gate: *mut c_void) {
    // SAFETY: By the function's contract.
    unsafe { &*gate.cast::<Gate>() }.open();
}

/// A device to transmit by, for one queue.
pub(crate) struct Outlet {
    dev: Arc<NetDev>,
    sender: Sender,
}

impl Outlet {
    /// For at most `limit` bytes in flight; `i32::MAX` for any number. `event` of `bell` is rung when
    /// there is room that somebody wanted.
    pub(crate) fn new(dev: Arc<NetDev>, limit: i32, bell: Arc<Bell>, event: u32) -> Result<Self> {
        let sender = Sender::new(Ear::Bell(bell, event), limit)?;
        Ok(Self { dev, sender })
    }

    /// The same, without limit, for a file; `waiters` are woken when there is room.
    pub(crate) fn new_file(dev: Arc<NetDev>, waiters: Arc<Waiters>) -> Result<Self> {
        let sender = Sender::new(Ear::Waiters(waiters), i32::MAX)?;
        Ok(Self { dev, sender })
    }

    /// The device.
    #[inline]
    pub(crate) fn device(&self) -> &Arc<NetDev> {
        &self.dev
    }

    /// From now on so many bytes may be in flight.
    pub(crate) fn set_limit(&self, bytes: i32) {
        self.sender.set_limit(bytes);
    }

    /// How many bytes there is room for.
    #[inline]
    pub(crate) fn room(&self) -> usize {
        // SAFETY: By the sender's invariant.
        unsafe { bindings::rvh_sender_room(self.sender.as_ptr()) }
    }

    /// Has room told of. Returns whether there is some already: half of what is allowed.
    pub(crate) fn want(&self) -> bool {
        self.sender.gate.wanted.store(WANTED, Relaxed);
        // Pairs with the barrier before `on_space` is called: either it is seen there that room is
        // wanted, or the room is seen here.
        smp_mb();
        // SAFETY: By the sender's invariant.
        unsafe { bindings::rvh_sender_writeable(self.sender.as_ptr()) }
    }

    /// Has no room told of.
    pub(crate) fn want_none(&self) {
        self.sender.gate.wanted.store(0, Relaxed);
    }

    /// Transmits a batch of packets and empties it. Returns how many were refused; `EBADFD` if the
    /// device is gone.
    #[inline]
    pub(crate) fn send_batch(&self, batch: &mut TxBatch) -> Result<u32> {
        let Some((bufs, count, header)) = batch.front() else {
            return Ok(0);
        };
        let refused = self.dev.with(|dev| {
            // SAFETY: The device is there; `count` buffers are filled, with such headers.
            unsafe {
                bindings::rvh_dev_transmit(
                    dev.as_ptr(),
                    self.sender.as_ptr(),
                    bufs,
                    count.into(),
                    header,
                )
            }
        });
        match refused {
            Some(refused) => {
                // SAFETY: They were all taken over.
                unsafe { batch.forget(count) };
                Ok(refused)
            }
            None => {
                batch.clear();
                Err(errno::ebadfd())
            }
        }
    }

    /// Transmits one packet: the `len` bytes at offset `skip` of `segs`, its header of `header` bytes
    /// first.
    ///
    /// # Errors
    ///
    /// `EBADFD` if the device is gone, `EFAULT` if the packet could not be read; anything else means
    /// that it was refused.
    pub(crate) fn send(
        &self,
        _user: &mut UserMem<'_>,
        segs: &[Seg],
        skip: usize,
        len: usize,
        header: usize,
    ) -> Result {
        if !has_room(segs, skip, len) {
            return Err(EFAULT);
        }
        if header > len || len > MAX_BYTES {
            return Err(EMSGSIZE);
        }
        // Aligned as a header is.
        let mut base = [0u16; hdr::BASE_BYTES / 2];
        // SAFETY: `Seg` is laid out as an iovec that is long enough, for the current address space,
        // as `_user` shows; the addresses are checked on the way.
        let skb = from_err_ptr(unsafe {
            bindings::rvh_skb_from_user(
                segs.as_ptr().cast(),
                segs.len() as c_ulong,
                skip,
                len,
                header,
                base.as_mut_ptr().cast(),
            )
        })?;
        // SAFETY: The packet was made just now.
        unsafe { self.hand_over(skb, &base) }
    }

    /// Has the device transmit a packet whose header is `base`. `EBADFD` if the device is gone,
    /// `EINVAL` if the packet is refused.
    ///
    /// # Safety
    ///
    /// The packet must be valid and the caller's, who gives it up.
    unsafe fn hand_over(
        &self,
        skb: *mut bindings::sk_buff,
        base: &[u16; hdr::BASE_BYTES / 2],
    ) -> Result {
        let sent = self.dev.with(|dev| {
            // SAFETY: The device is there, and the packet ours to give.
            unsafe {
                bindings::rvh_skb_transmit(
                    skb,
                    base.as_ptr().cast(),
                    dev.as_ptr(),
                    self.sender.as_ptr(),
                )
            }
        });
        match sent {
            Some(true) => Ok(()),
            Some(false) => Err(EINVAL),
            None => {
                // SAFETY: The packet is still ours.
                unsafe { bindings::rvh_skb_free(skb) };
                Err(errno::ebadfd())
            }
        }
    }

    /// Transmits one packet, all there is in `from`, whose header is `base`.
    ///
    /// # Errors
    ///
    /// `EBADFD` if the device is gone, `EFAULT` if the packet could not be read, `EMSGSIZE` if it is
    /// too long; `EINVAL` if the header does not fit it.
    pub(crate) fn write(
        &self,
        from: &mut IovIterSource<'_>,
        base: &[u8; hdr::BASE_BYTES],
    ) -> Result {
        let len = from.len();
        if len > MAX_BYTES {
            return Err(EMSGSIZE);
        }
        // CAST: u16 to usize widens.
        let linear = hdr::hdr_len(base) as usize;
        // SAFETY: The iterator is valid and has so many bytes.
        let skb = from_err_ptr(unsafe { bindings::rvh_skb_from_iter(from.as_raw(), len, linear) })?;
        // Aligned as a header is.
        let mut aligned = [0u16; hdr::BASE_BYTES / 2];
        for (to, bytes) in aligned.iter_mut().zip(base.chunks_exact(2)) {
            *to = u16::from_ne_bytes([
                bytes.first().copied().unwrap_or(0),
                bytes.get(1).copied().unwrap_or(0),
            ]);
        }
        // SAFETY: The packet was made just now.
        unsafe { self.hand_over(skb, &aligned) }
    }
}
