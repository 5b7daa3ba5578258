// SPDX-License-Identifier: GPL-2.0
//! A virtqueue's ring with its eventfds: what both directions share.

use core::ops::DerefMut;

use kernel::{
    prelude::*,
    sync::Arc, //
};

use crate::{
    guest::{
        Guest,
        Memory, //
    },
    kext::{
        eventfd::EventFd,
        log,
        trace,
        usermem::UserMem, //
    },
    stats::Stats,
    trace::Problem,
    vcore::{
        self,
        addr::Seg,
        chain::{
            Batch,
            Chain, //
        },
        feat::HeaderLen,
        mem::Access,
        split::{
            Cursor,
            Layout, //
        },
        wire::UsedElem,
        Error, //
    },
};

/// Chains and segments in storage of a size set once.
pub(crate) type Chains = Batch<KVec<Chain>, KVec<Seg>>;

/// Storage for `chains` chains with `segs` segments in all.
#[inline(never)] // It passes through the stack.
pub(crate) fn chains(chains: usize, segs: usize) -> Result<KBox<Chains>> {
    let chains = KVec::from_elem(Chain::default(), chains, GFP_KERNEL)?;
    let segs = KVec::from_elem(Seg::default(), segs, GFP_KERNEL)?;
    Ok(KBox::new(Batch::new(chains, segs), GFP_KERNEL)?)
}

/// Bytes that they occupy.
pub(crate) const fn chains_bytes(chains: usize, segs: usize) -> usize {
    size_of::<Chains>() + chains * size_of::<Chain>() + segs * size_of::<Seg>()
}

/// The ring of one queue.
pub(crate) struct Ring {
    /// The device's number, for tracing.
    pub(crate) dev: u32,
    /// 0 for RX, 1 for TX.
    pub(crate) index: u32,
    pub(crate) layout: Layout,
    pub(crate) cursor: Cursor,
    pub(crate) header: HeaderLen,
    pub(crate) mergeable: bool,
    pub(crate) in_order: bool,
    pub(crate) memory: Memory,
    pub(crate) call: Option<EventFd>,
    pub(crate) err: Option<EventFd>,
    /// The owner's process.
    pub(crate) owner: i32,
    /// Limits what is written to the kernel's log.
    pub(crate) warned: log::Limit,
    /// When the pass began, if that is of interest.
    pub(crate) began: Option<u64>,
    /// What is counted of it. Written through this place only.
    pub(crate) stats: Arc<Stats>,
}

impl Ring {
    /// Splits the ring into its cursor, its place, and the guest's memory.
    #[inline]
    fn parts<'a, 'u>(
        &'a mut self,
        user: &'a mut UserMem<'u>,
    ) -> (&'a mut Cursor, &'a Layout, Guest<'a, 'u>) {
        let used = self.layout.writable(false).at;
        let guest = Guest::new(user, &mut self.memory, used);
        (&mut self.cursor, &self.layout, guest)
    }

    /// Whether all of the ring can be accessed. Only an IOTLB knows before the access.
    pub(crate) fn covered(&mut self, user: &mut UserMem<'_>) -> vcore::Result {
        if !self.memory.is_virtual() {
            return Ok(());
        }
        self.memory.forget();
        let (cursor, layout, mut guest) = self.parts(user);
        let event_idx = cursor.event_idx();
        for area in layout.readable(event_idx) {
            guest.covers(area.at, area.len, Access::Read)?;
        }
        let area = layout.writable(event_idx);
        guest.covers(area.at, area.len, Access::Write)
    }

    /// Does `f` for a caller that is not the queue's thread: who removes a mapping waits for it
    /// as for a pass.
    pub(crate) fn inside<R>(&mut self, f: impl FnOnce(&mut Self) -> R) -> R {
        if self.memory.enter() {
            self.memory.accept();
        }
        let result = f(self);
        self.memory.leave();
        result
    }

    /// Prepares to run; see [`Cursor::start`].
    pub(crate) fn start(&mut self, user: &mut UserMem<'_>) -> vcore::Result {
        self.inside(|ring| {
            let (cursor, layout, mut guest) = ring.parts(user);
            cursor.start(layout, &mut guest)
        })
    }

