// SPDX-License-Identifier: GPL-2.0

//! What happens to a host that carries traffic: its memory comes late or in
//! other pages, its clock jumps, it is suspended, its bridges go.

use std::fs;
use std::path::Path;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;
use std::time::Instant;

use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;

use super::lifetime::beside;
use super::lifetime::busy;
use super::lifetime::interface_goes;
use super::lifetime::io;
use super::lifetime::more_packets;
use crate::case::skip;
use crate::case::Ctx;
use crate::case::Table;
use crate::errno::Errno;
use crate::frame::Rng;
use crate::late::Late;
use crate::mem::BOUNDARY;
use crate::mem::END;
use crate::mem::PAGE;
use crate::net;
use crate::process::Child;
use crate::traffic::Split;
use crate::vmm::Setup;
use crate::vmm::Vmm;

pub(super) fn register(table: &mut Table) {
    table.add("lifetime::guest_memory_in_huge_pages", huge);
    table.add_long(
        "lifetime::guest_memory_arrives_by_post_copy",
        Duration::from_secs(180),
        post_copy,
    );
    table.add("lifetime::host_memory_offlined_under_traffic", offline);
    table.add("lifetime::clock_jumps_under_traffic", clock);
    table.add("lifetime::processes_suspended_under_traffic", suspend);
    table.add("lifetime::bridge_deleted_under_traffic", bridge);
}

/// Packets of all sizes, some of them in many pieces.
fn exchange(vmm: &mut Vmm, packets: usize) -> Result<()> {
    for i in 0..packets {
        vmm.check_tx(60 + i * 29 % 1400, &Split::Every(500))?;
        let received = vmm.check_rx(60 + i * 31 % 1400)?;
        vmm.repost(&received)?;
    }
    Ok(())
}

/// A file of the kernel's that is put back as it was.
struct Setting {
    path: &'static str,
    old: String,
}

impl Setting {
    fn set(path: &'static str, value: &str) -> Result<Self> {
        let old = fs::read_to_string(path).context(path)?;
        let setting = Self { path, old };
        fs::write(path, value).with_context(|| format!("{path} = {value}"))?;
        Ok(setting)
    }
}

impl Drop for Setting {
    fn drop(&mut self) {
        let _ = fs::write(self.path, self.old.trim());
    }
}

/// Buffers for both directions lie in pages of 2 MiB, across their borders.
fn huge(ctx: &Ctx) -> Result<()> {
    const SIZE: u64 = 2 << 20;
    const COUNT: u64 = 6;
    const PATH: &str = "/proc/sys/vm/nr_hugepages";
    if !Path::new(PATH).exists() {
        return skip("the kernel has no hugetlb pages");
    }
    let _pages = Setting::set(PATH, &(2 * COUNT + 2).to_string())?;
    let there: u64 = fs::read_to_string(PATH)?.trim().parse()?;
    if there < 2 * COUNT {
        return skip("the host has no memory in one piece");
    }
    let mut vmm = Setup::new().build(ctx)?;
    // Where the next buffers come from.
    for start in [vmm.mem.tx_buffer(1)?, vmm.mem.rx_buffer(1)?] {
        let host = vmm.mem.host(start)? as u64;
        let at = host.next_multiple_of(SIZE) as *mut libc::c_void;
        // SAFETY: Replaces a part of our guest memory, which only accessors
        // that copy touch; it is far from the end of the region.
        let mapped = unsafe {
            libc::mmap(
                at,
                (COUNT * SIZE) as usize,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_FIXED | libc::MAP_HUGETLB,
                -1,
                0,
            )
        };
        ensure!(mapped == at, "mmap of huge pages: {}", Errno::last());
    }
    vmm.post_rx(100, &[2048])?;
    let free = || -> Result<u64> {
        let text = fs::read_to_string("/proc/meminfo")?;
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix("HugePages_Free:"));
        Ok(line.context("HugePages_Free")?.trim().parse()?)
    };
    let before = free()?;
    // Buffers apart, so that all pages have some.
    for _ in 0..40 {
        vmm.mem.rx_buffer(SIZE / 8)?;
        vmm.queue_rx(&[2048])?;
    }
    vmm.rx.flush()?;
    for _ in 0..40 {
        vmm.mem.tx_buffer(SIZE / 8)?;
        exchange(&mut vmm, 5)?;
    }
    let used = before - free()?;
    ensure!(used > COUNT, "only {used} huge pages were used");
    vmm.check_quiet()
}

