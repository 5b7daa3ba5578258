// SPDX-License-Identifier: GPL-2.0
//! Network to guest.

use kernel::prelude::*;

use crate::{
    backend::Endpoint,
    kext::{
        socket::Socket,
        tun::{
            PacketView,
            Packets,
            RING_BATCH, //
        },
        usermem::{
            Puts,
            UserMem, //
        },
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
        addr::{
            Hva,
            Seg, //
        },
        chain::MAX_SEGMENTS,
        hdr,
        mem::Access,
        split::MAX_TAKE,
        wire::{
            used_elem,
            UsedElem,
            USED_BYTES, //
        },
        Error,
    },
    virtqueue::Next,
};

/// Chains one packet may span.
const MAX_CHAINS: usize = 1024;
/// Packets written in one window of user access, and the pieces they may have.
const WINDOW: usize = 16;
const PIECES: usize = 3 * WINDOW;

/// What reception needs while it runs.
pub(crate) struct Rx {
    /// Buffers taken ahead of the packets.
    chains: KBox<Chains>,
    /// Packets taken ahead of the buffers.
    packets: Packets,
    used: KVec<UsedElem>,
    /// The owner knows that the device is gone.
    told_gone: bool,
}

/// Where a packet goes: to some of the chains that were taken.
#[derive(Clone, Copy, Default)]
struct Place {
    first: usize,
    chains: usize,
    /// Bytes of header and frame.
    len: usize,
}

/// The places of the next packets.
#[derive(Default)]
struct Plan {
    places: [Place; WINDOW],
    len: usize,
}

impl Plan {
    fn places(&self) -> &[Place] {
        self.places.get(..self.len).unwrap_or(&[])
    }

    /// Adds one, if there is room. Returns whether there is room for more.
    #[inline]
    fn push(&mut self, place: Place) -> bool {
        if let Some(slot) = self.places.get_mut(self.len) {
            *slot = place;
            self.len += 1;
        }
        self.len < WINDOW
    }
}

/// Why there is no place for a packet.
enum Stop {
    /// There is none at all, for this reason.
    Drop(Problem),
    /// There is none before the driver makes more buffers available.
    NoBuffers,
    /// The ring is broken there.
    Ring(Error),
}

/// Whether there is room for a packet.
enum Room {
    /// In so many chains.
    In(usize),
    /// Not before the driver makes more buffers available.
    Later,
    /// Not in any chains the packet may have.
    Never,
}

/// What a pass has done.
#[derive(Default)]
struct Sum {
    packets: u32,
    bytes: u64,
    /// Chains used since the driver was last told.
    untold: usize,
}

impl Rx {
    /// Bytes that one occupies.
    pub(crate) const BYTES: usize = size_of::<Self>()
        + chains_bytes(MAX_CHAINS, MAX_SEGMENTS)
        + Packets::BYTES
        + MAX_TAKE * size_of::<UsedElem>();

    pub(crate) fn new() -> Result<Self> {
        Ok(Self {
            chains: chains(MAX_CHAINS, MAX_SEGMENTS)?,
            packets: Packets::new()?,
            used: KVec::from_elem([0; USED_BYTES], MAX_TAKE, GFP_KERNEL)?,
            told_gone: false,
        })
    }

    /// Gives the buffers taken ahead back to the ring.
    pub(crate) fn release_buffers(&mut self, ring: &mut Ring) {
        ring.untake(self.chains.len());
        self.chains.clear();
    }

