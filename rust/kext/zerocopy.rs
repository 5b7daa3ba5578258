// SPDX-License-Identifier: GPL-2.0
//! Packets that are sent from user memory without a copy: the stack reads them there for as long
//! as it needs.
//!
//! C header: `include/linux/skbuff.h`, `struct ubuf_info`.

use kernel::{
    prelude::*,
    sync::{
        atomic::{
            Acquire,
            Atomic,
            Relaxed,
            Release, //
        },
        Arc,
    },
    types::Opaque, //
};

use super::{
    bindings,
    tun::TapQueue,
    usermem::UserMem,
    wait::{
        Bell,
        WaitQueue, //
    },
};
use crate::vcore::addr::Seg;

/// Packets that may be lent at a time.
pub(crate) const MAX_LOANS: usize = 128;

const FREE: u32 = 0;
const LENT: u32 = 1;
/// Given back; the stack has read it where it was.
const READ: u32 = 2;
/// Given back; the stack has made a copy after all.
const COPIED: u32 = 3;

/// Packets lent to the stack, oldest first.
pub(crate) struct Loans {
    shared: Arc<Shared>,
    /// What the sender calls them.
    tags: [u16; MAX_LOANS],
    first: usize,
    count: usize,
}

/// What the stack knows of. Lives until the last packet was given back.
#[pin_data]
struct Shared {
    slots: KVec<Slot>,
    bell: Arc<Bell>,
    event: u32,
    #[pin]
    returned: WaitQueue,
}

/// # Invariants
///
/// While `state` is `LENT`, `shared` is a reference of the loan's own to what the slot is part of,
/// and the loan holds a reference to the module.
struct Slot {
    ubuf: Opaque<bindings::ubuf_info>,
    state: Atomic<u32>,
    shared: Opaque<*const Shared>,
}

// SAFETY: A slot is used by the sender while it is not lent, and by whoever gives the last
// reference to the packet back while it is; the state says which.
unsafe impl Send for Slot {}
// SAFETY: As above.
unsafe impl Sync for Slot {}

static OPS: Ops = Ops(bindings::ubuf_info_ops {
    complete: Some(complete),
    link_skb: None,
});

struct Ops(bindings::ubuf_info_ops);

// SAFETY: Two function pointers that do not change.
unsafe impl Sync for Ops {}

impl Loans {
    /// None yet. `bell` is rung with `event` when one is given back.
    pub(crate) fn new(bell: Arc<Bell>, event: u32) -> Result<Self> {
        let mut slots = KVec::with_capacity(MAX_LOANS, GFP_KERNEL)?;
        for _ in 0..MAX_LOANS {
            slots.push(
                Slot {
                    ubuf: Opaque::zeroed(),
                    state: Atomic::new(FREE),
                    shared: Opaque::new(core::ptr::null()),
                },
                GFP_KERNEL,
            )?;
        }
        let shared = Arc::pin_init(
            pin_init!(Shared {
                slots,
                bell,
                event,
                returned <- WaitQueue::new(),
            }),
            GFP_KERNEL,
        )?;
        Ok(Self {
            shared,
            tags: [0; MAX_LOANS],
            first: 0,
            count: 0,
        })
    }

    /// Whether none is out.
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Sends one packet as `Socket::send` does, from where it is. The stack may read it until it
    /// [was returned](Self::returned) under its tag.
    ///
    /// # Errors
    ///
    /// Those of `Socket::send`, and `ENOBUFS` if no more can be lent. The packet is not lent.
    pub(crate) fn send(
        &mut self,
        tap: &TapQueue,
        user: &mut UserMem<'_>,
        segs: &[Seg],
        skip: usize,
        len: usize,
        tag: u16,
    ) -> Result {
        let at = (self.first + self.count) % MAX_LOANS;
        let (Some(slot), Some(name)) = (self.shared.slots.get(at), self.tags.get_mut(at)) else {
            return Err(super::errno::enobufs());
        };
        if self.count == MAX_LOANS || slot.state.load(Relaxed) != FREE {
            return Err(super::errno::enobufs());
        }
        let reference = Arc::into_raw(self.shared.clone());
        // SAFETY: The slot is free: it is ours. The caller runs code of this module.
        unsafe {
            slot.shared.get().write(reference);
            bindings::rvh_ubuf_init(slot.ubuf.get(), &OPS.0);
            bindings::rvh_module_get();
        }
        // INVARIANT: Both references were taken just now.
        slot.state.store(LENT, Release);
        // SAFETY: It is a TAP's socket. The slot lives until it is given back, by its reference.
        let sent = unsafe {
            tap.socket()
                .send_lent(user, segs, skip, len, slot.ubuf.get())
        };
        if sent.is_err() {
            // Refused before anybody had the packet, or after it was given back; nobody has it
            // now.
            if slot.state.load(Acquire) == LENT {
                // SAFETY: By the slot's invariant; the caller runs code of this module, which it
                // has another reference to.
                unsafe {
                    drop(Arc::from_raw(reference));
                    bindings::rvh_module_put();
                }
            }
            slot.state.store(FREE, Relaxed);
            return sent;
        }
        *name = tag;
        self.count += 1;
        Ok(())
    }

    /// The tag of the oldest packet if it was given back, and whether it was copied after all.
    pub(crate) fn returned(&mut self) -> Option<(u16, bool)> {
        if self.count == 0 {
            return None;
        }
        let slot = self.shared.slots.get(self.first)?;
        let state = slot.state.load(Acquire);
        if state == LENT {
            return None;
        }
        slot.state.store(FREE, Relaxed);
        let tag = self.tags.get(self.first).copied()?;
        self.first = (self.first + 1) % MAX_LOANS;
        self.count -= 1;
        Some((tag, state == COPIED))
    }

    /// Waits until all were given back; `EINTR` if the caller is killed.
    pub(crate) fn wait(&self) -> Result {
        self.shared.returned.wait_killable(|| {
            let out = |slot: &Slot| slot.state.load(Acquire) == LENT;
            (!self.shared.slots.iter().any(out)).then_some(())
        })
    }
}

/// Called when someone needs the packet no more, in any context.
///
/// # Safety
///
/// `ubuf` must be that of a slot that is lent.
unsafe extern "C" fn complete(
    _skb: *mut bindings::sk_buff,
    ubuf: *mut bindings::ubuf_info,
    success: bool,
) {
    // SAFETY: By the function's contract. Others may still need it.
    if !unsafe { bindings::rvh_ubuf_put(ubuf) } {
        return;
    }
    // SAFETY: By the function's contract; `Opaque` is laid out as what it holds. By the slot's
    // invariant it comes with a reference.
    let (slot, shared) = unsafe {
        let slot = &*kernel::container_of!(ubuf.cast::<Opaque<bindings::ubuf_info>>(), Slot, ubuf);
        (slot, Arc::from_raw(*slot.shared.get()))
    };
    slot.state
        .store(if success { READ } else { COPIED }, Release);
    shared.returned.wake_all();
    shared.bell.ring(shared.event);
    drop(shared);
    // SAFETY: By the slot's invariant. The module's memory outlives RCU readers, and the caller is
    // one or holds another reference to the module.
    unsafe { bindings::rvh_module_put() };
}
