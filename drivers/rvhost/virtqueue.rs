// SPDX-License-Identifier: GPL-2.0
//! A virtqueue: stopped, it is the control plane's; running, it is its thread's.

use kernel::{
    current,
    prelude::*,
    sync::Arc, //
};

use crate::{
    backend::{
        Backend,
        Endpoint, //
    },
    guest::Memory,
    iotlb::{
        Iotlb,
        Presence, //
    },
    kext::{
        file::FileRef,
        handoff::{
            events,
            Handoff, //
        },
        log,
        poll::{
            ready,
            PollHook, //
        },
        sched, trace,
        usermem::{
            in_user_range,
            UserMem, //
        },
        wait::Bell,
    },
    ring::Ring,
    rx::Rx,
    stats::Stats,
    tx::Tx,
    vcore::{
        addr::{
            Gpa,
            Hva,
            RingAddr,
            Seg, //
        },
        feat::{
            self,
            Features,
            HeaderLen, //
        },
        patience::Patience,
        split::{
            Area,
            Cursor,
            Layout, //
        },
        Error,
    },
};

/// The driver kicked.
const KICK: u32 = events::FIRST_OWN;
/// The backend is ready.
pub(crate) const BACKEND: u32 = events::FIRST_OWN << 1;
/// A mapping has changed.
pub(crate) const MAPPINGS: u32 = events::FIRST_OWN << 2;
/// A packet that was sent from where it is was given back.
const LOANS: u32 = events::FIRST_OWN << 3;
/// What a queue's thread answers by looking.
const OWN: u32 = KICK | BACKEND | MAPPINGS | LOANS;

/// Which way packets go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    /// Network to guest: queue 0.
    Rx,
    /// Guest to network: queue 1.
    Tx,
}

impl Direction {
    /// The queue's number.
    pub(crate) fn index(self) -> u32 {
        match self {
            Self::Rx => 0,
            Self::Tx => 1,
        }
    }
}

/// What a queue does after a pass.
pub(crate) enum Next {
    /// There may be more to do.
    Again,
    /// It cannot go on.
    Stall(Error),
    /// It sleeps until the backend is ready, or the driver kicks.
    AwaitBackend,
    /// It goes on after a clock tick: the backend cannot tell when it is ready.
    Pause,
    /// It has used all that the driver made available, and waits for more.
    AwaitChains,
}

enum Path {
    Rx(Rx),
    Tx(KBox<Tx>),
}

/// Where the owner says the ring is.
#[derive(Clone, Copy, Default)]
pub(crate) struct Addresses {
    pub(crate) desc: u64,
    pub(crate) used: u64,
    pub(crate) avail: u64,
    /// Where writes to the used ring are logged, if they are: a guest address.
    pub(crate) log: Option<u64>,
}

/// Why a queue does nothing until something happens to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stall {
    /// It does not.
    No,
    /// The ring is broken: until the driver kicks.
    Broken,
    /// The IOTLB lacks a mapping: until it has it, or the driver kicks.
    Mapping,
}

/// A virtqueue without a backend.
pub(crate) struct Virtqueue {
    pub(crate) ring: Ring,
    path: Path,
    kick: Option<Pin<KBox<PollHook>>>,
    bell: Arc<Bell>,
    stall: Stall,
    /// Whether memory has all of the ring, as far as is known.
    covered: bool,
    /// How long to look for work before sleeping, in units of 1,024 ns. Zero: as long as it paid
    /// lately.
    pub(crate) busyloop: u32,
    patience: Patience,
}

/// A virtqueue with its backend: all that its thread works with.
pub(crate) struct Running {
    pub(crate) vq: KBox<Virtqueue>,
    backend: Backend,
}

impl Virtqueue {
    /// A queue as `VHOST_SET_OWNER` finds it.
    #[inline(never)] // It passes through the stack.
    pub(crate) fn new(dev: u32, direction: Direction, bell: Arc<Bell>) -> Result<KBox<Self>> {
        let stats = Stats::new(bell.clone())?;
        stats.set_memory(
            size_of::<Running>()
                + size_of::<Stats>()
                + match direction {
                    Direction::Rx => Rx::BYTES,
                    Direction::Tx => Tx::BYTES,
                },
        );
        let layout = Layout::new(1, RingAddr(0), RingAddr(0), RingAddr(0)).ok_or(EINVAL)?;
        Ok(KBox::new(
            Self {
                ring: Ring {
                    dev,
                    index: direction.index(),
                    layout,
                    cursor: Cursor::default(),
                    header: HeaderLen::default(),
                    mergeable: false,
                    in_order: false,
                    memory: Memory::new(Presence::new(direction.index())?, stats.clone()),
                    call: None,
                    err: None,
                    owner: current!().group_leader().pid(),
                    warned: log::Limit::default(),
                    began: None,
                    stats,
                },
                path: match direction {
                    Direction::Rx => Path::Rx(Rx::new()?),
                    Direction::Tx => {
                        Path::Tx(KBox::new(Tx::new(bell.clone(), LOANS)?, GFP_KERNEL)?)
                    }
                },
                kick: None,
                bell,
                stall: Stall::No,
                covered: false,
                busyloop: 0,
                patience: Patience::default(),
            },
            GFP_KERNEL,
        )?)
    }

