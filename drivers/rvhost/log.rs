// SPDX-License-Identifier: GPL-2.0
//! The dirty log: tells user space, bit by bit, which guest pages were written.

use kernel::sync::Arc;

use crate::{
    kext::{
        eventfd::EventFd,
        usermem::{
            in_user_range,
            UserMem, //
        },
    },
    memtable::MemTable,
    stats::Stats,
    vcore::{
        addr::{
            Gpa,
            Hva,
            Seg, //
        },
        dirty,
        map,
        Result, //
    },
};

/// What one queue logs, and where.
pub(crate) struct Log {
    /// `VHOST_SET_LOG_BASE`: where the bitmap starts, in owner memory.
    pub(crate) base: u64,
    /// Whether writes to buffers are logged (`VHOST_F_LOG_ALL`).
    pub(crate) buffers: bool,
    /// Whether writes to the used ring are, and as writes to which guest address
    /// (`VHOST_VRING_F_LOG`).
    pub(crate) used: Option<Gpa>,
    /// `VHOST_SET_LOG_FD`: signalled when there is something new in the log.
    pub(crate) event: Option<Arc<EventFd>>,
    stats: Arc<Stats>,
}

impl Log {
    /// Logs nothing yet.
    pub(crate) fn new(stats: Arc<Stats>) -> Self {
        Self {
            base: 0,
            buffers: false,
            used: None,
            event: None,
            stats,
        }
    }

    /// Says that `len` bytes at `at` were written.
    pub(crate) fn mark(&self, user: &mut UserMem<'_>, at: Gpa, len: u64) -> Result {
        for word in dirty::words(self.base, at, len) {
            user.set_bits(word.at, word.bits)?;
            self.stats.dirty_pages.add(word.bits.count_ones().into());
        }
        Ok(())
    }

    /// Says that `len` bytes of owner memory were written, under each guest address they have.
    pub(crate) fn mark_owner(
        &self,
        user: &mut UserMem<'_>,
        table: &MemTable,
        at: Hva,
        len: u64,
    ) -> Result {
        let mut result = Ok(());
        map::aliases(table.regions(), at, len, |gpa, len| {
            result = result.and(self.mark(user, gpa, len));
        });
        result
    }

    /// Says that the first `len` bytes of `segs` were written, if buffers are logged.
    pub(crate) fn mark_buffers(
        &self,
        user: &mut UserMem<'_>,
        table: &MemTable,
        segs: &[Seg],
        len: usize,
    ) -> Result {
        let mut left = len as u64;
        let mut result = Ok(());
        for seg in segs {
            let n = seg.len.min(left);
            result = result.and(self.mark_owner(user, table, seg.at, n));
            left -= n;
            if left == 0 {
                break;
            }
        }
        self.tell();
        result
    }

    /// Signals whoever waits for the log.
    pub(crate) fn tell(&self) {
        if let Some(event) = &self.event {
            event.signal();
        }
    }

    /// Whether a log at `base` for all that this queue logs lies where user memory may be.
    /// `used_len`: bytes of the used ring, unless its guest address is not known here.
    pub(crate) fn fits(&self, base: u64, table: &MemTable, used_len: Option<u64>) -> bool {
        let covers = |last: u64| {
            in_user_range(Seg {
                at: Hva(base),
                len: dirty::log_bytes(last),
            })
        };
        let buffers_fit = !self.buffers || table.regions().iter().all(|r| covers(r.last));
        let used_fits = match (self.used, used_len) {
            (Some(at), Some(len)) => at.0.checked_add(len).is_some_and(covers),
            _ => true,
        };
        buffers_fit && used_fits
    }
}
