// SPDX-License-Identifier: GPL-2.0
//! Queues of TAP and MacVTap devices.
//!
//! C headers: `include/linux/if_tun.h`, `include/linux/if_tap.h`.

use core::ptr::{
    self,
    NonNull, //
};

use kernel::{
    error::from_err_ptr,
    prelude::*, //
};

use super::{
    bindings,
    errno,
    file::FileRef,
    netdev::{
        NetDev,
        Present, //
    },
    packets::Packets,
    sched,
    socket::Socket,
    xdp::TxBatch, //
};

/// One queue of a TAP or MacVTap device, as its file stands for it.
///
/// # Invariants
///
/// `ring` belongs to the socket's file and lives as long as it does.
pub(crate) struct TapQueue {
    socket: Socket,
    ring: NonNull<bindings::ptr_ring>,
    taker: Taker,
}

/// Who takes batches of packets.
///
/// # Invariants
///
/// `Vtap` stands by the socket of such a device's queue.
enum Taker {
    /// The device of a TAP, for what it takes.
    Tap(TapDevice),
    /// The device of a MacVTap or IPVTap, which its queue knows.
    Vtap,
    /// Nobody but the socket.
    Socket,
}

/// The device of a TAP, or of another TUN device.
///
/// # Invariants
///
/// `slot` is in the private data of `dev`, as long as that is there.
struct TapDevice {
    dev: NetDev,
    slot: *const *mut bindings::sock,
}

// SAFETY: The ring has its own locks, and may be used by any thread in process context.
unsafe impl Send for TapQueue {}

impl TapQueue {
    /// The queue that `file` is; `ENOTSOCK` if it is none.
    pub(crate) fn of(file: FileRef) -> Result<Self> {
        let found = |sock, ring| {
            let sock = from_err_ptr(sock).ok().and_then(NonNull::new)?;
            let ring = from_err_ptr(ring).ok().and_then(NonNull::new)?;
            Some((sock, ring))
        };
        // SAFETY: The file is referenced.
        let tun = unsafe {
            found(
                bindings::tun_get_socket(file.as_ptr()),
                bindings::tun_get_tx_ring(file.as_ptr()),
            )
        };
        let taker = match tun {
            Some((sock, _)) => TapDevice::find(sock).map_or(Taker::Socket, Taker::Tap),
            // INVARIANT: If it is not that either, there is no socket.
            None => Taker::Vtap,
        };
        // SAFETY: As above.
        let (sock, ring) = tun
            .or_else(|| unsafe {
                found(
                    bindings::tap_get_socket(file.as_ptr()),
                    bindings::tap_get_ptr_ring(file.as_ptr()),
                )
            })
            .ok_or_else(errno::enotsock)?;
        Ok(Self {
            // SAFETY: The socket was resolved from this very file.
            socket: unsafe { Socket::new(file, sock) },
            // INVARIANT: So was the ring.
            ring,
            taker,
        })
    }

    /// The socket.
    pub(crate) fn socket(&self) -> &Socket {
        &self.socket
    }

    /// The socket, if it is that of a MacVTap or IPVTap.
    pub(super) fn vtap(&self) -> Option<NonNull<bindings::socket>> {
        match self.taker {
            Taker::Vtap => NonNull::new(self.socket.as_ptr()),
            Taker::Tap(_) | Taker::Socket => None,
        }
    }

    /// Whether packets may come with their hash.
    #[inline]
    pub(crate) fn may_hash(&self) -> bool {
        matches!(self.taker, Taker::Vtap)
    }

