// SPDX-License-Identifier: GPL-2.0

//! Child processes that take a part in a case.

use std::fs::File;
use std::io::Read;
use std::io::Write;
use std::os::fd::FromRawFd;
use std::time::Duration;

use anyhow::bail;
use anyhow::Context;
use anyhow::Result;

use crate::poll;
use crate::traffic::expect;

/// Lets this process have `count` files open.
pub(crate) fn raise_file_limit(count: u64) -> Result<()> {
    let limit = libc::rlimit {
        rlim_cur: count,
        rlim_max: count,
    };
    // SAFETY: The limit is valid while the call reads it.
    let rc = unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) };
    expect("setrlimit(RLIMIT_NOFILE)", rc, 0)
}

/// The child's side: how it tells its parent something and waits for it.
pub(crate) struct Inside {
    to_parent: File,
    from_parent: File,
}

impl Inside {
    /// Tells the parent to go on.
    pub(crate) fn ready(&self) -> Result<()> {
        (&self.to_parent)
            .write_all(b"R")
            .context("telling the parent")
    }

    /// Waits until the parent is done.
    pub(crate) fn wait(&self) -> Result<()> {
        let mut byte = [0];
        (&self.from_parent)
            .read(&mut byte)
            .context("waiting for the parent")?;
        Ok(())
    }
}

/// A child process of a case.
pub(crate) struct Child {
    pid: libc::pid_t,
    from_child: File,
    to_child: Option<File>,
    reaped: bool,
}

/// A pipe: the end to read from, and the end to write to.
pub(crate) fn pipe() -> Result<(File, File)> {
    let mut ends = [0; 2];
    // SAFETY: `ends` has room for the two descriptors.
    if unsafe { libc::pipe2(ends.as_mut_ptr(), libc::O_CLOEXEC) } != 0 {
        return Err(std::io::Error::last_os_error()).context("pipe");
    }
    // SAFETY: Both descriptors were just opened and belong to nobody else.
    Ok(unsafe { (File::from_raw_fd(ends[0]), File::from_raw_fd(ends[1])) })
}

impl Child {
    /// Runs `body` in a child process.
    pub(crate) fn spawn(body: impl FnOnce(&Inside) -> Result<()>) -> Result<Self> {
        let (from_child, to_parent) = pipe()?;
        let (from_parent, to_child) = pipe()?;
        // SAFETY: Cases fork only while they have a single thread.
        let pid = unsafe { libc::fork() };
        if pid < 0 {
            return Err(std::io::Error::last_os_error()).context("fork");
        }
        if pid == 0 {
            drop((from_child, to_child));
            // SAFETY: Plain system call without pointers.
            unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
            let inside = Inside {
                to_parent,
                from_parent,
            };
            let text = match body(&inside) {
                Ok(()) => "P".to_owned(),
                Err(error) => format!("F{error:#}"),
            };
            // The parent sees a missing verdict if this fails.
            let _ = (&inside.to_parent).write_all(text.as_bytes());
            // SAFETY: Ends the process without running the parent's exit handlers.
            unsafe { libc::_exit(0) }
        }
        Ok(Self {
            pid,
            from_child,
            to_child: Some(to_child),
            reaped: false,
        })
    }

    /// Waits until the child says that it is ready.
    pub(crate) fn wait_ready(&self) -> Result<()> {
        let mut byte = [0];
        if !poll::readable(&self.from_child, poll::PATIENCE)? {
            bail!("the child does not get ready");
        }
        (&self.from_child)
            .read(&mut byte)
            .context("waiting for the child")?;
        if byte != *b"R" {
            let mut text = String::new();
            let _ = (&self.from_child).read_to_string(&mut text);
            bail!("the child failed: {text}");
        }
        Ok(())
    }

    /// Lets the child end and takes its result.
    pub(crate) fn finish(self) -> Result<()> {
        self.finish_within(poll::PATIENCE)
    }

