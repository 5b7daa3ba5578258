// SPDX-License-Identifier: GPL-2.0
//! Ports: network devices whose packets go to queues of ours, chosen by their flow.
//!
//! C header: `include/linux/netdevice.h`.

use core::{
    ptr::{
        self,
        NonNull, //
    },
    slice,
};

use kernel::{
    alloc::KVVec,
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
            Relaxed,
            Release, //
        },
        Arc,
        ArcBorrow, //
    },
};

mod front;
pub(crate) mod rss;

use self::rss::Rss;

use super::{
    bindings,
    errno,
    ifname,
    inlet::{
        Ear,
        Inlet, //
    },
    netdev::NetDev,
    rtnl::{
        Rtnl,
        RtnlCell, //
    },
    trace,
    tun::Packets,
    usermem::{
        has_room,
        UserMem, //
    },
    wait::{
        Bell,
        Waiters, //
    },
    xdp::TxBatch, //
};
use crate::vcore::{
    addr::Seg,
    flow::Flow,
    hdr,
    rss::{
        types,
        Steering,
        Sums,
        Table,
        MAX_ENTRIES, //
    },
};

/// Queues of a port.
pub(crate) const MAX_QUEUES: usize = 256;
/// The owner that files are which stand for queues: no address space has this number.
const FILES: usize = 0;
/// The longest packet that is transmitted, with its header.
const MAX_BYTES: usize = (1 << 16) + 64;

/// Which device of the caller's namespace.
pub(crate) enum Which {
    Index(i32),
    Name([u8; bindings::IFNAMSIZ as usize]),
}

/// What a queue is to be.
pub(crate) struct Wanted {
    pub(crate) device: Which,
    /// Its number; none for the first that is free.
    pub(crate) queue: Option<usize>,
    pub(crate) promiscuous: bool,
    /// Whether the device is to receive all groups.
    pub(crate) all_groups: bool,
    /// Whether it is to be the port's only one.
    pub(crate) alone: bool,
    pub(crate) offloads: u32,
    pub(crate) ring: usize,
}

type Decide = Steering<KVVec<Sums>>;

/// A port, as its queues share it.
///
/// # Invariants
///
/// - Each of `slots` is null, or holds a reference to an [`Inlet`]; it is given up only after all
///   that might have seen it in a receive handler are done.
/// - `decide` is an allocated value that is given up in the same way.
/// - While `State::hooked`, the device exists and its receive handler is ours, which holds a
///   reference to the port.
struct Shared {
    dev: NetDev,
    raw: NonNull<bindings::net_device>,
    /// The device's number when the port was made.
    ifindex: u32,
    /// Whose it is: no two owners have the same number at a time. Files that stand for queues are
    /// one owner.
    owner: usize,
    alone: bool,
    slots: KVec<Atomic<*mut Inlet>>,
    decide: Atomic<*mut Decide>,
    /// Packets by the entry they fell on.
    carried: KVec<Atomic<u64>>,
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
    rss: Rss,
    /// What the entries had carried when they were last rebalanced.
    before: KVec<u64>,
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
    /// Makes a queue for what a device receives, on the port that `owner` has on it, or on a new
    /// one. `event` of `bell` is rung when something came.
    pub(crate) fn bind(
        wanted: &Wanted,
        owner: usize,
        bell: Arc<Bell>,
        event: u32,
    ) -> Result<PortQueue> {
        Self::bind_with(wanted, owner, Ear::Bell(bell, event))
    }

    /// The same for a file that stands for the queue; `waiters` are woken when something came.
    pub(crate) fn bind_file(wanted: &Wanted, waiters: Arc<Waiters>) -> Result<PortQueue> {
        Self::bind_with(wanted, FILES, Ear::Waiters(waiters))
    }

