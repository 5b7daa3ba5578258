// SPDX-License-Identifier: GPL-2.0
//! The device's side of a split virtqueue (virtio 1.3, 2.7).

use core::ops::DerefMut;

use super::{
    addr::Seg,
    chain::{
        Batch,
        Chain,
        Scratch, //
    },
    event, feat,
    mem::{
        Access,
        Fence,
        GuestMem, //
    },
    wire::{
        UsedElem,
        AVAIL_F_NO_INTERRUPT,
        USED_F_NO_NOTIFY, //
    },
    Error, Result,
};

mod layout;

pub use layout::{
    Area,
    Layout, //
};

/// The most chains that one call takes.
pub const MAX_TAKE: usize = 64;
/// The largest ring.
pub const MAX_NUM: u16 = 32768;

/// How far the device has come in a ring.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cursor {
    /// The next available entry to take.
    next_avail: u16,
    /// The driver's index, as last read.
    avail: u16,
    /// Chains taken and not given back. With what is yet to be taken they are no more than the
    /// ring's size.
    held: u16,
    /// The next used element to write.
    next_used: u16,
    /// The used index that the driver can see.
    published: u16,
    /// The used index at the last decision on an interrupt; `None` if there was none, or if it
    /// is so long ago that the index may have wrapped.
    signalled: Option<u16>,
    /// Whether the driver is asked not to kick.
    suppressed: bool,
    event_idx: bool,
    notify_on_empty: bool,
}

impl Cursor {
    /// The index up to which entries were taken (`VHOST_GET_VRING_BASE`).
    pub fn base(&self) -> u16 {
        self.next_avail
    }

    /// Starts again from `base` (`VHOST_SET_VRING_BASE`).
    pub fn set_base(&mut self, base: u16) {
        self.next_avail = base;
        self.avail = base;
        self.held = 0;
    }

    /// Sets what was negotiated.
    pub fn set_features(&mut self, acked: u64) {
        self.event_idx = acked & feat::F_EVENT_IDX != 0;
        self.notify_on_empty = acked & feat::F_NOTIFY_ON_EMPTY != 0;
    }

    /// Whether event indices are used.
    pub fn event_idx(&self) -> bool {
        self.event_idx
    }

    /// Prepares to run: states the suppression anew and takes the used index from memory, where
    /// an earlier device may have left it.
    pub fn start<M: GuestMem>(&mut self, ring: &Layout, mem: &mut M) -> Result {
        self.held = 0;
        self.signalled = None;
        mem.store_u16(ring.used_flags(), self.used_flags())?;
        self.next_used = mem.load_u16(ring.used_idx())?;
        self.published = self.next_used;
        Ok(())
    }

    fn used_flags(&self) -> u16 {
        if self.suppressed {
            USED_F_NO_NOTIFY
        } else {
            0
        }
    }

    /// How many entries can be taken.
    #[inline]
    fn pending<M: GuestMem>(&mut self, ring: &Layout, mem: &mut M) -> Result<u16> {
        if self.avail == self.next_avail {
            let avail = mem.load_u16(ring.avail_idx())?;
            // Each chain has a descriptor of its own at least: those that the device still has
            // cannot be made available again.
            if avail.wrapping_sub(self.next_avail) > ring.num.saturating_sub(self.held) {
                return Err(Error::IndexJump);
            }
            if avail != self.avail {
                self.avail = avail;
                // Pairs with the driver's barrier between writing entries and the index.
                mem.fence(Fence::Read);
            }
        }
        Ok(self.avail.wrapping_sub(self.next_avail))
    }

    /// Whether the driver's index shows entries that were not taken. True too if it cannot be
    /// read, which a [`Cursor::take`] tells more of.
    pub fn has_more<M: GuestMem>(&self, ring: &Layout, mem: &mut M) -> bool {
        mem.load_u16(ring.avail_idx()) != Ok(self.next_avail)
    }

    /// Whether all entries known of were taken.
    #[inline]
    pub fn drained(&self) -> bool {
        self.avail == self.next_avail
    }

    /// How many chains are known that were made available and not given back.
    #[inline]
    pub fn outstanding(&self) -> u16 {
        self.held
            .saturating_add(self.avail.wrapping_sub(self.next_avail))
    }

