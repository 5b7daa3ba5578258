// SPDX-License-Identifier: GPL-2.0

//! Which CPUs the queues' threads run on.

use anyhow::bail;
use anyhow::Context;
use anyhow::Result;

use crate::cpus::Cpus;
use crate::system::Open;
use crate::system::System;

/// What is wanted for a machine's threads.
#[derive(Clone, Debug)]
pub(crate) enum Wish {
    /// These CPUs for the receiving and for the sending queues.
    Lists { rx: Option<Cpus>, tx: Option<Cpus> },
    /// One CPU of these for each thread, in turn.
    Spread(Cpus),
    /// What is near the guest's memory and meant for such work.
    Auto,
}

/// A thread, and where it is to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Placement {
    pub(crate) thread: i32,
    /// `VM/device/queue`.
    pub(crate) name: String,
    pub(crate) cpus: Cpus,
    /// Why there.
    pub(crate) reason: String,
}

/// Where the threads of `devices` are to run.
pub(crate) fn plan(system: &System, devices: &[Open], wish: &Wish) -> Result<Vec<Placement>> {
    let mut placements = Vec::new();
    let mut auto = Vec::new();
    for open in devices {
        for queue in &open.device.queues {
            let Some(thread) = queue.thread else {
                continue;
            };
            let (cpus, reason) = match wish {
                Wish::Lists { rx, tx } => {
                    let list = if queue.name == "rx" { rx } else { tx };
                    match list {
                        Some(cpus) => (cpus.clone(), String::new()),
                        None => continue,
                    }
                }
                Wish::Spread(cpus) => {
                    let cpu = cpus
                        .pick(placements.len())
                        .context("the list of CPUs is empty")?;
                    (cpu, String::new())
                }
                Wish::Auto => match auto.iter().find(|(pid, _)| *pid == open.pid) {
                    Some((_, found)) => Clone::clone(found),
                    None => {
                        let found = automatic(system, open.pid)?;
                        auto.push((open.pid, found.clone()));
                        found
                    }
                },
            };
            placements.push(Placement {
                thread,
                name: format!("{}/{}/{}", open.vm, open.device.number, queue.name),
                cpus,
                reason,
            });
        }
    }
    Ok(placements)
}

/// The CPUs of the node that has most of the process's memory, of which only those are taken that
/// are neither isolated nor without ticks, if there are any; and why.
fn automatic(system: &System, pid: i32) -> Result<(Cpus, String)> {
    let list = |path: &str| -> Result<Cpus> {
        match system.read(path) {
            Some(text) if text.trim() != "(null)" => text.parse(),
            _ => Ok(Cpus::default()),
        }
    };
    let online = list("/sys/devices/system/cpu/online")?;
    if online.is_empty() {
        bail!("/sys/devices/system/cpu/online tells of no CPUs");
    }
    let mut reasons = Vec::new();
    let mut cpus = online.clone();
    match system.read(&format!("/proc/{pid}/numa_maps")) {
        Some(maps) => {
            if let Some((node, share)) = main_node(&maps) {
                let near =
                    list(&format!("/sys/devices/system/node/node{node}/cpulist"))?.and(&online);
                if near.is_empty() {
                    reasons.push(format!("node {node} has the memory but no CPU"));
                } else {
                    cpus = near;
                    reasons.push(format!("node {node} has {share} % of the memory"));
                }
            }
        }
        None => reasons.push("nothing is told of NUMA nodes".to_owned()),
    }
    let away = [
        list("/sys/devices/system/cpu/isolated")?,
        list("/sys/devices/system/cpu/nohz_full")?,
    ];
    let mut housekeeping = cpus.clone();
    for set in &away {
        housekeeping = housekeeping.without(set);
    }
    if housekeeping.is_empty() {
        reasons.push("all CPUs there are isolated: none is left out".to_owned());
    } else {
        if housekeeping != cpus {
            reasons.push("isolated CPUs are left out".to_owned());
        }
        cpus = housekeeping;
    }
    Ok((cpus, reasons.join("; ")))
}

