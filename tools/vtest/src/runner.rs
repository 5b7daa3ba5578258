// SPDX-License-Identifier: GPL-2.0

//! Runs each case in a process of its own, with a time limit, and checks that
//! the kernel is as it was before: no message of trouble, no reference to the
//! module left.

use std::fs;
use std::fs::File;
use std::fs::OpenOptions;
use std::io::Read;
use std::io::Seek;
use std::io::SeekFrom;
use std::io::Write;
use std::os::fd::FromRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::panic;
use std::time::Duration;
use std::time::Instant;

use anyhow::Context;
use anyhow::Result;

use crate::case;
use crate::case::Case;
use crate::case::Ctx;
use crate::case::Skip;
use crate::net;
use crate::poll;

/// How a case ended.
#[derive(Clone, Debug)]
pub(crate) enum Verdict {
    /// As it should, and what the case noted.
    Passed(String),
    /// Not run, and why.
    Skipped(String),
    /// Not as it should, and what was seen.
    Failed(String),
}

/// A case's verdict and the time it took.
pub(crate) struct Finished {
    /// How it ended.
    pub(crate) verdict: Verdict,
    /// How long it took.
    pub(crate) time: Duration,
}

/// Runs one case in a child process.
pub(crate) fn run(case: &Case, ctx: &Ctx) -> Result<Finished> {
    let start = Instant::now();
    let log = KernelLog::open();
    let references = references(ctx);
    let mut verdict = in_child(case, ctx)?;
    if !matches!(verdict, Verdict::Failed(_)) {
        if let Err(error) = references_return_to(ctx, references) {
            verdict = Verdict::Failed(error.to_string());
        }
    }
    if let Some(trouble) = log.and_then(KernelLog::trouble) {
        let text = match verdict {
            Verdict::Failed(text) => format!("{text}\n"),
            _ => String::new(),
        };
        verdict = Verdict::Failed(format!("{text}the kernel reports:\n{trouble}"));
    }
    Ok(Finished {
        verdict,
        time: start.elapsed(),
    })
}

fn in_child(case: &Case, ctx: &Ctx) -> Result<Verdict> {
    let mut ends = [0; 2];
    // SAFETY: `ends` has room for the two descriptors.
    if unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) } != 0 {
        return Err(std::io::Error::last_os_error()).context("pipe");
    }
    // SAFETY: Both descriptors were just opened and belong to nobody else.
    let (mut reader, writer) = unsafe { (File::from_raw_fd(ends[0]), File::from_raw_fd(ends[1])) };
    // SAFETY: This process has a single thread, so the child may do anything.
    let child = unsafe { libc::fork() };
    if child < 0 {
        return Err(std::io::Error::last_os_error()).context("fork");
    }
    if child == 0 {
        drop(reader);
        child_main(case, ctx, writer);
    }
    drop(writer);
    // More rounds than usual may take longer than usual.
    let limit = case.limit * (ctx.cycles / 1000).max(1);
    let ended = poll::readable(&reader, limit)?;
    let mut stacks = String::new();
    if !ended {
        stacks = kernel_stacks(child);
        // SAFETY: Plain system call; the group is the one the child has made.
        unsafe { libc::kill(-child, libc::SIGKILL) };
    }
    let status = match reap(child) {
        Ok(status) => status,
        Err(error) => return Ok(Verdict::Failed(format!("{error:#}"))),
    };
    // Whatever the case has left running ends with it.
    // SAFETY: Plain system call.
    unsafe { libc::kill(-child, libc::SIGKILL) };
    if !ended {
        return Ok(Verdict::Failed(format!(
            "did not end within {limit:?} and was killed{stacks}"
        )));
    }
    let mut text = String::new();
    // A case may have left a process that keeps the pipe open: one read gets
    // what the case itself wrote.
    let mut buffer = vec![0; 1 << 16];
    let len = reader.read(&mut buffer).context("reading the verdict")?;
    text.push_str(&String::from_utf8_lossy(&buffer[..len]));
    Ok(match text.split_at_checked(1) {
        Some(("P", seen)) => Verdict::Passed(seen.to_owned()),
        Some(("S", reason)) => Verdict::Skipped(reason.to_owned()),
        Some(("F", reason)) => Verdict::Failed(reason.to_owned()),
        _ => Verdict::Failed(format!("ended without a verdict, wait status {status:#x}")),
    })
}

