// SPDX-License-Identifier: GPL-2.0
//! Guest to network.

use kernel::{
    prelude::*,
    sync::Arc, //
};

use crate::{
    backend::Endpoint,
    kext::{
        errno, param, sched,
        usermem::UserMem,
        wait::Bell,
        xdp::{
            Refused,
            Source,
            TxBatch,
            BATCH, //
        },
        zerocopy::Loans,
    },
    ring::{
        chains,
        chains_bytes,
        Chains,
        Ring, //
    },
    trace::Problem,
    vcore::{
        self,
        chain::{
            Chain,
            MAX_SEGMENTS, //
        },
        hdr,
        mem::Access,
        wire::{
            used_elem,
            UsedElem,
            USED_BYTES, //
        },
    },
    virtqueue::Next,
};

/// The shortest frame a backend is handed: an Ethernet header.
pub(crate) const MIN_FRAME: usize = 14;

/// The shortest packet, header included, for which a backend is lent guest memory: shorter ones go
/// in batches.
const MIN_LOAN: usize = 4096;

/// What a packet takes of a limit to what is in flight, beyond its own bytes.
const OVERHEAD: usize = 768;

/// For how long packets for which a packet socket's device has no room are tried again, after each clock
/// tick.
const MAX_PAUSE_NS: u64 = 1_000_000_000;

/// What transmission needs while it runs.
pub(crate) struct Tx {
    chains: KBox<Chains>,
    batch: TxBatch,
    used: KVec<UsedElem>,
    /// How many of those could not be written yet, though their packets are gone.
    unwritten: usize,
    /// Since when the backend has had no room.
    full_since: Option<u64>,
    /// Packets that the stack reads where they are, if it may.
    loans: Option<Loans>,
    /// How many packets could have been lent lately, and how many of those that were lent were
    /// copied after all.
    tried: u32,
    copied: u32,
}

/// What became of one packet.
enum Sent {
    /// The backend has it, or it is lost for good: the chain is used.
    Done,
    /// The backend reads it where it is: the chain is in use until that is over.
    Lent,
    /// The backend's buffer is full: the packet must be sent later.
    Full,
    /// The backend has no room for it, and will not tell when it has: likewise.
    NoRoom,
}

impl Tx {
    /// Bytes that one occupies.
    pub(crate) const BYTES: usize = size_of::<Self>()
        + chains_bytes(BATCH, MAX_SEGMENTS)
        + TxBatch::BYTES
        + BATCH * size_of::<UsedElem>();

    /// `bell` is to be rung with `returned` when a packet is no longer lent.
    pub(crate) fn new(bell: Arc<Bell>, returned: u32) -> Result<Self> {
        let loans = match param::zerocopy() {
            true => Some(Loans::new(bell, returned)?),
            false => None,
        };
        Ok(Self {
            chains: chains(BATCH, MAX_SEGMENTS)?,
            batch: TxBatch::new()?,
            used: KVec::from_elem([0; USED_BYTES], BATCH, GFP_KERNEL)?,
            unwritten: 0,
            full_since: None,
            loans,
            tried: 0,
            copied: 0,
        })
    }

    /// Sends up to one batch.
    pub(crate) fn pass(
        &mut self,
        ring: &mut Ring,
        user: &mut UserMem<'_>,
        endpoint: &Endpoint,
    ) -> Next {
        ring.suppress(user);
        if let Err(e) = self.catch_up(ring, user) {
            return Next::Stall(e);
        }
        self.chains.clear();
        let taken = match ring.take(user, Access::Read, BATCH, &mut self.chains) {
            Ok(0) => {
                // What was returned, or what a missing mapping kept from being published before.
                ring.flush(user, true);
                return Next::AwaitChains;
            }
            Ok(n) => n,
            Err(e) => return Next::Stall(e),
        };
        let batched = endpoint.takes_batches();
        self.batch
            .begin(ring.header.sock, endpoint.wants_headroom());
        let mut room = endpoint.room();
        let (mut done, mut used, mut bytes) = (0, 0, 0);
        let mut full = Next::AwaitBackend;
        while room > 0 {
            if batched {
                let added = self.add_run(ring, user, done, used, &mut bytes, &mut room);
                done += added;
                used += added;
                if room == 0 {
                    break;
                }
            }
            // All are in the batch, or there is something about the next one.
            let Some(&chain) = self.chains.get(done) else {
                break;
            };
            let more = done + 1 < taken;
            match self.send(ring, user, endpoint, &chain, batched, more) {
                Sent::Done => {
                    if let Some(slot) = self.used.get_mut(used) {
                        *slot = used_elem(chain.head, 0);
                    }
                    used += 1;
                }
                Sent::Lent => {}
                Sent::Full => break,
                Sent::NoRoom => {
                    full = Next::Pause;
                    break;
                }
            }
            bytes += chain.len;
            room = room.saturating_sub(in_flight(&chain));
            done += 1;
        }
        self.hand_over(ring, user, endpoint);
        ring.untake(taken - done);
        self.chains.clear();
        // CAST: at most `BATCH`.
        ring.passed(done as u32, bytes);
        if let Err(e) = self.write_used(ring, user, used) {
            return Next::Stall(e);
        }
        ring.flush(user, true);
        if done < taken {
            full
        } else if ring.is_drained(user) {
            // Another pass would find that out at greater cost.
            Next::AwaitChains
        } else {
            Next::Again
        }
    }

