// SPDX-License-Identifier: GPL-2.0
//! Sockets that packets are sent to and received from without a system call.
//!
//! C header: `include/linux/net.h`.

use core::ptr::NonNull;

use kernel::{
    error::to_result,
    prelude::*, //
};

use super::{
    bindings,
    file::FileRef,
    usermem::{
        has_room,
        UserMem, //
    },
};
use crate::vcore::addr::Seg;

/// A packet socket, or the socket within a TAP.
///
/// # Invariants
///
/// `sock` belongs to `file` and lives as long as it does.
pub(crate) struct Socket {
    file: FileRef,
    sock: NonNull<bindings::socket>,
}

// SAFETY: A socket's operations have their own locks, and may be used by any thread in process
// context.
unsafe impl Send for Socket {}

impl Socket {
    /// The raw packet socket (`AF_PACKET`) that `file` is, or `file` itself.
    pub(crate) fn packet(file: FileRef) -> Result<Self, FileRef> {
        // SAFETY: The file is referenced.
        match NonNull::new(unsafe { bindings::rvh_packet_socket(file.as_ptr()) }) {
            // INVARIANT: The socket was resolved from this file.
            Some(sock) => Ok(Self { file, sock }),
            None => Err(file),
        }
    }

    /// # Safety
    ///
    /// `sock` must belong to `file`.
    pub(super) unsafe fn new(file: FileRef, sock: NonNull<bindings::socket>) -> Self {
        // INVARIANT: By the function's contract.
        Self { file, sock }
    }

    /// The file.
    pub(crate) fn file(&self) -> &FileRef {
        &self.file
    }

    /// The socket.
    pub(super) fn as_ptr(&self) -> *mut bindings::socket {
        self.sock.as_ptr()
    }

    /// Whether the device wants room for an XDP program in front of packets.
    #[inline]
    pub(crate) fn wants_headroom(&self) -> bool {
        // SAFETY: By the type's invariant the socket is valid.
        unsafe { bindings::rvh_sock_wants_headroom(self.sock.as_ptr()) }
    }

    /// Whether the send buffer is unlimited, so that the device never asks to wait.
    #[inline]
    pub(crate) fn is_unlimited(&self) -> bool {
        // SAFETY: By the type's invariant the socket is valid.
        unsafe { bindings::rvh_sock_unlimited(self.sock.as_ptr()) }
    }

    /// Hands packets to a TAP.
    ///
    /// # Errors
    ///
    /// `EBADFD` if the device is gone; the packets are still the caller's.
    ///
    /// # Safety
    ///
    /// `count` buffers must be filled as the device wants them.
    pub(super) unsafe fn send_batch(&self, bufs: *mut bindings::xdp_buff, count: u16) -> Result {
        // SAFETY: The socket is valid; by the function's contract.
        to_result(unsafe { bindings::rvh_sock_send_batch(self.sock.as_ptr(), bufs, count) })
    }

    /// Sends one packet: the `len` bytes at offset `skip` of `segs`, header first.
    ///
    /// # Errors
    ///
    /// `EAGAIN` if the send buffer is full; anything else means that the packet is lost.
    pub(crate) fn send(
        &self,
        _user: &mut UserMem<'_>,
        segs: &[Seg],
        skip: usize,
        len: usize,
        more: bool,
    ) -> Result {
        // SAFETY: Nothing is lent; `_user` shows the address space to be the right one.
        unsafe { self.send_from(segs, skip, len, more, core::ptr::null_mut()) }
    }

    /// Whether the socket can send packets from where they are.
    #[inline]
    pub(crate) fn can_borrow(&self) -> bool {
        // SAFETY: By the type's invariant the socket is valid.
        unsafe { bindings::rvh_sock_zerocopy(self.sock.as_ptr()) }
    }

    /// As [`Self::send`], from where the packet is, if the socket [can](Self::can_borrow).
    ///
    /// # Safety
    ///
    /// The socket must be a TAP's. `ubuf` must be initialised, and valid until it is completed, which
    /// it is unless this fails.
    pub(super) unsafe fn send_lent(
        &self,
        _user: &mut UserMem<'_>,
        segs: &[Seg],
        skip: usize,
        len: usize,
        ubuf: *mut bindings::ubuf_info,
    ) -> Result {
        if !self.can_borrow() {
            return Err(EINVAL);
        }
        // SAFETY: By the function's contract.
        unsafe { self.send_from(segs, skip, len, false, ubuf) }
    }

    /// # Safety
    ///
    /// `ubuf` must be null, or it and the socket as for `send_lent`. The address space must be
    /// current.
    unsafe fn send_from(
        &self,
        segs: &[Seg],
        skip: usize,
        len: usize,
        more: bool,
        ubuf: *mut bindings::ubuf_info,
    ) -> Result {
        if !has_room(segs, skip, len) {
            return Err(EFAULT);
        }
        // SAFETY: The socket is valid; `Seg` is laid out as an iovec that is long enough, and the
        // user addresses are checked on the way; `ubuf` by the function's contract.
        to_result(unsafe {
            bindings::rvh_sock_send(
                self.sock.as_ptr(),
                segs.as_ptr().cast(),
                segs.len() as c_ulong,
                skip,
                len,
                more,
                ubuf,
            )
        })
    }

    /// The length of the next packet in the receive queue, a VLAN tag included.
    pub(crate) fn peek(&self) -> Option<usize> {
        // SAFETY: By the type's invariant the socket is valid.
        let len = unsafe { bindings::rvh_sock_peek(self.sock.as_ptr()) };
        usize::try_from(len).ok().filter(|&len| len > 0)
    }

    /// Receives the next packet, with `len` bytes of room at offset `skip` of `segs`. Returns the
    /// packet's own length.
    pub(crate) fn receive(
        &self,
        _user: &mut UserMem<'_>,
        segs: &[Seg],
        skip: usize,
        len: usize,
    ) -> Result<usize> {
        if !has_room(segs, skip, len) {
            return Err(EFAULT);
        }
        // SAFETY: As for `send`.
        let received = unsafe {
            bindings::rvh_sock_receive(
                self.sock.as_ptr(),
                segs.as_ptr().cast(),
                segs.len() as c_ulong,
                skip,
                len,
            )
        };
        to_result(received)?;
        // CAST: not negative.
        Ok(received as usize)
    }

    /// Drops the next packet.
    pub(crate) fn discard(&self) {
        // SAFETY: By the type's invariant the socket is valid.
        unsafe { bindings::rvh_sock_discard(self.sock.as_ptr()) };
    }
}
