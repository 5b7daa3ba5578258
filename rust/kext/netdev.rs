// SPDX-License-Identifier: GPL-2.0
//! Network devices, which go away when their administrator wants it.
//!
//! C header: `include/linux/netdevice.h`.

use core::{
    marker::PhantomData,
    mem,
    ptr::{
        self,
        NonNull, //
    },
};

use kernel::{
    error::{
        from_err_ptr,
        to_result, //
    },
    prelude::*,
    sync::{
        atomic::{
            Acquire,
            Atomic,
            Full,
            Release, //
        },
        rcu,
        Arc, //
    },
};

use super::{
    bindings,
    ifname,
    rtnl::Rtnl,
    socket::Socket, //
};

kernel::sync::global_lock! {
    // SAFETY: Initialised by `Watch::new`, before which nothing is added.
    unsafe(uninit) static HELD: Mutex<KVec<Arc<Holder>>> = KVec::new();
}

/// Whether somebody hears of devices that go away.
static WATCHED: Atomic<bool> = Atomic::new(false);

/// Holds a device until it is to go away.
///
/// # Invariants
///
/// `dev` is null, or a device to which this holds a reference. It becomes null before the RCU
/// grace period that the unregistration of a device ends with.
struct Holder {
    dev: Atomic<*mut bindings::net_device>,
}

impl Holder {
    /// Gives the reference up, if it is still held.
    fn release(&self) {
        let dev = self.dev.xchg(ptr::null_mut(), Full);
        if !dev.is_null() {
            // SAFETY: By the type's invariant the reference was ours.
            unsafe { bindings::rvh_dev_put(dev) };
        }
    }
}

/// Which device of the caller's namespace.
pub(crate) enum Which {
    Index(i32),
    Name([u8; bindings::IFNAMSIZ as usize]),
}

/// A network device, as long as it stays where it is: unregistration, and a move to another
/// network namespace, take it away.
pub(crate) struct NetDev(Arc<Holder>);

impl NetDev {
    /// A device of the caller's namespace.
    ///
    /// # Errors
    ///
    /// `EPERM` without `CAP_NET_ADMIN` there, `ENODEV` if there is none, `EINVAL` if it is not an
    /// Ethernet device.
    pub(crate) fn get(which: &Which) -> Result<Arc<Self>> {
        let (index, name) = match which {
            Which::Index(index) => (*index, ptr::null()),
            Which::Name(name) if name.contains(&0) => (0, name.as_ptr().cast()),
            Which::Name(_) => return Err(ENODEV),
        };
        // So that it is not moved before it is held: permission is that of its namespace.
        let _rtnl = Rtnl::lock();
        // SAFETY: May be called by any user process; the name ends within its bytes.
        let raw = from_err_ptr(unsafe { bindings::rvh_dev_get(index, name) })?;
        // SAFETY: The device was referenced for us.
        unsafe { Self::hold_shared(raw) }
    }

    /// The device that a packet socket is bound to, of the socket's namespace.
    ///
    /// # Errors
    ///
    /// As for [`Self::get`]; `EINVAL` if it is bound to none.
    pub(crate) fn of_socket(socket: &Socket) -> Result<Arc<Self>> {
        // As above.
        let _rtnl = Rtnl::lock();
        // SAFETY: The socket is valid as long as we have it.
        let raw = from_err_ptr(unsafe { bindings::rvh_dev_of_socket(socket.as_ptr()) })?;
        // SAFETY: The device was referenced for us.
        unsafe { Self::hold_shared(raw) }
    }

    /// # Safety
    ///
    /// As for [`Self::hold`].
    unsafe fn hold_shared(raw: *mut bindings::net_device) -> Result<Arc<Self>> {
        let raw = NonNull::new(raw).ok_or(ENODEV)?;
        // SAFETY: By the function's contract.
        let dev = unsafe { Self::hold(raw) }?;
        Ok(Arc::new(dev, GFP_KERNEL)?)
    }

    /// What it is called.
    pub(crate) fn named(&self) -> ifname::Netdev {
        let named = self.with(|dev| ifname::of_device(Some(dev)));
        named.unwrap_or_else(|| ifname::of_device(None))
    }

    /// Whether it is gone.
    pub(crate) fn is_gone(&self) -> bool {
        self.with(|_| ()).is_none()
    }