    /// Takes up to `max` chains (and up to [`MAX_TAKE`]) into `batch`, for a queue whose buffers
    /// the device accesses as `want`. Returns how many; 0 if the ring is empty.
    ///
    /// # Errors
    ///
    /// Only if the very first entry is bad: what is wrong with a later one is told by the next
    /// call. [`Error::NoRoom`] if the batch has none for it.
    pub fn take<M, C, S>(
        &mut self,
        ring: &Layout,
        mem: &mut M,
        want: Access,
        max: usize,
        batch: &mut Batch<C, S>,
    ) -> Result<usize>
    where
        M: GuestMem,
        C: DerefMut<Target = [Chain]>,
        S: DerefMut<Target = [Seg]>,
    {
        let pending = usize::from(self.pending(ring, mem)?);
        if pending == 0 {
            return Ok(0);
        }
        let n = pending.min(max).min(batch.room()).min(MAX_TAKE);
        if n == 0 {
            return Err(Error::NoRoom);
        }
        self.read_heads(ring, mem, n, &mut batch.scratch)?;
        let Scratch { heads, descs, .. } = &mut batch.scratch;
        let heads = heads.get(..n).unwrap_or(&[]);
        // All up to the first bad head; that one is an error only if it is the first.
        let mut good = heads.iter().position(|&h| h >= ring.num).unwrap_or(n);
        let mut heads = heads.get(..good).unwrap_or(&[]);
        if heads.is_empty() {
            return Err(Error::BadHead);
        }
        if let Err(e) = mem.read_descs(ring.desc, heads, descs) {
            // One bad page must not hold up the chains before it.
            heads = heads.get(..1).unwrap_or(&[]);
            if good == 1 {
                return Err(e);
            }
            good = 1;
            mem.read_descs(ring.desc, heads, descs)?;
        }
        let mut taken = 0;
        while taken < good {
            let Scratch { heads, descs, .. } = &batch.scratch;
            let (Some(&head), Some(&desc)) = (heads.get(taken), descs.get(taken)) else {
                break;
            };
            match batch.add(mem, ring.desc, ring.num, head, desc, want) {
                Ok(more) => {
                    taken += 1;
                    if !more {
                        break;
                    }
                }
                Err(e) if taken == 0 => return Err(e),
                Err(_) => break,
            }
        }
        // CAST: at most `MAX_TAKE`.
        self.next_avail = self.next_avail.wrapping_add(taken as u16);
        self.held = self.held.saturating_add(taken as u16);
        Ok(taken)
    }

    /// Gives the last `n` taken chains back, as if they had not been taken.
    pub fn untake(&mut self, n: usize) {
        // CAST: no more than the ring's size can have been taken.
        self.next_avail = self.next_avail.wrapping_sub(n as u16);
        self.held = self.held.saturating_sub(n as u16);
    }

    /// Reads the next `n` heads.
    #[inline]
    fn read_heads<M: GuestMem>(
        &self,
        ring: &Layout,
        mem: &mut M,
        n: usize,
        scratch: &mut Scratch,
    ) -> Result {
        let Scratch { raw, heads, .. } = scratch;
        let raw = raw.get_mut(..n).unwrap_or(&mut []);
        let mut slot = ring.slot(self.next_avail);
        let mut left = &mut *raw;
        // Whatever the caller has given back, nothing behind the ring is read.
        while !left.is_empty() {
            let before_wrap = left.len().min(usize::from(ring.num - slot));
            let (now, wrapped) = left.split_at_mut(before_wrap);
            mem.read(ring.avail_entry(slot), now.as_flattened_mut())?;
            slot = 0;
            left = wrapped;
        }
        for (head, &bytes) in heads.iter_mut().zip(raw.iter()) {
            *head = u16::from_le_bytes(bytes);
        }
        Ok(())
    }

