// SPDX-License-Identifier: GPL-2.0
//! The device behind one open file: owner, features, memory, and its two queues.
//!
//! Locks, in their order: `control`, a queue's. `owner` is held for moments only, under any.

use kernel::{
    new_spinlock,
    prelude::*,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        Arc,
        SpinLock, //
    },
};

use crate::{
    kext::{
        errno,
        eventfd::EventFd,
        file::FileRef,
        killable::KillableMutex,
        mm::OwnerMm,
        trace,
        tun::TapQueue, //
    },
    memtable::MemTable,
    vcore::{
        addr::Hva,
        feat,
        map::Lookup, //
    },
    virtqueue::{
        Addresses,
        Direction,
        Running,
        Virtqueue, //
    },
    worker::Worker,
};

/// The first 64 feature bits on offer.
pub(crate) const FEATURES: u64 = feat::NET_F_MRG_RXBUF
    | feat::F_NOTIFY_ON_EMPTY
    | feat::VHOST_NET_F_VIRTIO_NET_HDR
    | feat::F_INDIRECT_DESC
    | feat::F_EVENT_IDX
    | feat::F_VERSION_1
    | feat::F_IN_ORDER
    | feat::F_RING_RESET;
/// All feature words on offer.
pub(crate) const FEATURE_WORDS: [u64; 2] = [FEATURES, 0];
/// The backend features on offer: `VHOST_BACKEND_F_IOTLB_MSG_V2`.
pub(crate) const BACKEND_FEATURES: u64 = 1 << 1;

/// Devices opened since the module was loaded.
static OPENED: Atomic<u32> = Atomic::new(0);

/// A device.
#[pin_data(PinnedDrop)]
pub(crate) struct Device {
    id: u32,
    #[pin]
    control: KillableMutex<Control>,
    #[pin]
    owner: SpinLock<Option<Arc<Owner>>>,
}

/// What concerns the device as a whole.
struct Control {
    acked: u64,
    /// The memory table. Outlives an owner as an empty one, as that of C vhost-net does.
    table: Option<Arc<MemTable>>,
}

/// The process that owns the device, and what it was given for that.
#[pin_data]
pub(crate) struct Owner {
    mm: OwnerMm,
    #[pin]
    rx: KillableMutex<Queue>,
    #[pin]
    tx: KillableMutex<Queue>,
}

/// A queue with its thread, as the control plane sees it.
pub(crate) struct Queue {
    place: Place,
    worker: Worker,
}

/// Where a virtqueue is.
enum Place {
    /// Here, without a backend.
    Stopped(KBox<Virtqueue>),
    /// With its thread.
    Running,
    /// Nowhere: its owner gave the device up.
    Gone,
}

impl Device {
    /// A device without an owner.
    pub(crate) fn new() -> Result<Arc<Self>> {
        let id = OPENED.fetch_add(1, Relaxed);
        trace::open(id);
        Arc::pin_init(
            pin_init!(Self {
                id,
                control <- KillableMutex::new(Control {
                    acked: 0,
                    table: None,
                }),
                owner <- new_spinlock!(None),
            }),
            GFP_KERNEL,
        )
    }

    /// The owner, if the caller is it; else `EPERM`.
    pub(crate) fn owner(&self) -> Result<Arc<Owner>> {
        self.any_owner()
            .filter(|owner| owner.mm.is_current())
            .ok_or(EPERM)
    }

    fn any_owner(&self) -> Option<Arc<Owner>> {
        self.owner.lock().clone()
    }

    /// `VHOST_SET_OWNER`: makes the calling process the owner.
    pub(crate) fn set_owner(&self) -> Result {
        let control = self.control.lock()?;
        if self.any_owner().is_some() {
            return Err(EBUSY);
        }
        let mm = OwnerMm::of_current().ok_or(EPERM)?;
        let rx = Queue::new(self.id, Direction::Rx, &mm, &control)?;
        let tx = Queue::new(self.id, Direction::Tx, &mm, &control)?;
        let owner = Arc::pin_init(
            pin_init!(Owner {
                mm,
                rx <- KillableMutex::new(rx),
                tx <- KillableMutex::new(tx),
            }),
            GFP_KERNEL,
        )?;
        *self.owner.lock() = Some(owner);
        Ok(())
    }

