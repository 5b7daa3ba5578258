// SPDX-License-Identifier: GPL-2.0
//! The IOTLB of a device, and its conversation with user space about what is missing in it.
//!
//! User space adds and removes mappings by writing messages to the device, and learns by reading
//! which one a queue waits for. A queue waits for one at a time.

use kernel::{
    new_poll_condvar, new_spinlock,
    prelude::*,
    sync::{
        atomic::{
            Acquire,
            Atomic,
            Relaxed,
            Release, //
        },
        barrier::smp_mb,
        poll::{
            PollCondVar,
            PollTable, //
        },
        Arc,
        SpinLock, //
    },
};

use crate::{
    kext::{
        chrdev::OpenedFile,
        trace,
        wait::{
            Bell,
            WaitQueue, //
        }, //
    },
    vcore::{
        self,
        addr::Seg,
        iotlb::{
            permission,
            Cache,
            Entry,
            Table,
            MAX_ENTRIES, //
        },
        mem::Access,
        Error as CoreError,
    },
    virtqueue::MAPPINGS,
};

/// What a queue asks user space for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Miss {
    /// The address without a mapping.
    pub(crate) iova: u64,
    /// The permission that the access needs.
    pub(crate) perm: u8,
}

/// Whether user space knows of a queue's miss.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Asked {
    Nothing,
    /// It is to be read.
    Unread(Miss),
    /// It was read, and not answered yet.
    Read(Miss),
}

struct State {
    /// The mappings, while addresses are I/O virtual ones.
    table: Option<Table<KVVec<Entry>>>,
    /// One per queue.
    asked: [Asked; 2],
    /// The queues that it belongs to: those of the owner. The thread of an earlier one's may still run.
    queues: [Option<(Arc<Presence>, Arc<Bell>)>; 2],
}

/// A queue as a user of mappings.
pub(crate) struct Presence {
    /// The queue's number.
    index: u32,
    /// Whether it uses mappings just now.
    inside: Atomic<bool>,
    /// The generation of which it uses none that was removed.
    seen: Atomic<u32>,
}

impl Presence {
    /// Queue `index`, which uses none.
    pub(crate) fn new(index: u32) -> Result<Arc<Self>> {
        let this = Self {
            index,
            inside: Atomic::new(false),
            seen: Atomic::new(0),
        };
        Ok(Arc::new(this, GFP_KERNEL)?)
    }
}

/// The IOTLB of one device. Without effect until it is switched on.
#[pin_data]
pub(crate) struct Iotlb {
    dev: u32,
    #[pin]
    state: SpinLock<State>,
    #[pin]
    readable: PollCondVar,
    /// Counts removals.
    generation: Atomic<u32>,
    /// A queue has seen a removal, or does not use mappings any more.
    #[pin]
    seen: WaitQueue,
}

