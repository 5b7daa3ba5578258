// SPDX-License-Identifier: GPL-2.0

//! Counters as OpenMetrics text.

use std::fmt::Write as _;
use std::fs;
use std::io::Read;
use std::io::Write as _;
use std::net::SocketAddr;
use std::net::TcpListener;
use std::path::Path;
use std::time::Duration;

use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;

use crate::fdinfo::Queue;
use crate::fdinfo::COUNTERS;
use crate::system::Found;
use crate::system::Open;
use crate::system::System;

/// What there is to know of each counter: in the order of [`COUNTERS`].
const HELP: [&str; COUNTERS.len()] = [
    "Packets that passed the queue",
    "Bytes of them, virtio-net headers included",
    "Passes that moved packets",
    "Kicks of the driver that were seen",
    "Interrupts sent to the driver",
    "Interrupts that the driver did not want",
    "Looks for work before sleeping that found some",
    "Looks for work before sleeping that found none",
    "Times the thread went to sleep",
    "Times the queue could not go on: no buffers (rx), no room in the backend (tx)",
    "Accesses for which the IOTLB had no mapping",
    "Guest pages marked in the dirty log",
];

/// All devices, as text.
pub(crate) fn text(found: &Found) -> String {
    let mut out = String::new();
    let queues = || {
        let queues = found.open.iter().map(|open| (open, &open.device.queues));
        queues.flat_map(|(open, queues)| queues.iter().map(move |queue| (open, queue)))
    };
    for (i, (name, help)) in COUNTERS.iter().zip(HELP).enumerate() {
        let name = format!("rvhost_queue_{}", name.replace('-', "_"));
        family(&mut out, &name, "counter", help);
        for (open, queue) in queues() {
            sample(
                &mut out,
                &format!("{name}_total"),
                &labels(open, queue),
                queue.counters[i],
            );
        }
    }
    for (name, help, which) in [
        ("drops", "Packets dropped", 0),
        ("errors", "Chains refused and rings found broken", 1),
    ] {
        let name = format!("rvhost_queue_{name}");
        family(&mut out, &name, "counter", help);
        for (open, queue) in queues() {
            let reasons = [&queue.drops, &queue.errors][which];
            for (reason, n) in &reasons.by_reason {
                let labels = format!("{},reason=\"{}\"", labels(open, queue), escaped(reason));
                sample(&mut out, &format!("{name}_total"), &labels, *n);
            }
        }
    }
    let name = "rvhost_queue_cpu_seconds";
    family(&mut out, name, "counter", "CPU time of the queue's thread");
    for (open, queue) in queues() {
        let labels = labels(open, queue);
        let seconds = queue.cpu_ns as f64 / 1e9;
        let _ = writeln!(out, "{name}_total{{{labels}}} {seconds}");
    }
    type Gauge = (&'static str, &'static str, fn(&Queue) -> u64);
    let gauges: [Gauge; 4] = [
        ("running", "Whether the queue has a backend", |q| {
            q.running.into()
        }),
        ("ring_size", "Entries of the ring", |q| q.ring_size),
        (
            "ring_fill",
            "Chains made available and not used, at the last pass",
            |q| q.ring_fill,
        ),
        ("memory_bytes", "Memory that the queue occupies", |q| {
            q.memory
        }),
    ];
    for (name, help, value) in gauges {
        let name = format!("rvhost_queue_{name}");
        family(&mut out, &name, "gauge", help);
        for (open, queue) in queues() {
            sample(&mut out, &name, &labels(open, queue), value(queue));
        }
    }
    out.push_str("# EOF\n");
    out
}

fn family(out: &mut String, name: &str, kind: &str, help: &str) {
    let _ = writeln!(out, "# TYPE {name} {kind}\n# HELP {name} {help}");
}

fn sample(out: &mut String, name: &str, labels: &str, value: u64) {
    let _ = writeln!(out, "{name}{{{labels}}} {value}");
}

fn labels(open: &Open, queue: &Queue) -> String {
    format!(
        "vm=\"{}\",pid=\"{}\",device=\"{}\",queue=\"{}\",netdev=\"{}\"",
        escaped(&open.vm),
        open.pid,
        open.device.number,
        escaped(&queue.name),
        escaped(queue.netdev.as_deref().unwrap_or("")),
    )
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

/// Writes a file that is always whole: for node-exporter's textfile collector.
pub(crate) fn write(path: &Path, text: &str) -> Result<()> {
    let name = path
        .file_name()
        .with_context(|| format!("{} names no file", path.display()))?;
    let mut temporary = name.to_owned();
    temporary.push(format!(".{}", std::process::id()));
    let temporary = path.with_file_name(temporary);
    fs::write(&temporary, text).with_context(|| format!("{}", temporary.display()))?;
    fs::rename(&temporary, path).with_context(|| format!("{}", path.display()))
}

/// Answers HTTP requests on a loopback address, until killed.
pub(crate) fn serve(system: &System, address: SocketAddr) -> Result<()> {
    ensure!(
        address.ip().is_loopback(),
        "{address} is no loopback address: put a proxy before it if others are to read it"
    );
    let listener = TcpListener::bind(address).with_context(|| format!("{address}"))?;
    eprintln!("listening on {}", listener.local_addr()?);
    for stream in listener.incoming() {
        let Ok(mut stream) = stream else { continue };
        let _ = stream.set_read_timeout(Some(Duration::from_secs(2)));
        let _ = stream.set_write_timeout(Some(Duration::from_secs(2)));
        let mut request = [0; 1024];
        let n = stream.read(&mut request).unwrap_or(0);
        let (status, body) = if request[..n].starts_with(b"GET /metrics ") {
            match system.devices() {
                Ok(found) => ("200 OK", text(&found)),
                Err(e) => ("500 Internal Server Error", format!("{e:#}\n")),
            }
        } else {
            ("404 Not Found", "there is /metrics only\n".to_owned())
        };
        let _ = write!(
            stream,
            "HTTP/1.1 {status}\r\nContent-Type: application/openmetrics-text; version=1.0.0; charset=utf-8\r\n\
             Content-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        );
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fdinfo::Device;

    const BUSY: &str = include_str!("../testdata/busy.fdinfo");

    #[test]
    fn text_has_each_family_once_and_an_end() {
        let found = Found {
            open: vec![Open {
                pid: 1,
                fd: 2,
                vm: "a \"b\"".to_owned(),
                device: Device::parse(BUSY).unwrap(),
            }],
            ..Found::default()
        };
        let text = text(&found);
        assert!(text.ends_with("# EOF\n"));
        let mut families: Vec<_> = text.lines().filter(|l| l.starts_with("# TYPE")).collect();
        let count = families.len();
        families.dedup();
        assert_eq!((families.len(), count), (19, 19));
        let packets = text
            .lines()
            .filter(|l| l.starts_with("rvhost_queue_packets_total{"));
        let packets: Vec<_> = packets.collect();
        assert_eq!(packets.len(), 2);
        assert!(
            packets[0].contains("vm=\"a \\\"b\\\"\",pid=\"1\""),
            "{}",
            packets[0]
        );
    }
}