    /// Gives the packets taken ahead back to the backend.
    pub(crate) fn release_packets(&mut self, endpoint: &Endpoint) {
        self.told_gone = false;
        match endpoint {
            Endpoint::Tap(tap) => tap.put_back(&mut self.packets),
            Endpoint::Inlet(queue) => queue.put_back(&mut self.packets),
            Endpoint::Packet(_) | Endpoint::Outlet(_) => {}
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
        let mut sum = Sum::default();
        let next = match endpoint {
            Endpoint::Tap(_) | Endpoint::Inlet(_) => {
                if self.packets.is_empty() && self.receive(ring, endpoint) == 0 {
                    // What a missing mapping kept from being published before.
                    ring.flush(user, self.chains.is_empty());
                    return Next::AwaitBackend;
                }
                self.packets.describe(ring.header.tunnel);
                self.deliver_taken(ring, user, &mut sum)
            }
            Endpoint::Packet(socket) => self.deliver_queued(ring, user, socket, &mut sum),
            Endpoint::Outlet(_) => Next::AwaitBackend,
        };
        ring.flush(user, self.chains.is_empty());
        ring.passed(sum.packets, sum.bytes);
        next
    }

    /// Takes packets from the backend's ring. Returns how many.
    #[inline]
    fn receive(&mut self, ring: &Ring, endpoint: &Endpoint) -> usize {
        match endpoint {
            Endpoint::Tap(tap) => tap.receive(&mut self.packets),
            Endpoint::Inlet(queue) => {
                let taken = queue.receive(&mut self.packets);
                if taken == 0 && !self.told_gone && queue.port().is_gone() {
                    self.told_gone = true;
                    ring.fail(Problem::NoBackend);
                }
                taken
            }
            Endpoint::Packet(_) | Endpoint::Outlet(_) => 0,
        }
    }

    /// Delivers packets that were taken from a ring.
    fn deliver_taken(&mut self, ring: &mut Ring, user: &mut UserMem<'_>, sum: &mut Sum) -> Next {
        while !self.packets.is_empty() {
            let mut plan = Plan::default();
            let stop = self.plan(ring, user, &mut plan);
            let places = plan.places();
            let (done, failed) = self.write(ring, user, places);
            let used = self.use_chains(ring, user, places.get(..done).unwrap_or(&[]), sum);
            self.packets.consume(done);
            if let Err(e) = used {
                return Next::Stall(e);
            }
            let stop = match failed {
                Some(problem) => Some(Stop::Drop(problem)),
                None if done < places.len() => None,
                None => stop,
            };
            match stop {
                None => {}
                Some(Stop::Drop(problem)) => {
                    ring.drop_packet(problem);
                    self.packets.drop_first();
                }
                Some(Stop::NoBuffers) => return Next::AwaitChains,
                Some(Stop::Ring(e)) => {
                    if !self.skip_refused(ring, user, e) {
                        return Next::Stall(e);
                    }
                }
            }
        }
        Next::Again
    }

    /// Finds places for the next packets, and finishes their headers. Returns why there is none for
    /// the packet after those.
    #[inline]
    fn plan(&mut self, ring: &mut Ring, user: &mut UserMem<'_>, plan: &mut Plan) -> Option<Stop> {
        let mut first = 0;
        loop {
            let i = plan.len;
            let len = self.packets.get(i)?.len() + ring.header.guest();
            let chains = match find_room(&mut self.chains, ring, user, first, len) {
                Ok(Room::In(chains)) => chains,
                Ok(Room::Later) => return Some(Stop::NoBuffers),
                Ok(Room::Never) => return Some(Stop::Drop(Problem::TooSmall)),
                Err(e) => return Some(Stop::Ring(e)),
            };
            let Some(header) = self.packets.header_mut(i) else {
                return Some(Stop::Drop(Problem::Header));
            };
            if ring.header.sock == 0 {
                header.fill(0);
            }
            if ring.header.num_buffers {
                if let Some(to) = header.get_mut(hdr::NUM_BUFFERS) {
                    to.copy_from_slice(&num_buffers(chains));
                }
            }
            if !plan.push(Place { first, chains, len }) {
                return None;
            }
            first += chains;
        }
    }

    /// Writes the next packets to `places`. Returns how many were written, and what is wrong with
    /// the one after them, if anything is.
    #[inline]
    fn write(
        &mut self,
        ring: &Ring,
        user: &mut UserMem<'_>,
        places: &[Place],
    ) -> (usize, Option<Problem>) {
        let mut pieces = Puts::<PIECES>::new();
        // How many pieces there are up to the end of each packet.
        let mut ends = [0; WINDOW];
        let (mut ready, mut end) = (0, 0);
        for (place, slot) in places.iter().zip(&mut ends) {
            let segs = self.chains.segments_of(place.first, place.chains);
            let Some(packet) = self.packets.get(ready) else {
                break;
            };
            if !add_pieces(&mut pieces, &packet, ring.header.guest(), segs) {
                pieces.truncate(end);
                break;
            }
            ready += 1;
            end = pieces.len();
            *slot = end;
        }
        if ready > 0 {
            let written = user.put_all(&pieces);
            let done = ends.iter().take(ready).take_while(|&&end| end <= written);
            let done = done.count();
            return (done, (done < ready).then_some(Problem::Ring(Error::Fault)));
        }
        // One in many pieces goes alone.
        match (places.first(), self.packets.get(0)) {
            (Some(place), Some(packet)) => {
                let segs = self.chains.segments_of(place.first, place.chains);
                match write_alone(user, &packet, ring.header.guest(), segs) {
                    Ok(()) => (1, None),
                    Err(problem) => (0, Some(problem)),
                }
            }
            _ => (0, None),
        }
    }

    /// Delivers packets from a socket's queue, one by one.
    fn deliver_queued(
        &mut self,
        ring: &mut Ring,
        user: &mut UserMem<'_>,
        socket: &Socket,
        sum: &mut Sum,
    ) -> Next {
        for _ in 0..RING_BATCH {
            let Some(frame) = socket.peek() else {
                return Next::AwaitBackend;
            };
            let len = frame + ring.header.guest();
            let chains = match find_room(&mut self.chains, ring, user, 0, len) {
                Ok(Room::In(chains)) => chains,
                Ok(Room::Later) => return Next::AwaitChains,
                Ok(Room::Never) => {
                    socket.discard();
                    ring.drop_packet(Problem::TooSmall);
                    continue;
                }
                Err(e) => {
                    if !self.skip_refused(ring, user, e) {
                        return Next::Stall(e);
                    }
                    continue;
                }
            };
            let segs = self.chains.segments_of(0, chains);
            if let Err(problem) = receive(socket, ring, user, segs, chains, frame) {
                ring.drop_packet(problem);
                continue;
            }
            let first = 0;
            if let Err(e) = self.use_chains(ring, user, &[Place { first, chains, len }], sum) {
                return Next::Stall(e);
            }
        }
        Next::Again
    }

    /// Returns the chains of `places`, which are the first ones, to the driver with packets in
    /// them.
    #[inline]
    fn use_chains(
        &mut self,
        ring: &mut Ring,
        user: &mut UserMem<'_>,
        places: &[Place],
        sum: &mut Sum,
    ) -> vcore::Result {
        let (mut n, mut count) = (0, 0);
        for place in places {
            if ring.memory.log.buffers {
                let segs = self.chains.segments_of(place.first, place.chains);
                // A bit that cannot be set is lost, the packet is not.
                if let Err(e) = ring.memory.log_packet(user, segs, place.len) {
                    ring.fail(e);
                }
            }
            let mut left = place.len as u64;
            for i in place.first..place.first + place.chains {
                let Some(chain) = self.chains.get(i) else {
                    break;
                };
                if n == self.used.len() {
                    ring.put_used(user, &self.used)?;
                    n = 0;
                }
                let written = chain.len.min(left);
                left -= written;
                if let Some(slot) = self.used.get_mut(n) {
                    // CAST: a packet has fewer than 2^32 bytes.
                    *slot = used_elem(chain.head, written as u32);
                }
                n += 1;
            }
            count += place.chains;
            sum.packets += 1;
            sum.bytes += place.len as u64;
        }
        ring.put_used(user, self.used.get(..n).unwrap_or(&[]))?;
        self.chains.pop(count);
        sum.untold += count;
        if sum.untold > MAX_TAKE {
            ring.flush(user, self.chains.is_empty());
            sum.untold = 0;
        }
        Ok(())
    }

    /// If the first chain is one that no packet can go to, returns it to the driver unused. If
    /// something else is wrong, gives all buffers back: what is wrong may be repaired, and is to
    /// be looked at anew then.
    fn skip_refused(&mut self, ring: &mut Ring, user: &mut UserMem<'_>, e: Error) -> bool {
        if let Some(chain) = self.chains.get(0).filter(|chain| chain.refused.is_some()) {
            let used = [used_elem(chain.head, 0)];
            self.chains.pop(1);
            if ring.put_used(user, &used).is_ok() {
                ring.fail(e);
                return true;
            }
        }
        self.release_buffers(ring);
        false
    }
}

/// The header's field that tells how many buffers a packet spans.
fn num_buffers(chains: usize) -> [u8; 2] {
    // CAST: at most `MAX_CHAINS`.
    (chains as u16).to_le_bytes()
}

/// Finds chains for `len` bytes from the `first`th on, taking more from the ring as needed.
#[inline(always)]
fn find_room(
    chains: &mut Chains,
    ring: &mut Ring,
    user: &mut UserMem<'_>,
    first: usize,
    len: usize,
) -> vcore::Result<Room> {
    match chains.get(first) {
        // Most packets fit the next chain.
        Some(chain) if chain.refused.is_none() && chain.len >= len as u64 => Ok(Room::In(1)),
        _ => find_more_room(chains, ring, user, first, len),
    }
}

fn find_more_room(
    chains: &mut Chains,
    ring: &mut Ring,
    user: &mut UserMem<'_>,
    first: usize,
    len: usize,
) -> vcore::Result<Room> {
    let limit = if ring.mergeable { MAX_CHAINS } else { 1 };
    let (mut n, mut room) = (0, 0u64);
    while room < len as u64 {
        if n == limit {
            return Ok(Room::Never);
        }
        if first + n == chains.len() {
            match ring.take(user, Access::Write, RING_BATCH, chains) {
                Ok(0) => return Ok(Room::Later),
                Ok(_) => {}
                Err(Error::NoRoom) => {
                    chains.compact();
                    match ring.take(user, Access::Write, RING_BATCH, chains) {
                        Ok(0) => return Ok(Room::Later),
                        Ok(_) => {}
                        // The packets before this one go first; arming tells that there is more.
                        Err(Error::NoRoom) if first > 0 => return Ok(Room::Later),
                        Err(Error::NoRoom) => return Ok(Room::Never),
                        Err(e) => return Err(e),
                    }
                }
                Err(e) => return Err(e),
            }
        }
        let chain = chains.get(first + n).ok_or(Error::NoRoom)?;
        if let Some(e) = chain.refused {
            return Err(e);
        }
        room = room.saturating_add(chain.len);
        n += 1;
    }
    Ok(Room::In(n))
}

/// Adds header and frame of a packet, on their way to `segs`. Returns whether it was possible.
#[inline]
fn add_pieces<'a>(
    pieces: &mut Puts<'a, PIECES>,
    packet: &PacketView<'a>,
    header: usize,
    segs: &[Seg],
) -> bool {
    let (Some(all), Some(frame)) = (packet.header(), packet.bytes()) else {
        return false;
    };
    spread(segs, 0, all.get(..header).unwrap_or(&[]), |to, from| {
        pieces.push(to, from)
    }) && spread(segs, header as u64, frame, |to, from| pieces.push(to, from))
}