    /// Takes over what the driver acknowledged.
    pub(crate) fn set_features(&mut self, acked: Features) {
        self.ring.cursor.set_features(acked.0[0]);
        self.ring.header = HeaderLen::of(acked);
        self.ring.mergeable = acked.any(feat::NET_F_MRG_RXBUF);
        self.ring.in_order = acked.any(feat::F_IN_ORDER);
        self.ring.memory.log.buffers = acked.any(feat::VHOST_F_LOG_ALL);
    }

    /// Forgets where the ring is: its addresses were of another kind.
    pub(crate) fn forget_addresses(&mut self) {
        let nowhere = RingAddr(0);
        self.ring.layout = self.ring.layout.moved(nowhere, nowhere, nowhere);
        self.ring.memory.log.used = None;
    }

    /// Moves the ring.
    ///
    /// # Errors
    ///
    /// If it is checked, and lies where no user memory can be: `EINVAL`. Nothing has changed.
    pub(crate) fn set_addresses(&mut self, at: Addresses, check: bool) -> Result {
        let layout = self.ring.layout.moved(
            RingAddr(at.desc),
            RingAddr(at.avail),
            RingAddr(at.used), //
        );
        let log = &mut self.ring.memory.log;
        let before = core::mem::replace(&mut log.used, at.log.map(Gpa));
        if check && !self.ring.memory.is_virtual() {
            let log_ok = self.log_ok(self.ring.memory.log.base, &layout);
            if !self.ring_ok(&layout) || !log_ok {
                self.ring.memory.log.used = before;
                return Err(EINVAL);
            }
        }
        self.ring.layout = layout;
        Ok(())
    }

    /// Whether a log at `base` lies where user memory may be, for all that is logged.
    pub(crate) fn log_ok(&self, base: u64, layout: &Layout) -> bool {
        let memory = &self.ring.memory;
        let used = layout.writable(self.ring.cursor.event_idx());
        memory.table().is_some_and(|table| {
            let used_len = (!memory.is_virtual()).then_some(used.len);
            memory.log.fits(base, table, used_len)
        })
    }

    /// Takes addresses to be I/O virtual ones that `iotlb` translates, or not any more.
    pub(crate) fn set_iotlb(&mut self, iotlb: Option<Arc<Iotlb>>) {
        self.ring.memory.set_iotlb(iotlb, &self.bell);
    }

    /// Listens for kicks on `file`, or on none. The same file again changes nothing.
    ///
    /// # Errors
    ///
    /// `EINVAL` if the eventfd's counter is at its limit, so that no kick could be heard.
    pub(crate) fn set_kick(&mut self, file: Option<FileRef>) -> Result {
        let Some(file) = file else {
            self.kick = None;
            return Ok(());
        };
        if self.kick.as_ref().is_some_and(|hook| *hook.file() == file) {
            return Ok(());
        }
        let mut hook = PollHook::new(file, ready::IN, self.bell.clone(), KICK)?;
        let state = hook.as_mut().hook();
        if state & ready::ERR != 0 {
            return Err(EINVAL);
        }
        self.kick = Some(hook);
        if state & ready::IN != 0 {
            // Kicked before anybody listened.
            self.bell.ring(KICK);
        }
        Ok(())
    }

    /// Whether ring and memory lie where user memory may be.
    pub(crate) fn access_ok(&self) -> bool {
        let Ring { layout, memory, .. } = &self.ring;
        memory.table().is_some_and(|table| table.in_user_range())
            && self.log_ok(memory.log.base, layout)
            // What an IOTLB translates is found out on the way.
            && (memory.is_virtual() || self.ring_ok(layout))
    }

