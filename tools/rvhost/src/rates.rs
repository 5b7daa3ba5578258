// SPDX-License-Identifier: GPL-2.0

//! What happens per second: the difference of two looks.

use serde_json::json;
use serde_json::Value;

use crate::fdinfo::Queue;
use crate::system::Found;

/// Rates of all queues between two looks.
#[derive(Clone, Debug, Default)]
pub(crate) struct Rates {
    /// The time between the looks.
    pub(crate) seconds: f64,
    queues: Vec<(u64, String, Rate)>,
}

/// Rates of a queue.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Rate {
    pub(crate) packets: f64,
    pub(crate) bits: f64,
    /// Packets in a batch, on average.
    pub(crate) batch: f64,
    pub(crate) kicks: f64,
    pub(crate) calls: f64,
    pub(crate) sleeps: f64,
    pub(crate) starved: f64,
    pub(crate) drops: f64,
    pub(crate) errors: f64,
    /// Of one CPU, in per cent.
    pub(crate) cpu: f64,
}

impl Rates {
    /// The rates between two looks that are `seconds` apart. Queues that were not there before have
    /// none.
    pub(crate) fn between(before: &Found, now: &Found, seconds: f64) -> Self {
        let mut queues = Vec::new();
        for open in &now.open {
            let number = open.device.number;
            let Some(old) = before.open.iter().find(|old| old.device.number == number) else {
                continue;
            };
            for queue in &open.device.queues {
                let old = old.device.queues.iter().find(|old| old.name == queue.name);
                if let Some(old) = old {
                    queues.push((number, queue.name.clone(), Rate::of(old, queue, seconds)));
                }
            }
        }
        Self { seconds, queues }
    }

    /// Those of one queue.
    pub(crate) fn of(&self, device: u64, queue: &str) -> Option<Rate> {
        self.queues
            .iter()
            .find(|(number, name, _)| *number == device && name == queue)
            .map(|(_, _, rate)| *rate)
    }
}

impl Rate {
    fn of(old: &Queue, new: &Queue, seconds: f64) -> Self {
        // After a RESET_OWNER counters start again.
        let grown = |old: u64, new: u64| new.saturating_sub(old) as f64;
        let per_second = |name: &str| grown(old.counter(name), new.counter(name)) / seconds;
        let batches = grown(old.counter("batches"), new.counter("batches"));
        let packets = grown(old.counter("packets"), new.counter("packets"));
        Self {
            packets: packets / seconds,
            bits: 8.0 * per_second("bytes"),
            batch: if batches == 0.0 {
                0.0
            } else {
                packets / batches
            },
            kicks: per_second("kicks"),
            calls: per_second("calls"),
            sleeps: per_second("sleeps"),
            starved: per_second("starved"),
            drops: grown(old.drops.total, new.drops.total) / seconds,
            errors: grown(old.errors.total, new.errors.total) / seconds,
            cpu: 100.0 * grown(old.cpu_ns, new.cpu_ns) / 1e9 / seconds,
        }
    }

    pub(crate) fn json(self) -> Value {
        json!({
            "packets": self.packets,
            "bits": self.bits,
            "packets_per_batch": self.batch,
            "kicks": self.kicks,
            "calls": self.calls,
            "sleeps": self.sleeps,
            "starved": self.starved,
            "drops": self.drops,
            "errors": self.errors,
            "cpu_percent": self.cpu,
        })
    }
}

/// A number as people read it: 999, 12.3k, 4.56M.
pub(crate) fn short(value: f64) -> String {
    for (limit, unit) in [(1e9, "G"), (1e6, "M"), (1e3, "k")] {
        if value >= limit * 0.9995 {
            let scaled = value / limit;
            let digits = usize::from(scaled < 99.95) + usize::from(scaled < 9.995);
            return format!("{scaled:.digits$}{unit}");
        }
    }
    format!("{value:.0}")
}

/// So many things: "1 device", "2 devices".
pub(crate) fn counted(n: u64, thing: &str) -> String {
    format!("{n} {thing}{}", if n == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        for (value, text) in [
            (0.0, "0"),
            (999.4, "999"),
            (999.6, "1.00k"),
            (1234.0, "1.23k"),
            (99_960.0, "100k"),
            (2_500_000.0, "2.50M"),
        ] {
            assert_eq!(short(value), text);
        }
    }

    #[test]
    fn rates_are_differences_and_never_negative() {
        let queue = |packets, batches, cpu_ns| {
            let mut queue = Queue {
                cpu_ns,
                ..Queue::default()
            };
            queue.counters[0] = packets;
            queue.counters[2] = batches;
            queue
        };
        let rate = Rate::of(&queue(100, 10, 0), &queue(300, 20, 1_000_000_000), 2.0);
        assert_eq!((rate.packets, rate.batch, rate.cpu), (100.0, 20.0, 50.0));
        let reset = Rate::of(&queue(100, 10, 5), &queue(0, 0, 0), 1.0);
        assert_eq!(reset, Rate::default());
    }
}