    /// As [`Self::finish`] with a limit of the caller's.
    pub(crate) fn finish_within(mut self, limit: Duration) -> Result<()> {
        self.to_child = None;
        let mut text = String::new();
        if !poll::readable(&self.from_child, limit)? {
            bail!("the child does not end");
        }
        self.from_child
            .read_to_string(&mut text)
            .context("reading the child's result")?;
        self.reap()?;
        match text.split_at_checked(1) {
            Some(("P", _)) => Ok(()),
            Some(("F", reason)) => bail!("in the child: {reason}"),
            _ => bail!("the child ended without a result"),
        }
    }

    /// Kills the child as `kill -9` does and waits until it is gone.
    pub(crate) fn kill(mut self) -> Result<()> {
        // SAFETY: Plain system call; the child is not reaped yet.
        unsafe { libc::kill(self.pid, libc::SIGKILL) };
        self.reap()
    }

    /// Its process id.
    pub(crate) fn pid(&self) -> libc::pid_t {
        self.pid
    }

    /// Waits until the child has ended, however it did; returns its wait status.
    pub(crate) fn wait_end(mut self, limit: Duration) -> Result<libc::c_int> {
        let (pid, mut status) = (self.pid, 0);
        poll::wait_at_most(limit, &format!("process {pid} to end"), || {
            // SAFETY: `status` is a valid int.
            let reaped = unsafe { libc::waitpid(pid, &mut status, libc::WNOHANG) };
            Ok((reaped == pid).then_some(()))
        })?;
        self.reaped = true;
        Ok(status)
    }

    /// Sends the child a signal.
    pub(crate) fn signal(&self, signal: libc::c_int) -> Result<()> {
        // SAFETY: Plain system call; the child is not reaped yet.
        if unsafe { libc::kill(self.pid, signal) } != 0 {
            return Err(std::io::Error::last_os_error()).context("kill");
        }
        Ok(())
    }

    /// Waits until the child is in a state as /proc names it.
    pub(crate) fn wait_state(&self, state: char) -> Result<()> {
        let path = format!("/proc/{}/stat", self.pid);
        poll::wait_for(&format!("the child to be in state {state}"), || {
            let stat = std::fs::read_to_string(&path).context("the child is gone")?;
            let after_name = stat.rsplit(')').next().unwrap_or("");
            Ok(after_name.trim_start().starts_with(state).then_some(()))
        })
    }

    /// Waits until the child's control group is found frozen by it.
    pub(crate) fn wait_frozen(&self) -> Result<()> {
        let path = format!("/proc/{}/wchan", self.pid);
        poll::wait_for("the child to freeze", || {
            let place = std::fs::read_to_string(&path).context("the child is gone")?;
            // The freezer's trap, by its own name or by who inlined it.
            let frozen = place.contains("freezer") || place.contains("get_signal");
            Ok(frozen.then_some(()))
        })
    }

    fn reap(&mut self) -> Result<()> {
        let pid = self.pid;
        poll::wait_for(&format!("process {pid} to die"), || {
            // SAFETY: A null status pointer is allowed.
            let reaped = unsafe { libc::waitpid(pid, std::ptr::null_mut(), libc::WNOHANG) };
            Ok((reaped == pid).then_some(()))
        })?;
        self.reaped = true;
        Ok(())
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if !self.reaped {
            // SAFETY: Plain system call; the child is not reaped yet.
            unsafe { libc::kill(self.pid, libc::SIGKILL) };
            // A child that does not die is found by the runner.
            let _ = self.reap();
        }
    }
}

/// Becomes a program that ends at once; returns only if that fails.
pub(crate) fn execute_another() -> Result<()> {
    let program = c"/bin/true";
    let arguments = [program.as_ptr(), std::ptr::null()];
    // SAFETY: The arguments are valid C strings, the array ends with null.
    unsafe { libc::execv(program.as_ptr(), arguments.as_ptr()) };
    Err(std::io::Error::last_os_error()).context("execv")
}

/// Runs `body`, which may take so long, in a child process and returns its result.
pub(crate) fn in_child_for(limit: Duration, body: impl FnOnce() -> Result<()>) -> Result<()> {
    Child::spawn(|_| body())?.finish_within(limit)
}

/// Runs `body` in a child process and returns its result.
pub(crate) fn in_child(body: impl FnOnce() -> Result<()>) -> Result<()> {
    Child::spawn(|_| body())?.finish()
}
