// SPDX-License-Identifier: GPL-2.0
//! Counters of a queue, and what `/proc/<pid>/fdinfo/<fd>` shows of them.
//!
//! The names of the lines are an interface: `Documentation/stats.rst`.

use kernel::{
    new_spinlock,
    prelude::*,
    seq_file::SeqFile,
    seq_print,
    sync::{
        Arc,
        SpinLock, //
    },
};

use crate::{
    kext::{
        counter::Counter,
        file::FileRef,
        ifname,
        netdev::NetDev,
        wait::Bell, //
    },
    trace::{
        Problem,
        REASONS, //
    },
    vcore::Error,
};

/// Classes of batch sizes: 1, 2 to 3, 4 to 7, and so on; the last is open.
const SIZES: [&str; 7] = ["1", "2-3", "4-7", "8-15", "16-31", "32-63", "64-"];

/// What one queue counts. Written by who has the queue, which mostly is its thread; read by anybody
/// at any time.
///
/// Each number is right by itself. Two of them need not be of the same moment.
#[pin_data]
pub(crate) struct Stats {
    pub(crate) packets: Counter,
    pub(crate) bytes: Counter,
    /// Batches by their size.
    sizes: [Counter; SIZES.len()],
    pub(crate) kicks: Counter,
    pub(crate) calls: Counter,
    pub(crate) calls_suppressed: Counter,
    pub(crate) polls_won: Counter,
    pub(crate) polls_lost: Counter,
    pub(crate) sleeps: Counter,
    pub(crate) starved: Counter,
    pub(crate) dirty_pages: Counter,
    drops: Reasons,
    errors: Reasons,
    misses: Counter,
    ring_size: Counter,
    ring_fill: Counter,
    memory: Counter,
    /// What it runs on, if it does. Held for moments, and not on the packet path.
    #[pin]
    backend: SpinLock<Option<Shown>>,
    /// The bell of the queue's thread.
    bell: Arc<Bell>,
}

/// What a queue runs on.
#[derive(Clone)]
pub(crate) enum Shown {
    File(FileRef),
    Netdev(Arc<NetDev>),
}

/// Events by reason.
#[derive(Default)]
struct Reasons {
    total: Counter,
    each: [Counter; REASONS.len()],
}

impl Reasons {
    fn count(&self, number: u32) {
        self.total.add(1);
        let mut known = REASONS.iter().zip(&self.each);
        if let Some((_, counter)) = known.find(|((reason, _), _)| *reason == number) {
            counter.add(1);
        }
    }

    /// Shows the sum, and what is not zero by reason.
    fn show(&self, out: &SeqFile, queue: &str, what: &str) {
        line(out, queue, what, &self.total);
        for ((_, reason), counter) in REASONS.iter().zip(&self.each) {
            let n = counter.get();
            if n != 0 {
                seq_print!(out, "{queue}-{what}-{reason}:\t{n}\n");
            }
        }
    }
}

