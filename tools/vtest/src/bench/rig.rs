// SPDX-License-Identifier: GPL-2.0

//! A machine whose rings are prepared for a measurement: descriptors and
//! available entries are written once, then only indices move, so that the
//! driver costs next to nothing.

use std::time::Duration;
use std::time::Instant;

use anyhow::bail;
use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;

use crate::bench::path::Ends;
use crate::bench::path::Path;
use crate::bench::source::Source;
use crate::bench::Way;
use crate::case::Ctx;
use crate::device::feature;
use crate::device::RX;
use crate::device::TX;
use crate::frame::NetHdr;
use crate::frame::TCP4_HLEN;
use crate::ioctl;
use crate::ioctl::MemoryRegion;
use crate::ioctl::VringState;
use crate::mem::Memory;
use crate::mem::BOUNDARY;
use crate::mem::PAGE;
use crate::ring::Desc;
use crate::ring::Ring;
use crate::ring::F_INDIRECT;
use crate::ring::F_NEXT;
use crate::ring::F_WRITE;
use crate::tap::TapOptions;
use crate::tap::TUN_F_CSUM;
use crate::tap::TUN_F_TSO4;
use crate::vmm::Setup;
use crate::vmm::Vmm;

/// Payload of each segment of a large packet, and segments in it.
const GSO_SIZE: u16 = 1448;
const GSO_SEGMENTS: usize = 45;
/// Descriptors of a large packet to send: headers, then 32 KB pieces or less.
const GSO_DESCS: u16 = 4;

/// What the TAP leaves to the guest.
pub(crate) const OFFLOADS: u32 = TUN_F_CSUM | TUN_F_TSO4;

/// What packets and rings look like.
#[derive(Clone, Debug)]
pub(crate) struct Shape {
    /// Bytes in a frame; of no meaning for large packets.
    pub(crate) size: usize,
    /// Large packets, to be segmented.
    pub(crate) gso: bool,
    /// Descriptors in each ring.
    pub(crate) ring: u16,
    /// Negotiate the event index.
    pub(crate) event_idx: bool,
    /// Each chain in a table of its own.
    pub(crate) indirect: bool,
    /// Negotiate IN_ORDER.
    pub(crate) in_order: bool,
    /// Regions in the memory table, buffers spread over them; two by default.
    pub(crate) regions: Option<usize>,
    /// How long a queue polls before it sleeps, in microseconds.
    pub(crate) busyloop: u32,
    /// Packets for the guest that can wait.
    pub(crate) queue_len: u32,
    /// What is between the queues and the network, and which way packets will go.
    pub(crate) path: Path,
    pub(crate) way: Way,
}

/// One queue pair with its driver, its TAP, and a source of packets.
pub(crate) struct Rig {
    pub(crate) vmm: Vmm,
    pub(crate) source: Source,
    /// What its packets pass, and where they enter and leave it.
    pub(crate) path: Path,
    pub(crate) ends: Ends,
    /// Bytes of a frame.
    pub(crate) frame_len: usize,
    /// RX buffers that one packet fills.
    pub(crate) pieces: u16,
    /// Chains that the TX ring holds.
    pub(crate) chains: u16,
    /// RX buffers that the ring holds.
    pub(crate) buffers: u16,
    /// Kicks so far.
    pub(crate) kicks: u64,
    tx_idx: u16,
    rx_idx: u16,
    rx_seen: u16,
    event_idx: bool,
    last_len: Option<u32>,
}

