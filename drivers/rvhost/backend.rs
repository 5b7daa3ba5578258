// SPDX-License-Identifier: GPL-2.0
//! Where a queue's packets go to and come from.

use kernel::{
    prelude::*,
    sync::Arc, //
};

use crate::{
    front::FrontQueue,
    kext::{
        errno,
        file::FileRef,
        poll::{
            ready,
            PollHook, //
        },
        port::{
            outlet::Outlet,
            vtap::VtapQueue,
            PortQueue, //
        },
        socket::Socket,
        tun::TapQueue,
        usermem::UserMem,
        wait::Bell,
        xdp::{
            Source,
            TxBatch, //
        },
    },
    stats::Shown,
    steering::Seat, //
};

/// Where packets come from or go to.
pub(crate) enum Endpoint {
    /// A TAP or MacVTap queue: packets in a ring, and batches of them out.
    Tap(TapQueue),
    /// A raw packet socket: packets one by one.
    Packet(Socket),
    /// What a network device receives for this queue.
    Inlet(PortQueue),
    /// A network device that transmits.
    Outlet(Outlet),
    /// Both, by a file that stands for them.
    Front(FileRef, Arc<FrontQueue>),
}

impl Endpoint {
    /// What `fd` of the calling process stands for; `ENOTSOCK` if that is nothing we know.
    pub(crate) fn get(fd: i32) -> Result<Self> {
        let file = FileRef::get(fd).map_err(|_| errno::enotsock())?;
        if let Some(queue) = FrontQueue::of(&file)? {
            return Ok(Self::Front(file, queue));
        }
        match Socket::packet(file) {
            Ok(socket) => Ok(Self::Packet(socket)),
            Err(file) => Ok(Self::Tap(TapQueue::of(file)?)),
        }
    }

    /// What it is called to whoever looks.
    pub(crate) fn shown(&self) -> Shown {
        match self {
            Self::Tap(tap) => Shown::File(tap.socket().file().clone()),
            Self::Packet(socket) => Shown::File(socket.file().clone()),
            Self::Inlet(queue) => Shown::Netdev(queue.port().device().clone()),
            Self::Outlet(outlet) => Shown::Netdev(outlet.device().clone()),
            Self::Front(_, queue) => Shown::Netdev(queue.port().device().clone()),
        }
    }

    /// Takes its place on a port, if there is one, for a queue that receives, or not, with each
    /// packet's hash, or not.
    pub(crate) fn join(&self, receives: bool, hashes: bool) -> Result<Option<Seat>> {
        Ok(match self {
            Self::Tap(tap) if receives => VtapQueue::join(tap, hashes)?.map(Seat::Vtap),
            Self::Tap(_) | Self::Packet(_) | Self::Outlet(_) => None,
            Self::Inlet(queue) => Some(Seat::Port(queue.port().clone())),
            Self::Front(_, queue) => Some(Seat::Port(queue.port().clone())),
        })
    }

    /// Whether packets may come with their hash.
    #[inline]
    pub(crate) fn may_hash(&self) -> bool {
        match self {
            Self::Tap(tap) => tap.may_hash(),
            _ => self.inlet().is_some(),
        }
    }

    /// The file, if there is one.
    fn file(&self) -> Option<&FileRef> {
        match self {
            Self::Tap(tap) => Some(tap.socket().file()),
            Self::Packet(socket) => Some(socket.file()),
            Self::Front(file, _) => Some(file),
            Self::Inlet(_) | Self::Outlet(_) => None,
        }
    }

    /// The queue of a port that it receives from, if it does.
    #[inline]
    pub(crate) fn inlet(&self) -> Option<&PortQueue> {
        match self {
            Self::Inlet(queue) => Some(queue),
            Self::Front(_, queue) => Some(queue.inlet()),
            Self::Tap(_) | Self::Packet(_) | Self::Outlet(_) => None,
        }
    }

    /// The socket for packets that go alone.
    #[inline]
    fn socket(&self) -> Option<&Socket> {
        match self {
            Self::Tap(tap) => Some(tap.socket()),
            Self::Packet(socket) => Some(socket),
            Self::Inlet(_) | Self::Outlet(_) | Self::Front(..) => None,
        }
    }

    /// Whether it wants room for an XDP program in front of packets.
    #[inline]
    pub(crate) fn wants_headroom(&self) -> bool {
        self.socket().is_some_and(Socket::wants_headroom)
    }

    /// Whether it never asks to wait.
    #[inline]
    pub(crate) fn is_unlimited(&self) -> bool {
        self.socket().is_none_or(Socket::is_unlimited)
    }

    /// Whether it takes packets in batches.
    #[inline]
    pub(crate) fn takes_batches(&self) -> bool {
        matches!(self, Self::Tap(_) | Self::Outlet(_) | Self::Front(..)) && self.is_unlimited()
    }

