// SPDX-License-Identifier: GPL-2.0
//! Network to guest.

use kernel::prelude::*;

use crate::{
    backend::Endpoint,
    kext::{
        socket::Socket,
        trace,
        tun::{
            PacketView,
            Packets,
            RING_BATCH, //
        },
        usermem::UserMem,
    },
    ring::{
        chains,
        Chains,
        Ring, //
    },
    trace::Problem,
    vcore::{
        self,
        addr::Seg,
        chain::MAX_SEGMENTS,
        hdr,
        mem::Access,
        split::MAX_TAKE,
        wire::{
            used_elem,
            USED_BYTES, //
        },
        Error,
    },
    virtqueue::Next,
};

/// Chains one packet may span.
const MAX_CHAINS: usize = 1024;

/// What reception needs while it runs.
pub(crate) struct Rx {
    /// Buffers taken ahead of the packets.
    chains: Chains,
    /// Packets taken ahead of the buffers.
    packets: Packets,
}

/// A packet to deliver.
enum Incoming<'a> {
    /// It was taken from a ring, and can be looked at.
    Taken(PacketView<'a>),
    /// It is next in a socket's queue, and has so many bytes.
    Queued(&'a Socket, usize),
}

impl Incoming<'_> {
    /// Bytes of the frame.
    fn len(&self) -> usize {
        match self {
            Self::Taken(view) => view.len(),
            Self::Queued(_, len) => *len,
        }
    }
}

/// Whether there is a place for a packet.
enum Room {
    /// In the first so many chains.
    In(usize),
    /// Not before the driver makes more buffers available.
    Later,
    /// Not in any chains the packet may have.
    Never,
}

impl Rx {
    pub(crate) fn new() -> Result<Self> {
        Ok(Self {
            chains: chains(MAX_CHAINS, MAX_SEGMENTS)?,
            packets: Packets::new()?,
        })
    }

    /// Gives the buffers taken ahead back to the ring.
    pub(crate) fn release_buffers(&mut self, ring: &mut Ring) {
        ring.untake(self.chains.len());
        self.chains.clear();
    }

    /// Gives the packets taken ahead back to the backend.
    pub(crate) fn release_packets(&mut self, endpoint: &Endpoint) {
        if let Endpoint::Tap(tap) = endpoint {
            tap.put_back(&mut self.packets);
        }
    }

    /// Delivers up to one batch.
    pub(crate) fn pass(
        &mut self,
        ring: &mut Ring,
        user: &mut UserMem<'_>,
        endpoint: &Endpoint,
    ) -> Next {
        ring.suppress(user);
        if let Endpoint::Tap(tap) = endpoint {
            if self.packets.is_empty() && tap.receive(&mut self.packets) == 0 {
                return Next::AwaitBackend;
            }
        }
        let (mut count, mut bytes, mut unsignalled) = (0, 0, 0);
        let next = loop {
            let packet = match endpoint {
                Endpoint::Tap(_) => match self.packets.first(ring.header.tunnel) {
                    Some(view) => Incoming::Taken(view),
                    None => break Next::Again,
                },
                Endpoint::Packet(_) if count == RING_BATCH as u32 => break Next::Again,
                Endpoint::Packet(socket) => match socket.peek() {
                    Some(len) => Incoming::Queued(socket, len),
                    None => break Next::AwaitBackend,
                },
            };
            let len = packet.len() + ring.header.guest();
            match find_room(&mut self.chains, ring, user, len) {
                Ok(Room::In(n)) => {
                    let segs = self.chains.segments_of_first(n);
                    match deliver(&packet, ring, user, segs, n) {
                        Ok(()) => {
                            // A bit that cannot be set is lost, the packet is not.
                            if let Err(e) = ring.memory.log_packet(user, segs, len) {
                                ring.fail(e);
                            }
                            if let Err(e) = use_chains(&mut self.chains, ring, user, n, len) {
                                break Next::Stall(e);
                            }
                            count += 1;
                            bytes += len as u64;
                            unsignalled += n;
                        }
                        Err(problem) => ring.drop_packet(problem),
                    }
                }
                Ok(Room::Never) => {
                    if let Incoming::Queued(socket, _) = packet {
                        socket.discard();
                    }
                    ring.drop_packet(Problem::TooSmall);
                }
                Ok(Room::Later) => break Next::AwaitChains,
                Err(e) => {
                    if give_back_refused(&mut self.chains, ring, user) {
                        ring.fail(e);
                        continue;
                    }
                    // What is wrong may be repaired: look at it all anew then.
                    self.release_buffers(ring);
                    break Next::Stall(e);
                }
            }
            self.packets.pop();
            if unsignalled > MAX_TAKE {
                ring.flush(user, self.chains.is_empty());
                unsignalled = 0;
            }
        };
        ring.flush(user, self.chains.is_empty());
        trace::batch(ring.dev, ring.index, count, bytes);
        next
    }
}