    /// Whether there is no packet. May not see one that is just being added.
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        // SAFETY: By the type's invariant the ring is valid.
        unsafe { bindings::rvh_ring_empty(self.ring.as_ptr()) }
    }

    /// Hands a batch of packets to the device and empties it. Their headers are `tunnel` ones, or
    /// not.
    ///
    /// # Errors
    ///
    /// `EBADFD` if the device is gone; the packets are freed.
    #[inline]
    pub(crate) fn send_batch(&self, batch: &mut TxBatch, tunnel: bool) -> Result {
        let taker = match &self.taker {
            _ if tunnel => &Taker::Socket,
            taker => taker,
        };
        // A TAP with several queues learns by its sockets which flow belongs to which queue.
        let learns = matches!(taker, Taker::Tap(device) if device.has_queues());
        let now = if learns { sched::clock() } else { 0 };
        while let Some((bufs, all, header)) = batch.front() {
            let (known, count) = if learns {
                batch.known(now)
            } else {
                (true, all)
            };
            let taken = match taker {
                Taker::Tap(device) => known && device.receive(&self.socket, bufs, count, header),
                // SAFETY: By the taker's invariant this is such a device's socket; `count` buffers
                // are filled, with such headers.
                Taker::Vtap => unsafe {
                    bindings::rvh_vtap_send(self.socket.as_ptr(), bufs, count.into(), header)
                },
                Taker::Socket => false,
            };
            if !taken {
                batch.lead(count);
                // SAFETY: `count` buffers are filled as a socket wants them.
                let sent = unsafe { self.socket.send_batch(bufs, count) };
                if sent.is_err() {
                    batch.clear();
                    return sent;
                }
            }
            // SAFETY: The device took so many.
            unsafe { batch.forget(count) };
        }
        Ok(())
    }

    /// Takes packets from the ring into the empty `packets`. Returns how many.
    #[inline]
    pub(crate) fn receive(&self, packets: &mut Packets) -> usize {
        // SAFETY: By the type's invariant the ring is valid.
        let n = unsafe { packets.take(self.ring) };
        if let (Taker::Tap(device), 1..) = (&self.taker, n) {
            device.count_sent(packets, false);
        }
        n
    }

    /// Puts what is left of `packets` back to the front of the ring, in order. What finds no
    /// room is freed.
    pub(crate) fn put_back(&self, packets: &mut Packets) {
        if let Taker::Tap(device) = &self.taker {
            device.count_sent(packets, true);
        }
        // SAFETY: By the type's invariant the ring is valid.
        unsafe { packets.put_back(self.ring) }
    }
}

impl TapDevice {
    /// The device that `sock` is a queue of, if it can be found.
    fn find(sock: NonNull<bindings::socket>) -> Option<Self> {
        let mut slot = ptr::null();
        // SAFETY: The socket is a TAP's.
        let dev = NonNull::new(unsafe { bindings::rvh_tap_find(sock.as_ptr(), &mut slot) })?;
        // SAFETY: The device was referenced for us.
        // INVARIANT: The slot was found in its private data.
        let dev = unsafe { NetDev::hold(dev) }.ok()?;
        Some(Self { dev, slot })
    }

    /// Counts packets that were taken from its ring as sent by it, or no more if they go `back`.
    #[inline]
    fn count_sent(&self, packets: &mut Packets, back: bool) {
        let (packets, count) = packets.raw();
        // SAFETY: The device is there for the time of the call; so many packets are ours.
        self.dev.with(|dev| unsafe {
            bindings::rvh_tun_count_sent(dev.as_ptr(), packets, count, back);
        });
    }

    /// Whether it has several queues now.
    #[inline]
    fn has_queues(&self) -> bool {
        // SAFETY: The device is there for the time of the call.
        let many = |dev: Present<'_>| unsafe { bindings::rvh_tap_has_queues(dev.as_ptr()) };
        self.dev.with(many) == Some(true)
    }

    /// Has the device receive `count` packets all at once, where that comes to the same as sending
    /// them by `socket`. Returns whether it took them.
    #[inline]
    fn receive(
        &self,
        socket: &Socket,
        bufs: *mut bindings::xdp_buff,
        count: u16,
        header: u32,
    ) -> bool {
        let received = self.dev.with(|dev| {
            // SAFETY: The device is there, and with it the slot; the socket is valid; `count`
            // buffers are filled, with such headers.
            unsafe {
                bindings::rvh_tap_receive(
                    dev.as_ptr(),
                    socket.as_ptr(),
                    self.slot,
                    bufs,
                    count.into(),
                    header,
                )
            }
        });
        received == Some(true)
    }
}
