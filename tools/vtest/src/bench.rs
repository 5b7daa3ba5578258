// SPDX-License-Identifier: GPL-2.0

//! Measurements of the device: what they are called, and what they print.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;
use clap::Args;
use clap::ValueEnum;

use crate::bench::path::Path;
use crate::bench::rig::Rig;
use crate::bench::rig::Shape;
use crate::bench::threads::Threads;
use crate::case::Ctx;
use crate::case::Module;
use crate::net;

mod life;
mod lockstep;
mod path;
mod rate;
mod rig;
mod source;
mod threads;

/// Packets that wait in each TAP when a measured RX round begins.
const BURST: u64 = 4096;
/// The same for large packets.
const GSO_BURST: u64 = 512;
/// Large packets that are published at once.
const GSO_BATCH: u16 = 8;

/// Which way packets go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Way {
    /// Guest to network.
    Tx,
    /// Network to guest: the TAP is filled first, emptying it is measured.
    Rx,
    /// Both at once: as many packets each way, the TAP filled first.
    Both,
}

/// What to measure.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum What {
    /// Packets per second.
    Rate,
    /// Cost of a packet, driver and device taking turns on one CPU.
    Lockstep,
    /// How often the threads of devices wake that have nothing to do.
    Idle,
    /// Time that one packet takes through a queue that sleeps.
    Latency,
    /// Time to set a device up and close it, and to stop and start it.
    Start,
    /// Memory that devices give back when they are closed.
    Memory,
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
    /// What to measure.
    #[arg(long, value_enum, default_value = "rate")]
    what: What,
    /// Which way packets go.
    #[arg(long, value_enum, default_value = "tx")]
    direction: Way,
    /// Length of each frame.
    #[arg(long, default_value_t = 64)]
    size: usize,
    /// Frames of 64 KB, to be segmented, instead.
    #[arg(long)]
    gso: bool,
    /// How long to measure.
    #[arg(long, default_value_t = 5.0)]
    seconds: f64,
    /// Send exactly this many packets instead.
    #[arg(long)]
    count: Option<u64>,
    /// Descriptors in each ring.
    #[arg(long, default_value_t = 256)]
    ring: u16,
    /// Packets that the driver publishes at once.
    #[arg(long, default_value_t = 64)]
    batch: u16,
    /// Chains that may be in the TX ring; as many as a batch by default.
    #[arg(long)]
    window: Option<u16>,
    /// Suppress notifications by flags instead of the event index.
    #[arg(long)]
    no_event_idx: bool,
    /// Put each chain into a table of its own.
    #[arg(long)]
    indirect: bool,
    /// Negotiate IN_ORDER.
    #[arg(long)]
    in_order: bool,
    /// Describe guest memory by so many regions.
    #[arg(long)]
    regions: Option<usize>,
    /// How long a queue polls before it sleeps, in microseconds.
    #[arg(long, default_value_t = 0)]
    busyloop: u32,
    /// Run so many devices at once, each with a TAP of its own.
    #[arg(long, default_value_t = 1)]
    devices: u16,
    /// Give the TAP so many queues, and each a device.
    #[arg(long, default_value_t = 1)]
    queues: u16,
    /// What packets pass on their way.
    #[arg(long, value_enum, default_value = "tap")]
    path: Path,
    /// Confine us to this CPU, and the device's threads to the next.
    #[arg(long)]
    pin: Option<usize>,
    /// Mark what is measured in lockstep, for scripts/bench/profile.
    #[arg(long)]
    marks: bool,
    /// Print one JSON object, for the case of this name.
    #[arg(long)]
    json: Option<String>,
}

impl BenchArgs {
    fn shape(&self) -> Shape {
        Shape {
            size: self.size,
            gso: self.gso,
            ring: self.ring,
            event_idx: !self.no_event_idx,
            indirect: self.indirect,
            in_order: self.in_order,
            regions: self.regions,
            busyloop: self.busyloop,
            queue_len: 2 * self.burst() as u32,
            path: self.path,
            way: self.direction,
        }
    }

    fn batch(&self) -> u16 {
        if self.gso {
            GSO_BATCH
        } else {
            self.batch
        }
    }