impl Rig {
    /// Builds a machine on a TAP called `name`.
    pub(crate) fn new(ctx: &Ctx, shape: &Shape, name: &str, multi_queue: bool) -> Result<Self> {
        let mut features = feature::VERSION_1 | feature::MRG_RXBUF;
        for (wanted, bit) in [
            (shape.event_idx, feature::EVENT_IDX),
            (shape.indirect, feature::INDIRECT_DESC),
            (shape.in_order, feature::IN_ORDER),
        ] {
            if wanted {
                features |= bit;
            }
        }
        let tap = TapOptions {
            multi_queue,
            offloads: OFFLOADS,
            ..TapOptions::default()
        };
        let setup = Setup::new()
            .features(features)
            .size(shape.ring)
            .tap(tap)
            .tap_name(name)
            .stopped();
        let mut vmm = setup.build(ctx)?;
        let ends = shape.path.set_up(&mut vmm, shape.way, shape.queue_len)?;
        let (hdr, frame) = if shape.gso {
            let len = TCP4_HLEN + GSO_SEGMENTS * usize::from(GSO_SIZE);
            vmm.tx_frames.tcp4(len, GSO_SIZE)
        } else if shape.path == Path::Tap {
            (NetHdr::default(), vmm.tx_frames.plain(shape.size))
        } else {
            let frame = vmm.tx_frames.udp4(shape.size, 1000, 1000);
            (NetHdr::default(), frame)
        };
        let headers = if shape.gso { 10 } else { 0 };
        let mut packet = hdr.bytes(headers);
        packet.extend(&frame);
        let source = Source::open(&ends.source, packet, shape.gso)?;
        // The far end sends only, or each packet would be copied to it.
        vmm.wire = crate::wire::Wire::unbound()?;

        let mut packet = hdr.bytes(vmm.hdr_len);
        packet.extend(&frame);
        let descs_per_chain = match (shape.gso, shape.indirect) {
            (true, false) => GSO_DESCS,
            _ => 1,
        };
        let buffer = if shape.gso {
            PAGE as usize
        } else {
            packet.len().max(2048)
        };
        let pieces = packet.len().div_ceil(buffer) as u16;
        let mut rig = Self {
            source,
            path: shape.path,
            ends,
            frame_len: frame.len(),
            pieces,
            chains: shape.ring / descs_per_chain,
            buffers: shape.ring / pieces * pieces,
            kicks: 0,
            tx_idx: 0,
            rx_idx: 0,
            rx_seen: 0,
            event_idx: shape.event_idx,
            last_len: (!shape.gso && !shape.in_order).then_some(packet.len() as u32),
            vmm,
        };
        rig.fill(shape, &packet, buffer)?;
        if let Some(count) = shape.regions {
            rig.split_memory(count)?;
        }
        if shape.busyloop != 0 {
            for index in [RX, TX] {
                let state = VringState {
                    index: index as u32,
                    num: shape.busyloop,
                };
                rig.vmm
                    .vhost
                    .raw()
                    .put(ioctl::SET_VRING_BUSYLOOP_TIMEOUT(), &state)
                    .context("VHOST_SET_VRING_BUSYLOOP_TIMEOUT")?;
            }
        }
        Ok(rig)
    }

    /// Writes buffers, descriptors and available entries of both rings.
    fn fill(&mut self, shape: &Shape, packet: &[u8], buffer: usize) -> Result<()> {
        let cuts: Vec<usize> = if shape.gso {
            let head = packet.len() - GSO_SEGMENTS * usize::from(GSO_SIZE);
            let rest = (packet.len() - head).div_ceil(usize::from(GSO_DESCS) - 1);
            (0..GSO_DESCS.into()).map(|i| head + i * rest).collect()
        } else if shape.indirect {
            vec![self.vmm.hdr_len, packet.len()]
        } else {
            vec![packet.len()]
        };
        let vmm = &self.vmm;
        let place = Place::new(&vmm.mem, shape);
        let descs_per_chain = shape.ring / self.chains;
        for chain in 0..self.chains {
            let at = place.tx(packet.len())?;
            vmm.mem.write(at, packet)?;
            let mut from = 0;
            let mut segs = Vec::new();
            for to in &cuts {
                let to = (*to).min(packet.len());
                segs.push((at + from as u64, (to - from) as u32, 0));
                from = to;
            }
            put_chain(
                &vmm.mem,
                &vmm.tx.ring,
                chain * descs_per_chain,
                &segs,
                shape,
            )?;
        }
        for slot in 0..shape.ring {
            vmm.tx
                .ring
                .set_avail(slot, slot % self.chains * descs_per_chain);
            let seg = (place.rx(buffer)?, buffer as u32, F_WRITE);
            put_chain(&vmm.mem, &vmm.rx.ring, slot, &[seg], shape)?;
            vmm.rx.ring.set_avail(slot, slot);
        }
        Ok(())
    }