    /// `VHOST_RESET_OWNER`: back to how the device was when it was opened.
    pub(crate) fn reset_owner(&self) -> Result {
        let mut control = self.control.lock()?;
        let owner = self.owner()?;
        let empty = MemTable::new(KVec::new())?;
        let (mut rx, mut tx) = (owner.rx.lock()?, owner.tx.lock()?);
        rx.end();
        tx.end();
        drop((rx, tx));
        control.acked = 0;
        control.table = Some(empty);
        let gone = self.owner.lock().take();
        drop(gone);
        Ok(())
    }

    /// `VHOST_SET_FEATURES`, after the check of what is offered.
    pub(crate) fn set_features(&self, acked: u64) -> Result {
        let mut control = self.control.lock()?;
        if let Some(owner) = self.any_owner() {
            owner.for_each(|vq| vq.set_features(acked))?;
        }
        control.acked = acked;
        Ok(())
    }

    /// `VHOST_SET_MEM_TABLE`.
    pub(crate) fn set_mem_table(&self, owner: &Owner, table: Arc<MemTable>) -> Result {
        let mut control = self.control.lock()?;
        let (mut rx, mut tx) = (owner.rx.lock()?, owner.tx.lock()?);
        if (rx.has_backend() || tx.has_backend()) && !table.in_user_range() {
            return Err(EFAULT);
        }
        for queue in [&mut *rx, &mut *tx] {
            queue.with(|vq| {
                vq.ring.table = Some(table.clone());
                vq.ring.lookup = Lookup::default();
            })?;
        }
        control.table = Some(table);
        Ok(())
    }
}

#[pinned_drop]
impl PinnedDrop for Device {
    fn drop(self: Pin<&mut Self>) {
        // No reference is left, so that nobody has the locks.
        if let Some(owner) = self.any_owner() {
            for queue in [&owner.rx, &owner.tx] {
                if let Ok(mut queue) = queue.lock() {
                    queue.end();
                }
            }
        }
        trace::release(self.id);
    }
}

impl Owner {
    /// The queue with number `index`; `ENOBUFS` if there is none.
    pub(crate) fn queue(&self, index: u32) -> Result<&KillableMutex<Queue>> {
        match index {
            0 => Ok(&self.rx),
            1 => Ok(&self.tx),
            _ => Err(errno::enobufs()),
        }
    }

    fn for_each(&self, mut f: impl FnMut(&mut Virtqueue)) -> Result {
        for queue in [&self.rx, &self.tx] {
            queue.lock()?.with(&mut f)?;
        }
        Ok(())
    }

    /// `VHOST_NET_SET_BACKEND`: runs queue `index` on the TAP that `fd` names, or on none.
    pub(crate) fn set_backend(&self, index: u32, fd: i32) -> Result {
        let mut queue = self.queue(index)?.lock()?;
        if !queue.with(|vq| vq.access_ok())? {
            return Err(EFAULT);
        }
        let tap = match fd {
            -1 => None,
            fd => Some(TapQueue::of(FileRef::get(fd).map_err(|_| errno::enotsock())?)?),
        };
        queue.set_backend(&self.mm, tap)
    }
}

impl Queue {
    fn new(dev: u32, direction: Direction, mm: &OwnerMm, control: &Control) -> Result<Self> {
        let worker = Worker::spawn(direction, mm)?;
        let bell = worker.handoff().bell().clone();
        let mut vq = Virtqueue::new(dev, direction, bell)?;
        vq.set_features(control.acked);
        vq.ring.table = control.table.clone();
        Ok(Self {
            place: Place::Stopped(vq),
            worker,
        })
    }

    fn has_backend(&self) -> bool {
        matches!(self.place, Place::Running)
    }

    /// Does `f` with the queue, which its thread lays down for that.
    fn with<R>(&mut self, f: impl FnOnce(&mut Virtqueue) -> R) -> Result<R> {
        match &mut self.place {
            Place::Stopped(vq) => Ok(f(vq)),
            Place::Running => {
                let mut running = self.worker.handoff().take()?;
                let result = f(&mut running.vq);
                self.resume(running);
                Ok(result)
            }
            Place::Gone => Err(EPERM),
        }
    }