    /// Writes used elements; the driver sees them after [`Cursor::publish`].
    ///
    /// No more than were taken may be written between two publications.
    pub fn put_used<M: GuestMem>(
        &mut self,
        ring: &Layout,
        mem: &mut M,
        elems: &[UsedElem],
    ) -> Result {
        let mut slot = ring.slot(self.next_used);
        let mut left = elems;
        // Whatever the caller does, nothing behind the ring is written.
        while !left.is_empty() {
            let (now, wrapped) = left.split_at(left.len().min(usize::from(ring.num - slot)));
            mem.write(ring.used_entry(slot), now.as_flattened())?;
            slot = 0;
            left = wrapped;
        }
        // CAST: no more than the ring's size.
        self.next_used = self.next_used.wrapping_add(elems.len() as u16);
        self.held = self.held.saturating_sub(elems.len() as u16);
        Ok(())
    }

    /// Shows the driver all elements written so far. Returns whether there were any.
    pub fn publish<M: GuestMem>(&mut self, ring: &Layout, mem: &mut M) -> Result<bool> {
        let (old, new) = (self.published, self.next_used);
        if new == old {
            return Ok(false);
        }
        // Pairs with the driver's barrier between reading the index and the elements.
        mem.fence(Fence::Write);
        mem.store_u16(ring.used_idx(), new)?;
        self.published = new;
        if let Some(signalled) = self.signalled {
            if new.wrapping_sub(signalled) < new.wrapping_sub(old) {
                self.signalled = None;
            }
        }
        Ok(true)
    }

    /// Whether the driver wants an interrupt for what was published. `drained`: all available
    /// chains were used.
    pub fn wants_call<M: GuestMem>(&mut self, ring: &Layout, mem: &mut M, drained: bool) -> bool {
        // Orders the used index before the flags or the event. Pairs with the driver's barrier
        // between asking for interrupts and looking at the used index again.
        mem.fence(Fence::Full);
        if self.notify_on_empty && drained {
            return true;
        }
        if !self.event_idx {
            return match mem.load_u16(ring.avail_flags()) {
                Ok(flags) => flags & AVAIL_F_NO_INTERRUPT == 0,
                Err(_) => true,
            };
        }
        match self.signalled.replace(self.published) {
            None => true,
            Some(old) => match mem.load_u16(ring.used_event()) {
                Ok(wanted) => event::passed(wanted, self.published, old),
                Err(_) => true,
            },
        }
    }

    /// Asks the driver not to kick. With event indices that is how things are until
    /// [`Cursor::arm`] moves the event.
    pub fn suppress<M: GuestMem>(&mut self, ring: &Layout, mem: &mut M) -> Result {
        if self.suppressed {
            return Ok(());
        }
        self.suppressed = true;
        if self.event_idx {
            return Ok(());
        }
        mem.store_u16(ring.used_flags(), USED_F_NO_NOTIFY)
    }

    /// Asks the driver to kick when it makes the next entry available. Returns whether it did so
    /// in the meantime, in which case no kick may come.
    pub fn arm<M: GuestMem>(&mut self, ring: &Layout, mem: &mut M) -> Result<bool> {
        self.suppressed = false;
        if self.event_idx {
            mem.store_u16(ring.avail_event(), self.avail)?;
        } else {
            mem.store_u16(ring.used_flags(), 0)?;
        }
        // Orders the request before the look at the index. Pairs with the driver's barrier
        // between writing the index and looking at the request.
        mem.fence(Fence::Full);
        Ok(mem.load_u16(ring.avail_idx())? != self.avail)
    }
}

#[cfg_attr(rv_kunit, ::kernel::macros::kunit_tests(rvhost_vcore_split))]
#[cfg(any(test, rv_kunit))]
mod tests {
    use super::*;
    use crate::vcore::{
        addr::RingAddr,
        mock::{
            MockMem,
            MockRing, //
        },
        wire::{
            used_elem,
            Desc,
            DESC_F_INDIRECT,
            DESC_F_NEXT,
            DESC_F_WRITE, //
        },
    };

    /// Head, length, and why it was refused.
    type Taken = (u16, u64, Option<Error>);

    struct Rig {
        mem: MockMem,
        ring: MockRing,
        cursor: Cursor,
        chains: [Chain; 8],
        segs: [Seg; 16],
    }

    impl Rig {
        fn new(num: u16, acked: u64) -> Self {
            let mut cursor = Cursor::default();
            cursor.set_features(acked);
            Self {
                mem: MockMem::new(),
                ring: MockRing::new(num),
                cursor,
                chains: [Chain::default(); 8],
                segs: [Seg::default(); 16],
            }
        }

