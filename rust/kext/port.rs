// SPDX-License-Identifier: GPL-2.0
//! Ports: network devices whose packets go to queues of ours, chosen by their flow.
//!
//! C header: `include/linux/netdevice.h`.

use core::{
    ptr::NonNull,
    slice, //
};

use kernel::{
    error::to_result,
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc,
        ArcBorrow, //
    },
};

mod front;
pub(crate) mod outlet;
pub(crate) mod rss;
mod steer;
pub(crate) mod vtap;

use self::steer::{
    Queue,
    Steer, //
};

use super::{
    bindings,
    inlet::{
        Ear,
        Inlet, //
    },
    netdev::NetDev,
    packets::Packets,
    rtnl::{
        Rtnl,
        RtnlCell, //
    },
    wait::{
        Bell,
        Waiters, //
    },
};

/// Queues of a port.
pub(crate) const MAX_QUEUES: usize = 256;
/// The owner that files are which stand for queues: no address space has this number.
const FILES: usize = 0;

/// What a queue is to be.
#[derive(Clone, Copy)]
pub(crate) struct Wanted {
    /// Its number; none for the first that is free.
    pub(crate) queue: Option<usize>,
    pub(crate) promiscuous: bool,
    /// Whether the device is to receive all groups.
    pub(crate) all_groups: bool,
    /// Whether it is to be the port's only one.
    pub(crate) alone: bool,
    pub(crate) offloads: u32,
    pub(crate) ring: usize,
    /// Bytes that it may have in flight; `i32::MAX` for any number.
    pub(crate) sndbuf: i32,
}

impl Queue for Inlet {
    #[inline]
    fn is_open(&self) -> bool {
        Inlet::is_open(self)
    }
}

/// A port, as its queues share it.
///
/// # Invariants
///
/// While `State::hooked`, the device exists and its receive handler is ours, which holds a reference
/// to the port.
struct Shared {
    dev: Arc<NetDev>,
    raw: NonNull<bindings::net_device>,
    /// Whose it is: no two owners have the same number at a time. Files that stand for queues are
    /// one owner.
    owner: usize,
    alone: bool,
    /// Whether a reader asked for the hashes of packets.
    hashes: Atomic<bool>,
    steer: Steer<Inlet>,
    state: RtnlCell<State>,
}

// SAFETY: The device is used under RTNL, where it exists, or by `dev`; all else is shared safely.
unsafe impl Send for Shared {}
// SAFETY: As above.
unsafe impl Sync for Shared {}

struct State {
    hooked: bool,
    promiscuous: bool,
    all_groups: bool,
    /// What the readers of all queues take, if it was said of all.
    offloads: Option<u32>,
}

/// A port.
#[derive(Clone)]
pub(crate) struct Port(Arc<Shared>);

/// A queue of a port: what its device receives for it.
pub(crate) struct PortQueue {
    port: Port,
    inlet: Arc<Inlet>,
    number: usize,
}

impl Port {
    /// Makes a queue for what `dev` receives, on the port that `owner` has on it, or on a new one.
    /// `event` of `bell` is rung when something came.
    pub(crate) fn bind(
        dev: Arc<NetDev>,
        wanted: &Wanted,
        owner: usize,
        bell: Arc<Bell>,
        event: u32,
    ) -> Result<PortQueue> {
        Self::bind_with(dev, wanted, owner, Ear::Bell(bell, event))
    }

    /// The same for a file that stands for the queue; `waiters` are woken when something came.
    pub(crate) fn bind_file(
        dev: Arc<NetDev>,
        wanted: &Wanted,
        waiters: Arc<Waiters>,
    ) -> Result<PortQueue> {
        Self::bind_with(dev, wanted, FILES, Ear::Waiters(waiters))
    }

