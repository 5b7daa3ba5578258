// SPDX-License-Identifier: GPL-2.0
//! Guest to network.

use kernel::prelude::*;

use crate::{
    backend::Endpoint,
    kext::{
        errno, trace,
        usermem::UserMem,
        xdp::{
            Refused,
            Source,
            TxBatch,
            BATCH, //
        },
    },
    ring::{
        chains,
        Chains,
        Ring, //
    },
    trace::Problem,
    vcore::{
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

/// What transmission needs while it runs.
pub(crate) struct Tx {
    chains: Chains,
    batch: TxBatch,
}

/// What became of one packet.
enum Sent {
    /// The backend has it, or it is lost for good: the chain is used.
    Done,
    /// The backend's buffer is full: the packet must be sent later.
    Full,
}

impl Tx {
    pub(crate) fn new() -> Result<Self> {
        Ok(Self {
            chains: chains(BATCH, MAX_SEGMENTS)?,
            batch: TxBatch::new()?,
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
        self.chains.clear();
        let taken = match ring.take(user, Access::Read, BATCH, &mut self.chains) {
            Ok(0) => return Next::AwaitChains,
            Ok(n) => n,
            Err(e) => return Next::Stall(e),
        };
        let headroom = endpoint.socket().wants_headroom();
        let batched = endpoint.socket().is_unlimited() && matches!(endpoint, Endpoint::Tap(_));
        let mut used = [[0; USED_BYTES]; BATCH];
        let (mut done, mut bytes) = (0, 0);
        for slot in used.iter_mut().take(taken) {
            let Some(&chain) = self.chains.get(done) else {
                break;
            };
            match self.send(ring, user, endpoint, done, &chain, headroom, batched) {
                Sent::Done => *slot = used_elem(chain.head, 0),
                Sent::Full => break,
            }
            bytes += chain.len;
            done += 1;
        }
        self.hand_over(ring, endpoint);
        ring.untake(taken - done);
        self.chains.clear();
        // CAST: at most `BATCH`.
        trace::batch(ring.dev, ring.index, done as u32, bytes);
        let used: &[UsedElem] = used.get(..done).unwrap_or(&[]);
        if let Err(e) = ring.put_used(user, used) {
            return Next::Stall(e);
        }
        ring.flush(user, true);
        if done < taken {
            Next::AwaitBackend
        } else {
            Next::Again
        }
    }

    #[inline]
    #[allow(clippy::too_many_arguments)] // One packet's circumstances, of which each is different.
    fn send(
        &mut self,
        ring: &Ring,
        user: &mut UserMem<'_>,
        endpoint: &Endpoint,
        i: usize,
        chain: &Chain,
        headroom: bool,
        batched: bool,
    ) -> Sent {
        if let Some(e) = chain.refused {
            ring.fail(e);
            return Sent::Done;
        }
        let (skip, header) = (ring.header.vhost, ring.header.sock);
        // CAST: at most `MAX_SEGMENTS` times 4 GiB.
        let len = (chain.len as usize).saturating_sub(skip);
        if len == 0 {
            ring.fail(Problem::Short);
            return Sent::Done;
        }
        if len < header + MIN_FRAME {
            ring.drop_packet(Problem::Short);
            return Sent::Done;
        }
        if !batched || !TxBatch::fits(len, header, headroom) {
            return self.send_single(ring, user, endpoint, i, skip, len);
        }
        let packet = Source {
            segs: self.chains.segments(i),
            skip,
            len,
            header,
        };
        let added = self.batch.add(user, &packet, headroom, |base| {
            hdr::cover_csum(base, len).is_ok()
        });
        match added {
            Ok(()) => {}
            Err(Refused::Fault) => ring.fail(crate::vcore::Error::Fault),
            Err(Refused::Memory) => ring.drop_packet(Problem::NoMemory),
            Err(Refused::Header | Refused::Length) => ring.drop_packet(Problem::Header),
        }
        Sent::Done
    }

    /// Sends a packet that cannot go with a batch, after those that came before it.
    #[cold]
    #[allow(clippy::too_many_arguments)] // As above.
    fn send_single(
        &mut self,
        ring: &Ring,
        user: &mut UserMem<'_>,
        endpoint: &Endpoint,
        i: usize,
        skip: usize,
        len: usize,
    ) -> Sent {
        self.hand_over(ring, endpoint);
        let socket = endpoint.socket();
        let more = !socket.is_unlimited() && i + 1 < self.chains.len();
        match socket.send(user, self.chains.segments(i), skip, len, more) {
            Ok(()) => Sent::Done,
            Err(e) if e == EAGAIN => Sent::Full,
            Err(e) if e == errno::ebadfd() => {
                ring.fail(Problem::NoBackend);
                Sent::Done
            }
            Err(e) if e == EFAULT => {
                ring.fail(crate::vcore::Error::Fault);
                Sent::Done
            }
            Err(_) => {
                ring.drop_packet(Problem::Backend);
                Sent::Done
            }
        }
    }

    /// Hands what was collected to the backend.
    #[inline]
    fn hand_over(&mut self, ring: &Ring, endpoint: &Endpoint) {
        // Batches are made for TAPs only.
        if let Endpoint::Tap(tap) = endpoint {
            if tap.send_batch(&mut self.batch).is_err() {
                ring.fail(Problem::NoBackend);
            }
        }
    }
}
