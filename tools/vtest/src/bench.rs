// SPDX-License-Identifier: GPL-2.0

//! Packets per second of the device, with a driver that costs next to nothing:
//! descriptors and available entries are written once, then only indices move.

use std::path::PathBuf;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use anyhow::bail;
use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;
use clap::Args;
use clap::ValueEnum;

use crate::case::Ctx;
use crate::case::Module;
use crate::device::feature;
use crate::frame::NetHdr;
use crate::net;
use crate::poll;
use crate::ring::Desc;
use crate::ring::F_WRITE;
use crate::vmm::Setup;
use crate::vmm::Vmm;

/// Descriptors in each ring.
const RING: u16 = 256;
/// Packets that the driver publishes at once.
const BATCH: u16 = 64;
/// Packets that wait in the TAP when a measured RX round begins.
const BURST: u64 = 4096;

/// Which way packets go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Way {
    /// Guest to network.
    Tx,
    /// Network to guest: the TAP is filled first, emptying it is measured.
    Rx,
    /// Both at once, the network's packets made by the same thread.
    Both,
}

/// Options of `vtest bench`.
#[derive(Args)]
pub(crate) struct BenchArgs {
    /// Device under test.
    #[arg(long, default_value = "/dev/vhost-net")]
    device: PathBuf,
    /// Which implementation it is; found out from /sys/module by default.
    #[arg(long, alias = "module-name", value_enum)]
    module: Option<Module>,
    /// Which way packets go.
    #[arg(long, value_enum, default_value = "tx")]
    direction: Way,
    /// Length of each frame.
    #[arg(long, default_value_t = 64)]
    size: usize,
    /// How long to measure.
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// Send exactly this many packets instead.
    #[arg(long)]
    count: Option<u64>,
    /// Chains that may be in the TX ring: 64 is lockstep, 256 keeps it full.
    #[arg(long, default_value_t = 64)]
    window: u16,
    /// Suppress notifications by flags instead of the event index.
    #[arg(long)]
    no_event_idx: bool,
    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

/// What was measured.
#[derive(Clone, Copy, Debug, Default)]
struct Measured {
    tx_packets: u64,
    rx_packets: u64,
    kicks: u64,
    time: Duration,
}

/// When to stop.
struct Limit {
    end: Option<Instant>,
    count: u64,
}

impl Limit {
    fn reached(&self, packets: u64) -> bool {
        packets >= self.count || self.end.is_some_and(|end| Instant::now() >= end)
    }
}

/// Runs a measurement and prints it.
pub(crate) fn run(args: &BenchArgs, module: Module) -> Result<bool> {
    ensure!(
        (14..=65_535).contains(&args.size),
        "frames have 14 to 65535 bytes"
    );
    ensure!(
        args.window.is_power_of_two() && (BATCH..=RING).contains(&args.window),
        "the window is 64, 128 or 256"
    );
    net::own_namespace()?;
    let ctx = Ctx {
        device: args.device.clone(),
        module: args.module.unwrap_or(module),
        seed: 1,
        cycles: 0,
    };
    let mut features = feature::VERSION_1 | feature::MRG_RXBUF;
    if !args.no_event_idx {
        features |= feature::EVENT_IDX;
    }
    let vmm = Setup::new().features(features).size(RING).build(&ctx)?;
    net::set_queue_len(vmm.tap.name(), 2 * BURST as i32)?;
    let mut bench = Bench::new(vmm, args)?;
    let warm = Limit {
        end: None,
        count: 2000,
    };
    bench.measure(args.direction, &warm)?;
    let before = net::counters(bench.vmm.tap.name())?;
    let limit = match args.count {
        Some(count) => Limit { end: None, count },
        None => Limit {
            end: Some(Instant::now() + Duration::from_secs_f64(args.seconds)),
            count: u64::MAX,
        },
    };
    let measured = bench.measure(args.direction, &limit)?;
    let after = net::counters(bench.vmm.tap.name())?;
    let arrived = after.rx_packets - before.rx_packets;
    report(args, ctx.module, &measured, arrived);
    ensure!(
        arrived == measured.tx_packets,
        "{} packets were sent, {arrived} arrived",
        measured.tx_packets
    );
    Ok(true)
}

fn report(args: &BenchArgs, module: Module, measured: &Measured, arrived: u64) {
    let seconds = measured.time.as_secs_f64();
    let rate = |packets: u64| packets as f64 / seconds;
    let way = format!("{:?}", args.direction).to_lowercase();
    if args.json {
        println!(
            "{{\"module\":\"{module}\",\"direction\":\"{way}\",\"size\":{},\"window\":{},\
             \"seconds\":{seconds:.6},\"tx_packets\":{},\"tx_pps\":{:.0},\"tx_arrived\":{arrived},\
             \"rx_packets\":{},\"rx_pps\":{:.0},\"kicks\":{}}}",
            args.size,
            args.window,
            measured.tx_packets,
            rate(measured.tx_packets),
            measured.rx_packets,
            rate(measured.rx_packets),
            measured.kicks
        );
        return;
    }
    println!("{module} {way} {} bytes, {seconds:.3} s", args.size);
    for (name, packets) in [("tx", measured.tx_packets), ("rx", measured.rx_packets)] {
        if packets != 0 {
            println!("{name}: {packets} packets, {:.0} per second", rate(packets));
        }
    }
    println!("kicks: {}", measured.kicks);
}

/// A machine whose rings are prepared for a measurement.
struct Bench {
    vmm: Vmm,
    window: u16,
    frame: Vec<u8>,
    tx_idx: u16,
    rx_idx: u16,
    rx_seen: u16,
    event_idx: bool,
    kicks: u64,
}

impl Bench {
    fn new(mut vmm: Vmm, args: &BenchArgs) -> Result<Self> {
        let frame = vmm.tx_frames.plain(args.size);
        let mut packet = NetHdr::default().bytes(vmm.hdr_len);
        packet.extend(&frame);
        let len = packet.len() as u32;
        for slot in 0..RING {
            let addr = vmm.mem.tx_buffer(u64::from(len).next_multiple_of(64))?;
            vmm.mem.write(addr, &packet)?;
            let desc = Desc {
                addr,
                len,
                flags: 0,
                next: 0,
            };
            vmm.tx.ring.set_desc(slot, desc);
            vmm.tx.ring.set_avail(slot, slot);
            let addr = vmm
                .mem
                .rx_buffer(u64::from(len.max(2048)).next_multiple_of(64))?;
            let desc = Desc {
                addr,
                len: len.max(2048),
                flags: F_WRITE,
                next: 0,
            };
            vmm.rx.ring.set_desc(slot, desc);
            vmm.rx.ring.set_avail(slot, slot);
        }
        vmm.rx_frames = vmm.tx_frames.clone();
        vmm.wire.send_only(vmm.tap.name())?;
        vmm.wire.bypass_qdisc()?;
        Ok(Self {
            event_idx: !args.no_event_idx,
            window: args.window,
            vmm,
            frame,
            tx_idx: 0,
            rx_idx: 0,
            rx_seen: 0,
            kicks: 0,
        })
    }

