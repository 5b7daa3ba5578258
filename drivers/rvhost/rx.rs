// SPDX-License-Identifier: GPL-2.0
//! Network to guest.

use kernel::prelude::*;

use crate::{
    backend::Endpoint,
    kext::{
        packets::{
            Headers,
            PacketView,
            Packets,
            RING_BATCH, //
        },
        socket::Socket,
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
        feat::HeaderLen,
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
/// How often chains are taken for one packet before others are looked at.
const MAX_TAKES: usize = MAX_CHAINS / RING_BATCH;
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

/// Why a packet does not go with those before it.
enum Stop {
    /// It is in pieces, or spans several chains.
    Alone,
    /// There is no place for it at all, for this reason.
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
        match (endpoint, endpoint.inlet()) {
            (Endpoint::Tap(tap), _) => tap.put_back(&mut self.packets),
            (_, Some(queue)) => queue.put_back(&mut self.packets),
            (_, None) => {}
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
            Endpoint::Tap(_) | Endpoint::Inlet(_) | Endpoint::Front(..) => {
                if self.packets.is_empty() && self.receive(ring, endpoint) == 0 {
                    // What a missing mapping kept from being published before.
                    ring.flush(user, self.chains.is_empty());
                    return Next::AwaitBackend;
                }
                self.packets.describe(Headers {
                    tunnel: ring.header.tunnel,
                    blank: ring.header.sock == 0,
                    hashed: ring.header.hash && endpoint.may_hash(),
                });
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
        match (endpoint, endpoint.inlet()) {
            (Endpoint::Tap(tap), _) => tap.receive(&mut self.packets),
            (_, Some(queue)) => {
                let taken = queue.receive(&mut self.packets);
                if taken == 0 && !self.told_gone && queue.port().is_gone() {
                    self.told_gone = true;
                    ring.fail(Problem::NoBackend);
                }
                taken
            }
            (_, None) => 0,
        }
    }

    /// Delivers packets that were taken from a ring.
    fn deliver_taken(&mut self, ring: &mut Ring, user: &mut UserMem<'_>, sum: &mut Sum) -> Next {
        while !self.packets.is_empty() {
            let stop = match self.deliver_window(ring, user, sum) {
                Ok(Some(Stop::Alone)) => self.deliver_alone(ring, user, sum),
                stop => stop,
            };
            match stop {
                Ok(None | Some(Stop::Alone)) => {}
                Ok(Some(Stop::Drop(problem))) => {
                    ring.drop_packet(problem);
                    self.packets.drop_first();
                }
                Ok(Some(Stop::NoBuffers)) => return Next::AwaitChains,
                // To find out that a chain cannot be used may have taken long, and the next one may be
                // of the same kind: others are looked at first.
                Ok(Some(Stop::Ring(e))) => return self.skip_refused(ring, user, e),
                Err(e) => return Next::Stall(e),
            }
        }
        Next::Again
    }

    /// Delivers packets in one piece to a chain each, all in one window of user access. Returns why
    /// the next one did not go with them, if for anything but their number.
    ///
    /// # Errors
    ///
    /// If the used ring cannot be written.
    #[inline]
    fn deliver_window(
        &mut self,
        ring: &mut Ring,
        user: &mut UserMem<'_>,
        sum: &mut Sum,
    ) -> vcore::Result<Option<Stop>> {
        let Self {
            chains,
            packets,
            used,
            ..
        } = self;
        let header = ring.header.guest();
        let mut pieces = Puts::<PIECES>::new();
        // Pieces and bytes up to the end of each packet.
        let mut ends = [(0, 0); WINDOW];
        let (mut ready, mut bytes, mut stop) = (0, 0, None);
        for ((packet, slot), end) in packets.views().zip(used.iter_mut()).zip(&mut ends) {
            let len = packet.len() + header;
            let head = match room_for(chains, ring, user, ready, len) {
                Ok(head) => head,
                Err(why) => {
                    stop = Some(why);
                    break;
                }
            };
            let before = pieces.len();
            if !add_pieces(&mut pieces, &packet, header, chains.segments(ready)) {
                pieces.truncate(before);
                stop = (before == 0).then_some(Stop::Alone);
                break;
            }
            bytes += len as u64;
            // CAST: a packet has fewer than 2^32 bytes.
            *slot = used_elem(head, len as u32);
            *end = (pieces.len(), bytes);
            ready += 1;
        }
        let written = user.put_all(&pieces);
        let done = if written == pieces.len() {
            ready
        } else {
            stop = Some(Stop::Drop(Problem::Ring(Error::Fault)));
            let ends = ends.iter().take(ready);
            ends.take_while(|(pieces, _)| *pieces <= written).count()
        };
        let Some(&(_, bytes)) = done.checked_sub(1).and_then(|last| ends.get(last)) else {
            return Ok(stop);
        };
        if ring.memory.log.buffers {
            for (i, packet) in packets.views().take(done).enumerate() {
                log(ring, user, chains.segments(i), packet.len() + header);
            }
        }
        // Where this fails, packets and buffers are as they were, to be tried again.
        ring.put_used(user, used.get(..done).unwrap_or(&[]))?;
        packets.consume(done);
        chains.pop(done);
        // CAST: at most `WINDOW`.
        sum.packets += done as u32;
        sum.bytes += bytes;
        self.tell(ring, user, sum, done);
        Ok(stop)
    }

    /// Delivers the first packet, which may be in pieces, to as many chains as it takes.
    ///
    /// # Errors
    ///
    /// If the used ring cannot be written.
    fn deliver_alone(
        &mut self,
        ring: &mut Ring,
        user: &mut UserMem<'_>,
        sum: &mut Sum,
    ) -> vcore::Result<Option<Stop>> {
        let Some(packet) = self.packets.get(0) else {
            return Ok(None);
        };
        let len = packet.len() + ring.header.guest();
        let chains = match find_room(&mut self.chains, ring, user, 0, len) {
            Ok(Room::In(chains)) => chains,
            Ok(Room::Later) => return Ok(Some(Stop::NoBuffers)),
            Ok(Room::Never) => return Ok(Some(Stop::Drop(Problem::TooSmall))),
            Err(e) => return Ok(Some(Stop::Ring(e))),
        };
        let segs = self.chains.segments_of(0, chains);
        if let Err(problem) = write_alone(user, &packet, &ring.header, segs, chains) {
            return Ok(Some(Stop::Drop(problem)));
        }
        self.use_chains(ring, user, chains, len, sum)?;
        self.packets.consume(1);
        Ok(None)
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
                Err(e) => return self.skip_refused(ring, user, e),
            };
            let segs = self.chains.segments_of(0, chains);
            if let Err(problem) = receive(socket, ring, user, segs, chains, frame) {
                ring.drop_packet(problem);
                continue;
            }
            if let Err(e) = self.use_chains(ring, user, chains, len, sum) {
                return Next::Stall(e);
            }
        }
        Next::Again
    }

    /// Returns the first `count` chains to the driver, with a packet of `len` bytes in them.
    fn use_chains(
        &mut self,
        ring: &mut Ring,
        user: &mut UserMem<'_>,
        count: usize,
        len: usize,
        sum: &mut Sum,
    ) -> vcore::Result {
        if ring.memory.log.buffers {
            log(ring, user, self.chains.segments_of(0, count), len);
        }
        let before = ring.cursor;
        let (mut n, mut left) = (0, len as u64);
        for i in 0..count {
            let Some(chain) = self.chains.get(i) else {
                break;
            };
            if n == self.used.len() {
                ring.put_used(user, &self.used)
                    .inspect_err(|_| ring.cursor = before)?;
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
        ring.put_used(user, self.used.get(..n).unwrap_or(&[]))
            .inspect_err(|_| ring.cursor = before)?;
        self.chains.pop(count);
        sum.packets += 1;
        sum.bytes += len as u64;
        self.tell(ring, user, sum, count);
        Ok(())
    }

    /// Tells the driver of used chains, now and then: `count` more were used.
    #[inline]
    fn tell(&self, ring: &mut Ring, user: &mut UserMem<'_>, sum: &mut Sum, count: usize) {
        sum.untold += count;
        if sum.untold > MAX_TAKE {
            ring.flush(user, self.chains.is_empty());
            sum.untold = 0;
        }
    }

    /// If the first chain is one that no packet can go to, gives it back to the driver unused. If
    /// something else is wrong, gives all buffers back: what is wrong may be repaired, and is to
    /// be looked at anew then.
    fn skip_refused(&mut self, ring: &mut Ring, user: &mut UserMem<'_>, e: Error) -> Next {
        if let Some(chain) = self.chains.get(0).filter(|chain| chain.refused.is_some()) {
            if ring.put_used(user, &[used_elem(chain.head, 0)]).is_ok() {
                self.chains.pop(1);
                ring.fail(e);
                return Next::Again;
            }
        }
        self.release_buffers(ring);
        Next::Stall(e)
    }
}

/// The header's field that tells how many buffers a packet spans.
fn num_buffers(chains: usize) -> [u8; 2] {
    // CAST: at most `MAX_CHAINS`.
    (chains as u16).to_le_bytes()
}

/// Marks what was written to the first `len` bytes of `segs` in the log.
#[cold]
fn log(ring: &mut Ring, user: &mut UserMem<'_>, segs: &[Seg], len: usize) {
    // A bit that cannot be set is lost, the packet is not.
    if let Err(e) = ring.memory.log_packet(user, segs, len) {
        ring.fail(e);
    }
}

/// The head of the `i`th chain, if it alone has room for `len` bytes. Takes more from the ring as
/// needed.
#[inline(always)]
fn room_for(
    chains: &mut Chains,
    ring: &mut Ring,
    user: &mut UserMem<'_>,
    i: usize,
    len: usize,
) -> core::result::Result<u16, Stop> {
    match chains.get(i) {
        // Most packets fit the next chain.
        Some(chain) if chain.refused.is_none() && chain.len >= len as u64 => Ok(chain.head),
        _ => match find_room(chains, ring, user, i, len) {
            Ok(Room::In(1)) => chains.get(i).map(|chain| chain.head).ok_or(Stop::Alone),
            Ok(Room::In(_)) => Err(Stop::Alone),
            Ok(Room::Later) => Err(Stop::NoBuffers),
            Ok(Room::Never) => Err(Stop::Drop(Problem::TooSmall)),
            Err(e) => Err(Stop::Ring(e)),
        },
    }
}

/// Finds chains for `len` bytes from the `first`th on, taking more from the ring as needed.
fn find_room(
    chains: &mut Chains,
    ring: &mut Ring,
    user: &mut UserMem<'_>,
    first: usize,
    len: usize,
) -> vcore::Result<Room> {
    let limit = if ring.mergeable { MAX_CHAINS } else { 1 };
    let (mut n, mut room, mut takes) = (0, 0u64, 0);
    while room < len as u64 {
        if n == limit {
            return Ok(Room::Never);
        }
        if first + n == chains.len() {
            // Chains that take long to follow are taken one by one: what was taken is kept for later.
            if takes == MAX_TAKES {
                return Ok(Room::Later);
            }
            takes += 1;
            match take_more(chains, ring, user) {
                Ok(0) => return Ok(Room::Later),
                Ok(_) => {}
                // The packets before this one go first; arming tells that there is more.
                Err(Error::NoRoom) if first > 0 => return Ok(Room::Later),
                Err(Error::NoRoom) => return Ok(Room::Never),
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

/// Takes more chains from the ring; where there is no room for them, those that are left are moved
/// together first. Returns how many.
fn take_more(chains: &mut Chains, ring: &mut Ring, user: &mut UserMem<'_>) -> vcore::Result<usize> {
    match ring.take(user, Access::Write, RING_BATCH, chains) {
        Err(Error::NoRoom) => {
            chains.compact();
            ring.take(user, Access::Write, RING_BATCH, chains)
        }
        taken => taken,
    }
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
    let all = all.get(..header).unwrap_or(&[]);
    if let [seg] = segs {
        // There is room, and no header is as long as an address space.
        return pieces.push(seg.at, all) && pieces.push(seg.at.at(header as u64), frame);
    }
    spread(segs, 0, all, |to, from| pieces.push(to, from))
        && spread(segs, header as u64, frame, |to, from| pieces.push(to, from))
}

/// Writes header and frame of a packet to `segs`, which belong to `chains` chains.
fn write_alone(
    user: &mut UserMem<'_>,
    packet: &PacketView<'_>,
    header: &HeaderLen,
    segs: &[Seg],
    chains: usize,
) -> core::result::Result<(), Problem> {
    let mut all = *packet.header().ok_or(Problem::Header)?;
    if header.num_buffers {
        if let Some(to) = all.get_mut(hdr::NUM_BUFFERS) {
            to.copy_from_slice(&num_buffers(chains));
        }
    }
    scatter(user, segs, 0, all.get(..header.guest()).unwrap_or(&[]))?;
    packet
        .copy_to(user, segs, header.guest())
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
