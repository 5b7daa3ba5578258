// SPDX-License-Identifier: GPL-2.0
//! A queue with its thread, as the control plane sees it.

use kernel::{
    prelude::*,
    sync::Arc, //
};

use crate::{
    backend::Endpoint,
    kext::{
        mm::OwnerMm,
        netdev::NetDev,
        port::{
            outlet::Outlet,
            Port,
            Wanted, //
        },
        sched,
        trace,
        usermem::UserMem,
        wait::Bell, //
    },
    steering::Seat,
    virtqueue::{
        Direction,
        Running,
        Virtqueue,
        BACKEND, //
    },
    worker::Worker,
};

/// A queue with its thread.
pub(crate) struct Queue {
    direction: Direction,
    state: State,
    worker: Worker,
    /// What it sits on of a port, if it does.
    seat: Option<Seat>,
}

/// Where the virtqueue is.
enum State {
    /// Here, without a backend.
    Stopped(KBox<Virtqueue>),
    /// With its thread.
    Running,
    /// Nowhere: its owner gave the device up, or a call has it at this moment.
    Gone,
}

/// A virtqueue in the hands of a call.
enum Held {
    /// It has no backend.
    Stopped(KBox<Virtqueue>),
    /// Its thread has laid it down.
    Running(Running),
}

impl Held {
    fn vq(&mut self) -> &mut Virtqueue {
        match self {
            Self::Stopped(vq) => vq,
            Self::Running(running) => &mut running.vq,
        }
    }

    /// Whether it runs on the endpoint that is wanted.
    fn is_on(&self, wanted: Option<&Endpoint>) -> bool {
        match (self, wanted) {
            (Self::Running(running), Some(endpoint)) => running.is_on(endpoint),
            _ => false,
        }
    }

    /// See [`Running::drain`].
    fn drain(&mut self, user: &mut UserMem<'_>) -> Result {
        match self {
            Self::Stopped(_) => Ok(()),
            Self::Running(running) => running.drain(user),
        }
    }
}

/// Ends the threads of queues, both at once, and gives up their virtqueues.
pub(crate) fn end_all(queues: [&mut Queue; 2]) {
    for queue in &queues {
        queue.worker.tell_to_end();
    }
    for queue in queues {
        queue.end();
    }
}

impl Queue {
    pub(crate) fn new(direction: Direction, vq: KBox<Virtqueue>, worker: Worker) -> Self {
        Self {
            direction,
            state: State::Stopped(vq),
            worker,
            seat: None,
        }
    }

    /// Its thread's bell.
    pub(crate) fn bell(&self) -> Arc<Bell> {
        self.worker.handoff().bell().clone()
    }

    /// What it sits on of a port.
    pub(crate) fn seat(&self) -> Option<&Seat> {
        self.seat.as_ref()
    }

    /// Whether it runs.
    pub(crate) fn has_backend(&self) -> bool {
        matches!(self.state, State::Running)
    }

    /// Does `f` with the virtqueue, which its thread lays down for that.
    pub(crate) fn with<R>(&mut self, f: impl FnOnce(&mut Virtqueue) -> R) -> Result<R> {
        let mut held = self.take()?;
        let result = f(held.vq());
        self.put_back(held);
        Ok(result)
    }

    /// The virtqueue, if it has no backend; else `EBUSY`.
    pub(crate) fn stopped(&mut self) -> Result<&mut Virtqueue> {
        match &mut self.state {
            State::Stopped(vq) => Ok(vq),
            State::Running => Err(EBUSY),
            State::Gone => Err(EPERM),
        }
    }

    /// Ends the thread and gives up the virtqueue.
    fn end(&mut self) {
        if let Some(running) = self.worker.end() {
            drop(running.stop());
        }
        self.seat = None;
        self.state = State::Gone;
    }

    /// A place for it on `dev`, to receive from or to transmit by.
    pub(crate) fn on_device(
        &self,
        mm: &OwnerMm,
        dev: &Arc<NetDev>,
        wanted: &Wanted,
    ) -> Result<Endpoint> {
        let (dev, bell) = (dev.clone(), self.bell());
        Ok(match self.direction {
            Direction::Rx => Endpoint::Inlet(Port::bind(dev, wanted, mm.number(), bell, BACKEND)?),
            Direction::Tx => Endpoint::Outlet(Outlet::new(dev, wanted.sndbuf, bell, BACKEND)?),
        })
    }

