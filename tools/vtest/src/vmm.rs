// SPDX-License-Identifier: GPL-2.0

//! A whole machine for one queue pair: guest memory, device, two virtqueues,
//! a TAP and a socket on its far side, set up in the order QEMU uses.

use std::fs::File;

use anyhow::Context;
use anyhow::Result;
use vhost::net::VhostNet as _;
use vhost::VhostBackend;
use vhost::VhostUserMemoryRegionInfo;
use vhost::VringConfigData;

use crate::case::skip;
use crate::case::Ctx;
use crate::device::feature;
use crate::device::VhostNet;
use crate::device::RX;
use crate::device::TX;
use crate::frame::Direction;
use crate::frame::Frames;
use crate::ioctl;
use crate::ioctl::MemoryRegion;
use crate::ioctl::VringAddr;
use crate::mem::Memory;
use crate::tap::Tap;
use crate::tap::TapOptions;
use crate::virtqueue::Mode;
use crate::virtqueue::Virtqueue;
use crate::wire::Wire;

/// What kind of machine to build.
#[derive(Clone, Debug)]
pub(crate) struct Setup {
    features: u64,
    more_features: u64,
    indirect: bool,
    rx_size: u16,
    tx_size: u16,
    avail_base: [u16; 2],
    used_base: [u16; 2],
    tap: TapOptions,
    tap_name: String,
    backends: bool,
    header: Option<usize>,
    set_features: bool,
    configure: bool,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            features: feature::VERSION_1,
            more_features: 0,
            indirect: false,
            rx_size: 256,
            tx_size: 256,
            avail_base: [0; 2],
            used_base: [0; 2],
            tap: TapOptions::default(),
            tap_name: "vt0".to_owned(),
            backends: true,
            header: None,
            set_features: true,
            configure: true,
        }
    }
}

impl Setup {
    /// VERSION_1, 256 descriptors, plain chains, indices from 0, a TAP without
    /// offloads.
    pub(crate) fn new() -> Self {
        Self::default()
    }

    /// Negotiates exactly these features.
    pub(crate) fn features(mut self, features: u64) -> Self {
        self.features = features;
        self.indirect = features & feature::INDIRECT_DESC != 0;
        self
    }

    /// Negotiates these bits from 64 on as well.
    pub(crate) fn more_features(mut self, features: u64) -> Self {
        self.more_features = features;
        self
    }

    /// Sets the size of both rings.
    pub(crate) fn size(mut self, size: u16) -> Self {
        self.rx_size = size;
        self.tx_size = size;
        self
    }

    /// Starts all indices of both queues at `base`.
    pub(crate) fn base(mut self, base: u16) -> Self {
        self.avail_base = [base; 2];
        self.used_base = [base; 2];
        self
    }

    /// Starts the used indices of both queues at `base`.
    pub(crate) fn used_base(mut self, base: u16) -> Self {
        self.used_base = [base; 2];
        self
    }

    /// Makes the TAP this way; its header size follows the features.
    pub(crate) fn tap(mut self, options: TapOptions) -> Self {
        self.tap = options;
        self
    }

    /// Lets the TAP take these offloads.
    pub(crate) fn offloads(mut self, offloads: u32) -> Self {
        self.tap.offloads = offloads;
        self
    }

    /// Names the TAP.
    pub(crate) fn tap_name(mut self, name: &str) -> Self {
        name.clone_into(&mut self.tap_name);
        self
    }

    /// Gives the TAP a header of this size whatever the features say.
    pub(crate) fn header(mut self, size: usize) -> Self {
        self.header = Some(size);
        self
    }

    /// Leaves the backends unset: the case starts the queues.
    pub(crate) fn stopped(mut self) -> Self {
        self.backends = false;
        self
    }

    /// Leaves memory, rings and backends to the case: the device may have no owner.
    pub(crate) fn unconfigured(mut self) -> Self {
        self.configure = false;
        self.stopped()
    }