impl Stats {
    /// Those of a queue whose thread answers `bell`.
    pub(crate) fn new(bell: Arc<Bell>) -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                packets: Counter::default(),
                bytes: Counter::default(),
                sizes: Default::default(),
                kicks: Counter::default(),
                calls: Counter::default(),
                calls_suppressed: Counter::default(),
                polls_won: Counter::default(),
                polls_lost: Counter::default(),
                sleeps: Counter::default(),
                starved: Counter::default(),
                dirty_pages: Counter::default(),
                drops: Reasons::default(),
                errors: Reasons::default(),
                misses: Counter::default(),
                ring_size: Counter::default(),
                ring_fill: Counter::default(),
                memory: Counter::default(),
                backend <- new_spinlock!(None),
                bell,
            }),
            GFP_KERNEL,
        )
    }

    /// Counts a pass that moved something; `fill` chains are with the device now.
    #[inline]
    pub(crate) fn batch(&self, packets: u32, bytes: u64, fill: u16) {
        self.ring_fill.set(fill.into());
        if packets == 0 {
            return;
        }
        self.packets.add(packets.into());
        self.bytes.add(bytes);
        // CAST: less than 32.
        let class = packets.ilog2() as usize;
        if let Some(size) = self.sizes.get(class.min(SIZES.len() - 1)) {
            size.add(1);
        }
    }

    /// Counts a look for work, if there was one, by whether it found some.
    pub(crate) fn poll(&self, came: Option<bool>) {
        match came {
            Some(true) => self.polls_won.add(1),
            Some(false) => self.polls_lost.add(1),
            None => {}
        }
    }

    /// Counts a dropped packet.
    pub(crate) fn drop_packet(&self, problem: Problem) {
        self.drops.count(problem.number());
    }

    /// Counts something wrong with the ring or a chain. A mapping that is missing is no error.
    pub(crate) fn error(&self, problem: Problem) {
        if problem == Problem::Ring(Error::Miss) {
            self.misses.add(1);
        } else {
            self.errors.count(problem.number());
        }
    }

    /// Says how many bytes the queue occupies.
    pub(crate) fn set_memory(&self, bytes: usize) {
        self.memory.set(bytes as u64);
    }

    /// Says that the queue runs, on a ring of `size` entries and on `backend`.
    pub(crate) fn start(&self, size: u16, backend: Shown) {
        self.ring_size.set(size.into());
        let old = self.backend.lock().replace(backend);
        drop(old);
    }

    /// Says that it does not run any more.
    pub(crate) fn stop(&self) {
        let old = self.backend.lock().take();
        drop(old);
    }

    /// Shows everything as lines `<queue>-<name>:\t<value>`.
    pub(crate) fn show(&self, out: &SeqFile, queue: &str) {
        // A reference of our own: the name may have to be waited for, and may change any time.
        let backend = self.backend.lock().clone();
        let state = match &backend {
            Some(_) => "running",
            None => "stopped",
        };
        seq_print!(out, "{queue}-state:\t{state}\n");
        let device = match &backend {
            None => None,
            Some(Shown::File(file)) => Some(ifname::of(file)),
            Some(Shown::Netdev(dev)) => Some(dev.named()),
        };
        match device {
            None => seq_print!(out, "{queue}-backend:\tnone\n"),
            Some(device) => {
                seq_print!(out, "{queue}-backend:\t{}\n", device.kind());
                if let Some(name) = device.name() {
                    seq_print!(out, "{queue}-netdev:\t{name}\n");
                }
            }
        }
        if let Some((id, cpu_ns)) = self.bell.thread() {
            seq_print!(out, "{queue}-thread:\t{id}\n");
            seq_print!(out, "{queue}-cpu-time:\t{cpu_ns} ns\n");
        }
        line(out, queue, "ring-size", &self.ring_size);
        line(out, queue, "ring-fill", &self.ring_fill);
        line(out, queue, "packets", &self.packets);
        line(out, queue, "bytes", &self.bytes);
        let sizes = self.sizes.each_ref().map(Counter::get);
        let batches = sizes.iter().fold(0u64, |sum, n| sum.wrapping_add(*n));
        seq_print!(out, "{queue}-batches:\t{batches}\n");
        for (size, n) in SIZES.iter().zip(sizes) {
            seq_print!(out, "{queue}-batches-{size}:\t{n}\n");
        }
        line(out, queue, "kicks", &self.kicks);
        line(out, queue, "calls", &self.calls);
        line(out, queue, "calls-suppressed", &self.calls_suppressed);
        line(out, queue, "polls-won", &self.polls_won);
        line(out, queue, "polls-lost", &self.polls_lost);
        line(out, queue, "sleeps", &self.sleeps);
        line(out, queue, "starved", &self.starved);
        self.drops.show(out, queue, "drops");
        self.errors.show(out, queue, "errors");
        line(out, queue, "iotlb-misses", &self.misses);
        line(out, queue, "dirty-pages", &self.dirty_pages);
        seq_print!(out, "{queue}-memory:\t{} B\n", self.memory.get());
    }
}

fn line(out: &SeqFile, queue: &str, name: &str, counter: &Counter) {
    seq_print!(out, "{queue}-{name}:\t{}\n", counter.get());
}
