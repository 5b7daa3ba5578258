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
        cgroup,
        handoff::Handoff,
        kthread,
        mm::OwnerMm,
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

/// How long a close waits for a thread that hangs in a page fault of its owner's memory.
const END_TIMEOUT_MS: u32 = 5000;

/// A thread that runs a queue whenever it is given one.
pub(crate) struct Worker {
    handoff: Arc<Handoff<Running>>,
}

/// How a thread's start went: an errno, or one of the two below.
#[pin_data]
struct Start {
    outcome: Atomic<i32>,
    #[pin]
    known: WaitQueue,
}

const STARTED: i32 = 0;
const STARTING: i32 = 1;

impl Worker {
    /// Starts a thread in the calling process's control groups, to work in its address space.
    pub(crate) fn spawn(direction: Direction, mm: &OwnerMm) -> Result<Self> {
        let bell = Arc::new(Bell::new(), GFP_KERNEL)?;
        let handoff = Arc::pin_init(Handoff::new(bell), GFP_KERNEL)?;
        let start = Arc::pin_init(
            pin_init!(Start {
                outcome: Atomic::new(STARTING),
                known <- WaitQueue::new(),
            }),
            GFP_KERNEL,
        )?;
        let name = CString::try_from_fmt(fmt!(
            "vhost-{}-{}",
            current!().pid(),
            match direction {
                Direction::Rx => "rx",
                Direction::Tx => "tx",
            }
        ))?;
        let body = {
            let (handoff, start) = (handoff.clone(), start.clone());
            let (mm, owner) = (mm.clone(), ARef::<Task>::from(&**current!()));
            move || {
                let outcome = match cgroup::join_all(&owner) {
                    Ok(()) => STARTED,
                    Err(e) => e.to_errno(),
                };
                drop(owner);
                start.outcome.store(outcome, Release);
                start.known.wake_all();
                drop(start);
                if outcome == STARTED {
                    serve(&handoff, &mm);
                }
                handoff.ended();
            }
        };
        // From here on the thread is ended by dropping the worker.
        let worker = Self { handoff };
        if let Err(e) = kthread::spawn(&name, worker.handoff.bell(), body) {
            worker.handoff.ended();
            return Err(e);
        }
        let outcome = start.known.wait_killable(|| {
            let outcome = start.outcome.load(Acquire);
            (outcome != STARTING).then_some(outcome)
        })?;
        if outcome != STARTED {
            return Err(Error::from_errno(outcome));
        }
        Ok(worker)
    }

    /// The place where the queue changes hands.
    pub(crate) fn handoff(&self) -> &Handoff<Running> {
        &self.handoff
    }

    /// Ends the thread. The queue, if the thread had it.
    pub(crate) fn end(&self) -> Option<Running> {
        self.handoff.end(
            msecs_to_jiffies(END_TIMEOUT_MS)
                .try_into()
                .unwrap_or(c_long::MAX),
        )
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        // Whoever wanted the queue took it by `end`.
        drop(self.end());
    }
}

/// The thread's body.
fn serve(handoff: &Handoff<Running>, mm: &OwnerMm) {
    mm.scope(|mut user| {
        while let Some(mut running) = handoff.receive() {
            running.work(&mut user, handoff);
            handoff.give_back(running);
        }
    });
}