    /// Takes chains; see [`Cursor::take`].
    #[inline]
    pub(crate) fn take(
        &mut self,
        user: &mut UserMem<'_>,
        want: Access,
        max: usize,
        chains: &mut Batch<impl DerefMut<Target = [Chain]>, impl DerefMut<Target = [Seg]>>,
    ) -> vcore::Result<usize> {
        let (cursor, layout, mut guest) = self.parts(user);
        cursor.take(layout, &mut guest, want, max, chains)
    }

    /// Gives chains that were taken last back untouched.
    pub(crate) fn untake(&mut self, n: usize) {
        self.cursor.untake(n);
    }

    /// Asks the driver not to kick.
    #[inline]
    pub(crate) fn suppress(&mut self, user: &mut UserMem<'_>) {
        let (cursor, layout, mut guest) = self.parts(user);
        if let Err(e) = cursor.suppress(layout, &mut guest) {
            self.fail(e);
        }
    }

    /// Asks the driver to kick. Returns whether there is more to take already.
    pub(crate) fn arm(&mut self, user: &mut UserMem<'_>) -> bool {
        let (cursor, layout, mut guest) = self.parts(user);
        match cursor.arm(layout, &mut guest) {
            Ok(more) => more,
            Err(e) => {
                self.fail(e);
                false
            }
        }
    }

    /// Whether the driver has made more available; for looking often.
    pub(crate) fn has_more(&mut self, user: &mut UserMem<'_>) -> bool {
        let (cursor, layout, mut guest) = self.parts(user);
        cursor.has_more(layout, &mut guest)
    }

    /// Whether all was taken, as far as can be seen before the driver is asked to kick.
    #[inline]
    pub(crate) fn is_drained(&mut self, user: &mut UserMem<'_>) -> bool {
        self.cursor.drained() && !self.has_more(user)
    }

    /// Writes used elements.
    #[inline]
    pub(crate) fn put_used(&mut self, user: &mut UserMem<'_>, elems: &[UsedElem]) -> vcore::Result {
        let (cursor, layout, mut guest) = self.parts(user);
        cursor.put_used(layout, &mut guest, elems)
    }

    /// Shows the driver what was used, and interrupts it if it wants that. `idle`: no chain that
    /// was taken is left.
    pub(crate) fn flush(&mut self, user: &mut UserMem<'_>, idle: bool) {
        let (cursor, layout, mut guest) = self.parts(user);
        match cursor.publish(layout, &mut guest) {
            Ok(false) => return,
            Ok(true) => {}
            Err(e) => self.fail(e),
        }
        if self.call.is_none() {
            return;
        }
        let (cursor, layout, mut guest) = self.parts(user);
        let drained = idle && cursor.drained();
        if !cursor.wants_call(layout, &mut guest, drained) {
            self.stats.calls_suppressed.add(1);
        } else if let Some(call) = &self.call {
            self.stats.calls.add(1);
            trace::call(self.dev, self.index);
            call.signal();
        }
    }

    /// The queue, for the kernel's log.
    pub(crate) fn log(&self) -> log::Queue {
        log::Queue {
            owner: self.owner,
            dev: self.dev,
            queue: self.index,
        }
    }

    /// Tells of a pass, and of what it moved.
    #[inline]
    pub(crate) fn passed(&self, packets: u32, bytes: u64) {
        self.stats.batch(packets, bytes, self.cursor.outstanding());
        if let Some(now) = trace::batch_begins() {
            // A pass that began before anybody listened took nobody knows how long.
            let ns = self.began.map_or(0, |began| now.saturating_sub(began));
            trace::batch(self.dev, self.index, packets, bytes, ns);
        }
    }

    /// Tells owner and tracers that the ring is broken. A mapping that is missing is no such
    /// case: user space was asked for it.
    #[cold]
    pub(crate) fn fail(&self, problem: impl Into<Problem>) {
        let problem = problem.into();
        self.stats.error(problem);
        trace::error(self.dev, self.index, problem.number());
        if problem == Problem::Ring(Error::Miss) {
            return;
        }
        self.log().warn(&self.warned, problem.name());
        if let Some(err) = &self.err {
            err.signal();
        }
    }

    /// Tells tracers of a dropped packet.
    #[cold]
    pub(crate) fn drop_packet(&self, problem: Problem) {
        self.stats.drop_packet(problem);
        trace::drop(self.dev, self.index, problem.number());
    }
}