        /// Takes what there is; the heads and lengths of the chains taken, and the refusals.
        fn take(&mut self) -> Result<(usize, [Taken; 8])> {
            let mut batch = Batch::new(&mut self.chains[..], &mut self.segs[..]);
            let layout = self.ring.layout();
            let n = self
                .cursor
                .take(&layout, &mut self.mem, Access::Read, 8, &mut batch)?;
            let mut out = [(0, 0, None); 8];
            for (i, slot) in out.iter_mut().enumerate() {
                if let Some(c) = batch.get(i) {
                    *slot = (c.head, c.len, c.refused);
                }
            }
            Ok((n, out))
        }

        fn offer(&mut self, head: u16) {
            self.ring.offer(&mut self.mem, head);
        }

        fn desc(&mut self, i: u16, addr: u64, len: u32, flags: u16, next: u16) {
            let desc = Desc {
                addr,
                len,
                flags,
                next,
            };
            self.ring.set_desc(&mut self.mem, i, desc);
        }
    }

    #[test]
    fn ring_sizes_are_powers_of_two_up_to_32768() {
        let ok = |num| Layout::new(num, RingAddr(0), RingAddr(0), RingAddr(0)).is_some();
        assert!(ok(1) && ok(2) && ok(256) && ok(32768));
        assert!(!ok(0) && !ok(3) && !ok(65535) && !ok(65536) && !ok(131072));
    }

    #[test]
    fn empty_ring_gives_nothing() -> Result {
        let mut rig = Rig::new(4, 0);
        assert_eq!(rig.take()?.0, 0);
        Ok(())
    }

    #[test]
    fn chains_are_taken_in_order_and_across_the_wrap() -> Result {
        let mut rig = Rig::new(4, 0);
        rig.ring.set_avail(&mut rig.mem, 0xfffe);
        rig.cursor.set_base(0xfffe);
        for i in 0..4 {
            rig.desc(i, 0x100, 10 + u32::from(i), 0, 0);
        }
        for head in [2, 0, 3, 1] {
            rig.offer(head);
        }
        let (n, got) = rig.take()?;
        assert_eq!(n, 4);
        assert_eq!(got[0], (2, 12, None));
        assert_eq!(got[1], (0, 10, None));
        assert_eq!(got[2], (3, 13, None));
        assert_eq!(got[3], (1, 11, None));
        assert_eq!(rig.cursor.base(), 2);
        rig.cursor.untake(3);
        assert_eq!(rig.cursor.base(), 0xffff);
        Ok(())
    }

    #[test]
    fn index_jump_is_refused_and_a_full_ring_is_not() -> Result {
        let mut rig = Rig::new(4, 0);
        rig.desc(0, 0x100, 10, 0, 0);
        rig.ring.set_avail(&mut rig.mem, 5);
        assert_eq!(rig.take().err(), Some(Error::IndexJump));
        rig.ring.set_avail(&mut rig.mem, 0xffff);
        assert_eq!(rig.take().err(), Some(Error::IndexJump));
        rig.ring.set_avail(&mut rig.mem, 4);
        assert_eq!(rig.take()?.0, 4);
        Ok(())
    }

    #[test]
    fn bad_head_is_told_only_when_it_is_first() -> Result {
        let mut rig = Rig::new(4, 0);
        rig.desc(1, 0x100, 10, 0, 0);
        rig.offer(1);
        rig.offer(4);
        assert_eq!(rig.take()?.0, 1);
        assert_eq!(rig.take().err(), Some(Error::BadHead));
        assert_eq!(rig.cursor.base(), 1);
        Ok(())
    }

    #[test]
    fn loops_end_with_an_error() {
        let mut rig = Rig::new(4, 0);
        rig.desc(0, 0x100, 10, DESC_F_NEXT, 1);
        rig.desc(1, 0x100, 10, DESC_F_NEXT, 0);
        rig.offer(0);
        assert_eq!(rig.take().err(), Some(Error::Loop));
        rig.desc(1, 0x100, 10, DESC_F_NEXT, 4);
        assert_eq!(rig.take().err(), Some(Error::BadNext));
    }

