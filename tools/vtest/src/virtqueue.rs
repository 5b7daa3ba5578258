// SPDX-License-Identifier: GPL-2.0

//! The driver's side of one virtqueue: builds chains, publishes, kicks, and
//! takes used elements back, checking what the device says.

use std::collections::VecDeque;
use std::time::Duration;

use anyhow::bail;
use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::eventfd::EFD_NONBLOCK;

use crate::mem::Memory;
use crate::poll;
use crate::ring::Desc;
use crate::ring::Layout;
use crate::ring::Ring;
use crate::ring::F_INDIRECT;
use crate::ring::F_NEXT;
use crate::ring::F_WRITE;
use crate::ring::NO_INTERRUPT;

/// One buffer of a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seg {
    /// Guest-physical address.
    pub(crate) addr: u64,
    /// Length in bytes.
    pub(crate) len: u32,
}

/// How the driver uses the ring.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Mode {
    /// VIRTIO_F_EVENT_IDX was negotiated.
    pub(crate) event_idx: bool,
    /// VIRTIO_F_IN_ORDER was negotiated.
    pub(crate) in_order: bool,
    /// Put chains into indirect tables.
    pub(crate) indirect: bool,
}

/// A chain the device has.
#[derive(Clone, Debug)]
struct Chain {
    head: u16,
    descs: Vec<u16>,
    segs: Vec<Seg>,
}

/// A chain the device gave back.
#[derive(Clone, Debug)]
pub(crate) struct Used {
    /// Head descriptor.
    pub(crate) head: u16,
    /// Bytes the device says it wrote.
    pub(crate) len: u32,
    /// The buffers of the chain.
    pub(crate) segs: Vec<Seg>,
}

impl Used {
    /// The first `len` bytes of the chain's buffers.
    pub(crate) fn bytes(&self, mem: &Memory) -> Result<Vec<u8>> {
        let mut left = self.len as usize;
        let mut bytes = Vec::with_capacity(left);
        for seg in &self.segs {
            let take = left.min(seg.len as usize);
            bytes.extend(mem.read(seg.addr, take)?);
            left -= take;
        }
        ensure!(
            left == 0,
            "used length {} exceeds the chain by {left} bytes",
            self.len
        );
        Ok(bytes)
    }

    /// Bytes the chain could hold.
    pub(crate) fn capacity(&self) -> u32 {
        self.segs.iter().map(|seg| seg.len).sum()
    }
}

/// Driver side of a virtqueue, with its eventfds.
pub(crate) struct Virtqueue {
    /// The ring itself.
    pub(crate) ring: Ring,
    /// Driver to device.
    pub(crate) kick: EventFd,
    /// Device to driver.
    pub(crate) call: EventFd,
    /// Device to VMM: something is wrong with the ring.
    pub(crate) err: EventFd,
    mem: Memory,
    mode: Mode,
    free: VecDeque<u16>,
    /// Next available index: chains below it are in the ring, if not yet published.
    next_avail: u16,
    /// Available index as last published.
    published: u16,
    /// Used index up to which elements were taken.
    used_seen: u16,
    pending: VecDeque<Chain>,
    completed: VecDeque<Used>,
    /// One table per descriptor, made when first needed.
    tables: Vec<Table>,
}

/// An indirect table: where it is and how many entries it has.
#[derive(Clone, Copy, Default)]
struct Table {
    addr: u64,
    entries: usize,
}

impl Virtqueue {
    /// Makes a queue of `size` descriptors whose indices start at `avail_base`
    /// and `used_base`.
    pub(crate) fn new(
        mem: &Memory,
        size: u16,
        mode: Mode,
        avail_base: u16,
        used_base: u16,
    ) -> Result<Self> {
        Self::over(mem, Layout::alloc(mem, size)?, mode, avail_base, used_base)
    }

    /// As [`Self::new`] in memory that is there already.
    pub(crate) fn over(
        mem: &Memory,
        layout: Layout,
        mode: Mode,
        avail_base: u16,
        used_base: u16,
    ) -> Result<Self> {
        let size = layout.size;
        let ring = Ring::new(mem, layout)?;
        ring.set_avail_idx(avail_base);
        ring.preset_used_idx(used_base);
        ring.set_used_event(used_base);
        let event = || EventFd::new(EFD_NONBLOCK).context("eventfd");
        // IN_ORDER devices may derive heads from the index: start there.
        let mut free: VecDeque<u16> = (0..size).collect();
        free.rotate_left(usize::from(avail_base % size));
        Ok(Self {
            ring,
            kick: event()?,
            call: event()?,
            err: event()?,
            mem: mem.clone(),
            mode,
            free,
            next_avail: avail_base,
            published: avail_base,
            used_seen: used_base,
            pending: VecDeque::new(),
            completed: VecDeque::new(),
            tables: vec![Table::default(); usize::from(size)],
        })
    }

