// SPDX-License-Identifier: GPL-2.0

//! Which CPUs the queues' threads run on.

use std::collections::BTreeMap;

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
    let file = |name: &str| system.read(&format!("/proc/{pid}/{name}"));
    match (file("maps"), file("numa_maps")) {
        (Some(maps), Some(numa_maps)) => {
            let status = file("status").unwrap_or_default();
            match main_node(&maps, &numa_maps, only_node(&status)) {
                Some((node, share)) => {
                    let near =
                        list(&format!("/sys/devices/system/node/node{node}/cpulist"))?.and(&online);
                    if near.is_empty() {
                        reasons.push(format!("node {node} has the memory but no CPU"));
                    } else {
                        cpus = near;
                        reasons.push(format!("node {node} has {share} % of the memory"));
                    }
                }
                None => reasons.push("no memory is in use, and any node may give it".to_owned()),
            }
        }
        _ => reasons.push("nothing is told of NUMA nodes".to_owned()),
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

/// A mapping of this part of the largest one, or more, is taken to be the guest's memory.
const GUESTS: u64 = 16;

/// The node that has most of the guest's memory, and its share in per cent. What is not in use yet
/// counts for the node that the mapping's policy names, or else for `only`.
///
/// The guest's memory are the largest writable mappings: files that the process reads, as its own
/// program, lie wherever somebody first read them.
fn main_node(maps: &str, numa_maps: &str, only: Option<u32>) -> Option<(u32, u64)> {
    let writable: BTreeMap<u64, u64> = maps.lines().filter_map(writable).collect();
    let least = (writable.values().max()? / GUESTS).max(1);
    let mut bytes = BTreeMap::<u32, u64>::new();
    for line in numa_maps.lines() {
        let mut words = line.split_whitespace();
        let Some(start) = words.next().and_then(|w| u64::from_str_radix(w, 16).ok()) else {
            continue;
        };
        let Some(&size) = writable.get(&start).filter(|size| **size >= least) else {
            continue;
        };
        let policy = words.next().and_then(named_node).or(only);
        let mut page = 4096;
        let mut pages = Vec::new();
        for (name, value) in words.filter_map(|word| word.split_once('=')) {
            if name == "kernelpagesize_kB" {
                page = value.parse().unwrap_or(4) * 1024;
            } else if let Some(node) = name.strip_prefix('N').and_then(|n| n.parse().ok()) {
                pages.push((node, value.parse().unwrap_or(0u64)));
            }
        }
        let mut unused = size;
        for (node, count) in pages {
            let here = count.saturating_mul(page);
            unused = unused.saturating_sub(here);
            *bytes.entry(node).or_default() += here;
        }
        if let Some(node) = policy {
            *bytes.entry(node).or_default() += unused;
        }
    }
    let all: u64 = bytes.values().sum();
    let (node, most) = bytes.into_iter().max_by_key(|(_, n)| *n)?;
    Some((
        node,
        (u128::from(most) * 100).checked_div(u128::from(all))? as u64,
    ))
}

/// Start and length of a mapping in `/proc/<pid>/maps`, if it may be written.
fn writable(line: &str) -> Option<(u64, u64)> {
    let mut words = line.split(' ');
    let (start, end) = words.next()?.split_once('-')?;
    let start = u64::from_str_radix(start, 16).ok()?;
    let size = u64::from_str_radix(end, 16).ok()?.checked_sub(start)?;
    words.next()?.starts_with("rw").then_some((start, size))
}

/// The node that a policy of numa_maps takes memory from, if it is one: `bind:1`, `prefer=static:0`.
fn named_node(policy: &str) -> Option<u32> {
    let (mode, nodes) = policy.split_once(':')?;
    let mode = mode.split('=').next()?;
    matches!(mode, "bind" | "prefer").then(|| nodes.parse().ok())?
}

/// The node that a process may have memory of, if it is one: its cpuset's, as libvirt's numatune
/// sets it.
fn only_node(status: &str) -> Option<u32> {
    let mut lines = status.lines();
    let nodes = lines.find_map(|line| line.strip_prefix("Mems_allowed_list:"))?;
    nodes.trim().parse().ok()
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
                "/proc/12/maps",
                "7f00-9f00 rw-p 00000000 00:00 0 [heap]\n\
                 20000000-20800000 rw-s 00000000 00:01 5 /memfd:ram (deleted)\n",
            )
            .file(
                "/proc/12/numa_maps",
                "7f00 default anon=9 N0=9 kernelpagesize_kB=4\n\
                 20000000 default anon=4 N0=1 N1=3 kernelpagesize_kB=2048\n",
            );
        let plan = plan(&fake.system(), &machine(), &Wish::Auto).unwrap();
        assert_eq!(plan.len(), 4);
        assert_eq!(plan[0].cpus.to_string(), "4-5");
        assert_eq!(
            plan[0].reason,
            "node 1 has 75 % of the memory; isolated CPUs are left out"
        );
    }

    #[test]
    fn programs_and_heaps_are_no_memory_of_the_guest() {
        let maps = "400000-900000 r-xp 00000000 00:01 5 /usr/bin/qemu\n\
                    a00000-b00000 rw-p 00000000 00:00 0 [heap]\n\
                    7f0000000000-7f0040000000 rw-p 00000000 00:00 0\n\
                    7f0050000000-7f0060000000 ---p 00000000 00:00 0\n";
        let numa_maps =
            "00400000 default file=/usr/bin/qemu mapped=1280 N0=1280 kernelpagesize_kB=4\n\
                         00a00000 default heap anon=256 N0=256 kernelpagesize_kB=4\n\
                         7f0000000000 default anon=3 dirty=3 N0=1 N1=2 kernelpagesize_kB=4\n";
        assert_eq!(main_node(maps, numa_maps, None), Some((1, 66)));
    }

    #[test]
    fn memory_that_is_not_in_use_counts_by_its_policy() {
        let maps = "10000000-20000000 rw-p 00000000 00:00 0\n";
        let node = |line: &str, only| main_node(maps, line, only).map(|(node, _)| node);
        for (line, only, wanted) in [
            ("10000000 default", None, None),
            ("10000000 bind:1", None, Some(1)),
            ("10000000 prefer=static:2 N0=5", None, Some(2)),
            ("10000000 bind:0-1", None, None),
            ("10000000 interleave:1", None, None),
            ("10000000 default N0=5 kernelpagesize_kB=4", None, Some(0)),
            (
                "10000000 default N0=5 kernelpagesize_kB=4",
                Some(3),
                Some(3),
            ),
            ("10000000 bind:1", Some(3), Some(1)),
            // All of it is there, elsewhere.
            (
                "10000000 bind:1 N0=128 kernelpagesize_kB=2048",
                None,
                Some(0),
            ),
        ] {
            assert_eq!(node(line, only), wanted, "{line}");
        }
        assert_eq!(only_node("Name:\tx\nMems_allowed_list:\t1\n"), Some(1));
        assert_eq!(only_node("Mems_allowed_list:\t0-1\n"), None);
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
