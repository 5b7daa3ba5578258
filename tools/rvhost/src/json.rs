// SPDX-License-Identifier: GPL-2.0

//! Devices as JSON, in the form of schema.json.

use serde_json::json;
use serde_json::Map;
use serde_json::Value;

use crate::fdinfo::Queue;
use crate::fdinfo::Reasons;
use crate::fdinfo::COUNTERS;
use crate::rates::Rates;
use crate::system::Found;
use crate::system::Open;
use crate::system::System;

/// Everything that was found. With rates, where there are some: by device and queue.
pub(crate) fn document(system: &System, found: &Found, rates: Option<&Rates>) -> Value {
    let devices: Vec<Value> = found
        .open
        .iter()
        .map(|open| device(system, open, rates))
        .collect();
    json!({
        "version": 1,
        "hidden_processes": found.hidden,
        "seconds": rates.map(|rates| rates.seconds),
        "devices": devices,
    })
}

fn device(system: &System, open: &Open, rates: Option<&Rates>) -> Value {
    let queues: Vec<Value> = open
        .device
        .queues
        .iter()
        .map(|one| {
            let mut value = queue(system, one);
            let rate = rates.and_then(|rates| rates.of(open.device.number, &one.name));
            if let (Some(rate), Value::Object(fields)) = (rate, &mut value) {
                fields.insert("rates".to_owned(), rate.json());
            }
            value
        })
        .collect();
    let [low, high] = open.device.features;
    json!({
        "device": open.device.number,
        "vm": open.vm,
        "pid": open.pid,
        "fd": open.fd,
        "features": [format!("{low:#x}"), format!("{high:#x}")],
        "backend_features": format!("{:#x}", open.device.backend_features),
        "queues": queues,
    })
}

fn queue(system: &System, queue: &Queue) -> Value {
    let mut counters = Map::new();
    for (name, value) in COUNTERS.iter().zip(queue.counters) {
        counters.insert(name.replace('-', "_"), value.into());
    }
    let sizes: Map<String, Value> = queue
        .sizes
        .iter()
        .map(|(size, n)| (size.clone(), (*n).into()))
        .collect();
    counters.insert("batches_by_size".to_owned(), sizes.into());
    counters.insert("drops".to_owned(), reasons(&queue.drops));
    counters.insert("errors".to_owned(), reasons(&queue.errors));
    json!({
        "queue": queue.name,
        "running": queue.running,
        "backend": queue.backend,
        "netdev": queue.netdev,
        "thread": queue.thread,
        "cpus": queue.thread.and_then(|thread| system.cpus_of(thread)),
        "cpu_time_ns": queue.cpu_ns,
        "ring_size": queue.ring_size,
        "ring_fill": queue.ring_fill,
        "memory_bytes": queue.memory,
        "counters": counters,
    })
}

fn reasons(reasons: &Reasons) -> Value {
    json!({ "total": reasons.total, "by_reason": reasons.by_reason })
}