    /// Free descriptors.
    pub(crate) fn free(&self) -> usize {
        self.free.len()
    }

    /// Chains the device has not given back.
    pub(crate) fn pending(&self) -> usize {
        self.pending.len()
    }

    /// Bytes in the buffers that the device has.
    pub(crate) fn pending_bytes(&self) -> usize {
        let segs = self.pending.iter().flat_map(|chain| &chain.segs);
        segs.map(|seg| seg.len as usize).sum()
    }

    /// The available index the next chain will get.
    pub(crate) fn next_avail(&self) -> u16 {
        self.next_avail
    }

    /// The used index up to which elements were taken.
    pub(crate) fn used_seen(&self) -> u16 {
        self.used_seen
    }

    /// Whether chains go into indirect tables from now on.
    pub(crate) fn set_indirect(&mut self, indirect: bool) {
        self.mode.indirect = indirect;
    }

    /// Puts a chain into the ring without publishing it: `read` buffers first,
    /// then `write` buffers. Returns the head.
    pub(crate) fn add(&mut self, read: &[Seg], write: &[Seg]) -> Result<u16> {
        let descs: Vec<Desc> = read
            .iter()
            .map(|seg| (seg, 0))
            .chain(write.iter().map(|seg| (seg, F_WRITE)))
            .map(|(seg, flags)| Desc {
                addr: seg.addr,
                len: seg.len,
                flags,
                next: 0,
            })
            .collect();
        let segs = read.iter().chain(write).copied().collect();
        self.add_descs(&descs, segs)
    }

    /// Puts a chain of any descriptors into the ring; `F_NEXT` and `next` are
    /// filled in.
    pub(crate) fn add_descs(&mut self, descs: &[Desc], segs: Vec<Seg>) -> Result<u16> {
        ensure!(!descs.is_empty(), "a chain needs a descriptor");
        let indirect = self.mode.indirect;
        let needed = if indirect { 1 } else { descs.len() };
        ensure!(
            self.free.len() >= needed,
            "{needed} descriptors needed, {} free",
            self.free.len()
        );
        let taken: Vec<u16> = self.free.drain(..needed).collect();
        let head = taken[0];
        if indirect {
            let table = self.table(head, descs.len())?;
            for (i, desc) in linked(descs, |i| i as u16).enumerate() {
                self.mem.write(table + 16 * i as u64, &desc.bytes())?;
            }
            self.ring.set_desc(
                head,
                Desc {
                    addr: table,
                    len: 16 * descs.len() as u32,
                    flags: F_INDIRECT,
                    next: 0,
                },
            );
        } else {
            for (i, desc) in linked(descs, |i| taken[i]).enumerate() {
                self.ring.set_desc(taken[i], desc);
            }
        }
        self.pending.push_back(Chain {
            head,
            descs: taken,
            segs,
        });
        self.push_head(head);
        Ok(head)
    }

    /// Puts any head into the available ring without keeping track of it.
    pub(crate) fn push_head(&mut self, head: u16) {
        self.ring.set_avail(self.next_avail, head);
        self.next_avail = self.next_avail.wrapping_add(1);
    }

    /// Forgets a chain that the device will never give back and frees its
    /// descriptors.
    pub(crate) fn forget(&mut self, head: u16) -> Result<()> {
        let at = self.position(head.into())?;
        if let Some(chain) = self.pending.remove(at) {
            self.free.extend(chain.descs);
        }
        Ok(())
    }

    /// Makes all added chains visible to the device.
    pub(crate) fn publish(&mut self) {
        self.ring.set_avail_idx(self.next_avail);
    }

    /// Whether the device asked to be kicked for what was published since the
    /// last call.
    pub(crate) fn wants_kick(&mut self) -> bool {
        let old = self.published;
        self.published = self.next_avail;
        self.ring
            .wants_kick(self.mode.event_idx, self.next_avail, old)
    }

    /// Kicks, wanted or not.
    pub(crate) fn kick(&self) -> Result<()> {
        self.kick.write(1).context("kick")
    }