    /// Whether a ring at `layout` would.
    pub(crate) fn ring_ok(&self, layout: &Layout) -> bool {
        let event_idx = self.ring.cursor.event_idx();
        let ok = |area: Area| {
            in_user_range(Seg {
                at: Hva(area.at.0),
                len: area.len,
            })
        };
        layout.readable(event_idx).into_iter().all(ok) && ok(layout.writable(event_idx))
    }

    /// Gets ready to run on an endpoint.
    ///
    /// # Errors
    ///
    /// `EFAULT` if the used ring cannot be accessed, `EINVAL` if the endpoint has no device. The queue
    /// is as it was.
    pub(crate) fn prepare(&mut self, user: &mut UserMem<'_>, on: Endpoint) -> Result<Backend> {
        let before = self.ring.cursor;
        let mask = match self.path {
            Path::Rx(_) => ready::IN,
            Path::Tx(_) => ready::OUT,
        };
        let backend = self
            .ring
            .start(user)
            .map_err(|e| {
                self.ring.fail(e);
                EFAULT
            })
            .and_then(|()| Backend::new(on, mask, self.bell.clone(), BACKEND));
        if backend.is_err() {
            self.ring.cursor = before;
        }
        backend
    }

    /// Starts to run.
    pub(crate) fn run_on(mut self: KBox<Self>, backend: Backend) -> Running {
        self.stall = Stall::No;
        let ring = &self.ring;
        if let (true, Some(queue)) = (ring.header.hash, backend.endpoint.inlet()) {
            queue.want_hashes();
        }
        ring.stats
            .start(ring.layout.num(), backend.endpoint.shown());
        trace::queue_start(
            ring.dev,
            ring.index,
            u32::from(ring.layout.num()),
            u32::from(ring.cursor.base()),
        );
        ring.log().debug(c"started at", ring.cursor.base().into());
        Running { vq: self, backend }
    }

    // What its thread does while it runs.

    /// Takes notice of what was rung.
    fn answer(&mut self) {
        let answered = self.bell.answer(OWN);
        if answered & KICK != 0 {
            self.ring.stats.kicks.add(1);
            trace::kick(self.ring.dev, self.ring.index);
            // A guest that kicks a broken ring without end has this thread wake up over and over, each
            // time ahead of whom it interrupts: they come first.
            if self.stall == Stall::Broken {
                sched::give_way();
            }
            self.stall = Stall::No;
        } else if answered & MAPPINGS != 0 && self.stall == Stall::Mapping {
            self.stall = Stall::No;
        }
    }

    /// Sees to it that the ring can be worked on; if it cannot, `Err` says what to wait for.
    #[inline]
    fn get_ready(&mut self, user: &mut UserMem<'_>) -> Result<(), u32> {
        if self.ring.memory.enter() {
            self.release_buffers();
            self.ring.memory.accept();
            self.covered = false;
        }
        if self.stall == Stall::No && !self.covered {
            if self.ring.layout.is_nowhere() {
                return Err(events::CONTROL);
            }
            match self.ring.covered(user) {
                Ok(()) => self.covered = true,
                Err(e) => self.stall(e),
            }
        }
        match self.stall {
            Stall::No => Ok(()),
            Stall::Broken | Stall::Mapping => Err(events::CONTROL | KICK | MAPPINGS),
        }
    }

    /// Stops working for `e`, of which the owner is told.
    #[cold]
    fn stall(&mut self, e: Error) {
        self.ring.fail(e);
        self.stall = match e {
            Error::Miss => Stall::Mapping,
            _ => Stall::Broken,
        };
    }

    fn receives(&self) -> bool {
        matches!(self.path, Path::Rx(_))
    }

    /// Gives back to the ring what was taken ahead.
    fn release_buffers(&mut self) {
        if let Path::Rx(rx) = &mut self.path {
            rx.release_buffers(&mut self.ring);
        }
    }

    /// Looks for work before a sleep. Returns whether something came. `starved`: the guest, or the
    /// backend, does not keep up with the other side.
    fn look(&mut self, starved: bool, mut found: impl FnMut(&mut Ring) -> bool) -> bool {
        let Self {
            ring,
            bell,
            busyloop,
            patience,
            ..
        } = self;
        if starved {
            ring.stats.starved.add(1);
        }
        let came = look(*busyloop, patience, || bell.rung() != 0 || found(ring));
        ring.stats.poll(came);
        came == Some(true)
    }

    /// Sleeps for a clock tick, or until the control plane wants the queue.
    #[cold]
    fn pause(&mut self) {
        self.ring.memory.leave();
        self.bell.sleep_for(events::CONTROL, 1);
    }