    /// Describes the memory below [`BOUNDARY`], where everything lies, as so
    /// many regions.
    fn split_memory(&self, count: usize) -> Result<()> {
        let host = self.vmm.mem.host(0)? as u64;
        let each = BOUNDARY / PAGE / count as u64 * PAGE;
        let regions: Vec<MemoryRegion> = (0..count as u64)
            .map(|i| {
                let size = if i + 1 == count as u64 {
                    BOUNDARY - i * each
                } else {
                    each
                };
                MemoryRegion::new(i * each, size, host + i * each)
            })
            .collect();
        self.vmm
            .vhost
            .raw()
            .set_mem_table(0, &regions)
            .with_context(|| format!("VHOST_SET_MEM_TABLE with {count} regions"))?;
        Ok(())
    }

    /// Asks for no call before the indices have moved half way round.
    fn suppress_calls(&self) {
        if self.event_idx {
            for (ring, idx) in [
                (&self.vmm.tx.ring, self.tx_idx),
                (&self.vmm.rx.ring, self.rx_idx),
            ] {
                ring.set_used_event(idx.wrapping_add(0x8000));
            }
        } else {
            self.vmm.tx.disable_calls();
            self.vmm.rx.disable_calls();
        }
    }

    /// Publishes `more` TX chains.
    pub(crate) fn publish_tx(&mut self, more: u16) -> Result<()> {
        let old = self.tx_idx;
        self.tx_idx = old.wrapping_add(more);
        self.suppress_calls();
        let tx = &self.vmm.tx;
        tx.ring.set_avail_idx(self.tx_idx);
        if tx.ring.wants_kick(self.event_idx, self.tx_idx, old) {
            self.kicks += 1;
            tx.kick()?;
        }
        Ok(())
    }

    /// Publishes `more` RX buffers.
    pub(crate) fn publish_rx(&mut self, more: u16) -> Result<()> {
        let old = self.rx_idx;
        self.rx_idx = old.wrapping_add(more);
        self.suppress_calls();
        let rx = &self.vmm.rx;
        rx.ring.set_avail_idx(self.rx_idx);
        if rx.ring.wants_kick(self.event_idx, self.rx_idx, old) {
            self.kicks += 1;
            rx.kick()?;
        }
        Ok(())
    }

    /// Chains the device has.
    pub(crate) fn tx_in_flight(&self) -> u16 {
        self.tx_idx.wrapping_sub(self.vmm.tx.ring.used_idx())
    }

    /// RX buffers the device has.
    pub(crate) fn rx_posted(&self) -> u16 {
        self.rx_idx.wrapping_sub(self.rx_seen)
    }

    /// Whole packets that arrived since the last look.
    pub(crate) fn take_rx(&mut self) -> Result<u64> {
        let used = self.vmm.rx.ring.used_idx();
        let packets = used.wrapping_sub(self.rx_seen) / self.pieces;
        if packets == 0 {
            return Ok(0);
        }
        self.rx_seen = self.rx_seen.wrapping_add(packets * self.pieces);
        if let Some(expected) = self.last_len {
            let len = self.vmm.rx.ring.used(self.rx_seen.wrapping_sub(1)).len;
            ensure!(
                len == expected,
                "{len} bytes arrived where {expected} were sent"
            );
        }
        Ok(packets.into())
    }

    /// Gives back what was received once a batch of buffers is missing.
    pub(crate) fn repost(&mut self, batch: u16) -> Result<()> {
        let missing = self.buffers - self.rx_posted();
        if missing >= batch * self.pieces {
            self.publish_rx(missing)?;
        }
        Ok(())
    }
}

/// Gives each of several queues of one TAP a source whose packets come to it: the
/// TAP steers by a hash of the flow.
pub(crate) fn steer(rigs: &mut [Rig]) -> Result<()> {
    let mut patience = Patience::new();
    let mut found = vec![false; rigs.len()];
    for rig in &mut *rigs {
        rig.publish_rx(rig.buffers)?;
    }
    for port in 1000.. {
        ensure!(port < 1100, "no flow comes to some queue of the TAP");
        let frame = rigs[0].vmm.rx_frames.udp4(rigs[0].frame_len, port, port);
        let source = Source::open(rigs[0].vmm.tap.name(), frame, false)?;
        source.send(1)?;
        patience.renew();
        let to = loop {
            if let Some(to) = rigs
                .iter_mut()
                .position(|rig| rig.take_rx().unwrap_or(0) != 0)
            {
                break to;
            }
            patience.wait("RX")?;
        };
        if !found[to] {
            found[to] = true;
            rigs[to].source = source;
        }
        if found.iter().all(|found| *found) {
            break;
        }
    }
    rigs.iter_mut().try_for_each(|rig| rig.repost(1))
}