/// Writes header and frame of a packet to `segs`.
fn write_alone(
    user: &mut UserMem<'_>,
    packet: &PacketView<'_>,
    header: usize,
    segs: &[Seg],
) -> core::result::Result<(), Problem> {
    let all = packet.header().ok_or(Problem::Header)?;
    scatter(user, segs, 0, all.get(..header).unwrap_or(&[]))?;
    packet
        .copy_to(user, segs, header)
        .map_err(|_| Problem::Ring(Error::Fault))
}

/// Has the socket write its next packet, of `frame` bytes, to `segs`, which belong to `chains`
/// chains.
fn receive(
    socket: &Socket,
    ring: &Ring,
    user: &mut UserMem<'_>,
    segs: &[Seg],
    chains: usize,
    frame: usize,
) -> core::result::Result<(), Problem> {
    // The socket writes its own part of the header, and the frame.
    let (ours, theirs) = (ring.header.vhost, ring.header.sock + frame);
    match socket.receive(user, segs, ours, theirs) {
        Ok(len) if len == theirs => {}
        Ok(_) => return Err(Problem::Backend),
        Err(_) => return Err(Problem::Ring(Error::Fault)),
    }
    scatter(
        user,
        segs,
        0,
        [0; hdr::MAX_BYTES].get(..ours).unwrap_or(&[]),
    )?;
    if ring.header.num_buffers {
        scatter(
            user,
            segs,
            hdr::NUM_BUFFERS.start as u64,
            &num_buffers(chains),
        )?;
    }
    Ok(())
}

/// Writes `data` to `segs`, behind their first `skip` bytes.
fn scatter(user: &mut UserMem<'_>, segs: &[Seg], skip: u64, data: &[u8]) -> vcore::Result {
    if spread(segs, skip, data, |to, from| user.write(to, from).is_ok()) {
        Ok(())
    } else {
        Err(Error::Fault)
    }
}

/// Spreads `data` over `segs`, behind their first `skip` bytes. Returns whether there is room, and
/// `put` succeeded for each piece.
#[inline]
fn spread<'a>(
    segs: &[Seg],
    mut skip: u64,
    mut data: &'a [u8],
    mut put: impl FnMut(Hva, &'a [u8]) -> bool,
) -> bool {
    if data.is_empty() {
        return true;
    }
    for seg in segs {
        if seg.len <= skip {
            skip -= seg.len;
            continue;
        }
        // CAST: the smaller of the two fits.
        let n = (seg.len - skip).min(data.len() as u64) as usize;
        let (now, rest) = data.split_at(n);
        if !put(seg.at.at(skip), now) {
            return false;
        }
        skip = 0;
        data = rest;
        if data.is_empty() {
            return true;
        }
    }
    false
}