    /// Forgets which flows the backend has seen, as it may have forgotten them, or be another one
    /// soon; and what was not written to a ring that may be another one then.
    pub(crate) fn settle(&mut self) {
        self.batch.forget_flows();
        self.unwritten = 0;
        self.full_since = None;
    }

    /// Writes the first `n` used elements, now or, if that fails, with the next pass.
    #[inline]
    fn write_used(&mut self, ring: &mut Ring, user: &mut UserMem<'_>, n: usize) -> vcore::Result {
        self.unwritten = n;
        ring.put_used(user, self.used.get(..n).unwrap_or(&[]))?;
        self.unwritten = 0;
        Ok(())
    }

    /// Waits until no packet is lent any more.
    pub(crate) fn drain(&mut self, ring: &mut Ring, user: &mut UserMem<'_>) -> Result {
        if let Some(loans) = &self.loans {
            loans.wait()?;
            ring.inside(|ring| {
                // A ring that cannot be written is about to be left.
                let _ = self.catch_up(ring, user);
                ring.flush(user, true);
            });
        }
        Ok(())
    }

    /// Writes used elements that could not be written before, and those of packets that were lent and
    /// have come back.
    #[inline]
    fn catch_up(&mut self, ring: &mut Ring, user: &mut UserMem<'_>) -> vcore::Result {
        let mut n = self.unwritten;
        loop {
            if n > 0 {
                self.write_used(ring, user, n)?;
            }
            n = 0;
            let Some(loans) = self.loans.as_mut().filter(|loans| !loans.is_empty()) else {
                return Ok(());
            };
            for slot in &mut self.used {
                let Some((head, copied)) = loans.returned() else {
                    break;
                };
                self.copied += u32::from(copied);
                *slot = used_elem(head, 0);
                n += 1;
            }
            if n == 0 {
                return Ok(());
            }
        }
    }

    /// Adds packets to the batch, from the `from`th chain up to the first of which there is more to
    /// say, or there is no more room, and makes their used elements from the `used`th on. Returns how
    /// many, adds their bytes to `bytes`, and takes them from `room`.
    #[inline(always)]
    fn add_run(
        &mut self,
        ring: &Ring,
        user: &mut UserMem<'_>,
        from: usize,
        used: usize,
        bytes: &mut u64,
        room: &mut usize,
    ) -> usize {
        let (skip, shortest) = (ring.header.vhost, ring.header.sock + MIN_FRAME);
        let slots = self.used.get_mut(used..).unwrap_or(&mut []);
        let mut added = 0;
        for (chain, slot) in self.chains.iter_from(from).zip(slots) {
            let packet = packet_of(&self.chains, skip, chain);
            if *room == 0
                || chain.refused.is_some()
                || packet.len < shortest
                || self.batch.add(user, &packet).is_err()
            {
                break;
            }
            *slot = used_elem(chain.head, 0);
            *bytes += chain.len;
            *room = room.saturating_sub(in_flight(chain));
            added += 1;
        }
        added
    }

    /// Sends the packet of one chain, or has it wait in the batch. `more`: others follow.
    fn send(
        &mut self,
        ring: &Ring,
        user: &mut UserMem<'_>,
        endpoint: &Endpoint,
        chain: &Chain,
        batched: bool,
        more: bool,
    ) -> Sent {
        if let Some(e) = chain.refused {
            ring.fail(e);
            return Sent::Done;
        }
        let packet = packet_of(&self.chains, ring.header.vhost, chain);
        if packet.len == 0 {
            ring.fail(Problem::Short);
            return Sent::Done;
        }
        if packet.len < ring.header.sock + MIN_FRAME {
            ring.drop_packet(Problem::Short);
            return Sent::Done;
        }
        if !batched {
            return self.send_single(ring, user, endpoint, chain, more);
        }
        match self.batch.add(user, &packet) {
            Ok(()) => {}
            Err(Refused::Length) => return self.send_single(ring, user, endpoint, chain, more),
            Err(e) => tell(ring, e),
        }
        Sent::Done
    }