    fn bind_with(dev: Arc<NetDev>, wanted: &Wanted, owner: usize, ear: Ear) -> Result<PortQueue> {
        let inlet = Inlet::new(wanted.ring, wanted.offloads, ear)?;
        let mut rtnl = Rtnl::lock();
        // Under the lock, a device that is there stays.
        let raw = dev.with(|dev| dev.as_ptr());
        let raw = raw.and_then(NonNull::new).ok_or(ENODEV)?;
        // SAFETY: The device is there, and the lock held.
        let hooked = unsafe { bindings::rvh_dev_hooked(raw.as_ptr(), Some(on_packet)) };
        let port = if hooked.is_null() {
            Self::new(dev, raw, owner, wanted, &mut rtnl)?
        } else {
            // SAFETY: What is registered with our handler is a port, which the handler references.
            let shared: Arc<Shared> =
                unsafe { ArcBorrow::from_raw(hooked.cast::<Shared>()) }.into();
            if shared.owner != owner {
                return Err(EBUSY);
            }
            if shared.alone || wanted.alone {
                return Err(if shared.alone && wanted.alone {
                    EBUSY
                } else {
                    EINVAL
                });
            }
            Self(shared)
        };
        if let Some(offloads) = port.0.state.get(&mut rtnl).offloads {
            inlet.set_offloads(offloads);
        }
        let number = port.0.steer.add(wanted.queue, &inlet, &mut rtnl);
        match number {
            Ok(number) => {
                drop(rtnl);
                Ok(PortQueue {
                    port,
                    inlet,
                    number,
                })
            }
            Err(e) => {
                port.0.leave_if_unused(&mut rtnl);
                drop(rtnl);
                Err(e)
            }
        }
    }

    fn new(
        dev: Arc<NetDev>,
        raw: NonNull<bindings::net_device>,
        owner: usize,
        wanted: &Wanted,
        rtnl: &mut Rtnl,
    ) -> Result<Self> {
        // SAFETY: The device exists and the lock is held.
        let ifindex = unsafe { bindings::rvh_dev_ifindex(raw.as_ptr()) };
        // INVARIANT: Not hooked yet.
        let shared = Shared {
            dev,
            raw,
            owner,
            alone: wanted.alone,
            hashes: Atomic::new(false),
            steer: Steer::new(ifindex)?,
            state: RtnlCell::new(State {
                hooked: false,
                promiscuous: false,
                all_groups: false,
                offloads: None,
            }),
        };
        let shared = Arc::new(shared, GFP_KERNEL)?;
        let theirs = Arc::into_raw(shared.clone()).cast_mut();
        // SAFETY: The device exists and the lock is held.
        let hooked = to_result(unsafe {
            bindings::rvh_dev_hook(raw.as_ptr(), Some(on_packet), theirs.cast())
        });
        if let Err(e) = hooked {
            // SAFETY: The reference made above, which nobody took.
            drop(unsafe { Arc::from_raw(theirs) });
            return Err(e);
        }
        let state = shared.state.get(rtnl);
        // INVARIANT: The handler is ours, and has its reference.
        state.hooked = true;
        let filtered = (|| {
            if wanted.promiscuous {
                // SAFETY: As above.
                to_result(unsafe { bindings::rvh_dev_promisc(raw.as_ptr(), true) })?;
                state.promiscuous = true;
            }
            if wanted.all_groups {
                // SAFETY: As above.
                to_result(unsafe { bindings::rvh_dev_allmulti(raw.as_ptr(), true) })?;
                state.all_groups = true;
            }
            Ok(())
        })();
        if let Err(e) = filtered {
            shared.unhook(rtnl);
            return Err(e);
        }
        Ok(Self(shared))
    }

    /// The device.
    pub(crate) fn device(&self) -> &Arc<NetDev> {
        &self.0.dev
    }

    /// Whether the device is gone.
    pub(crate) fn is_gone(&self) -> bool {
        self.0.dev.is_gone()
    }
}

impl PartialEq for Port {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl PortQueue {
    /// The port.
    pub(crate) fn port(&self) -> &Port {
        &self.port
    }

    /// From now on, as long as the port is there, packets come with their hash.
    pub(crate) fn want_hashes(&self) {
        self.port.0.hashes.store(true, Relaxed);
    }

    /// Whether there is no packet.
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.inlet.is_empty()
    }

    /// Takes packets into the empty `packets`. Returns how many.
    #[inline]
    pub(crate) fn receive(&self, packets: &mut Packets) -> usize {
        self.inlet.receive(packets)
    }

    /// Puts what is left of `packets` back to the front.
    pub(crate) fn put_back(&self, packets: &mut Packets) {
        self.inlet.put_back(packets);
    }

    /// Has the bell rung for the next packet. Returns whether there is one already.
    pub(crate) fn want(&self) -> bool {
        self.inlet.want()
    }