    fn burst(&self) -> u64 {
        if self.gso {
            GSO_BURST
        } else {
            BURST
        }
    }
}

/// What was found out, by name.
#[derive(Default)]
struct Figures(Vec<(&'static str, f64)>);

impl Figures {
    fn add(&mut self, name: &'static str, value: f64) {
        self.0.push((name, value));
    }
}

/// Runs a measurement and prints it.
pub(crate) fn run(args: &BenchArgs, module: Module) -> Result<bool> {
    let least = match args.direction {
        Way::Tx => 1, // to be dropped
        _ => 14,
    };
    ensure!(
        (least..=65_521).contains(&args.size),
        "frames have {least} to 65521 bytes"
    );
    ensure!(
        args.ring.is_power_of_two() && args.batch <= args.ring && args.batch > 0,
        "the ring's size is a power of two, and a batch fits it"
    );
    ensure!(
        args.path == Path::Tap || !args.gso && args.queues == 1 && args.devices == 1,
        "only TAPs are for large packets, several queues or several devices"
    );
    if let Some(cpu) = args.pin {
        threads::pin(0, cpu)?;
    }
    if args.what != What::Memory {
        // What goes with a namespace is freed much later, perhaps while another run measures.
        net::own_namespace()?;
    }
    let ctx = Ctx {
        device: args.device.clone(),
        module: args.module.unwrap_or(module),
        seed: 1,
        cycles: 0,
        card: None,
    };
    let mut figures = Figures::default();
    match args.what {
        What::Rate => rate(args, &ctx, &mut figures)?,
        What::Lockstep => lockstep(args, &ctx, &mut figures)?,
        What::Idle => idle(args, &ctx, &mut figures)?,
        What::Latency => latency(args, &ctx, &mut figures)?,
        What::Start => start(args, &ctx, &mut figures)?,
        What::Memory => memory(args, &ctx, &mut figures)?,
    }
    report(args, ctx.module, &figures);
    Ok(true)
}

fn lockstep(args: &BenchArgs, ctx: &Ctx, figures: &mut Figures) -> Result<()> {
    let (mut rigs, threads) = rigs(args, ctx)?;
    let rig = &mut rigs[0];
    let batch = args.batch();
    let rounds = args.count.unwrap_or(16_384).div_ceil(batch.into()) as u32;
    let cost = lockstep::run(rig, &threads, args.direction, batch, rounds, args.marks)?;
    let each = |time: Duration| time.as_nanos() as f64 / cost.packets as f64;
    figures.add("packets", cost.packets as f64);
    figures.add("frame_bytes", rig.frame_len as f64);
    figures.add("worker", each(cost.worker));
    figures.add("whole", each(cost.section) - each(cost.source));
    figures.add("source", each(cost.source));
    figures.add("kicks", cost.kicks as f64);
    Ok(())
}

/// The devices of a measurement, their threads confined.
fn rigs(args: &BenchArgs, ctx: &Ctx) -> Result<(Vec<Rig>, Threads)> {
    let shape = args.shape();
    let mut rigs = Vec::new();
    for device in 0..args.devices {
        for _ in 0..args.queues {
            let name = format!("vt{device}");
            rigs.push(Rig::new(ctx, &shape, &name, args.queues > 1)?);
        }
    }
    let threads = Threads::find()?;
    if let Some(cpu) = args.pin {
        threads.pin(cpu + 1)?;
    }
    if args.queues > 1 {
        rigs.chunks_mut(args.queues.into())
            .try_for_each(rig::steer)?;
    }
    Ok((rigs, threads))
}

fn idle(args: &BenchArgs, ctx: &Ctx, figures: &mut Figures) -> Result<()> {
    let (rigs, threads) = rigs(args, ctx)?;
    let mut bench = rate::Bench::new(rigs, args.batch(), args.batch(), args.burst());
    bench.run(Way::Both, &rate::Limit::packets(2000))?;
    threads.cpu_ns()?;
    let switches = threads.switches()?;
    thread::sleep(Duration::from_secs_f64(args.seconds));
    let wakeups = threads.switches()? - switches;
    figures.add("threads", threads.count() as f64);
    figures.add("wakeups_per_second", wakeups as f64 / args.seconds);
    Ok(())
}

fn latency(args: &BenchArgs, ctx: &Ctx, figures: &mut Figures) -> Result<()> {
    let (mut rigs, _) = rigs(args, ctx)?;
    let count = args.count.unwrap_or(2000) as usize;
    let times = lockstep::latency(&mut rigs[0], args.direction, count)?;
    figures.add("p50_ns", times.at(50));
    figures.add("p99_ns", times.at(99));
    Ok(())
}

fn start(args: &BenchArgs, ctx: &Ctx, figures: &mut Figures) -> Result<()> {
    let (mut rigs, _) = rigs(args, ctx)?;
    let count = args.count.unwrap_or(200);
    let (life, restart) = life::start(&mut rigs[0], ctx, count)?;
    figures.add("life_ns", life.at(50));
    figures.add("restart_ns", restart.at(50));
    Ok(())
}

fn memory(args: &BenchArgs, ctx: &Ctx, figures: &mut Figures) -> Result<()> {
    let (rigs, _) = rigs(args, ctx)?;
    let mut bench = rate::Bench::new(rigs, args.batch(), args.batch(), args.burst());
    bench.run(Way::Both, &rate::Limit::packets(2000))?;
    figures.add("kb_per_pair", life::memory(bench.into_rigs())?);
    Ok(())
}

/// Times, sorted.
struct Times(Vec<Duration>);

impl Times {
    fn new(mut times: Vec<Duration>) -> Self {
        times.sort();
        Self(times)
    }

    /// The time in nanoseconds that so many percent do not exceed.
    fn at(&self, percent: usize) -> f64 {
        let i = (self.0.len() * percent / 100).min(self.0.len() - 1);
        self.0[i].as_nanos() as f64
    }
}

fn rate(args: &BenchArgs, ctx: &Ctx, figures: &mut Figures) -> Result<()> {
    let (rigs, threads) = rigs(args, ctx)?;
    let window = args.window.unwrap_or(args.batch());
    let mut bench = rate::Bench::new(rigs, args.batch(), window, args.burst());
    bench.run(args.direction, &rate::Limit::packets(2000))?;
    let limit = match args.count {
        Some(count) => rate::Limit::packets(count),
        None => rate::Limit::time(args.seconds),
    };
    let cpu = threads.cpu_ns()?;
    let arrived = bench.arrived()?;
    let rate = bench.run(args.direction, &limit)?;
    let cpu = threads.cpu_ns()? - cpu;
    let arrived = bench.arrived()? - arrived;
    ensure!(
        arrived == rate.tx_packets,
        "{} packets were sent, {arrived} arrived",
        rate.tx_packets
    );
    let seconds = rate.time.as_secs_f64();
    figures.add("seconds", seconds);
    figures.add("frame_bytes", bench.frame_len() as f64);
    figures.add("tx_packets", rate.tx_packets as f64);
    figures.add("tx_pps", rate.tx_packets as f64 / seconds);
    figures.add("rx_packets", rate.rx_packets as f64);
    figures.add("rx_pps", rate.rx_packets as f64 / seconds);
    figures.add("kicks", rate.kicks as f64);
    figures.add(
        "cpu_ns",
        cpu as f64 / (rate.tx_packets + rate.rx_all) as f64,
    );
    figures.add("threads", threads.count() as f64);
    Ok(())
}

fn report(args: &BenchArgs, module: Module, figures: &Figures) {
    let mut text = match &args.json {
        Some(case) => format!("{{\"case\":\"{case}\",\"module\":\"{module}\""),
        None => format!("{module} {:?} {:?}", args.what, args.direction).to_lowercase(),
    };
    for (name, value) in &figures.0 {
        // Writing to a string cannot fail.
        let _ = match args.json {
            Some(_) => write!(text, ",\"{name}\":{value:.3}"),
            None => write!(text, "\n{name:12} {value:.1}"),
        };
    }
    if args.json.is_some() {
        text.push('}');
    }
    println!("{text}");
}

/// Checks that the device can be opened before a namespace is made for it.
pub(crate) fn check(args: &BenchArgs) -> Result<()> {
    crate::device::open(&args.device).context("is the module loaded?")?;
    Ok(())
}