    /// Sends a packet that cannot go with a batch, after those that came before it.
    #[cold]
    fn send_single(
        &mut self,
        ring: &Ring,
        user: &mut UserMem<'_>,
        endpoint: &Endpoint,
        chain: &Chain,
        more: bool,
    ) -> Sent {
        self.hand_over(ring, user, endpoint);
        if self.lend(ring, user, endpoint, chain) {
            return Sent::Lent;
        }
        let packet = packet_of(&self.chains, ring.header.vhost, chain);
        match endpoint.send(user, &packet, ring.header.sock, more) {
            Ok(()) => {
                self.full_since = None;
                Sent::Done
            }
            Err(e) if e == EAGAIN => Sent::Full,
            Err(e) if (e == errno::enobufs() || e == ENOMEM) && self.may_wait(endpoint) => {
                Sent::NoRoom
            }
            Err(e) if e == errno::ebadfd() => {
                ring.fail(Problem::NoBackend);
                Sent::Done
            }
            Err(e) if e == EFAULT => {
                ring.fail(vcore::Error::Fault);
                Sent::Done
            }
            Err(_) => {
                ring.drop_packet(Problem::Backend);
                Sent::Done
            }
        }
    }

    /// Whether a packet that the backend has no room for may wait. A TAP says the same of one that is too
    /// large for it, and a filter that drops says so of each packet, for ever.
    fn may_wait(&mut self, endpoint: &Endpoint) -> bool {
        let Endpoint::Packet(_) = endpoint else {
            return false;
        };
        let now = sched::clock();
        let since = *self.full_since.get_or_insert(now);
        now.saturating_sub(since) < MAX_PAUSE_NS
    }

    /// Sends a packet from where it is, if that is wanted and pays. Returns whether it was sent.
    fn lend(
        &mut self,
        ring: &Ring,
        user: &mut UserMem<'_>,
        endpoint: &Endpoint,
        chain: &Chain,
    ) -> bool {
        let (Some(loans), Endpoint::Tap(tap)) = (&mut self.loans, endpoint) else {
            return false;
        };
        let packet = packet_of(&self.chains, ring.header.vhost, chain);
        // What is to be used in order cannot be used late.
        if packet.len < MIN_LOAN || ring.in_order || !tap.socket().can_borrow() {
            return false;
        }
        if self.tried == 1024 {
            (self.tried, self.copied) = (0, 0);
        }
        self.tried += 1;
        // It pays as long as few packets are copied after all.
        if self.tried / 64 < self.copied {
            return false;
        }
        let Source { segs, skip, len } = packet;
        loans.send(tap, user, segs, skip, len, chain.head).is_ok()
    }

    /// Hands what was collected to the backend.
    #[inline]
    fn hand_over(&mut self, ring: &Ring, user: &mut UserMem<'_>, endpoint: &Endpoint) {
        self.batch.fill(
            user,
            |base, len| hdr::cover_csum(base, len).is_ok(),
            |e| tell(ring, e),
        );
        match endpoint.send_batch(&mut self.batch, ring.header.tunnel) {
            Ok(refused) => (0..refused).for_each(|_| ring.drop_packet(Problem::Backend)),
            Err(_) => ring.fail(Problem::NoBackend),
        }
    }
}

/// The packet that a chain holds, behind the first `skip` bytes.
#[inline]
fn packet_of<'a>(chains: &'a Chains, skip: usize, chain: &Chain) -> Source<'a> {
    Source {
        segs: chains.segments_in(chain),
        skip,
        // CAST: at most `MAX_SEGMENTS` times 4 GiB.
        len: (chain.len as usize).saturating_sub(skip),
    }
}

/// What the packet of a chain takes of a limit to what is in flight.
#[inline]
fn in_flight(chain: &Chain) -> usize {
    // CAST: as wide on the 64-bit kernels this runs on.
    (chain.len as usize).saturating_add(OVERHEAD)
}

/// Tells why a packet did not make it into a batch.
#[cold]
fn tell(ring: &Ring, refused: Refused) {
    match refused {
        Refused::Fault => ring.fail(vcore::Error::Fault),
        Refused::Memory => ring.drop_packet(Problem::NoMemory),
        Refused::Header | Refused::Length => ring.drop_packet(Problem::Header),
    }
}
