// SPDX-License-Identifier: GPL-2.0
//! Where a queue's packets go to and come from.

use kernel::{
    prelude::*,
    sync::Arc, //
};

use crate::kext::{
    errno,
    file::FileRef,
    poll::{
        ready,
        PollHook, //
    },
    socket::Socket,
    tun::TapQueue,
    wait::Bell, //
};

/// What a file descriptor stands for.
pub(crate) enum Endpoint {
    /// A TAP or MacVTap queue: packets in a ring, and batches of them out.
    Tap(TapQueue),
    /// A raw packet socket: packets one by one.
    Packet(Socket),
}

impl Endpoint {
    /// What `fd` of the calling process stands for; `ENOTSOCK` if that is nothing we know.
    pub(crate) fn get(fd: i32) -> Result<Self> {
        let file = FileRef::get(fd).map_err(|_| errno::enotsock())?;
        match Socket::packet(file) {
            Ok(socket) => Ok(Self::Packet(socket)),
            Err(file) => Ok(Self::Tap(TapQueue::of(file)?)),
        }
    }

    /// The socket for packets that go alone.
    #[inline]
    pub(crate) fn socket(&self) -> &Socket {
        match self {
            Self::Tap(tap) => tap.socket(),
            Self::Packet(socket) => socket,
        }
    }

    /// Whether there is nothing to receive.
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        match self {
            Self::Tap(tap) => tap.is_empty(),
            Self::Packet(socket) => socket.peek().is_none(),
        }
    }
}

impl PartialEq for Endpoint {
    fn eq(&self, other: &Self) -> bool {
        self.socket().file() == other.socket().file()
    }
}

/// An endpoint, and how to hear that it is ready.
pub(crate) struct Backend {
    pub(crate) endpoint: Endpoint,
    pub(crate) hook: Pin<KBox<PollHook>>,
}

impl Backend {
    /// `endpoint`, with `bell` to be rung with `event` when it is ready for `mask`.
    ///
    /// # Errors
    ///
    /// `EINVAL` if the endpoint has no device.
    pub(crate) fn new(endpoint: Endpoint, mask: u32, bell: Arc<Bell>, event: u32) -> Result<Self> {
        let file = endpoint.socket().file().clone();
        let mut hook = PollHook::once(file, mask, bell, event)?;
        let state = hook.as_mut().hook();
        hook.as_mut().unhook();
        if state & ready::ERR != 0 {
            return Err(EINVAL);
        }
        Ok(Self { endpoint, hook })
    }
}