impl Iotlb {
    /// That of device `dev`.
    pub(crate) fn new(dev: u32) -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                dev,
                state <- new_spinlock!(State {
                    table: None,
                    asked: [Asked::Nothing; 2],
                    queues: [const { None }; 2],
                }),
                readable <- new_poll_condvar!(),
                generation: Atomic::new(0),
                seen <- WaitQueue::new(),
            }),
            GFP_KERNEL,
        )
    }

    /// Switches it on, or empties it if it is on.
    pub(crate) fn switch_on(&self) -> Result {
        let slots = KVVec::from_elem(Entry::default(), MAX_ENTRIES, GFP_KERNEL)?;
        self.replace(Some(Table::new(slots)));
        Ok(())
    }

    /// Switches it off; whoever waits for a message is told so.
    pub(crate) fn switch_off(&self) {
        self.replace(None);
    }

    fn replace(&self, table: Option<Table<KVVec<Entry>>>) {
        let old = {
            let mut state = self.state.lock();
            state.asked = [Asked::Nothing; 2];
            core::mem::replace(&mut state.table, table)
        };
        // The old table's memory goes without the lock.
        drop(old);
        self.readable.notify_all();
    }

    /// The first contiguous part of `len` bytes at `at`, for a queue, which asks user space if there is
    /// none.
    pub(crate) fn segment(
        &self,
        queue: &Presence,
        cache: &mut Cache,
        at: u64,
        len: u64,
        access: Access,
    ) -> vcore::Result<Seg> {
        if let Some(seg) = cache.segment(at, len, access) {
            return seg;
        }
        let mut state = self.state.lock();
        // CAST: u32 to usize widens.
        let i = queue.index as usize;
        let known = state.queues.get(i).and_then(Option::as_ref);
        if !known.is_some_and(|(known, _)| core::ptr::eq(&**known, queue)) {
            return Err(CoreError::Unmapped);
        }
        let found = state
            .table
            .as_ref()
            .ok_or(CoreError::Unmapped)?
            .find(at)
            .copied();
        if let Some(entry) = found {
            return cache.remember(&entry, at, len, access);
        }
        let miss = Miss {
            iova: at,
            perm: permission(access),
        };
        if let Some(asked) = state.asked.get_mut(i) {
            if *asked != Asked::Unread(miss) && *asked != Asked::Read(miss) {
                *asked = Asked::Unread(miss);
                drop(state);
                trace::iotlb_miss(self.dev, queue.index, miss.iova, miss.perm.into());
                self.readable.notify_all();
            }
        }
        Err(CoreError::Miss)
    }

    /// Belongs to a queue from now on, and to no earlier one with its number. `bell` is its thread's,
    /// to be told when it can go on.
    pub(crate) fn belongs_to(&self, queue: &Arc<Presence>, bell: &Arc<Bell>) {
        // CAST: u32 to usize widens.
        if let Some(slot) = self.state.lock().queues.get_mut(queue.index as usize) {
            *slot = Some((queue.clone(), bell.clone()));
        }
    }

    /// Adds a mapping, and lets the queues that waited for it go on; `EFAULT` if it is switched
    /// off.
    pub(crate) fn update(&self, entry: Entry) -> Result {
        let hides = {
            let mut guard = self.state.lock();
            let state = &mut *guard;
            let hides = state.table.as_mut().ok_or(EFAULT)?.insert(entry);
            for (asked, queue) in state.asked.iter_mut().zip(&state.queues) {
                match asked {
                    Asked::Unread(miss) | Asked::Read(miss)
                        if (entry.first..=entry.last).contains(&miss.iova) =>
                    {
                        *asked = Asked::Nothing;
                        if let Some((_, bell)) = queue {
                            bell.ring(MAPPINGS);
                        }
                    }
                    _ => {}
                }
            }
            hides
        };
        trace::iotlb_update(self.dev, entry.first, entry.last);
        if hides {
            self.retire()
        } else {
            Ok(())
        }
    }

    /// Removes the mappings that touch a range; no queue uses them any more when this returns.
    ///
    /// # Errors
    ///
    /// `EFAULT` if it is switched off, `EINTR` if the caller is killed while it waits.
    pub(crate) fn invalidate(&self, first: u64, last: u64) -> Result {
        let removed = {
            let mut state = self.state.lock();
            state.table.as_mut().ok_or(EFAULT)?.remove(first, last)
        };
        if removed {
            self.retire()?;
        }
        trace::iotlb_invalidate(self.dev, first, last);
        Ok(())
    }

    /// Waits until no queue uses a mapping that is not in the table any more.
    fn retire(&self) -> Result {
        let generation = self.generation.fetch_add(1, Relaxed).wrapping_add(1);
        // Either the queue sees the new generation when it enters, or it is seen inside here.
        smp_mb();
        let queues = self.state.lock().queues.clone();
        for (queue, bell) in queues.iter().flatten() {
            if !queue.inside.load(Acquire) {
                continue;
            }
            bell.ring(MAPPINGS);
            self.seen.wait_killable(|| {
                let done = !queue.inside.load(Acquire) || queue.seen.load(Acquire) == generation;
                done.then_some(())
            })?;
        }
        Ok(())
    }

    /// Says that a queue uses mappings from here on. Returns the generation: if it has
    /// changed, nothing that was translated before may be used, and that must be
    /// [accepted](Self::accept).
    pub(crate) fn enter(&self, queue: &Presence) -> u32 {
        queue.inside.store(true, Relaxed);
        // See `retire`.
        smp_mb();
        self.generation.load(Relaxed)
    }

    /// Says that a queue has forgotten what is older than `generation`.
    pub(crate) fn accept(&self, queue: &Presence, generation: u32) {
        queue.seen.store(generation, Release);
        self.seen.wake_all();
    }

    /// Says that a queue, which knew of `generation`, uses no mappings until it enters again.
    pub(crate) fn leave(&self, queue: &Presence, generation: u32) {
        queue.inside.store(false, Release);
        // Whoever removed a mapping meanwhile waits.
        smp_mb();
        if self.generation.load(Relaxed) != generation {
            self.seen.wake_all();
        }
    }

    /// Forgets what queue `index` asked for.
    pub(crate) fn forget(&self, index: u32) {
        // CAST: u32 to usize widens.
        if let Some(asked) = self.state.lock().asked.get_mut(index as usize) {
            *asked = Asked::Nothing;
        }
    }

    /// The next message for user space, which counts as read if `deliver` succeeds.
    ///
    /// # Errors
    ///
    /// `EAGAIN` if there is none and the caller does not wait, `EBADFD` if it would wait while
    /// the IOTLB is off, `ERESTARTSYS` if a signal comes first.
    pub(crate) fn read(
        &self,
        wait: bool,
        deliver: impl FnOnce(Miss) -> Result<usize>,
    ) -> Result<usize> {
        let (index, miss) = self.next(wait)?;
        let delivered = deliver(miss);
        if delivered.is_err() {
            let mut state = self.state.lock();
            if let Some(asked) = state.asked.get_mut(index) {
                // Unless something else was asked for meanwhile.
                if *asked == Asked::Read(miss) {
                    *asked = Asked::Unread(miss);
                }
            }
        }
        delivered
    }

    fn next(&self, wait: bool) -> Result<(usize, Miss)> {
        let mut state = self.state.lock();
        loop {
            for (index, asked) in state.asked.iter_mut().enumerate() {
                if let Asked::Unread(miss) = *asked {
                    *asked = Asked::Read(miss);
                    return Ok((index, miss));
                }
            }
            if !wait {
                return Err(EAGAIN);
            }
            if state.table.is_none() {
                return Err(crate::kext::errno::ebadfd());
            }
            if self.readable.wait_interruptible(&mut state) {
                return Err(ERESTARTSYS);
            }
        }
    }

    /// Whether there is a message to read; registers `table` for when there will be.
    pub(crate) fn poll(&self, file: &OpenedFile<'_>, table: PollTable<'_>) -> bool {
        file.wait_on(&self.readable, table);
        let state = self.state.lock();
        state.asked.iter().any(|a| matches!(a, Asked::Unread(_)))
    }
}