    /// Bytes of virtio-net header in front of each packet in guest buffers.
    fn guest_header(&self) -> usize {
        if self.more_features & feature::UDP_TUNNEL_GSO != 0 {
            24
        } else if self.features & feature::HASH_REPORT != 0 {
            20
        } else if self.features & (feature::VERSION_1 | feature::MRG_RXBUF) != 0 {
            12
        } else {
            10
        }
    }

    /// Leaves the features as they are.
    pub(crate) fn keep_features(mut self) -> Self {
        self.set_features = false;
        self
    }

    /// Builds the machine on a fresh device.
    pub(crate) fn build(&self, ctx: &Ctx) -> Result<Vmm> {
        let mem = Memory::new()?;
        let vhost = VhostNet::open(&ctx.device, &mem)?;
        vhost.set_owner().context("VHOST_SET_OWNER")?;
        self.on(vhost, mem, ctx)
    }

    /// Builds the machine on a device that has an owner.
    pub(crate) fn on(&self, vhost: VhostNet, mem: Memory, ctx: &Ctx) -> Result<Vmm> {
        let offered = vhost.get_features().context("VHOST_GET_FEATURES")?;
        if self.features & !offered != 0 {
            // What is offered has a case of its own.
            return skip(&format!(
                "needs features {:#x}, offered are {offered:#x}",
                self.features
            ));
        }

        let hdr_len = self.guest_header();
        let strips = self.features & feature::NET_HDR != 0;
        let mut tap_options = self.tap.clone();
        tap_options.header = self.header.unwrap_or(if strips { 0 } else { hdr_len });
        let tap = Tap::open(&self.tap_name, &tap_options)?;
        let wire = Wire::open(&self.tap_name)?;

        let mode = Mode {
            event_idx: self.features & feature::EVENT_IDX != 0,
            in_order: self.features & feature::IN_ORDER != 0,
            indirect: self.indirect,
        };
        let queue = |index: usize, size| {
            Virtqueue::new(
                &mem,
                size,
                mode,
                self.avail_base[index],
                self.used_base[index],
            )
        };
        let vmm = Vmm {
            rx: queue(RX, self.rx_size)?,
            tx: queue(TX, self.tx_size)?,
            tx_frames: Frames::new(Direction::Tx, ctx.seed),
            rx_frames: Frames::new(Direction::Rx, ctx.seed),
            mergeable: self.features & feature::MRG_RXBUF != 0,
            features: self.features,
            hdr_len,
            mem,
            vhost,
            tap,
            wire,
        };
        if self.set_features {
            if self.more_features == 0 {
                vmm.set_features(self.features)?;
            } else {
                let words = [2, self.features, self.more_features];
                vmm.vhost
                    .raw()
                    .put(ioctl::SET_FEATURES_ARRAY(), &words)
                    .context("VHOST_SET_FEATURES_ARRAY")?;
            }
        }
        if self.configure {
            vmm.configure(self.avail_base)?;
        }
        if self.backends {
            vmm.start()?;
        }
        Ok(vmm)
    }
}

/// A machine with one queue pair.
pub(crate) struct Vmm {
    /// Guest memory.
    pub(crate) mem: Memory,
    /// The device under test.
    pub(crate) vhost: VhostNet,
    /// Network to guest.
    pub(crate) rx: Virtqueue,
    /// Guest to network.
    pub(crate) tx: Virtqueue,
    /// The backend.
    pub(crate) tap: Tap,
    /// The far side of the backend.
    pub(crate) wire: Wire,
    /// Frames from the guest.
    pub(crate) tx_frames: Frames,
    /// Frames to the guest.
    pub(crate) rx_frames: Frames,
    /// Whether MRG_RXBUF was negotiated.
    pub(crate) mergeable: bool,
    /// The features negotiated.
    pub(crate) features: u64,
    /// Bytes of header in guest buffers.
    pub(crate) hdr_len: usize,
}

impl Vmm {
    /// The queue of an index.
    pub(crate) fn queue(&self, index: usize) -> &Virtqueue {
        if index == RX {
            &self.rx
        } else {
            &self.tx
        }
    }

