// SPDX-License-Identifier: GPL-2.0

//! The lines of a device's fdinfo, as Documentation/stats.rst has them.

use std::collections::BTreeMap;

/// The version of the lines that this program knows.
pub(crate) const VERSION: u64 = 1;

/// The names of the numbers each queue has, in the order they are shown in.
pub(crate) const COUNTERS: [&str; 12] = [
    "packets",
    "bytes",
    "batches",
    "kicks",
    "calls",
    "calls-suppressed",
    "polls-won",
    "polls-lost",
    "sleeps",
    "starved",
    "iotlb-misses",
    "dirty-pages",
];

/// What one look at a device tells.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Device {
    /// Its number since the module was loaded.
    pub(crate) number: u64,
    /// Acknowledged features: bits 0 to 63, and those from 64 on.
    pub(crate) features: [u64; 2],
    pub(crate) backend_features: u64,
    /// None before the device has an owner.
    pub(crate) queues: Vec<Queue>,
}

/// What it tells of a queue.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Queue {
    /// `rx` (network to guest) or `tx`.
    pub(crate) name: String,
    pub(crate) running: bool,
    /// `tap`, `macvtap`, `packet` or `none`.
    pub(crate) backend: String,
    pub(crate) netdev: Option<String>,
    pub(crate) thread: Option<i32>,
    pub(crate) cpu_ns: u64,
    pub(crate) ring_size: u64,
    pub(crate) ring_fill: u64,
    pub(crate) memory: u64,
    /// Values of [`COUNTERS`].
    pub(crate) counters: [u64; COUNTERS.len()],
    /// Batches by the packets in them.
    pub(crate) sizes: Vec<(String, u64)>,
    pub(crate) drops: Reasons,
    pub(crate) errors: Reasons,
}

/// Events, all of them and by reason.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Reasons {
    pub(crate) total: u64,
    pub(crate) by_reason: BTreeMap<String, u64>,
}

/// Why a text is not what we know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Unknown {
    /// It is not of rvhost_net.
    Foreign,
    /// It is of a version that this program does not know.
    Version(String),
}

impl Device {
    /// Reads the text of an fdinfo file. Lines that are not known are left out: there may be more
    /// in time.
    pub(crate) fn parse(text: &str) -> Result<Self, Unknown> {
        let mut lines = text.lines().filter_map(|line| line.split_once(":\t"));
        let version = lines
            .by_ref()
            .find(|(name, _)| *name == "rvhost")
            .ok_or(Unknown::Foreign)?
            .1;
        if number(version) != VERSION {
            return Err(Unknown::Version(version.to_owned()));
        }
        let mut device = Self::default();
        for (name, value) in lines {
            match name {
                "device" => device.number = number(value),
                "features" => {
                    let mut words = value.split(' ').rev().map(number);
                    device.features = [words.next().unwrap_or(0), words.next().unwrap_or(0)];
                }
                "backend-features" => device.backend_features = number(value),
                _ => {
                    if let Some((queue, name)) = name.split_once('-') {
                        if matches!(queue, "rx" | "tx") {
                            device.queue_mut(queue).set(name, value);
                        }
                    }
                }
            }
        }
        Ok(device)
    }

    fn queue_mut(&mut self, name: &str) -> &mut Queue {
        let at = match self.queues.iter().position(|queue| queue.name == name) {
            Some(at) => at,
            None => {
                self.queues.push(Queue {
                    name: name.to_owned(),
                    ..Queue::default()
                });
                self.queues.len() - 1
            }
        };
        &mut self.queues[at]
    }
}

impl Queue {
    fn set(&mut self, name: &str, value: &str) {
        if let Some(i) = COUNTERS.iter().position(|counter| *counter == name) {
            self.counters[i] = number(value);
            return;
        }
        match name {
            "state" => self.running = value == "running",
            "backend" => value.clone_into(&mut self.backend),
            "netdev" => self.netdev = Some(value.to_owned()),
            "thread" => self.thread = value.parse().ok(),
            "cpu-time" => self.cpu_ns = number(value),
            "ring-size" => self.ring_size = number(value),
            "ring-fill" => self.ring_fill = number(value),
            "memory" => self.memory = number(value),
            "drops" => self.drops.total = number(value),
            "errors" => self.errors.total = number(value),
            _ => {
                if let Some(size) = name.strip_prefix("batches-") {
                    self.sizes.push((size.to_owned(), number(value)));
                } else if let Some(reason) = name.strip_prefix("drops-") {
                    self.drops
                        .by_reason
                        .insert(reason.to_owned(), number(value));
                } else if let Some(reason) = name.strip_prefix("errors-") {
                    self.errors
                        .by_reason
                        .insert(reason.to_owned(), number(value));
                }
            }
        }
    }

    /// One of [`COUNTERS`]; 0 if there is none of that name.
    pub(crate) fn counter(&self, name: &str) -> u64 {
        COUNTERS
            .iter()
            .position(|counter| *counter == name)
            .map_or(0, |i| self.counters[i])
    }
}

/// A number, decimal or with 0x, with or without a unit behind it; 0 if it is none.
fn number(value: &str) -> u64 {
    let digits = value.split(' ').next().unwrap_or(value);
    match digits.strip_prefix("0x") {
        Some(hex) => u64::from_str_radix(hex, 16),
        None => digits.parse(),
    }
    .unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BUSY: &str = include_str!("../testdata/busy.fdinfo");

    #[test]
    fn recorded_device_is_read_whole() {
        let device = Device::parse(BUSY).unwrap();
        let names: Vec<_> = device.queues.iter().map(|q| q.name.as_str()).collect();
        assert_eq!(names, ["rx", "tx"]);
        for queue in &device.queues {
            assert!(queue.running && queue.thread.is_some() && queue.netdev.is_some());
            assert_eq!(queue.sizes.len(), 7);
            let batches: u64 = queue.sizes.iter().map(|(_, n)| n).sum();
            assert_eq!(batches, queue.counter("batches"));
            for reasons in [&queue.drops, &queue.errors] {
                assert_eq!(reasons.by_reason.values().sum::<u64>(), reasons.total);
            }
            assert!(queue.memory > 0 && queue.cpu_ns > 0 && queue.ring_size > 0);
        }
        assert_ne!(device.features[0], 0);
    }

    #[test]
    fn device_without_owner_has_no_queues() {
        let text = "pos:\t0\nrvhost:\t1\ndevice:\t7\nfeatures:\t0x1 0x120000000\n";
        let device = Device::parse(text).unwrap();
        assert_eq!((device.number, device.queues.len()), (7, 0));
        assert_eq!(device.features, [0x1_2000_0000, 1]);
    }

    #[test]
    fn other_files_and_versions_are_told_apart() {
        assert_eq!(
            Device::parse("pos:\t0\nflags:\t02\n"),
            Err(Unknown::Foreign)
        );
        let later = Device::parse("rvhost:\t2\n");
        assert_eq!(later, Err(Unknown::Version("2".to_owned())));
    }

    #[test]
    fn unknown_lines_are_left_out() {
        let device = Device::parse("rvhost:\t1\ntx-new:\t5\nnonsense\nfeatures:\tzz\n").unwrap();
        assert_eq!(device.queues.len(), 1);
        assert_eq!(device.features, [0, 0]);
    }
}