    /// Has the bell rung for no packet.
    pub(crate) fn want_none(&self) {
        self.inlet.want_none();
    }
}

impl Drop for PortQueue {
    fn drop(&mut self) {
        let shared = &self.port.0;
        let mut rtnl = Rtnl::lock();
        let unhook = |rtnl: &mut Rtnl| shared.unhook(rtnl);
        let inlet = shared.steer.remove(self.number, &mut rtnl, unhook);
        drop(rtnl);
        drop(inlet);
    }
}

impl Shared {
    /// Stops to receive if there is no queue.
    fn leave_if_unused(&self, rtnl: &mut Rtnl) {
        if self.steer.is_empty(rtnl) {
            self.unhook(rtnl);
        }
    }

    /// Stops to receive.
    fn unhook(&self, rtnl: &mut Rtnl) {
        let state = self.state.get(rtnl);
        if !core::mem::replace(&mut state.hooked, false) {
            return;
        }
        if core::mem::replace(&mut state.promiscuous, false) {
            // SAFETY: By the type's invariant the device exists; the lock is held.
            unsafe { bindings::rvh_dev_promisc(self.raw.as_ptr(), false) };
        }
        if core::mem::replace(&mut state.all_groups, false) {
            // SAFETY: As above.
            unsafe { bindings::rvh_dev_allmulti(self.raw.as_ptr(), false) };
        }
        // SAFETY: As above, and the handler is ours.
        let theirs = unsafe {
            let data = bindings::rvh_dev_hooked(self.raw.as_ptr(), Some(on_packet));
            bindings::rvh_dev_unhook(self.raw.as_ptr());
            data
        };
        // SAFETY: By the type's invariant that was a reference to the port, of which this one is
        // not the last: the caller has another.
        drop(unsafe { Arc::from_raw(theirs.cast::<Shared>().cast_const()) });
    }
}

/// Lets go of a device that is about to go.
///
/// # Safety
///
/// The device must be valid, and RTNL be held, without a value that says so.
pub(super) unsafe fn on_unregister(dev: *mut bindings::net_device) {
    // SAFETY: By the function's contract.
    let mut rtnl = unsafe { Rtnl::held() };
    vtap::on_unregister(dev, &mut rtnl);
    // SAFETY: By the function's contract.
    let port = unsafe { bindings::rvh_dev_hooked(dev, Some(on_packet)) };
    if port.is_null() {
        return;
    }
    // SAFETY: What is registered with our handler is a port, which the handler references.
    let shared: Arc<Shared> = unsafe { ArcBorrow::from_raw(port.cast::<Shared>()) }.into();
    shared.unhook(&mut rtnl);
    shared.steer.queues(&rtnl).for_each(Inlet::call);
}

/// Called for each packet that a device of a port receives.
///
/// # Safety
///
/// As the kernel calls a receive handler; it must have been registered with a reference to a
/// [`Shared`].
unsafe extern "C" fn on_packet(
    packet: *mut *mut bindings::sk_buff,
) -> bindings::rx_handler_result_t {
    let mut arrival = bindings::rvh_arrival::default();
    // SAFETY: By the function's contract.
    let result = unsafe { bindings::rvh_arrival_claim(packet, &mut arrival) };
    if arrival.port.is_null() {
        return result;
    }
    // SAFETY: By the function's contract: the handler is unregistered, and done, before the
    // reference is given up.
    let shared = unsafe { &*arrival.port.cast::<Shared>() };
    // SAFETY: These bytes are the packet's, which is ours.
    // CAST: u32 to usize widens.
    let frame = unsafe { slice::from_raw_parts(arrival.frame, arrival.len as usize) };
    // SAFETY: We are called for a packet that is received.
    let choice = unsafe { shared.steer.choose(frame, shared.hashes.load(Relaxed)) };
    let open = |inlet| Some(inlet).filter(|inlet: &&Inlet| inlet.is_open());
    // SAFETY: As above.
    match unsafe { shared.steer.pick(choice.queue.into(), open) } {
        // SAFETY: The packet is ours, and has the device it came by.
        Some(inlet) => unsafe { inlet.deliver(arrival.skb, choice.hash) },
        // SAFETY: As above.
        None => unsafe { bindings::rvh_arrival_drop(arrival.skb) },
    }
    result
}
