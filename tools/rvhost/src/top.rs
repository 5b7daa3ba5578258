// SPDX-License-Identifier: GPL-2.0

//! Rates, live.

use std::fmt::Write as _;
use std::io;
use std::io::IsTerminal;
use std::io::Write;
use std::mem::MaybeUninit;
use std::os::fd::AsRawFd;
use std::time::Duration;
use std::time::Instant;

use anyhow::Result;
use clap::ValueEnum;

use crate::json;
use crate::rates::counted;
use crate::rates::short;
use crate::rates::Rate;
use crate::rates::Rates;
use crate::system::Found;
use crate::system::System;

/// What queues are sorted by.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Sort {
    /// Virtual machine and queue.
    Name,
    /// Packets per second, most first.
    Packets,
    /// CPU time, most first.
    Cpu,
    /// Drops per second, most first.
    Drops,
}

/// How to look.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Options {
    pub(crate) delay: Duration,
    /// How often; for ever if `None`.
    pub(crate) count: Option<u64>,
    pub(crate) json: bool,
    pub(crate) sort: Sort,
}

/// Shows rates until it has done so often enough, or the user quits.
pub(crate) fn run(
    look: impl Fn() -> Result<Found>,
    system: &System,
    options: Options,
) -> Result<()> {
    let live = !options.json && io::stdout().is_terminal() && io::stdin().is_terminal();
    let screen = if live { Some(Screen::new()?) } else { None };
    let mut before = look()?;
    let mut at = Instant::now();
    let mut shown = 0;
    while options.count.is_none_or(|count| shown < count) {
        if let Some(screen) = &screen {
            if screen.wait(options.delay)? {
                break;
            }
        } else {
            std::thread::sleep(options.delay);
        }
        let now = look()?;
        let rates = Rates::between(&before, &now, at.elapsed().as_secs_f64());
        at = Instant::now();
        let text = if options.json {
            format!("{}\n", json::document(system, &now, Some(&rates)))
        } else {
            table(&now, &rates, options.sort)
        };
        match &screen {
            Some(screen) => screen.draw(&text)?,
            None => io::stdout().write_all(text.as_bytes())?,
        }
        before = now;
        shown += 1;
    }
    Ok(())
}

/// The rates as a table.
pub(crate) fn table(found: &Found, rates: &Rates, sort: Sort) -> String {
    let mut rows = Vec::new();
    for open in &found.open {
        for queue in &open.device.queues {
            if let Some(rate) = rates.of(open.device.number, &queue.name) {
                rows.push((open, queue, rate));
            }
        }
    }
    let key = |rate: &Rate| match sort {
        Sort::Name => 0.0,
        Sort::Packets => rate.packets,
        Sort::Cpu => rate.cpu,
        Sort::Drops => rate.drops,
    };
    rows.sort_by(|(a, _, x), (b, _, y)| {
        let by_value = key(y).total_cmp(&key(x));
        by_value.then_with(|| (&a.vm, a.device.number).cmp(&(&b.vm, b.device.number)))
    });
    let sum = rows.iter().fold(Rate::default(), |sum, (_, _, rate)| Rate {
        packets: sum.packets + rate.packets,
        bits: sum.bits + rate.bits,
        drops: sum.drops + rate.drops,
        cpu: sum.cpu + rate.cpu,
        ..sum
    });
    let mut out = format!(
        "rvhost: {}, {}; {} packets/s, {}bit/s, {} drops/s, {:.0} % CPU\n",
        counted(found.open.len() as u64, "device"),
        counted(rows.len() as u64, "queue"),
        short(sum.packets),
        short(sum.bits),
        short(sum.drops),
        sum.cpu,
    );
    let _ = writeln!(
        out,
        "{:<16} {:>4} {:<2} {:<12} {:>7} {:>5} {:>7} {:>7} {:>5} {:>7} {:>7} {:>7} {:>6} {:>6} {:>9}",
        "VM", "DEV", "Q", "NETDEV", "THREAD", "CPU%", "PKT/S", "BIT/S", "BATCH", "KICK/S", "CALL/S",
        "SLEEP/S", "DROP/S", "STARV", "FILL"
    );
    for (open, queue, rate) in rows {
        let thread = queue.thread.map_or("-".to_owned(), |id| id.to_string());
        let netdev = match (&queue.netdev, queue.running) {
            (Some(name), _) => name.as_str(),
            (None, true) => queue.backend.as_str(),
            (None, false) => "(stopped)",
        };
        let _ = writeln!(
            out,
            "{:<16.16} {:>4} {:<2} {:<12.12} {:>7} {:>5.1} {:>7} {:>7} {:>5.1} {:>7} {:>7} {:>7} {:>6} {:>6} {:>9}",
            open.vm,
            open.device.number,
            queue.name,
            netdev,
            thread,
            rate.cpu,
            short(rate.packets),
            short(rate.bits),
            rate.batch,
            short(rate.kicks),
            short(rate.calls),
            short(rate.sleeps),
            short(rate.drops),
            short(rate.starved),
            format!("{}/{}", queue.ring_fill, queue.ring_size),
        );
    }
    if found.hidden > 0 {
        let _ = writeln!(
            out,
            "(no permission to look into {} processes)",
            found.hidden
        );
    }
    out
}

