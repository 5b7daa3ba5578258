// SPDX-License-Identifier: GPL-2.0
//! MacVTaps and IPVTaps whose packets we distribute over their queues. Left alone, such a device
//! does that itself, by a hash of its own.
//!
//! C headers: `include/linux/if_tap.h`, `include/linux/netfilter_netdev.h`.

use core::{
    ptr::{
        self,
        NonNull, //
    },
    slice,
};

use kernel::{
    error::from_err_ptr,
    prelude::*,
    sync::Arc, //
};

use super::{
    bindings,
    rss::Rss,
    steer::{
        self,
        Steer, //
    },
    NetDev,
    Rtnl,
    RtnlCell, //
};
use crate::{
    kext::{
        errno,
        file::FileRef,
        tun::TapQueue, //
    },
    vcore::rss::leading_to,
};

/// All ports on such devices.
static PORTS: RtnlCell<KVec<Arc<Shared>>> = RtnlCell::new(KVec::new());

/// A port, as its queues share it.
///
/// # Invariants
///
/// As long as it is in `PORTS`, the device exists. While `hook` is not null, that is so, and it is our
/// hook on the device, which holds a reference to the port.
struct Shared {
    dev: NetDev,
    raw: NonNull<bindings::net_device>,
    steer: Steer<Queue>,
    hook: RtnlCell<*mut bindings::nf_hook_ops>,
}

// SAFETY: Device and hook are used under RTNL, and as the invariants say; all else is shared safely.
unsafe impl Send for Shared {}
// SAFETY: As above.
unsafe impl Sync for Shared {}

/// A queue of the device that one of ours receives from.
///
/// # Invariants
///
/// `sock` is a MacVTap's, and belongs to the file.
struct Queue {
    sock: NonNull<bindings::socket>,
    _file: FileRef,
}

// SAFETY: All that is done with the socket is to look at what packets are received by.
unsafe impl Send for Queue {}
// SAFETY: As above.
unsafe impl Sync for Queue {}

impl steer::Queue for Queue {
    /// One that is detached comes back without our being told.
    fn is_open(&self) -> bool {
        true
    }
}

/// A port on a MacVTap. The device distributes packets itself until it is said how.
#[derive(Clone)]
pub(crate) struct Vtap(Arc<Shared>);

/// A queue of such a port.
pub(crate) struct VtapQueue {
    port: Vtap,
    number: usize,
}

impl VtapQueue {
    /// Makes `tap` a queue of its device's port. None if that is no MacVTap. With `hashes`, packets
    /// are distributed here from now on, if that is possible, so that they come with their hash.
    pub(crate) fn join(tap: &TapQueue, hashes: bool) -> Result<Option<Self>> {
        let Some(sock) = tap.vtap() else {
            return Ok(None);
        };
        // INVARIANT: It is a MacVTap's, and belongs to this file.
        let queue = Queue {
            sock,
            _file: tap.socket().file().clone(),
        };
        let queue = Arc::new(queue, GFP_KERNEL)?;
        let mut rtnl = Rtnl::lock();
        // SAFETY: The socket is a MacVTap's; RTNL is held.
        let Some(raw) = NonNull::new(unsafe { bindings::rvh_vtap_dev(sock.as_ptr()) }) else {
            return Ok(None);
        };
        let known = PORTS.get(&mut rtnl).iter().find(|port| port.raw == raw);
        let port = match known.cloned() {
            Some(shared) => Vtap(shared),
            // SAFETY: The device was found just now, and RTNL is held.
            None => unsafe { Vtap::new(raw, &mut rtnl) }?,
        };
        match port.0.steer.add(None, &queue, &mut rtnl) {
            Ok(number) => {
                if hashes {
                    // Where this fails, packets are reported as not hashed.
                    let _ = Shared::hook(&port.0, &mut rtnl);
                }
                drop(rtnl);
                Ok(Some(Self { port, number }))
            }
            Err(e) => {
                if port.0.steer.is_empty(&mut rtnl) {
                    port.0.leave(&mut rtnl);
                }
                Err(e)
            }
        }
    }

    /// The port.
    pub(crate) fn port(&self) -> &Vtap {
        &self.port
    }
}

impl Drop for VtapQueue {
    fn drop(&mut self) {
        let shared = &self.port.0;
        let mut rtnl = Rtnl::lock();
        let leave = |rtnl: &mut Rtnl| shared.leave(rtnl);
        let queue = shared.steer.remove(self.number, &mut rtnl, leave);
        drop(rtnl);
        drop(queue);
    }
}

impl Vtap {
    /// # Safety
    ///
    /// The device must exist, and RTNL have been held since that was seen.
    unsafe fn new(raw: NonNull<bindings::net_device>, rtnl: &mut Rtnl) -> Result<Self> {
        // SAFETY: By the function's contract.
        unsafe { bindings::rvh_dev_hold(raw.as_ptr()) };
        // SAFETY: The device was referenced for us.
        let dev = unsafe { NetDev::hold(raw) }?;
        // SAFETY: The device exists and the lock is held.
        let ifindex = unsafe { bindings::rvh_dev_ifindex(raw.as_ptr()) };
        let shared = Shared {
            dev,
            raw,
            steer: Steer::new(ifindex)?,
            hook: RtnlCell::new(ptr::null_mut()),
        };
        let shared = Arc::new(shared, GFP_KERNEL)?;
        // INVARIANT: It is taken out when the device is unregistered.
        PORTS.get(rtnl).push(shared.clone(), GFP_KERNEL)?;
        Ok(Self(shared))
    }

    /// How queues are chosen. `ENOTCONN` if the device chooses.
    pub(crate) fn rss(&self) -> Result<Rss> {
        let mut rtnl = self.lock()?;
        Ok(self.0.steer.rss(&mut rtnl))
    }