    fn sleep(&mut self, until: u32) {
        self.ring.stats.sleeps.add(1);
        self.ring.memory.leave();
        self.bell.sleep_until(until);
    }
}

impl Running {
    /// Whether it runs on `endpoint`.
    pub(crate) fn is_on(&self, endpoint: &Endpoint) -> bool {
        self.backend.endpoint == *endpoint
    }

    /// Gives back to the backend what was not delivered, so that the next user of it sees it, and
    /// forgets what it has learned.
    fn settle(&mut self) {
        match &mut self.vq.path {
            Path::Rx(rx) => rx.release_packets(&self.backend.endpoint),
            Path::Tx(tx) => tx.settle(),
        }
        let ring = &self.vq.ring;
        ring.stats.stop();
        ring.log().debug(c"stopped at", ring.cursor.base().into());
        trace::queue_stop(
            ring.dev,
            ring.index,
            u32::from(ring.layout.num()),
            u32::from(ring.cursor.base()),
        );
    }

    /// Waits until nobody reads the guest's memory any more for what was sent; `EINTR` if the caller
    /// is killed.
    pub(crate) fn drain(&mut self, user: &mut UserMem<'_>) -> Result {
        let Virtqueue { ring, path, .. } = &mut *self.vq;
        match path {
            Path::Rx(_) => Ok(()),
            Path::Tx(tx) => tx.drain(ring, user),
        }
    }

    /// Stops, leaving the queue and what it ran on.
    pub(crate) fn stop(mut self) -> (KBox<Virtqueue>, Backend) {
        self.settle();
        (self.vq, self.backend)
    }

    /// Works until the control plane wants the queue, or the thread is interrupted. Called by its
    /// thread.
    pub(crate) fn work(&mut self, user: &mut UserMem<'_>, handoff: &Handoff<Running>) {
        // The control plane may have changed anything.
        self.vq.covered = false;
        loop {
            sched::yield_if_due();
            let rung = handoff.bell().rung();
            if rung & events::CONTROL != 0 && handoff.wanted() || sched::interrupted() {
                break;
            }
            // Before looking at anything: what happens from here on rings again.
            if rung & OWN != 0 {
                self.vq.answer();
            }
            if let Err(until) = self.vq.get_ready(user) {
                self.vq.sleep(until);
                continue;
            }
            match self.pass(user) {
                Next::Again => {}
                Next::Stall(e) => {
                    self.vq.stall(e);
                    // A guest that kicks a broken ring without end has it looked at after others.
                    sched::give_way();
                }
                Next::AwaitChains => self.await_chains(user),
                Next::AwaitBackend => self.await_backend(),
                Next::Pause => self.vq.pause(),
            }
        }
        // The control plane reads and sets the cursor: nothing is taken ahead of it.
        self.vq.release_buffers();
        self.vq.ring.memory.leave();
    }

    #[inline]
    fn pass(&mut self, user: &mut UserMem<'_>) -> Next {
        let Virtqueue { ring, path, .. } = &mut *self.vq;
        ring.began = trace::batch_begins();
        match path {
            Path::Rx(rx) => rx.pass(ring, user, &self.backend.endpoint),
            Path::Tx(tx) => tx.pass(ring, user, &self.backend.endpoint),
        }
    }

    /// Looks for chains, and sleeps if none come.
    fn await_chains(&mut self, user: &mut UserMem<'_>) {
        let starved = self.vq.receives();
        if !self.vq.look(starved, |ring| ring.has_more(user)) && !self.vq.ring.arm(user) {
            self.vq.sleep(events::CONTROL | KICK | MAPPINGS | LOANS);
        }
    }

    /// Looks for the backend to be ready, and sleeps if it does not become so.
    fn await_backend(&mut self) {
        let receives = self.vq.receives();
        let endpoint = &self.backend.endpoint;
        if !self
            .vq
            .look(!receives, |_| receives && !endpoint.is_empty())
        {
            if !self.backend.listen() {
                self.vq.sleep(events::CONTROL | OWN);
            }
            self.backend.ignore();
        }
    }
}

/// Looks for work before a sleep: as long as the owner says, or as it paid lately. Whether something
/// came, if it was looked for.
fn look(busyloop: u32, patience: &mut Patience, found: impl FnMut() -> bool) -> Option<bool> {
    if busyloop != 0 {
        return Some(sched::poll(busyloop, found));
    }
    match patience.looks() {
        0 => None,
        looks => {
            let came = sched::look(looks, found);
            patience.learn(came);
            Some(came)
        }
    }
}