/// The node with most of the pages in a numa_maps, and its share of them in per cent.
fn main_node(maps: &str) -> Option<(u32, u64)> {
    let mut pages = std::collections::BTreeMap::<u32, u64>::new();
    for line in maps.lines() {
        let mut size = 4;
        let mut counts = Vec::new();
        for word in line.split_whitespace() {
            let Some((name, value)) = word.split_once('=') else {
                continue;
            };
            if name == "kernelpagesize_kB" {
                size = value.parse().unwrap_or(4);
            } else if let Some(node) = name.strip_prefix('N').and_then(|n| n.parse().ok()) {
                counts.push((node, value.parse().unwrap_or(0u64)));
            }
        }
        for (node, count) in counts {
            *pages.entry(node).or_default() += count.saturating_mul(size);
        }
    }
    let all: u64 = pages.values().sum();
    let (node, most) = pages.into_iter().max_by_key(|(_, n)| *n)?;
    Some((node, (most * 100).checked_div(all)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fdinfo::Device;
    use crate::fdinfo::Queue;
    use crate::system::tests::Fake;

    fn machine() -> Vec<Open> {
        let queue = |name: &str, thread| Queue {
            name: name.to_owned(),
            thread: Some(thread),
            ..Queue::default()
        };
        (0..2)
            .map(|n| Open {
                pid: 12,
                fd: 30,
                vm: "web".to_owned(),
                device: Device {
                    number: n as u64,
                    queues: vec![queue("rx", 100 + 2 * n), queue("tx", 101 + 2 * n)],
                    ..Device::default()
                },
            })
            .collect()
    }

    fn shown(wish: &Wish, fake: &Fake) -> Vec<(i32, String)> {
        let plan = plan(&fake.system(), &machine(), wish).unwrap();
        plan.iter()
            .map(|p| (p.thread, p.cpus.to_string()))
            .collect()
    }

    #[test]
    fn lists_and_turns_are_as_wished() {
        let fake = Fake::new("pin");
        let wish = Wish::Lists {
            rx: None,
            tx: Some("2-3".parse().unwrap()),
        };
        let wanted = [(101, "2-3".to_owned()), (103, "2-3".to_owned())];
        assert_eq!(shown(&wish, &fake), wanted);
        let turns = shown(&Wish::Spread("4,5,6".parse().unwrap()), &fake);
        let cpus: Vec<_> = turns.iter().map(|(_, cpus)| cpus.as_str()).collect();
        assert_eq!(cpus, ["4", "5", "6", "4"]);
    }

    #[test]
    fn automatic_choice_is_near_and_not_isolated() {
        let fake = Fake::new("auto");
        fake.file("/sys/devices/system/cpu/online", "0-7\n")
            .file("/sys/devices/system/cpu/isolated", "6-7\n")
            .file("/sys/devices/system/cpu/nohz_full", "  (null)\n")
            .file("/sys/devices/system/node/node1/cpulist", "4-7\n")
            .file(
                "/proc/12/numa_maps",
                "7f00 default anon=9 N0=9 kernelpagesize_kB=4\n\
                 7f10 default anon=4 N0=1 N1=3 kernelpagesize_kB=2048\n",
            );
        let plan = plan(&fake.system(), &machine(), &Wish::Auto).unwrap();
        assert_eq!(plan.len(), 4);
        assert_eq!(plan[0].cpus.to_string(), "4-5");
        assert_eq!(
            plan[0].reason,
            "node 1 has 74 % of the memory; isolated CPUs are left out"
        );
    }

    #[test]
    fn isolated_cpus_are_taken_where_there_are_no_others() {
        let fake = Fake::new("isolated");
        fake.file("/sys/devices/system/cpu/online", "0-1\n")
            .file("/sys/devices/system/cpu/isolated", "0-1\n");
        let plan = plan(&fake.system(), &machine(), &Wish::Auto).unwrap();
        assert_eq!(plan[0].cpus.to_string(), "0-1");
    }
}