    #[test]
    fn chain_may_be_as_long_as_the_ring() -> Result {
        let mut rig = Rig::new(4, 0);
        for i in 0..4 {
            rig.desc(i, 0x100, 1, if i < 3 { DESC_F_NEXT } else { 0 }, i + 1);
        }
        rig.offer(0);
        assert_eq!(rig.take()?.1[0], (0, 4, None));
        Ok(())
    }

    #[test]
    fn wrong_direction_and_empty_chains_are_refused_but_taken() -> Result {
        let mut rig = Rig::new(4, 0);
        rig.desc(0, 0x100, 10, DESC_F_WRITE, 0);
        rig.desc(1, 0xdead_0000_0000, 0, 0, 0);
        rig.offer(0);
        rig.offer(1);
        let (n, got) = rig.take()?;
        assert_eq!(n, 2);
        assert_eq!(got[0].2, Some(Error::WrongDirection));
        assert_eq!(got[1].2, Some(Error::Empty));
        Ok(())
    }

    #[test]
    fn readable_after_writable_stops_the_queue() {
        let mut rig = Rig::new(4, 0);
        rig.desc(0, 0x100, 10, DESC_F_WRITE | DESC_F_NEXT, 1);
        rig.desc(1, 0x100, 10, 0, 0);
        rig.offer(0);
        assert_eq!(rig.take().err(), Some(Error::ReadableAfterWritable));
    }

    #[test]
    fn unmapped_buffer_stops_the_queue_until_repaired() -> Result {
        let mut rig = Rig::new(4, 0);
        rig.desc(0, 0xdead_0000_0000, 10, 0, 0);
        rig.offer(0);
        assert_eq!(rig.take().err(), Some(Error::Unmapped));
        rig.desc(0, 0x100, 10, 0, 0);
        assert_eq!(rig.take()?.0, 1);
        Ok(())
    }

    #[test]
    fn indirect_tables_are_checked() {
        let mut rig = Rig::new(4, 0);
        rig.offer(0);
        for (len, want) in [
            (0, Error::IndirectLength),
            (24, Error::IndirectLength),
            (16 * 65537, Error::IndirectTooLong),
        ] {
            rig.desc(0, 0x200, len, DESC_F_INDIRECT, 0);
            assert_eq!(rig.take().err(), Some(want));
        }
        rig.desc(0, 0x200, 32, DESC_F_INDIRECT, 0);
        for (flags, next, want) in [
            (DESC_F_INDIRECT, 0, Error::NestedIndirect),
            (DESC_F_NEXT, 2, Error::BadNext),
            (DESC_F_NEXT, 0, Error::Loop),
        ] {
            let entry = Desc {
                addr: 0x100,
                len: 4,
                flags,
                next,
            };
            rig.mem.put_desc(0x200, entry);
            assert_eq!(rig.take().err(), Some(want));
        }
    }

    #[test]
    fn indirect_chain_follows_next() -> Result {
        let mut rig = Rig::new(4, 0);
        rig.desc(0, 0x200, 48, DESC_F_INDIRECT, 0);
        for (i, len, flags, next) in [(0u64, 1, DESC_F_NEXT, 2), (1, 100, 0, 0), (2, 20, 0, 0)] {
            let entry = Desc {
                addr: 0x100,
                len,
                flags,
                next,
            };
            rig.mem.put_desc(0x200 + 16 * i, entry);
        }
        rig.offer(0);
        assert_eq!(rig.take()?.1[0], (0, 21, None));
        Ok(())
    }

    #[test]
    fn used_elements_wrap_and_appear_with_the_index() -> Result {
        let mut rig = Rig::new(4, 0);
        rig.ring.set_used_idx(&mut rig.mem, 0xffff);
        let layout = rig.ring.layout();
        rig.cursor.start(&layout, &mut rig.mem)?;
        let elems = [used_elem(7, 70), used_elem(8, 80)];
        rig.cursor.put_used(&layout, &mut rig.mem, &elems)?;
        assert_eq!(rig.ring.used_idx(&rig.mem), 0xffff);
        assert!(rig.cursor.publish(&layout, &mut rig.mem)?);
        assert_eq!(rig.ring.used_idx(&rig.mem), 1);
        assert_eq!(rig.ring.used(&rig.mem, 3), (7, 70));
        assert_eq!(rig.ring.used(&rig.mem, 0), (8, 80));
        assert!(!rig.cursor.publish(&layout, &mut rig.mem)?);
        Ok(())
    }

