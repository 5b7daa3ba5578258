// SPDX-License-Identifier: GPL-2.0

//! Drops and errors, as they happen.

use std::collections::BTreeMap;
use std::io;
use std::io::Write;
use std::time::Duration;

use anyhow::Result;
use serde_json::json;

use crate::rates::counted;
use crate::system::Found;

/// What was dropped or refused between two looks: where, `drop` or `error`, the reason, how many.
type Event = (String, u64, String, &'static str, String, u64);

/// Looks again and again, and tells of each reason that occurred meanwhile.
pub(crate) fn run(
    look: impl Fn() -> Result<Found>,
    delay: Duration,
    count: Option<u64>,
    json: bool,
) -> Result<()> {
    let mut before = look()?;
    let mut looks = 0;
    let mut out = io::stdout();
    while count.is_none_or(|count| looks < count) {
        std::thread::sleep(delay);
        let now = look()?;
        for (vm, device, queue, kind, reason, n) in events(&before, &now) {
            if json {
                let event = json!({
                    "vm": vm, "device": device, "queue": queue, "kind": kind, "reason": reason, "count": n,
                });
                writeln!(out, "{event}")?;
            } else {
                writeln!(
                    out,
                    "{vm}/{device}/{queue}: {} ({reason})",
                    counted(n, kind)
                )?;
            }
        }
        out.flush()?;
        before = now;
        looks += 1;
    }
    Ok(())
}

fn events(before: &Found, now: &Found) -> Vec<Event> {
    let mut events = Vec::new();
    let none = BTreeMap::new();
    for open in &now.open {
        let number = open.device.number;
        let old = before.open.iter().find(|old| old.device.number == number);
        for queue in &open.device.queues {
            let old =
                old.and_then(|old| old.device.queues.iter().find(|old| old.name == queue.name));
            for (kind, new, old) in [
                ("drop", &queue.drops, old.map(|old| &old.drops)),
                ("error", &queue.errors, old.map(|old| &old.errors)),
            ] {
                let old = old.map_or(&none, |old| &old.by_reason);
                for (reason, n) in &new.by_reason {
                    let n = n.saturating_sub(old.get(reason).copied().unwrap_or(0));
                    if n > 0 {
                        let (vm, queue) = (open.vm.clone(), queue.name.clone());
                        events.push((vm, number, queue, kind, reason.clone(), n));
                    }
                }
            }
        }
    }
    events
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fdinfo::Device;
    use crate::system::Open;

    #[test]
    fn growth_is_told_by_reason() {
        let look = |short: u64| {
            Found {
            open: vec![Open {
                pid: 1,
                fd: 2,
                vm: "web".to_owned(),
                device: Device::parse(&format!(
                    "rvhost:\t1\ndevice:\t3\ntx-drops:\t{short}\ntx-drops-short:\t{short}\ntx-errors-empty:\t2\n"
                ))
                .unwrap(),
            }],
            ..Found::default()
        }
        };
        let seen = events(&look(5), &look(8));
        let wanted = (
            "web".to_owned(),
            3,
            "tx".to_owned(),
            "drop",
            "short".to_owned(),
            3,
        );
        assert_eq!(seen, [wanted]);
        assert!(events(&look(8), &look(5)).is_empty());
    }
}
