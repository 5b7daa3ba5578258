// SPDX-License-Identifier: GPL-2.0
//! The IOTLB of a device, and its conversation with user space about what is missing in it.
//!
//! User space adds and removes mappings by writing messages to the device, and learns by reading
//! which one a queue waits for. A queue waits for one at a time.

use kernel::{
    new_poll_condvar, new_spinlock,
    prelude::*,
    sync::{
        poll::{
            PollCondVar,
            PollTable, //
        },
        Arc,
        SpinLock, //
    },
};

use crate::{
    kext::chrdev::OpenedFile,
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
}

/// The IOTLB of one device. Without effect until it is switched on.
#[pin_data]
pub(crate) struct Iotlb {
    #[pin]
    state: SpinLock<State>,
    #[pin]
    readable: PollCondVar,
}

impl Iotlb {
    pub(crate) fn new() -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                state <- new_spinlock!(State {
                    table: None,
                    asked: [Asked::Nothing; 2],
                }),
                readable <- new_poll_condvar!(),
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

    /// The first contiguous part of `len` bytes at `at`, for queue `index`, which asks user space
    /// if there is none.
    pub(crate) fn segment(
        &self,
        index: u32,
        cache: &mut Cache,
        at: u64,
        len: u64,
        access: Access,
    ) -> vcore::Result<Seg> {
        if let Some(seg) = cache.segment(at, len, access) {
            return seg;
        }
        let mut state = self.state.lock();
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
        // CAST: u32 to usize widens.
        if let Some(asked) = state.asked.get_mut(index as usize) {
            if *asked != Asked::Unread(miss) && *asked != Asked::Read(miss) {
                *asked = Asked::Unread(miss);
                drop(state);
                self.readable.notify_all();
            }
        }
        Err(CoreError::Miss)
    }

    /// Adds a mapping; `EFAULT` if it is switched off.
    pub(crate) fn update(&self, entry: Entry) -> Result {
        let mut state = self.state.lock();
        state.table.as_mut().ok_or(EFAULT)?.insert(entry);
        for asked in &mut state.asked {
            match asked {
                Asked::Unread(miss) | Asked::Read(miss)
                    if (entry.first..=entry.last).contains(&miss.iova) =>
                {
                    *asked = Asked::Nothing;
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// Removes the mappings that touch a range; `EFAULT` if it is switched off.
    pub(crate) fn invalidate(&self, first: u64, last: u64) -> Result {
        let mut state = self.state.lock();
        state.table.as_mut().ok_or(EFAULT)?.remove(first, last);
        Ok(())
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