    fn bind_with(wanted: &Wanted, owner: usize, ear: Ear) -> Result<PortQueue> {
        let (index, name) = match &wanted.device {
            Which::Index(index) => (*index, ptr::null()),
            Which::Name(name) if name.contains(&0) => (0, name.as_ptr().cast()),
            Which::Name(_) => return Err(ENODEV),
        };
        // SAFETY: May be called by any user process; the name ends within its bytes.
        let raw = from_err_ptr(unsafe { bindings::rvh_dev_get(index, name) })?;
        let raw = NonNull::new(raw).ok_or(ENODEV)?;
        // SAFETY: The device was referenced for us.
        let dev = unsafe { NetDev::hold(raw) }?;
        let inlet = Inlet::new(wanted.ring, wanted.offloads, ear)?;
        let mut rtnl = Rtnl::lock();
        // Under the lock, a device that is there stays.
        dev.with(|_| ()).ok_or(ENODEV)?;
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
        let number = port.0.claim(wanted.queue, &inlet, &mut rtnl);
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
        dev: NetDev,
        raw: NonNull<bindings::net_device>,
        owner: usize,
        wanted: &Wanted,
        rtnl: &mut Rtnl,
    ) -> Result<Self> {
        let rss = Rss {
            types: types::ALL,
            unclassified: 0,
            key: rss::random_key(),
            table: Table::even(1),
            even: true,
        };
        let mut slots = KVec::with_capacity(MAX_QUEUES, GFP_KERNEL)?;
        for _ in 0..MAX_QUEUES {
            slots.push(Atomic::new(ptr::null_mut()), GFP_KERNEL)?;
        }
        let mut carried = KVec::with_capacity(MAX_ENTRIES, GFP_KERNEL)?;
        for _ in 0..MAX_ENTRIES {
            carried.push(Atomic::new(0), GFP_KERNEL)?;
        }
        let before = KVec::from_elem(0, MAX_ENTRIES, GFP_KERNEL)?;
        // SAFETY: The device exists and the lock is held.
        let ifindex = unsafe { bindings::rvh_dev_ifindex(raw.as_ptr()) };
        let decide = KBox::into_raw(rss.decide()?);
        // INVARIANT: There are no slots in use; `decide` was allocated just now; not hooked yet.
        let shared = Shared {
            dev,
            raw,
            ifindex,
            owner,
            alone: wanted.alone,
            slots,
            decide: Atomic::new(decide),
            carried,
            state: RtnlCell::new(State {
                hooked: false,
                promiscuous: false,
                all_groups: false,
                offloads: None,
                rss,
                before,
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

    /// Transmits a batch of packets and empties it. Returns how many were refused; `EBADFD` if the
    /// device is gone.
    #[inline]
    pub(crate) fn send_batch(&self, batch: &mut TxBatch) -> Result<u32> {
        let Some((bufs, count, header)) = batch.front() else {
            return Ok(0);
        };
        let refused = self.0.dev.with(|dev| {
            // SAFETY: The device is there; `count` buffers are filled, with such headers.
            unsafe { bindings::rvh_dev_transmit(dev.as_ptr(), bufs, count.into(), header) }
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
        let sent = self.0.dev.with(|dev| {
            // SAFETY: The device is there, and the packet ours to give.
            unsafe { bindings::rvh_skb_transmit(skb, base.as_ptr().cast(), dev.as_ptr()) }
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

    /// What the device is called.
    pub(crate) fn device(&self) -> ifname::Netdev {
        let named = self.0.dev.with(|dev| ifname::of_device(Some(dev)));
        named.unwrap_or_else(|| ifname::of_device(None))
    }

    /// Whether the device is gone.
    pub(crate) fn is_gone(&self) -> bool {
        self.0.dev.with(|_| ()).is_none()
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
        let Some(slot) = shared.slots.get(self.number) else {
            return;
        };
        let inlet = slot.xchg(ptr::null_mut(), Full);
        if !shared.leave_if_unused(&mut rtnl) {
            // What the old table still sends here goes to a queue that is there.
            let _ = shared.follow(&mut rtnl);
        }
        rtnl.wait_for_receivers();
        drop(rtnl);
        // SAFETY: By the type's invariant the slot held a reference, which nobody has seen who is
        // not done.
        drop(unsafe { Arc::from_raw(inlet.cast_const()) });
    }
}

impl Shared {
    /// The queue in `slot`, if it is to have packets.
    #[inline]
    fn open<'a>(&'a self, slot: &'a Atomic<*mut Inlet>) -> Option<&'a Inlet> {
        // SAFETY: By the type's invariant it is null, or valid until after the handler or the holder
        // of RTNL that calls this.
        unsafe { slot.load(Acquire).as_ref() }.filter(|inlet| inlet.is_open())
    }

    /// One more than the number of the last queue that is to have packets.
    fn queues(&self, _rtnl: &mut Rtnl) -> usize {
        let used = |slot: &Atomic<*mut Inlet>| self.open(slot).is_some();
        self.slots.iter().rposition(used).map_or(0, |last| last + 1)
    }

    /// Takes the slot with number `wanted`, or the first one that is free.
    fn claim(&self, wanted: Option<usize>, inlet: &Arc<Inlet>, rtnl: &mut Rtnl) -> Result<usize> {
        let free = |slot: &Atomic<*mut Inlet>| slot.load(Relaxed).is_null();
        let number = match wanted {
            Some(number) => number,
            None => self.slots.iter().position(free).ok_or(E2BIG)?,
        };
        let slot = self.slots.get(number).ok_or(EINVAL)?;
        if !free(slot) {
            return Err(EBUSY);
        }
        if let Some(offloads) = self.state.get(rtnl).offloads {
            inlet.set_offloads(offloads);
        }
        // INVARIANT: The slot has a reference of its own.
        slot.store(Arc::into_raw(inlet.clone()).cast_mut(), Release);
        if let Err(e) = self.follow(rtnl) {
            let inlet = slot.xchg(ptr::null_mut(), Full);
            rtnl.wait_for_receivers();
            // SAFETY: As made above; whoever has seen it is done.
            drop(unsafe { Arc::from_raw(inlet.cast_const()) });
            return Err(e);
        }
        Ok(number)
    }

    /// Has the table follow the queues there are, if it is to.
    fn follow(&self, rtnl: &mut Rtnl) -> Result {
        let state = self.state.get(rtnl);
        if !state.rss.even {
            return Ok(());
        }
        let mut rss = state.rss.clone();
        let mut there = (0u16..)
            .zip(&self.slots)
            .filter(|(_, slot)| self.open(slot).is_some())
            .map(|(number, _)| number)
            .cycle();
        rss.table = Table::even(1);
        for entry in rss.table.entries_mut() {
            *entry = there.next().unwrap_or(0);
        }
        self.steer(rss, rtnl)
    }

    /// Takes over how queues are chosen.
    fn steer(&self, rss: Rss, rtnl: &mut Rtnl) -> Result {
        let decide = KBox::into_raw(rss.decide()?);
        let old = self.decide.xchg(decide, Full);
        rtnl.wait_for_receivers();
        // SAFETY: By the type's invariant; whoever has seen it is done.
        drop(unsafe { KBox::from_raw(old) });
        // CAST: there are few.
        let entries = rss.table.entries().len() as u32;
        trace::steering(self.ifindex, rss.types, entries, rss.even.into());
        self.state.get(rtnl).rss = rss;
        Ok(())
    }

    /// Stops to receive if there is no queue. Returns whether that is so.
    fn leave_if_unused(&self, rtnl: &mut Rtnl) -> bool {
        let unused = |slot: &Atomic<*mut Inlet>| slot.load(Relaxed).is_null();
        let unused = self.slots.iter().all(unused);
        if unused {
            self.unhook(rtnl);
        }
        unused
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

    /// The queue with this number; another, if there is none.
    #[inline]
    fn inlet(&self, number: usize) -> Option<&Inlet> {
        let inlet = self.slots.get(number).and_then(|slot| self.open(slot));
        inlet.or_else(|| self.slots.iter().find_map(|slot| self.open(slot)))
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // SAFETY: By the type's invariant; no handler runs: it would have a reference.
        drop(unsafe { KBox::from_raw(self.decide.load(Relaxed)) });
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
    // SAFETY: By the function's contract.
    let port = unsafe { bindings::rvh_dev_hooked(dev, Some(on_packet)) };
    if port.is_null() {
        return;
    }
    // SAFETY: What is registered with our handler is a port, which the handler references.
    let shared: Arc<Shared> = unsafe { ArcBorrow::from_raw(port.cast::<Shared>()) }.into();
    shared.unhook(&mut rtnl);
    for slot in &shared.slots {
        // SAFETY: By the type's invariant it is null, or valid as long as RTNL is held.
        if let Some(inlet) = unsafe { slot.load(Acquire).as_ref() } {
            inlet.call();
        }
    }
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
    // SAFETY: By the type's invariant it is valid until we are done.
    let decide = unsafe { &*shared.decide.load(Acquire) };
    let choice = decide.choose(&Flow::of_frame(frame));
    if let Some(carried) = choice.entry.and_then(|entry| shared.carried.get(entry)) {
        carried.add(1u64, Relaxed);
    }
    match shared.inlet(choice.queue.into()) {
        // SAFETY: The packet is ours, and has the device it came by.
        Some(inlet) => unsafe { inlet.deliver(arrival.skb, choice.hash) },
        // SAFETY: As above.
        None => unsafe { bindings::rvh_arrival_drop(arrival.skb) },
    }
    result
}