    /// Packets that fell on each entry of the table.
    pub(crate) fn carried(&self) -> impl Iterator<Item = u64> + '_ {
        self.0.steer.carried()
    }

    /// Changes how queues are chosen, while packets flow; from now on it is not the device that
    /// chooses. `change` must not sleep for long.
    ///
    /// # Errors
    ///
    /// `EOPNOTSUPP` if the kernel has no hooks for received packets, `EBADFD` if the device is gone.
    pub(crate) fn change_rss(&self, change: impl FnOnce(&mut Rss) -> Result) -> Result {
        let mut rtnl = Rtnl::lock();
        self.0.steer.change(&mut rtnl, change)?;
        Shared::hook(&self.0, &mut rtnl)
    }

    /// Moves up to `max` entries of the table from busy to idle queues. Returns how many. `ENOTCONN`
    /// if the device chooses.
    pub(crate) fn rebalance(&self, max: usize) -> Result<usize> {
        let mut rtnl = self.lock()?;
        self.0.steer.rebalance(&mut rtnl, max)
    }

    /// RTNL, if queues are chosen here.
    fn lock(&self) -> Result<Rtnl> {
        let mut rtnl = Rtnl::lock();
        if self.0.hook.get(&mut rtnl).is_null() {
            return Err(errno::enotconn());
        }
        Ok(rtnl)
    }
}

impl Shared {
    /// Has packets pass by us before the device distributes them.
    fn hook(this: &Arc<Self>, rtnl: &mut Rtnl) -> Result {
        if !this.hook.get(rtnl).is_null() {
            return Ok(());
        }
        // Under the lock, a device that is there stays.
        this.dev.with(|_| ()).ok_or_else(errno::ebadfd)?;
        let theirs = Arc::into_raw(this.clone()).cast_mut();
        // SAFETY: The device is there, and the lock held.
        let ops = from_err_ptr(unsafe {
            bindings::rvh_vtap_hook(this.raw.as_ptr(), Some(on_ingress), theirs.cast())
        });
        match ops {
            Ok(ops) => {
                // INVARIANT: The hook was made just now, with a reference of its own.
                *this.hook.get(rtnl) = ops;
                Ok(())
            }
            Err(e) => {
                // SAFETY: The reference made above, which nobody took.
                drop(unsafe { Arc::from_raw(theirs.cast_const()) });
                Err(e)
            }
        }
    }

    /// Leaves the distribution to the device.
    fn unhook(&self, rtnl: &mut Rtnl) {
        let ops = core::mem::replace(self.hook.get(rtnl), ptr::null_mut());
        if ops.is_null() {
            return;
        }
        // SAFETY: By the type's invariant the device exists, and this is our hook on it; the lock
        // is held.
        let theirs = unsafe { bindings::rvh_vtap_unhook(self.raw.as_ptr(), ops) };
        rtnl.wait_for_receivers();
        // SAFETY: By the type's invariant that was a reference to the port, of which this one is not
        // the last: the caller has another. Nobody uses it any more.
        drop(unsafe { Arc::from_raw(theirs.cast::<Self>().cast_const()) });
    }

    /// Lets go of the device. The caller has a reference.
    fn leave(&self, rtnl: &mut Rtnl) {
        self.unhook(rtnl);
        let ports = PORTS.get(rtnl);
        ports.retain(|port| !ptr::eq(&**port, self));
        if ports.is_empty() {
            // A static is never dropped.
            drop(core::mem::take(ports));
        }
    }
}

/// Lets go of a device that is about to go.
pub(super) fn on_unregister(dev: *mut bindings::net_device, rtnl: &mut Rtnl) {
    let port = PORTS
        .get(rtnl)
        .iter()
        .find(|port| ptr::eq(port.raw.as_ptr(), dev));
    if let Some(port) = port.cloned() {
        port.leave(rtnl);
    }
}

/// Called for each packet that a hooked device receives: has the device choose our queue for it.
///
/// # Safety
///
/// As the kernel calls a hook; it must have been registered with a reference to a [`Shared`].
unsafe extern "C" fn on_ingress(
    port: *mut c_void,
    skb: *mut bindings::sk_buff,
    _: *const bindings::nf_hook_state,
) -> c_uint {
    // SAFETY: By the function's contract: the hook is unregistered, and done, before the reference
    // is given up.
    let shared = unsafe { &*port.cast::<Shared>() };
    let mut arrival = bindings::rvh_arrival::default();
    // SAFETY: The packet is valid, and ours for the time of this call.
    if unsafe { bindings::rvh_vtap_look(skb, &mut arrival) } {
        // SAFETY: These bytes are the packet's.
        // CAST: u32 to usize widens.
        let frame = unsafe { slice::from_raw_parts(arrival.frame, arrival.len as usize) };
        // SAFETY: We are called for a packet that is received.
        let choice = unsafe { shared.steer.choose(frame, true) };
        let place = |queue: &Queue| {
            let mut count = 0;
            // SAFETY: By the type's invariant the socket is a MacVTap's, and there as long as the
            // queue; the device receives this packet.
            let index = unsafe {
                bindings::rvh_vtap_index(queue.sock.as_ptr(), shared.raw.as_ptr(), &mut count)
            };
            leading_to(choice.hash.value, u32::try_from(index).ok()?, count)
        };
        // SAFETY: As above.
        if let Some(lead) = unsafe { shared.steer.pick(choice.queue.into(), place) } {
            let hash = u64::from_ne_bytes(choice.hash.to_bytes());
            // SAFETY: The packet is valid, and ours for the time of this call.
            unsafe { bindings::rvh_vtap_mark(skb, lead, hash) };
        }
    }
    bindings::NF_ACCEPT
}
