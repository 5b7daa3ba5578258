// SPDX-License-Identifier: GPL-2.0

//! Lists of devices, and of all there is to know of them.

use std::fmt::Write as _;

use crate::fdinfo::COUNTERS;
use crate::system::Found;
use crate::system::System;

/// A line for each queue.
pub(crate) fn list(system: &System, found: &Found) -> String {
    let mut out = format!(
        "{:<16} {:>7} {:>4} {:>4} {:<2} {:<8} {:<8} {:<15} {:>7} {:<8}\n",
        "VM", "PID", "FD", "DEV", "Q", "STATE", "BACKEND", "NETDEV", "THREAD", "CPUS"
    );
    for open in &found.open {
        for queue in &open.device.queues {
            let thread = queue.thread.map_or("-".to_owned(), |id| id.to_string());
            let cpus = queue.thread.and_then(|id| system.cpus_of(id));
            let _ = writeln!(
                out,
                "{:<16} {:>7} {:>4} {:>4} {:<2} {:<8} {:<8} {:<15} {:>7} {:<8}",
                open.vm,
                open.pid,
                open.fd,
                open.device.number,
                queue.name,
                if queue.running { "running" } else { "stopped" },
                queue.backend,
                queue.netdev.as_deref().unwrap_or("-"),
                thread,
                cpus.as_deref().unwrap_or("-"),
            );
        }
        if open.device.queues.is_empty() {
            let _ = writeln!(
                out,
                "{:<16} {:>7} {:>4} {:>4} -  no owner",
                open.vm, open.pid, open.fd, open.device.number
            );
        }
    }
    out
}

/// A block for each device, with its queues side by side.
pub(crate) fn stats(found: &Found) -> String {
    let mut out = String::new();
    for open in &found.open {
        let [low, high] = open.device.features;
        let _ = writeln!(
            out,
            "{} (pid {}, fd {}, device {}; features {high:#x} {low:#x})",
            open.vm, open.pid, open.fd, open.device.number
        );
        let queues = &open.device.queues;
        let mut row = |name: &str, values: Vec<String>| {
            let _ = write!(out, "  {name:<24}");
            for value in values {
                let _ = write!(out, " {value:>16}");
            }
            out.push('\n');
        };
        row("", queues.iter().map(|q| q.name.clone()).collect());
        let backend = |q: &crate::fdinfo::Queue| match &q.netdev {
            Some(name) => format!("{} {name}", q.backend),
            None => q.backend.clone(),
        };
        row("backend", queues.iter().map(backend).collect());
        let fill = queues
            .iter()
            .map(|q| format!("{}/{}", q.ring_fill, q.ring_size));
        row("ring fill", fill.collect());
        let cpu = queues
            .iter()
            .map(|q| format!("{:.3} s", q.cpu_ns as f64 / 1e9));
        row("CPU time", cpu.collect());
        row(
            "memory (bytes)",
            queues.iter().map(|q| q.memory.to_string()).collect(),
        );
        for (i, name) in COUNTERS.iter().enumerate() {
            let values = queues.iter().map(|q| q.counters[i].to_string());
            row(&name.replace('-', " "), values.collect());
        }
        if let Some(first) = queues.first() {
            for (i, (size, _)) in first.sizes.iter().enumerate() {
                let value =
                    |q: &crate::fdinfo::Queue| q.sizes.get(i).map_or(0, |(_, n)| *n).to_string();
                let size = match size.strip_suffix('-') {
                    Some(from) => format!("{from} or more"),
                    None => size.clone(),
                };
                row(
                    &format!("batches of {size}"),
                    queues.iter().map(value).collect(),
                );
            }
        }
        for (what, which) in [("drops", 0), ("errors", 1)] {
            let of = |q: &crate::fdinfo::Queue| [&q.drops, &q.errors][which].clone();
            row(
                what,
                queues.iter().map(|q| of(q).total.to_string()).collect(),
            );
            let mut reasons: Vec<_> = queues
                .iter()
                .flat_map(|q| of(q).by_reason.into_keys())
                .collect();
            reasons.sort();
            reasons.dedup();
            for reason in reasons {
                let value =
                    |q: &crate::fdinfo::Queue| of(q).by_reason.get(&reason).copied().unwrap_or(0);
                row(
                    &format!("  {reason}"),
                    queues.iter().map(|q| value(q).to_string()).collect(),
                );
            }
        }
    }
    out
}