/// Returns the first `n` chains to the driver with `len` bytes in them.
#[inline]
fn use_chains(
    chains: &mut Chains,
    ring: &mut Ring,
    user: &mut UserMem<'_>,
    n: usize,
    len: usize,
) -> vcore::Result {
    let mut used = [[0; USED_BYTES]; MAX_TAKE];
    let mut left = len as u64;
    let mut done = 0;
    while done < n {
        let chunk = (n - done).min(MAX_TAKE);
        for (i, slot) in used.iter_mut().take(chunk).enumerate() {
            let Some(chain) = chains.get(done + i) else {
                break;
            };
            let written = chain.len.min(left);
            left -= written;
            // CAST: a packet has fewer than 2^32 bytes.
            *slot = used_elem(chain.head, written as u32);
        }
        ring.put_used(user, used.get(..chunk).unwrap_or(&[]))?;
        done += chunk;
    }
    chains.pop(n);
    Ok(())
}

/// If the first chain is one that no packet can go to, returns it to the driver unused.
fn give_back_refused(chains: &mut Chains, ring: &mut Ring, user: &mut UserMem<'_>) -> bool {
    match chains.get(0) {
        Some(chain) if chain.refused.is_some() => {
            let used = [used_elem(chain.head, 0)];
            chains.pop(1);
            ring.put_used(user, &used).is_ok()
        }
        _ => false,
    }
}

/// Finds chains for `len` bytes, taking more from the ring as needed.
#[inline]
fn find_room(
    chains: &mut Chains,
    ring: &mut Ring,
    user: &mut UserMem<'_>,
    len: usize,
) -> vcore::Result<Room> {
    let limit = if ring.mergeable { MAX_CHAINS } else { 1 };
    let (mut n, mut room) = (0, 0u64);
    while room < len as u64 {
        if n == limit {
            return Ok(Room::Never);
        }
        if n == chains.len() {
            match ring.take(user, Access::Write, RING_BATCH, chains) {
                Ok(0) => return Ok(Room::Later),
                Ok(_) => {}
                Err(Error::NoRoom) => {
                    chains.compact();
                    match ring.take(user, Access::Write, RING_BATCH, chains) {
                        Ok(0) => return Ok(Room::Later),
                        Ok(_) => {}
                        Err(Error::NoRoom) => return Ok(Room::Never),
                        Err(e) => return Err(e),
                    }
                }
                Err(e) => return Err(e),
            }
        }
        let chain = chains.get(n).ok_or(Error::NoRoom)?;
        if let Some(e) = chain.refused {
            return Err(e);
        }
        room = room.saturating_add(chain.len);
        n += 1;
    }
    Ok(Room::In(n))
}

/// Writes header and frame to `segs`, which belong to `n` chains.
#[inline]
fn deliver(
    packet: &Incoming<'_>,
    ring: &Ring,
    user: &mut UserMem<'_>,
    segs: &[Seg],
    n: usize,
) -> core::result::Result<(), Problem> {
    let fault = |_| Problem::Ring(Error::Fault);
    let mut header = [0; hdr::MAX_BYTES];
    let len = ring.header.guest();
    // CAST: at most `MAX_CHAINS`.
    let num_buffers = (n as u16).to_le_bytes();
    let view = match packet {
        Incoming::Taken(view) => view,
        Incoming::Queued(socket, size) => {
            // The socket writes its own part of the header, and the frame.
            let (ours, theirs) = (ring.header.vhost, ring.header.sock + size);
            if socket.receive(user, segs, ours, theirs).map_err(fault)? != theirs {
                return Err(Problem::Backend);
            }
            scatter(user, segs, 0, header.get(..ours).unwrap_or(&[]))?;
            if ring.header.num_buffers {
                scatter(user, segs, hdr::NUM_BUFFERS_AT as u64, &num_buffers)?;
            }
            return Ok(());
        }
    };
    if ring.header.sock > 0 {
        header = *view.header().ok_or(Problem::Header)?;
    }
    if ring.header.num_buffers {
        if let Some(to) = header.get_mut(hdr::NUM_BUFFERS_AT..hdr::NUM_BUFFERS_AT + 2) {
            to.copy_from_slice(&num_buffers);
        }
    }
    scatter(user, segs, 0, header.get(..len).unwrap_or(&[]))?;
    match view.bytes() {
        Some(frame) => scatter(user, segs, len as u64, frame)?,
        None => view.copy_to(user, segs, len).map_err(fault)?,
    }
    Ok(())
}

/// Writes `data` to `segs`, behind their first `skip` bytes.
#[inline]
fn scatter(user: &mut UserMem<'_>, segs: &[Seg], mut skip: u64, mut data: &[u8]) -> vcore::Result {
    if data.is_empty() {
        return Ok(());
    }
    for seg in segs {
        if seg.len <= skip {
            skip -= seg.len;
            continue;
        }
        // CAST: the smaller of the two fits.
        let n = (seg.len - skip).min(data.len() as u64) as usize;
        let (now, rest) = data.split_at(n);
        user.write(seg.at.at(skip), now)?;
        skip = 0;
        data = rest;
        if data.is_empty() {
            return Ok(());
        }
    }
    Err(Error::Fault)
}