    /// Publishes and kicks as a well-behaved driver does; tells whether it kicked.
    pub(crate) fn flush(&mut self) -> Result<bool> {
        self.publish();
        let wanted = self.wants_kick();
        if wanted {
            self.kick()?;
        }
        Ok(wanted)
    }

    /// Publishes and kicks whatever the device asked for.
    pub(crate) fn flush_and_kick(&mut self) -> Result<()> {
        self.publish();
        self.published = self.next_avail;
        self.kick()
    }

    /// Asks for a call at the next used element.
    pub(crate) fn enable_calls(&self) {
        if self.mode.event_idx {
            self.ring.set_used_event(self.used_seen);
        } else {
            self.ring.set_avail_flags(0);
        }
    }

    /// Asks for no calls.
    pub(crate) fn disable_calls(&self) {
        if self.mode.event_idx {
            self.ring
                .set_used_event(self.used_seen.wrapping_add(0x8000));
        } else {
            self.ring.set_avail_flags(NO_INTERRUPT);
        }
    }

    /// Takes the next chain that the device gave back.
    pub(crate) fn pop_used(&mut self) -> Result<Option<Used>> {
        if let Some(used) = self.completed.pop_front() {
            return Ok(Some(used));
        }
        let new = self.ring.used_idx().wrapping_sub(self.used_seen);
        if new == 0 {
            return Ok(None);
        }
        ensure!(
            usize::from(new) <= self.pending.len(),
            "used index {} is {new} ahead of {}, but only {} chains are out",
            self.ring.used_idx(),
            self.used_seen,
            self.pending.len()
        );
        let elem = self.ring.used(self.used_seen);
        let at = self.position(elem.id)?;
        if !self.mode.in_order {
            self.used_seen = self.used_seen.wrapping_add(1);
            return Ok(self.complete(at, Some(elem.len)));
        }
        // One element may stand for a group: the chains before it are used
        // completely (virtio 1.3, 2.7.9).
        ensure!(
            at < usize::from(new),
            "used element at {} names the chain {at} places on, but only {new} elements are new",
            self.used_seen
        );
        for left in (0..=at).rev() {
            let len = (left == 0).then_some(elem.len);
            let used = self.complete(0, len);
            self.completed.extend(used);
        }
        self.used_seen = self.used_seen.wrapping_add(at as u16 + 1);
        Ok(self.completed.pop_front())
    }

    /// Waits for the next used chain as a driver does, relying on calls. Fails
    /// with a message of its own where the chain was used but the call lost.
    pub(crate) fn wait_used(&mut self) -> Result<Used> {
        self.wait_used_for(poll::PATIENCE)
    }

    /// As [`Self::wait_used`] with a limit of the caller's.
    pub(crate) fn wait_used_for(&mut self, limit: Duration) -> Result<Used> {
        loop {
            if let Some(used) = self.pop_used()? {
                return Ok(used);
            }
            self.enable_calls();
            if let Some(used) = self.pop_used()? {
                return Ok(used);
            }
            if !poll::readable(&self.call, limit)? {
                let state = self.state();
                if self.pop_used()?.is_some() {
                    bail!("chain used but no call came in {limit:?} ({state})");
                }
                bail!("no chain used in {limit:?} ({state})");
            }
            poll::take_signals(&self.call);
        }
    }

    /// Waits for the next used chain by looking at the used index only.
    pub(crate) fn spin_used(&mut self) -> Result<Used> {
        let what = format!("a used chain ({})", self.state());
        poll::wait_for(&what, || self.pop_used())
    }

    /// Waits until the device has used everything.
    pub(crate) fn drain(&mut self) -> Result<Vec<Used>> {
        let mut all = Vec::new();
        while !self.pending.is_empty() || !self.completed.is_empty() {
            all.push(self.wait_used()?);
        }
        Ok(all)
    }

    /// Takes back what the device has used until now. Returns how many chains.
    pub(crate) fn drain_some(&mut self) -> Result<usize> {
        let mut count = 0;
        while self.pop_used()?.is_some() {
            count += 1;
        }
        Ok(count)
    }

    /// The indices, for messages.
    pub(crate) fn state(&self) -> String {
        format!(
            "avail idx {}, used idx {}, used flags {}, avail event {}, {} chains out, err {}",
            self.ring.avail_idx(),
            self.ring.used_idx(),
            self.ring.used_flags(),
            self.ring.avail_event(),
            self.pending.len(),
            if poll::readable(&self.err, Duration::ZERO).unwrap_or(false) {
                "signalled"
            } else {
                "quiet"
            }
        )
    }