    /// How many bytes it takes, before they are handed over, until it must wait: any number, if that
    /// is found out by sending.
    #[inline]
    pub(crate) fn room(&self) -> usize {
        match self {
            Self::Outlet(outlet) => outlet.room(),
            Self::Front(_, queue) => queue.outlet().room(),
            Self::Tap(_) | Self::Packet(_) | Self::Inlet(_) => usize::MAX,
        }
    }

    /// Hands a batch of packets over and empties it. Their headers are `tunnel` ones, or not. Returns
    /// how many it refused, as far as it says so.
    ///
    /// # Errors
    ///
    /// `EBADFD` if the device is gone; the packets are freed.
    #[inline]
    pub(crate) fn send_batch(&self, batch: &mut TxBatch, tunnel: bool) -> Result<u32> {
        match self {
            Self::Tap(tap) => tap.send_batch(batch, tunnel).map(|()| 0),
            Self::Outlet(outlet) => outlet.send_batch(batch),
            Self::Front(_, queue) => queue.outlet().send_batch(batch),
            Self::Packet(_) | Self::Inlet(_) => Ok(0),
        }
    }

    /// Sends one packet, whose first `header` bytes are its header. `more`: others follow at once.
    ///
    /// # Errors
    ///
    /// `EAGAIN` if it must wait; anything else means that the packet is lost.
    pub(crate) fn send(
        &self,
        user: &mut UserMem<'_>,
        packet: &Source<'_>,
        header: usize,
        more: bool,
    ) -> Result {
        let &Source { segs, skip, len } = packet;
        match self {
            Self::Tap(_) | Self::Packet(_) => {
                let socket = self.socket().ok_or(EINVAL)?;
                socket.send(user, segs, skip, len, more && !socket.is_unlimited())
            }
            Self::Outlet(outlet) => outlet.send(user, segs, skip, len, header),
            Self::Front(_, queue) => queue.outlet().send(user, segs, skip, len, header),
            Self::Inlet(_) => Err(EINVAL),
        }
    }

    /// Whether there is nothing to receive.
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        match self {
            Self::Tap(tap) => tap.is_empty(),
            Self::Packet(socket) => socket.peek().is_none(),
            Self::Inlet(queue) => queue.is_empty(),
            Self::Front(_, queue) => queue.inlet().is_empty(),
            Self::Outlet(_) => true,
        }
    }
}

impl PartialEq for Endpoint {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            // A file may have come to stand for another queue.
            (Self::Front(_, one), Self::Front(_, two)) => Arc::ptr_eq(one, two),
            _ => self.file().is_some_and(|file| other.file() == Some(file)),
        }
    }
}

/// An endpoint, and how to hear that it is ready.
pub(crate) struct Backend {
    pub(crate) endpoint: Endpoint,
    /// A network device's queue says so itself.
    hook: Option<Pin<KBox<PollHook>>>,
    /// Whether it is sent to.
    sends: bool,
}

impl Backend {
    /// `endpoint`, with `bell` to be rung with `event` when it is ready for `mask`.
    ///
    /// # Errors
    ///
    /// `EINVAL` if the endpoint has no device.
    pub(crate) fn new(endpoint: Endpoint, mask: u32, bell: Arc<Bell>, event: u32) -> Result<Self> {
        let hook = match endpoint.file() {
            Some(file) => {
                let mut hook = PollHook::once(file.clone(), mask, bell, event)?;
                let state = hook.as_mut().hook();
                hook.as_mut().unhook();
                if state & ready::ERR != 0 {
                    return Err(EINVAL);
                }
                Some(hook)
            }
            None => None,
        };
        let sends = mask & ready::OUT != 0;
        Ok(Self {
            endpoint,
            hook,
            sends,
        })
    }

    /// Has the bell rung when it is ready next. Returns whether it is ready already.
    pub(crate) fn listen(&mut self) -> bool {
        match (&mut self.hook, &self.endpoint) {
            // A device that is down takes packets, and drops them.
            (Some(hook), Endpoint::Front(_, queue)) if self.sends => {
                hook.as_mut().hook_and_look() || queue.outlet().want()
            }
            (Some(hook), _) => hook.as_mut().hook_and_look(),
            (None, Endpoint::Inlet(queue)) => queue.want(),
            (None, Endpoint::Outlet(outlet)) => outlet.want(),
            (None, _) => false,
        }
    }

    /// Does not listen any more.
    pub(crate) fn ignore(&mut self) {
        match (&mut self.hook, &self.endpoint) {
            (Some(hook), _) => hook.as_mut().unhook(),
            (None, Endpoint::Inlet(queue)) => queue.want_none(),
            (None, Endpoint::Outlet(outlet)) => outlet.want_none(),
            (None, _) => {}
        }
    }
}
