// SPDX-License-Identifier: GPL-2.0

//! The device's threads, as /proc shows them.

use std::fs;
use std::thread;
use std::time::Duration;

use anyhow::bail;
use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;

/// The threads that work for this process's devices.
pub(crate) struct Threads(Vec<libc::pid_t>);

impl Threads {
    /// Finds them by their names: threads of the kernel or of this process.
    pub(crate) fn find() -> Result<Self> {
        let pid = std::process::id();
        let prefix = format!("vhost-{pid}");
        let mut found = Vec::new();
        let own = format!("/proc/{pid}/task");
        for folder in ["/proc", own.as_str()] {
            for entry in fs::read_dir(folder)? {
                let Ok(tid) = entry?.file_name().to_string_lossy().parse() else {
                    continue;
                };
                // Others' processes may end meanwhile.
                let name = fs::read_to_string(format!("/proc/{tid}/comm")).unwrap_or_default();
                let rest = name.trim_end().strip_prefix(&prefix);
                if rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('-')) {
                    found.push(tid);
                }
            }
        }
        ensure!(!found.is_empty(), "no thread is called {prefix}");
        Ok(Self(found))
    }

    /// How many there are.
    pub(crate) fn count(&self) -> usize {
        self.0.len()
    }

    /// Confines them to one CPU.
    pub(crate) fn pin(&self, cpu: usize) -> Result<()> {
        self.0.iter().try_for_each(|tid| pin(*tid, cpu))
    }

    fn sum(&self, file: &str, value: impl Fn(&str) -> Option<u64>) -> Result<u64> {
        let mut sum = 0;
        for tid in &self.0 {
            let path = format!("/proc/{tid}/{file}");
            let text = fs::read_to_string(&path).context(path.clone())?;
            sum += value(&text).with_context(|| format!("{path}: {text}"))?;
        }
        Ok(sum)
    }

    /// Nanoseconds of CPU that they have used, once they are asleep.
    pub(crate) fn cpu_ns(&self) -> Result<u64> {
        let read = || self.sum("schedstat", |text| text.split(' ').next()?.parse().ok());
        let mut before = read()?;
        for _ in 0..1000 {
            thread::sleep(Duration::from_millis(2));
            let now = read()?;
            if now == before {
                return Ok(now);
            }
            before = now;
        }
        bail!("the device's threads do not come to rest")
    }

    /// How often they were put on a CPU.
    pub(crate) fn switches(&self) -> Result<u64> {
        self.sum("schedstat", |text| {
            text.trim().split(' ').nth(2)?.parse().ok()
        })
    }
}

/// Confines a thread to one CPU; 0 is the caller.
pub(crate) fn pin(tid: libc::pid_t, cpu: usize) -> Result<()> {
    // SAFETY: cpu_set_t is plain data for which all zeroes are valid.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: `set` is valid; CPU_SET checks the number.
    unsafe { libc::CPU_SET(cpu, &mut set) };
    // SAFETY: `set` is valid for the length given.
    let rc = unsafe { libc::sched_setaffinity(tid, size_of::<libc::cpu_set_t>(), &set) };
    if rc != 0 {
        return Err(std::io::Error::last_os_error())
            .with_context(|| format!("confining thread {tid} to CPU {cpu}"));
    }
    Ok(())
}