    fn position(&self, id: u32) -> Result<usize> {
        self.pending
            .iter()
            .position(|chain| u32::from(chain.head) == id)
            .with_context(|| {
                format!(
                    "used element {} names head {id}, which is not out",
                    self.used_seen
                )
            })
    }

    fn complete(&mut self, at: usize, len: Option<u32>) -> Option<Used> {
        let chain = self.pending.remove(at)?;
        self.free.extend(chain.descs);
        let capacity = chain.segs.iter().map(|seg| seg.len).sum();
        Some(Used {
            head: chain.head,
            len: len.unwrap_or(capacity),
            segs: chain.segs,
        })
    }

    fn table(&mut self, head: u16, entries: usize) -> Result<u64> {
        let table = &mut self.tables[usize::from(head)];
        if table.entries < entries {
            table.entries = entries.next_power_of_two().max(4);
            table.addr = self.mem.alloc(16 * table.entries as u64, 16)?;
        }
        Ok(table.addr)
    }
}

/// `descs` with `F_NEXT` and `next` filled in; `index` maps positions to indices.
fn linked<'a>(
    descs: &'a [Desc],
    index: impl Fn(usize) -> u16 + 'a,
) -> impl Iterator<Item = Desc> + 'a {
    let last = descs.len() - 1;
    descs.iter().enumerate().map(move |(i, desc)| {
        let mut desc = *desc;
        if i < last {
            desc.flags |= F_NEXT;
            desc.next = index(i + 1);
        }
        desc
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(mode: Mode, base: u16) -> (Memory, Virtqueue) {
        let mem = Memory::new().unwrap();
        let vq = Virtqueue::new(&mem, 4, mode, base, base).unwrap();
        (mem, vq)
    }

    fn seg(addr: u64) -> Seg {
        Seg { addr, len: 100 }
    }

    fn complete(mem: &Memory, vq: &Virtqueue, at: u16, id: u16, len: u32) {
        let used = vq.ring.layout().used + 4 + 8 * u64::from(at % 4);
        mem.write(used, &u32::from(id).to_le_bytes()).unwrap();
        mem.write(used + 4, &len.to_le_bytes()).unwrap();
    }

    #[test]
    fn direct_chain_is_linked_and_comes_back() {
        let (mem, mut vq) = queue(Mode::default(), 65535);
        let head = vq.add(&[seg(0x1000), seg(0x2000)], &[]).unwrap();
        vq.publish();
        assert_eq!(vq.ring.avail_idx(), 0);
        assert_eq!(vq.free(), 2);
        let first = mem
            .read(vq.ring.layout().desc + 16 * u64::from(head), 16)
            .unwrap();
        assert_eq!(u16::from_le_bytes([first[12], first[13]]), F_NEXT);
        complete(&mem, &vq, 65535, head, 7);
        vq.ring.preset_used_idx(0);
        let used = vq.pop_used().unwrap().unwrap();
        assert_eq!((used.head, used.len), (head, 7));
        assert_eq!(vq.free(), 4);
    }

    #[test]
    fn in_order_element_completes_its_group() {
        let mode = Mode {
            in_order: true,
            ..Mode::default()
        };
        let (mem, mut vq) = queue(mode, 0);
        vq.add(&[], &[seg(0x1000)]).unwrap();
        vq.add(&[], &[seg(0x2000)]).unwrap();
        let last = vq.add(&[], &[seg(0x3000)]).unwrap();
        complete(&mem, &vq, 0, last, 60);
        vq.ring.preset_used_idx(3);
        let lens: Vec<u32> = (0..3)
            .map(|_| vq.pop_used().unwrap().unwrap().len)
            .collect();
        assert_eq!(lens, [100, 100, 60]);
        assert!(vq.pop_used().unwrap().is_none());
    }

    #[test]
    fn unknown_head_is_an_error() {
        let (mem, mut vq) = queue(Mode::default(), 0);
        vq.add(&[], &[seg(0x1000)]).unwrap();
        complete(&mem, &vq, 0, 3, 60);
        vq.ring.preset_used_idx(1);
        assert!(vq.pop_used().is_err());
    }

    #[test]
    fn indirect_chain_takes_one_descriptor() {
        let mode = Mode {
            indirect: true,
            ..Mode::default()
        };
        let (_mem, mut vq) = queue(mode, 0);
        vq.add(&[seg(0x1000); 9], &[]).unwrap();
        assert_eq!(vq.free(), 3);
    }
}