    fn measure(&mut self, way: Way, limit: &Limit) -> Result<Measured> {
        self.kicks = 0;
        let mut measured = match way {
            Way::Tx => self.tx(limit)?,
            Way::Rx => self.rx(limit)?,
            Way::Both => self.both(limit)?,
        };
        measured.kicks = self.kicks;
        Ok(measured)
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
    fn publish_tx(&mut self, more: u16) -> Result<()> {
        let old = self.tx_idx;
        self.tx_idx = old.wrapping_add(more);
        self.suppress_calls();
        self.vmm.tx.ring.set_avail_idx(self.tx_idx);
        if self
            .vmm
            .tx
            .ring
            .wants_kick(self.event_idx, self.tx_idx, old)
        {
            self.kicks += 1;
            self.vmm.tx.kick()?;
        }
        Ok(())
    }

    /// Publishes `more` RX buffers.
    fn publish_rx(&mut self, more: u16) -> Result<()> {
        let old = self.rx_idx;
        self.rx_idx = old.wrapping_add(more);
        self.suppress_calls();
        self.vmm.rx.ring.set_avail_idx(self.rx_idx);
        if self
            .vmm
            .rx
            .ring
            .wants_kick(self.event_idx, self.rx_idx, old)
        {
            self.kicks += 1;
            self.vmm.rx.kick()?;
        }
        Ok(())
    }

    fn tx_in_flight(&self) -> u16 {
        self.tx_idx.wrapping_sub(self.vmm.tx.ring.used_idx())
    }

    /// Keeps the window filled until the limit.
    fn tx(&mut self, limit: &Limit) -> Result<Measured> {
        let mut packets = 0;
        let mut patience = Patience::new();
        let start = Instant::now();
        while !limit.reached(packets) {
            let free = self.window - self.tx_in_flight().min(self.window);
            if free < BATCH {
                patience.wait("TX")?;
                continue;
            }
            let left = limit.count - packets;
            let more = BATCH.min(u16::try_from(left).unwrap_or(BATCH));
            self.publish_tx(more)?;
            packets += u64::from(more);
            patience.renew();
        }
        while self.tx_in_flight() != 0 {
            patience.wait("TX")?;
        }
        Ok(Measured {
            tx_packets: packets,
            time: start.elapsed(),
            ..Measured::default()
        })
    }

    fn send(&self, packets: u64) -> Result<()> {
        self.vmm.wire.send_many(&self.frame, packets as usize)
    }

    /// Takes what came and posts the buffers anew once there are enough of them.
    fn take_rx(&mut self, repost: bool) -> Result<u64> {
        let used = self.vmm.rx.ring.used_idx();
        let new = used.wrapping_sub(self.rx_seen);
        if new == 0 {
            return Ok(0);
        }
        let len = self.vmm.rx.ring.used(used.wrapping_sub(1)).len as usize;
        ensure!(
            len == self.frame.len() + self.vmm.hdr_len,
            "a packet of {len} bytes with header arrived"
        );
        self.rx_seen = used;
        let out = self.rx_idx.wrapping_sub(used);
        if repost && out <= RING - BATCH {
            self.publish_rx(RING - out)?;
        }
        Ok(u64::from(new))
    }

    /// Fills the TAP while there are no buffers, then measures how long the
    /// device takes to empty it.
    fn rx(&mut self, limit: &Limit) -> Result<Measured> {
        let mut measured = Measured::default();
        let mut patience = Patience::new();
        while !limit.reached(measured.rx_packets) {
            let burst = BURST.min(limit.count - measured.rx_packets);
            // What is left of the last round's buffers is taken first.
            let posted = u64::from(self.rx_idx.wrapping_sub(self.rx_seen));
            self.send(posted)?;
            let mut early = 0;
            while early < posted {
                early += self.take_rx(false)?;
                patience.wait("RX without buffers")?;
            }
            self.send(burst)?;
            patience.renew();
            let start = Instant::now();
            self.publish_rx(RING)?;
            let mut packets = 0;
            while packets < burst {
                match self.take_rx(true)? {
                    0 => patience.wait("RX")?,
                    new => {
                        packets += new;
                        patience.renew();
                    }
                }
            }
            measured.time += start.elapsed();
            measured.rx_packets += packets;
        }
        Ok(measured)
    }

    /// Both rings at once; the time includes making the packets to receive.
    fn both(&mut self, limit: &Limit) -> Result<Measured> {
        let mut measured = Measured::default();
        let mut patience = Patience::new();
        let mut coming = 0;
        let posted = self.rx_idx.wrapping_sub(self.rx_seen);
        if posted < RING {
            self.publish_rx(RING - posted)?;
        }
        let start = Instant::now();
        while !limit.reached(measured.tx_packets) {
            if coming == 0 {
                self.send(BATCH.into())?;
                coming = u64::from(BATCH);
            }
            if self.tx_in_flight() <= self.window - BATCH {
                self.publish_tx(BATCH)?;
                measured.tx_packets += u64::from(BATCH);
                patience.renew();
            }
            let new = self.take_rx(true)?;
            coming -= new;
            measured.rx_packets += new;
            patience.wait("TX and RX")?;
        }
        while coming != 0 || self.tx_in_flight() != 0 {
            let new = self.take_rx(true)?;
            coming -= new;
            measured.rx_packets += new;
            patience.wait("TX and RX")?;
        }
        measured.time = start.elapsed();
        Ok(measured)
    }
}

/// Gives the CPU away between looks at the ring, and gives up in the end.
struct Patience {
    looks: u32,
    deadline: Instant,
}

impl Patience {
    fn new() -> Self {
        Self {
            looks: 0,
            deadline: Instant::now() + poll::PATIENCE,
        }
    }

    fn renew(&mut self) {
        self.looks = 0;
    }

    fn wait(&mut self, what: &str) -> Result<()> {
        self.looks += 1;
        match self.looks {
            1 => self.deadline = Instant::now() + poll::PATIENCE,
            looks if looks % 1024 == 0 && Instant::now() > self.deadline => {
                bail!("{what} made no progress in {:?}", poll::PATIENCE)
            }
            _ => {}
        }
        thread::yield_now();
        Ok(())
    }
}

/// Checks that the device can be opened before a namespace is made for it.
pub(crate) fn check(args: &BenchArgs) -> Result<()> {
    crate::device::open(&args.device).context("is the module loaded?")?;
    Ok(())
}