    /// The memory table that describes all of guest memory.
    pub(crate) fn regions(&self) -> Result<Vec<MemoryRegion>> {
        let regions = self.mem.regions()?;
        let region = |r: &VhostUserMemoryRegionInfo| {
            MemoryRegion::new(r.guest_phys_addr, r.memory_size, r.userspace_addr)
        };
        Ok(regions.iter().map(region).collect())
    }

    /// VHOST_SET_FEATURES.
    pub(crate) fn set_features(&self, features: u64) -> Result<()> {
        self.vhost
            .set_features(features)
            .context("VHOST_SET_FEATURES")
    }

    /// Memory and rings, everything but features and backends.
    pub(crate) fn configure(&self, base: [u16; 2]) -> Result<()> {
        self.vhost
            .set_mem_table(&self.mem.regions()?)
            .context("VHOST_SET_MEM_TABLE")?;
        for index in [RX, TX] {
            self.configure_queue(index, base[index])?;
        }
        Ok(())
    }

    /// Everything about one ring.
    pub(crate) fn configure_queue(&self, index: usize, base: u16) -> Result<()> {
        let queue = self.queue(index);
        let layout = queue.ring.layout();
        let vhost = &self.vhost;
        vhost
            .set_vring_num(index, layout.size)
            .context("VHOST_SET_VRING_NUM")?;
        vhost
            .set_vring_base(index, base)
            .context("VHOST_SET_VRING_BASE")?;
        let config = VringConfigData {
            queue_max_size: layout.size,
            queue_size: layout.size,
            flags: 0,
            desc_table_addr: layout.desc,
            used_ring_addr: layout.used,
            avail_ring_addr: layout.avail,
            log_addr: None,
        };
        vhost
            .set_vring_addr(index, &config)
            .context("VHOST_SET_VRING_ADDR")?;
        vhost
            .set_vring_kick(index, &queue.kick)
            .context("VHOST_SET_VRING_KICK")?;
        vhost
            .set_vring_call(index, &queue.call)
            .context("VHOST_SET_VRING_CALL")?;
        vhost
            .set_vring_err(index, &queue.err)
            .context("VHOST_SET_VRING_ERR")
    }

    /// The argument of VHOST_SET_VRING_ADDR for one ring, to be spoiled.
    pub(crate) fn vring_addr(&self, index: usize) -> Result<VringAddr> {
        let layout = self.queue(index).ring.layout();
        Ok(VringAddr {
            index: index as u32,
            flags: 0,
            desc: self.mem.host(layout.desc)? as u64,
            used: self.mem.host(layout.used)? as u64,
            avail: self.mem.host(layout.avail)? as u64,
            log: 0,
        })
    }

    /// Attaches the TAP to both queues.
    pub(crate) fn start(&self) -> Result<()> {
        self.start_queue(RX)?;
        self.start_queue(TX)
    }

    /// Attaches the TAP to one queue.
    pub(crate) fn start_queue(&self, index: usize) -> Result<()> {
        self.set_backend(index, Some(self.tap.file()))
    }

    /// Detaches both queues; they are quiescent on return.
    pub(crate) fn stop(&self) -> Result<()> {
        self.stop_queue(RX)?;
        self.stop_queue(TX)
    }

    /// Detaches one queue.
    pub(crate) fn stop_queue(&self, index: usize) -> Result<()> {
        self.set_backend(index, None)
    }

    /// VHOST_NET_SET_BACKEND.
    pub(crate) fn set_backend(&self, index: usize, file: Option<&File>) -> Result<()> {
        self.vhost
            .set_backend(index, file)
            .with_context(|| format!("VHOST_NET_SET_BACKEND {index} {file:?}"))
    }

    /// The available index up to which the device has taken chains.
    pub(crate) fn base(&self, index: usize) -> Result<u16> {
        Ok(self
            .vhost
            .get_vring_base(index)
            .context("VHOST_GET_VRING_BASE")? as u16)
    }

    /// Returns when a pass of the queue that was under way has ended: ioctls
    /// that change a queue exclude its passes.
    pub(crate) fn fence(&self, index: usize) -> Result<()> {
        self.vhost
            .set_vring_err(index, &self.queue(index).err)
            .context("VHOST_SET_VRING_ERR")
    }
}