    /// Takes over a reference to a device.
    ///
    /// # Errors
    ///
    /// `ENODEV` if it is about to go away.
    ///
    /// # Safety
    ///
    /// The reference must be the caller's.
    pub(super) unsafe fn hold(dev: NonNull<bindings::net_device>) -> Result<Self> {
        // INVARIANT: By the function's contract. From when it stands in `HELD` it is released when
        // the device is unregistered; if that had begun before, it is released below.
        let holder = Holder {
            dev: Atomic::new(dev.as_ptr()),
        };
        let this = match Arc::new(holder, GFP_KERNEL) {
            Ok(holder) => Self(holder),
            Err(e) => {
                // SAFETY: By the function's contract.
                unsafe { bindings::rvh_dev_put(dev.as_ptr()) };
                return Err(e.into());
            }
        };
        if !WATCHED.load(Acquire) {
            return Err(ENODEV);
        }
        HELD.lock().push(this.0.clone(), GFP_KERNEL)?;
        this.with(|dev| {
            // SAFETY: The device is there for the time of this call.
            unsafe { bindings::rvh_dev_registered(dev.0.as_ptr()) }
        })
        .filter(|&registered| registered)
        .ok_or(ENODEV)?;
        Ok(this)
    }

    /// Does `f` with the device, if it is still there, within an RCU read-side section: `f` must not
    /// sleep.
    #[inline]
    pub(super) fn with<R>(&self, f: impl FnOnce(Present<'_>) -> R) -> Option<R> {
        let _rcu = rcu::read_lock();
        let dev = NonNull::new(self.0.dev.load(Acquire))?;
        // INVARIANT: By `Holder`'s invariant a device that is found within a read-side section
        // stays until its end.
        Some(f(Present(dev, PhantomData)))
    }
}

impl Drop for NetDev {
    fn drop(&mut self) {
        if WATCHED.load(Acquire) {
            HELD.lock().retain(|held| !Arc::ptr_eq(held, &self.0));
        }
        self.0.release();
    }
}

/// A device that is there for the time of `'a`.
///
/// # Invariants
///
/// Valid for `'a`.
#[derive(Clone, Copy)]
pub(super) struct Present<'a>(NonNull<bindings::net_device>, PhantomData<&'a ()>);

impl Present<'_> {
    /// The device.
    #[inline]
    pub(super) fn as_ptr(self) -> *mut bindings::net_device {
        self.0.as_ptr()
    }
}

/// Hears of devices that go away, for as long as it exists. One in a module.
pub(crate) struct Watch(KBox<bindings::notifier_block>);

// SAFETY: The notifier may be unregistered by any thread.
unsafe impl Send for Watch {}
// SAFETY: There is nothing to do with a shared reference.
unsafe impl Sync for Watch {}

impl Watch {
    /// Starts to listen. To be called once, when the module is loaded.
    pub(crate) fn new() -> Result<Self> {
        // SAFETY: Called once, before any use.
        unsafe { HELD.init() };
        let block = bindings::notifier_block {
            notifier_call: Some(on_event),
            ..Default::default()
        };
        let mut this = Self(KBox::new(block, GFP_KERNEL)?);
        // SAFETY: The block stays where it is until it is unregistered.
        to_result(unsafe { bindings::register_netdevice_notifier(&mut *this.0) })?;
        WATCHED.store(true, Release);
        Ok(this)
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        // Whoever holds a device keeps the module loaded: nobody does.
        // SAFETY: The block was registered; if it was not, this does nothing.
        unsafe { bindings::unregister_netdevice_notifier(&mut *self.0) };
        WATCHED.store(false, Release);
        // It is empty, but has memory; a static is never dropped.
        drop(mem::take(&mut *HELD.lock()));
    }
}

/// Called when something happens to a device.
///
/// # Safety
///
/// `info` must tell of a device, as the kernel's does.
unsafe extern "C" fn on_event(
    _: *mut bindings::notifier_block,
    event: c_ulong,
    info: *mut c_void,
) -> c_int {
    // CAST: u32 to c_ulong widens.
    if event == bindings::netdev_cmd_NETDEV_UNREGISTER as c_ulong {
        // SAFETY: By the function's contract.
        let dev = unsafe { (*info.cast::<bindings::netdev_notifier_info>()).dev };
        for held in HELD.lock().iter() {
            if ptr::eq(held.dev.load(Acquire), dev) {
                held.release();
            }
        }
        // Whoever is told finds it gone.
        // SAFETY: The device is valid during the call, which is made under RTNL.
        unsafe { super::port::on_unregister(dev) };
    }
    // CAST: a constant.
    bindings::NOTIFY_DONE as c_int
}