/// As after a migration: nothing is there when the device starts, each page
/// comes when somebody asks for it, the rings' as well.
fn post_copy(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new().build(ctx)?;
    vmm.post_rx(200, &[2048])?;
    exchange(&mut vmm, 20)?;
    vmm.stop()?;
    let mut total = 0;
    for round in 0..3 {
        let kept = 4 << 20;
        let rings = vmm.mem.read(0, kept)?;
        let [low, high] = [vmm.mem.host(0)?, vmm.mem.host(BOUNDARY)?];
        let parts = [
            Late::pages(low, BOUNDARY)?,
            Late::pages(high, END - BOUNDARY)?,
        ];
        let bases = [low as u64, high as u64];
        let done = AtomicBool::new(false);
        let asked = AtomicU32::new(0);
        let us = std::process::id();
        let provide = |rng: &mut Rng, part: usize| -> Result<()> {
            let (base, late) = (bases[part], &parts[part]);
            let Some((page, thread)) = late.touched(Duration::from_millis(1))? else {
                return Ok(());
            };
            if thread != us {
                asked.fetch_add(1, Ordering::Relaxed);
            }
            // It comes over a network.
            thread::sleep(Duration::from_micros(rng.below(500)));
            let offset = (page - base) as usize;
            let bytes = match rings.get(offset..offset + PAGE as usize) {
                Some(bytes) if part == 0 => bytes,
                _ => &[],
            };
            match late.copy(page, bytes) {
                Ok(_) | Err(Errno(libc::EEXIST)) => Ok(()),
                Err(errno) => anyhow::bail!("UFFDIO_COPY: {errno}"),
            }
        };
        let result = thread::scope(|scope| {
            let source = scope.spawn(|| {
                let mut rng = Rng::new(ctx.seed + round);
                while !done.load(Ordering::Relaxed) {
                    for part in 0..parts.len() {
                        provide(&mut rng, part)?;
                    }
                }
                Ok::<_, anyhow::Error>(())
            });
            let result = vmm
                .start()
                .and_then(|()| exchange(&mut vmm, 250))
                .and_then(|()| vmm.stop());
            done.store(true, Ordering::Relaxed);
            match source.join() {
                Ok(ended) => result.and(ended),
                Err(_) => anyhow::bail!("the source panicked"),
            }
        });
        result.with_context(|| format!("round {round}"))?;
        total += asked.load(Ordering::Relaxed);
        // What is left of the rings; buffers may be zero.
        for (i, page) in rings.chunks(PAGE as usize).enumerate() {
            let _ = parts[0].copy(bases[0] + i as u64 * PAGE, page);
        }
        drop(parts);
    }
    println!("# pages the device waited for: {total}");
    ensure!(total > 20, "the device waited for {total} pages only");
    vmm.start()?;
    exchange(&mut vmm, 20)?;
    vmm.check_quiet()
}

/// The host's memory is taken away block by block: pages move.
fn offline(ctx: &Ctx) -> Result<()> {
    let Ok(blocks) = fs::read_dir("/sys/devices/system/memory") else {
        return skip("the kernel has no memory hotplug");
    };
    let mut blocks: Vec<_> = blocks
        .filter_map(|entry| Some(entry.ok()?.path().join("state")))
        .filter(|path| path.exists())
        .collect();
    blocks.sort();
    let mut vmm = Setup::new().build(ctx)?;
    vmm.post_rx(200, &[2048])?;
    let moved = AtomicU32::new(0);
    let done = AtomicBool::new(false);
    let result = thread::scope(|scope| {
        scope.spawn(|| {
            for block in blocks.iter().rev().take(8) {
                if done.load(Ordering::Relaxed) {
                    break;
                }
                if fs::write(block, "offline").is_ok() {
                    moved.fetch_add(1, Ordering::Relaxed);
                    let _ = fs::write(block, "online");
                }
                let _ = fs::write("/proc/sys/vm/compact_memory", "1");
            }
        });
        let start = Instant::now();
        let mut result = Ok(());
        while result.is_ok() && start.elapsed() < Duration::from_secs(4) {
            result = exchange(&mut vmm, 50);
        }
        done.store(true, Ordering::Relaxed);
        result
    });
    result?;
    vmm.check_quiet()?;
    let moved = moved.into_inner();
    println!("# memory blocks taken away and given back: {moved}");
    if moved == 0 {
        return skip("no block of memory can be taken away");
    }
    Ok(())
}