    #[test]
    fn used_elements_never_reach_behind_the_ring() -> Result {
        let mut rig = Rig::new(2, 0);
        let layout = rig.ring.layout();
        let elems = [1, 2, 3, 4, 5].map(|i| used_elem(i, 0xffff));
        rig.cursor.put_used(&layout, &mut rig.mem, &elems)?;
        assert_eq!(rig.ring.used(&rig.mem, 0), (5, 0xffff));
        assert_eq!(rig.ring.used(&rig.mem, 1), (4, 0xffff));
        assert_eq!(rig.ring.avail_event(&rig.mem), 0);
        Ok(())
    }

    #[test]
    fn chains_not_given_back_cannot_be_available_again() -> Result {
        let mut rig = Rig::new(2, 0);
        let layout = rig.ring.layout();
        rig.desc(0, 0x100, 10, 0, 0);
        rig.offer(0);
        rig.offer(0);
        assert_eq!(rig.take()?.0, 2);
        rig.offer(0);
        assert_eq!(rig.take().err(), Some(Error::IndexJump));
        rig.cursor
            .put_used(&layout, &mut rig.mem, &[used_elem(0, 0)])?;
        assert_eq!(rig.take()?.0, 1);
        rig.cursor.untake(1);
        assert_eq!(rig.take()?.0, 1);
        // What an earlier device kept is lost to its driver as well.
        rig.cursor.start(&layout, &mut rig.mem)?;
        rig.offer(0);
        rig.offer(0);
        assert_eq!(rig.take()?.0, 2);
        Ok(())
    }

    #[test]
    fn interrupt_follows_flags_without_event_idx() -> Result {
        let mut rig = Rig::new(4, 0);
        let layout = rig.ring.layout();
        assert!(rig.cursor.wants_call(&layout, &mut rig.mem, true));
        rig.ring.set_avail_flags(&mut rig.mem, AVAIL_F_NO_INTERRUPT);
        assert!(!rig.cursor.wants_call(&layout, &mut rig.mem, true));
        rig.cursor.set_features(feat::F_NOTIFY_ON_EMPTY);
        assert!(rig.cursor.wants_call(&layout, &mut rig.mem, true));
        assert!(!rig.cursor.wants_call(&layout, &mut rig.mem, false));
        Ok(())
    }

    #[test]
    fn interrupt_follows_used_event() -> Result {
        let mut rig = Rig::new(4, feat::F_EVENT_IDX);
        let layout = rig.ring.layout();
        rig.cursor.start(&layout, &mut rig.mem)?;
        rig.ring.set_used_event(&mut rig.mem, 1);
        let mut told = [false; 4];
        for slot in &mut told {
            rig.cursor
                .put_used(&layout, &mut rig.mem, &[used_elem(0, 0)])?;
            rig.cursor.publish(&layout, &mut rig.mem)?;
            *slot = rig.cursor.wants_call(&layout, &mut rig.mem, false);
        }
        // The first after a start always; then when index 1 was used.
        assert_eq!(told, [true, true, false, false]);
        Ok(())
    }

    #[test]
    fn arming_tells_of_entries_made_meanwhile() -> Result {
        for acked in [0, feat::F_EVENT_IDX] {
            let mut rig = Rig::new(4, acked);
            let layout = rig.ring.layout();
            rig.cursor.suppress(&layout, &mut rig.mem)?;
            let flags = if acked == 0 { USED_F_NO_NOTIFY } else { 0 };
            assert_eq!(rig.ring.used_flags(&rig.mem), flags);
            assert!(!rig.cursor.arm(&layout, &mut rig.mem)?);
            assert_eq!(rig.ring.used_flags(&rig.mem), 0);
            assert_eq!(rig.ring.avail_event(&rig.mem), 0);
            rig.offer(0);
            assert!(rig.cursor.arm(&layout, &mut rig.mem)?);
        }
        Ok(())
    }
}