/// Where a process and the device's threads for it are in the kernel.
fn kernel_stacks(pid: libc::pid_t) -> String {
    let mut text = String::new();
    let prefix = format!("vhost-{pid}");
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let path = entry.path();
        let name = fs::read_to_string(path.join("comm")).unwrap_or_default();
        let own = path
            .file_name()
            .is_some_and(|name| *name == *pid.to_string());
        if !own && !name.starts_with(&prefix) {
            continue;
        }
        for task in fs::read_dir(path.join("task"))
            .into_iter()
            .flatten()
            .flatten()
        {
            let file = |name: &str| fs::read_to_string(task.path().join(name)).unwrap_or_default();
            let (name, stack) = (file("comm"), file("stack"));
            text.push_str(&format!("\n{}:\n{}", name.trim_end(), stack.trim_end()));
        }
    }
    text
}

/// Waits for the child; an unkillable one is reported, not waited for.
fn reap(child: libc::pid_t) -> Result<i32> {
    let mut status = 0;
    poll::wait_at_most(
        Duration::from_secs(20),
        &format!("process {child} to die (unkillable?)"),
        || {
            // SAFETY: `status` is a valid int.
            let pid = unsafe { libc::waitpid(child, &mut status, libc::WNOHANG) };
            Ok((pid == child).then_some(()))
        },
    )?;
    Ok(status)
}

fn child_main(case: &Case, ctx: &Ctx, mut writer: File) -> ! {
    // SAFETY: Plain system calls without pointers.
    unsafe {
        libc::setpgid(0, 0);
        libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL);
    }
    panic::set_hook(Box::new(|_| {}));
    let result = panic::catch_unwind(panic::AssertUnwindSafe(|| {
        net::own_namespace()?;
        case.run(ctx)
    }));
    let text = match result {
        Ok(Ok(())) => format!("P{}", case::take_seen()),
        Ok(Err(error)) => match error.downcast_ref::<Skip>() {
            Some(skip) => format!("S{skip}"),
            None => format!("F{error:#}"),
        },
        Err(panic) => {
            let message = panic
                .downcast_ref::<String>()
                .map(String::as_str)
                .or_else(|| panic.downcast_ref::<&str>().copied())
                .unwrap_or("no message");
            format!("Fpanic in the case: {message}")
        }
    };
    // The parent sees a missing verdict if this fails.
    let _ = writer.write_all(text.as_bytes());
    drop(writer);
    // SAFETY: Ends the process without running the parent's exit handlers.
    unsafe { libc::_exit(0) }
}

/// References to the module under test; none where the kernel does not say.
pub(crate) fn references(ctx: &Ctx) -> Option<u64> {
    let path = format!("/sys/module/{}/refcnt", ctx.module.kernel_name());
    fs::read_to_string(path).ok()?.trim().parse().ok()
}

fn references_return_to(ctx: &Ctx, before: Option<u64>) -> Result<()> {
    let Some(before) = before else { return Ok(()) };
    let what = format!("module references to return to {before}");
    poll::wait_for(&what, || Ok(references(ctx).filter(|now| *now <= before)))?;
    Ok(())
}

/// The kernel's messages from a point in time on.
pub(crate) struct KernelLog(File);

/// What the kernel prints when something is wrong with it.
const TROUBLE: [&str; 16] = [
    "WARNING:",
    "BUG:",
    "Oops",
    "general protection fault",
    "KASAN",
    "UBSAN",
    "kernel panic",
    "INFO: task",
    "INFO: rcu",
    "suspicious RCU usage",
    "soft lockup",
    "refcount_t:",
    "lock held when returning",
    "possible circular locking",
    "inconsistent lock state",
    "sleeping function called",
];

impl KernelLog {
    /// Starts listening; not possible everywhere.
    pub(crate) fn open() -> Option<Self> {
        let mut file = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open("/dev/kmsg")
            .ok()?;
        file.seek(SeekFrom::End(0)).ok()?;
        Some(Self(file))
    }

    /// The messages since then from the first that tells of trouble on.
    pub(crate) fn trouble(mut self) -> Option<String> {
        let mut lines = Vec::new();
        let mut record = vec![0; 8192];
        while let Ok(len) = self.0.read(&mut record) {
            let text = String::from_utf8_lossy(&record[..len]);
            let message = text.split_once(';').map_or("", |(_, message)| message);
            let message = message.lines().next().unwrap_or("").to_owned();
            let bad = TROUBLE.iter().any(|word| message.contains(word));
            if (bad || !lines.is_empty()) && lines.len() < 40 {
                lines.push(message);
            }
        }
        (!lines.is_empty()).then(|| lines.join("\n"))
    }
}