/// Where buffers lie.
struct Place<'a> {
    mem: &'a Memory,
    /// Distance of buffers where they are spread over [`BOUNDARY`] bytes.
    stride: Option<u64>,
}

impl<'a> Place<'a> {
    fn new(mem: &'a Memory, shape: &Shape) -> Self {
        // Two MB are left to the rings.
        let room = (BOUNDARY - (4 << 20)) / (2 * u64::from(shape.ring));
        Self {
            mem,
            stride: shape.regions.map(|_| room / 64 * 64),
        }
    }

    fn tx(&self, len: usize) -> Result<u64> {
        let len = len.next_multiple_of(64) as u64;
        match self.stride {
            Some(stride) => self.mem.alloc(stride.max(len), 64),
            None => self.mem.tx_buffer(len),
        }
    }

    fn rx(&self, len: usize) -> Result<u64> {
        let len = len.next_multiple_of(64) as u64;
        match self.stride {
            Some(stride) => self.mem.alloc(stride.max(len), 64),
            None => self.mem.rx_buffer(len),
        }
    }
}

/// Writes a chain of segments from descriptor `head` on, or into a table.
fn put_chain(
    mem: &Memory,
    ring: &Ring,
    head: u16,
    segs: &[(u64, u32, u16)],
    shape: &Shape,
) -> Result<()> {
    let first = if shape.indirect { 0 } else { head };
    let descs: Vec<Desc> = segs
        .iter()
        .enumerate()
        .map(|(i, (addr, len, flags))| {
            let more = i + 1 < segs.len();
            Desc {
                addr: *addr,
                len: *len,
                flags: flags | if more { F_NEXT } else { 0 },
                next: if more { first + i as u16 + 1 } else { 0 },
            }
        })
        .collect();
    if !shape.indirect {
        for (i, desc) in descs.iter().enumerate() {
            ring.set_desc(head + i as u16, *desc);
        }
        return Ok(());
    }
    let len = 16 * descs.len() as u32;
    let table = mem.alloc(len.into(), 16)?;
    let bytes: Vec<u8> = descs.iter().flat_map(|desc| desc.bytes()).collect();
    mem.write(table, &bytes)?;
    let desc = Desc {
        addr: table,
        len,
        flags: F_INDIRECT,
        next: 0,
    };
    ring.set_desc(head, desc);
    Ok(())
}

/// How often a driver with a CPU of its own looks before it enters the kernel.
const SPINS: u32 = 1024;
/// How long without progress is for ever.
const PATIENCE: Duration = Duration::from_secs(3);

/// Looks at a ring again and again, and gives up in the end.
pub(crate) struct Patience {
    looks: u32,
    spins: u32,
    deadline: Instant,
}

impl Patience {
    pub(crate) fn new() -> Self {
        Self {
            looks: 0,
            spins: 0,
            deadline: Instant::now() + PATIENCE,
        }
    }

    /// There was progress.
    pub(crate) fn renew(&mut self) {
        self.looks = 0;
    }

    /// There was none: looks again soon. System calls would take as long as several batches.
    pub(crate) fn spin(&mut self, what: &str) -> Result<()> {
        self.spins = (self.spins + 1) % SPINS;
        if self.spins == 0 {
            return self.wait(what);
        }
        std::hint::spin_loop();
        Ok(())
    }

    /// There was none: gives the CPU away.
    pub(crate) fn wait(&mut self, what: &str) -> Result<()> {
        self.looks += 1;
        match self.looks {
            1 => self.deadline = Instant::now() + PATIENCE,
            looks if looks % 1024 == 0 && Instant::now() > self.deadline => {
                bail!("{what} made no progress in {:?}", PATIENCE)
            }
            _ => {}
        }
        std::thread::yield_now();
        Ok(())
    }
}