/// Puts the clock back to where it was, and what has passed meanwhile.
struct Clock {
    real: i64,
    since: Instant,
}

impl Clock {
    fn now() -> Result<i64> {
        let mut time = libc::timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        // SAFETY: There is room for the time.
        let rc = unsafe { libc::clock_gettime(libc::CLOCK_REALTIME, &mut time) };
        io("clock_gettime", rc.into())?;
        Ok(time.tv_sec)
    }

    fn set(seconds: i64) -> Result<()> {
        let time = libc::timespec {
            tv_sec: seconds,
            tv_nsec: 0,
        };
        // SAFETY: The time is valid.
        let rc = unsafe { libc::clock_settime(libc::CLOCK_REALTIME, &time) };
        io("clock_settime", rc.into())
    }
}

impl Drop for Clock {
    fn drop(&mut self) {
        let _ = Self::set(self.real + self.since.elapsed().as_secs() as i64);
    }
}

fn clock(ctx: &Ctx) -> Result<()> {
    const DAY: i64 = 86_400;
    let real = Clock::now()?;
    let clock = Clock {
        real,
        since: Instant::now(),
    };
    let mut vmm = Setup::new().build(ctx)?;
    vmm.post_rx(200, &[2048])?;
    let jumps = beside(
        |rng| {
            let days = rng.below(8000) as i64 - 4000;
            let _ = Clock::set(real + days * DAY);
            thread::sleep(Duration::from_millis(1));
        },
        ctx.seed,
        || exchange(&mut vmm, 300),
    );
    drop(clock);
    ensure!(jumps? > 10, "the clock has hardly jumped");
    let off = (Clock::now()? - real).abs();
    ensure!(off < 600, "the clock is off by {off} s afterwards");
    vmm.check_quiet()
}

/// All processes freeze as for a suspend, and thaw: one whose threads are its
/// own, beside a device that has kernel threads. Devices are not suspended.
fn suspend(ctx: &Ctx) -> Result<()> {
    const TEST: &str = "/sys/power/pm_test";
    const DELAY: &str = "/sys/module/suspend/parameters/pm_test_delay";
    if !Path::new(TEST).exists() {
        return skip("the kernel cannot try a suspend");
    }
    let mut vmm = Setup::new().tap_name("vt1").build(ctx)?;
    vmm.post_rx(50, &[2048])?;
    vmm.check_alive()?;
    let child = Child::spawn(|inside| busy(ctx, 1, inside))?;
    child.wait_ready()?;
    let test = fs::write(TEST, "freezer").context(TEST);
    let _delay = Setting::set(DELAY, "1");
    for _ in 0..2 {
        more_packets()?;
        // With this test it goes no further than to the processes.
        let ended = test
            .as_ref()
            .map_err(|error| anyhow::anyhow!("{error:#}"))
            .and_then(|()| fs::write("/sys/power/state", "freeze").context("suspending"));
        if ended.is_err() {
            let _ = fs::write(TEST, "none");
        }
        ended?;
        more_packets()?;
        exchange(&mut vmm, 20)?;
    }
    fs::write(TEST, "none").context(TEST)?;
    child.kill()?;
    interface_goes()?;
    vmm.check_quiet()
}

/// The TAP is a port of a bridge that comes and goes.
fn bridge(ctx: &Ctx) -> Result<()> {
    if net::add_bridge("vb0").is_err() {
        return skip("the kernel has no bridge");
    }
    net::delete("vb0")?;
    let child = Child::spawn(|inside| busy(ctx, 0, inside))?;
    child.wait_ready()?;
    for _ in 0..10 {
        net::add_bridge("vb0")?;
        net::enslave("vt0", "vb0")?;
        more_packets()?;
        net::delete("vb0")?;
        more_packets()?;
    }
    child.kill()?;
    interface_goes()
}