    /// If `given` is a packet socket, a place on the device that it is bound to.
    pub(crate) fn or_its_device(
        &self,
        mm: &OwnerMm,
        given: Endpoint,
        wanted: &Wanted,
    ) -> Result<Endpoint> {
        match given {
            Endpoint::Packet(socket) => self.on_device(mm, &NetDev::of_socket(&socket)?, wanted),
            other => Ok(other),
        }
    }

    /// Runs the virtqueue on what `choose` says, or stops it. `choose` is asked only if the ring lies
    /// where user memory may be; else `EFAULT`.
    pub(crate) fn set_backend(
        &mut self,
        mm: &OwnerMm,
        choose: impl FnOnce(&Self) -> Result<Option<Endpoint>>,
    ) -> Result {
        let mut user = mm.as_current().ok_or(EPERM)?;
        let mut held = self.take()?;
        let chosen = match held.vq().access_ok() {
            true => choose(self),
            false => Err(EFAULT),
        };
        let outcome = chosen.and_then(|endpoint| match held.is_on(endpoint.as_ref()) {
            true => Ok(None),
            false => held.drain(&mut user).map(|()| Some(endpoint)),
        });
        match outcome {
            Ok(Some(endpoint)) => self.replace(&mut user, held, endpoint),
            Ok(None) => {
                self.put_back(held);
                Ok(())
            }
            Err(e) => {
                self.put_back(held);
                Err(e)
            }
        }
    }

    /// Stops the virtqueue, and runs it on `endpoint` if there is one. It stays as it is if that
    /// fails.
    fn replace(
        &mut self,
        user: &mut UserMem<'_>,
        held: Held,
        endpoint: Option<Endpoint>,
    ) -> Result {
        let (mut vq, old) = match held {
            Held::Stopped(vq) => (vq, None),
            Held::Running(running) => {
                let (vq, old) = running.stop();
                (vq, Some(old))
            }
        };
        let Some(endpoint) = endpoint else {
            self.state = State::Stopped(vq);
            self.seat = None;
            return Ok(());
        };
        let receives = self.direction == Direction::Rx;
        let prepared = endpoint
            .join(receives, vq.ring.header.hash)
            .and_then(|seat| Ok((vq.prepare(user, endpoint)?, seat)));
        match (prepared, old) {
            (Ok((new, seat)), _) => {
                self.seat = seat;
                self.resume(vq.run_on(new));
                Ok(())
            }
            (Err(e), Some(old)) => {
                self.resume(vq.run_on(old));
                Err(e)
            }
            (Err(e), None) => {
                self.state = State::Stopped(vq);
                Err(e)
            }
        }
    }

    /// Takes the virtqueue, from its thread if that has it.
    fn take(&mut self) -> Result<Held> {
        match core::mem::replace(&mut self.state, State::Gone) {
            State::Stopped(vq) => Ok(Held::Stopped(vq)),
            State::Running => {
                let parked = self.park();
                if parked.is_err() {
                    self.state = State::Running;
                }
                parked.map(Held::Running)
            }
            State::Gone => Err(EPERM),
        }
    }

    fn put_back(&mut self, held: Held) {
        match held {
            Held::Stopped(vq) => self.state = State::Stopped(vq),
            Held::Running(running) => self.resume(running),
        }
    }

    /// Takes the virtqueue from its thread.
    fn park(&self) -> Result<Running> {
        let asked = sched::clock();
        let running = self.worker.handoff().take()?;
        let ring = &running.vq.ring;
        let waited = sched::clock().saturating_sub(asked);
        trace::park(ring.dev, ring.index, waited);
        Ok(running)
    }

    fn resume(&mut self, running: Running) {
        let ring = &running.vq.ring;
        trace::resume(ring.dev, ring.index);
        self.state = match self.worker.handoff().give(running) {
            Ok(()) => State::Running,
            Err(running) => State::Stopped(running.stop().0),
        };
    }
}