/// The terminal, with keys read one by one; as it was when this is dropped.
struct Screen {
    before: libc::termios,
}

impl Screen {
    fn new() -> Result<Self> {
        let fd = io::stdin().as_raw_fd();
        let mut now = MaybeUninit::<libc::termios>::uninit();
        // SAFETY: There is room for the settings, which are used only if they were written.
        let before = unsafe {
            if libc::tcgetattr(fd, now.as_mut_ptr()) != 0 {
                return Err(io::Error::last_os_error().into());
            }
            now.assume_init()
        };
        let mut keys = before;
        keys.c_lflag &= !(libc::ICANON | libc::ECHO | libc::ISIG);
        // SAFETY: The settings are valid.
        unsafe { libc::tcsetattr(fd, libc::TCSANOW, &keys) };
        print!("\x1b[?1049h\x1b[?25l\x1b[H\x1b[Jlooking ...");
        io::stdout().flush()?;
        Ok(Self { before })
    }

    fn draw(&self, text: &str) -> Result<()> {
        let mut all = String::from("\x1b[H");
        for line in text.lines() {
            all.push_str(line);
            all.push_str("\x1b[K\r\n");
        }
        all.push_str("\x1b[Jq quits");
        let mut out = io::stdout();
        out.write_all(all.as_bytes())?;
        Ok(out.flush()?)
    }

    /// Waits for so long. Returns whether the user wants to quit.
    fn wait(&self, delay: Duration) -> Result<bool> {
        let end = Instant::now() + delay;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let mut entry = libc::pollfd {
                fd: 0,
                events: libc::POLLIN,
                revents: 0,
            };
            let millis = i32::try_from(left.as_millis()).unwrap_or(i32::MAX);
            // SAFETY: The entry is one, and valid.
            if unsafe { libc::poll(&mut entry, 1, millis) } <= 0 {
                return Ok(false);
            }
            let mut key = [0u8];
            // SAFETY: There is room for a byte.
            let n = unsafe { libc::read(0, key.as_mut_ptr().cast(), 1) };
            // q, Ctrl-C, or the terminal is gone.
            if n <= 0 || matches!(key[0], b'q' | b'Q' | 3) {
                return Ok(true);
            }
        }
    }
}

impl Drop for Screen {
    fn drop(&mut self) {
        print!("\x1b[?25h\x1b[?1049l");
        let _ = io::stdout().flush();
        // SAFETY: The settings were read from this terminal.
        unsafe { libc::tcsetattr(io::stdin().as_raw_fd(), libc::TCSANOW, &self.before) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fdinfo::Device;
    use crate::system::Open;

    const BUSY: &str = include_str!("../testdata/busy.fdinfo");

    #[test]
    fn table_has_a_row_per_queue_and_sorts() {
        let look = |more: u64| {
            let mut device = Device::parse(BUSY).unwrap();
            device.queues[1].counters[0] += 1000 * more;
            Found {
                open: vec![Open {
                    pid: 1,
                    fd: 2,
                    vm: "web".to_owned(),
                    device,
                }],
                ..Found::default()
            }
        };
        let now = look(1);
        let rates = Rates::between(&look(0), &now, 2.0);
        let text = table(&now, &rates, Sort::Packets);
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(lines.len(), 4);
        assert!(
            lines[0].contains("1 device, 2 queues; 500 packets/s"),
            "{text}"
        );
        assert!(
            lines[2].contains(" tx ") && lines[3].contains(" rx "),
            "{text}"
        );
        let width = lines[1].len();
        assert!(lines[1..].iter().all(|line| line.len() == width), "{text}");
    }
}