    /// The queue, if it has no backend; else `EBUSY`.
    pub(crate) fn stopped(&mut self) -> Result<&mut Virtqueue> {
        match &mut self.place {
            Place::Stopped(vq) => Ok(vq),
            Place::Running => Err(EBUSY),
            Place::Gone => Err(EPERM),
        }
    }

    fn resume(&mut self, running: Running) {
        self.place = match self.worker.handoff().give(running) {
            Ok(()) => Place::Running,
            Err(running) => Place::Stopped(running.stop().0),
        };
    }

    /// Ends the thread and gives up the queue.
    fn end(&mut self) {
        if let Some(running) = self.worker.end() {
            drop(running.stop());
        }
        self.place = Place::Gone;
    }

    fn set_backend(&mut self, mm: &OwnerMm, tap: Option<TapQueue>) -> Result {
        let running = match &self.place {
            Place::Running => Some(self.worker.handoff().take()?),
            Place::Stopped(_) => None,
            Place::Gone => return Err(EPERM),
        };
        if let (Some(old), Some(new)) = (&running, &tap) {
            if old.is_on(new) {
                if let Some(running) = running {
                    self.resume(running);
                }
                return Ok(());
            }
        }
        let (mut vq, old) = match running {
            Some(running) => {
                let (vq, old) = running.stop();
                (vq, Some(old))
            }
            None => match core::mem::replace(&mut self.place, Place::Gone) {
                Place::Stopped(vq) => (vq, None),
                // Seen above.
                Place::Running | Place::Gone => return Err(EPERM),
            },
        };
        let Some(tap) = tap else {
            self.place = Place::Stopped(vq);
            return Ok(());
        };
        let prepared = match mm.as_current() {
            Some(mut user) => vq.prepare(&mut user, tap),
            None => Err(EPERM),
        };
        match (prepared, old) {
            (Ok(new), _) => {
                self.resume(vq.run_on(new));
                Ok(())
            }
            (Err(e), Some(old)) => {
                self.resume(vq.run_on(old));
                Err(e)
            }
            (Err(e), None) => {
                self.place = Place::Stopped(vq);
                Err(e)
            }
        }
    }

    /// `VHOST_SET_VRING_NUM`. `num` is read only where it matters.
    pub(crate) fn set_num(&mut self, num: u32) -> Result {
        let vq = self.stopped()?;
        vq.ring.layout = vq.ring.layout.resized(num).ok_or(EINVAL)?;
        Ok(())
    }

    /// `VHOST_SET_VRING_BASE`.
    pub(crate) fn set_base(&mut self, base: u32) -> Result {
        let vq = self.stopped()?;
        vq.ring.cursor.set_base(base.try_into().map_err(|_| EINVAL)?);
        Ok(())
    }

    /// `VHOST_GET_VRING_BASE`.
    pub(crate) fn base(&mut self) -> Result<u32> {
        self.with(|vq| vq.ring.cursor.base().into())
    }

    /// `VHOST_SET_VRING_ADDR`, after the checks of flags and alignment.
    pub(crate) fn set_addresses(&mut self, at: Addresses) -> Result {
        let running = self.has_backend();
        self.with(|vq| {
            let layout = vq
                .ring
                .layout
                .moved(Hva(at.desc), Hva(at.avail), Hva(at.used));
            if running && !vq.ring_ok(&layout) {
                return Err(EINVAL);
            }
            vq.ring.layout = layout;
            Ok(())
        })?
    }

    /// `VHOST_SET_VRING_KICK`.
    pub(crate) fn set_kick(&mut self, kick: Option<FileRef>) -> Result {
        if let Some(file) = &kick {
            EventFd::of(file)?;
        }
        self.with(|vq| vq.set_kick(kick))?
    }

    /// `VHOST_SET_VRING_CALL`.
    pub(crate) fn set_call(&mut self, call: Option<EventFd>) -> Result {
        let old = self.with(|vq| core::mem::replace(&mut vq.ring.call, call))?;
        drop(old);
        Ok(())
    }

    /// `VHOST_SET_VRING_ERR`.
    pub(crate) fn set_err(&mut self, err: Option<EventFd>) -> Result {
        let old = self.with(|vq| core::mem::replace(&mut vq.ring.err, err))?;
        drop(old);
        Ok(())
    }
}
