// SPDX-License-Identifier: GPL-2.0
//! The thread of one virtqueue.

use kernel::{
    current,
    prelude::*,
    str::CString,
    sync::{
        aref::ARef,
        atomic::{
            Acquire,
            Atomic,
            Release, //
        },
        Arc,
    },
    task::Task,
    time::msecs_to_jiffies, //
};

use crate::{
    kext::{
        affinity, cgroup,
        handoff::Handoff,
        kthread,
        mm::OwnerMm,
        sched,
        task::{
            Body,
            ProcessThread,
            Turn, //
        },
        usermem::UserMem,
        wait::{
            Bell,
            WaitQueue, //
        },
    },
    virtqueue::{
        Direction,
        Running, //
    },
};

/// How long after it was told to end a thread is waited for that hangs in a page fault of its owner's
/// memory; and by a process that is being killed, or ends.
const END_TIMEOUT_NS: u64 = 5_000_000_000;
const DYING_TIMEOUT_NS: u64 = 500_000_000;

/// A thread that runs a queue whenever it is given one.
pub(crate) struct Worker {
    handoff: Arc<Handoff<Running>>,
    /// The thread, if it is the owner's; a kernel thread ends by itself.
    thread: Option<ProcessThread<Serve>>,
}

/// Whose thread it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// The kernel's, in the owner's control groups.
    Kernel,
    /// The owner's.
    Process,
}

/// What a thread needs to serve.
struct Serve {
    handoff: Arc<Handoff<Running>>,
    mm: OwnerMm,
    direction: Direction,
    /// Whether the thread has taken its place.
    placed: bool,
}

/// How a kernel thread's start went: an errno, or one of the two below.
#[pin_data]
struct Start {
    outcome: Atomic<i32>,
    #[pin]
    known: WaitQueue,
}

const STARTED: i32 = 0;
const STARTING: i32 = 1;

impl Worker {
    /// Starts a thread, for the calling process, to work in its address space.
    pub(crate) fn spawn(kind: Kind, direction: Direction, mm: &OwnerMm) -> Result<Self> {
        let bell = Arc::new(Bell::new(), GFP_KERNEL)?;
        let handoff = Arc::pin_init(Handoff::new(bell), GFP_KERNEL)?;
        let name = CString::try_from_fmt(fmt!(
            "vhost-{}-{}",
            current!().pid(),
            match direction {
                Direction::Rx => "rx",
                Direction::Tx => "tx",
            }
        ))?;
        let serve = Serve {
            handoff: handoff.clone(),
            mm: mm.clone(),
            direction,
            placed: false,
        };
        // From here on the thread is ended by dropping the worker.
        let mut worker = Self {
            handoff,
            thread: None,
        };
        let started = match kind {
            Kind::Kernel => serve.spawn_kernel(&name),
            Kind::Process => {
                let bell = serve.handoff.bell().clone();
                ProcessThread::spawn(&name, bell, serve).map(|thread| worker.thread = Some(thread))
            }
        };
        if started.is_err() {
            worker.handoff.ended();
        }
        started.map(|()| worker)
    }

    /// The place where the queue changes hands.
    pub(crate) fn handoff(&self) -> &Handoff<Running> {
        &self.handoff
    }

    /// Tells the thread to end, without waiting for it.
    pub(crate) fn tell_to_end(&self) {
        self.handoff.tell_to_end();
    }

    /// Ends the thread. The queue, if the thread had it.
    pub(crate) fn end(&self) -> Option<Running> {
        let timeout = match sched::is_dying() {
            true => DYING_TIMEOUT_NS,
            false => END_TIMEOUT_NS,
        };
        let until = self.handoff.tell_to_end().saturating_add(timeout);
        let left = until.saturating_sub(sched::clock()) / 1_000_000;
        let jiffies = msecs_to_jiffies(left.try_into().unwrap_or(0));
        self.handoff.end(jiffies.try_into().unwrap_or(c_long::MAX))
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // Whoever wanted the queue took it by `end`.
        drop(self.end());
        if self.handoff.has_ended() {
            return;
        }
        // A stopped process may let its thread end much later, if at all.
        if let Some(thread) = self.thread.take() {
            let (handoff, nobody) = (self.handoff.clone(), Bell::new());
            let waited = kthread::spawn(c"vhost-reaper", &nobody, move || {
                handoff.wait_ended();
                drop(thread);
            });
            if waited.is_err() {
                pr_warn!("no memory to wait elsewhere: the close waited for a stopped process\n");
            }
        }
    }
}

impl Serve {
    /// Starts a kernel thread in the control groups of the calling process.
    fn spawn_kernel(self, name: &CStr) -> Result {
        let handoff = self.handoff.clone();
        let start = Arc::pin_init(
            pin_init!(Start {
                outcome: Atomic::new(STARTING),
                known <- WaitQueue::new(),
            }),
            GFP_KERNEL,
        )?;
        let theirs = start.clone();
        let owner = ARef::<Task>::from(&**current!());
        kthread::spawn(name, handoff.bell(), move || {
            let outcome = match cgroup::join_all(&owner) {
                Ok(()) => STARTED,
                Err(e) => e.to_errno(),
            };
            affinity::inherit(&owner);
            affinity::apply(self.direction.index());
            drop(owner);
            theirs.outcome.store(outcome, Release);
            theirs.known.wake_all();
            drop(theirs);
            if outcome == STARTED {
                let handoff = &self.handoff;
                self.mm
                    .scope(|mut user| while turn(handoff, &mut user) == Turn::Again {});
            }
            self.handoff.ended();
        })?;
        let outcome = start.known.wait_killable(|| {
            let outcome = start.outcome.load(Acquire);
            (outcome != STARTING).then_some(outcome)
        })?;
        if outcome != STARTED {
            return Err(Error::from_errno(outcome));
        }
        Ok(())
    }
}

impl Body for Serve {
    fn turn(&mut self) -> Turn {
        if !core::mem::replace(&mut self.placed, true) {
            // It has the owner's CPUs, as all its threads.
            affinity::apply(self.direction.index());
        }
        let turn = match self.mm.as_current() {
            Some(mut user) => turn(&self.handoff, &mut user),
            None => Turn::Ended,
        };
        if turn == Turn::Ended {
            self.handoff.ended();
        }
        turn
    }

    fn killed(&mut self) {
        self.handoff.ended();
    }
}

/// Works, once, when there is something to work with.
fn turn(handoff: &Handoff<Running>, user: &mut UserMem<'_>) -> Turn {
    match handoff.receive() {
        Some(mut running) => {
            running.work(user, handoff);
            handoff.give_back(running);
        }
        None if handoff.is_ending() => return Turn::Ended,
        None => {}
    }
    Turn::Again
}
