// SPDX-License-Identifier: GPL-2.0
//! The device behind one open file: owner, features, memory, and its two queues.
//!
//! Locks, in their order: `control`, a queue's. `owner` is held for moments only, under any.

use kernel::{
    current, new_spinlock,
    prelude::*,
    seq_file::SeqFile,
    seq_print,
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
    backend::Endpoint,
    iotlb::Iotlb,
    kext::{
        capable,
        errno,
        eventfd::EventFd,
        killable::{
            new_killable,
            KillableMutex, //
        },
        log,
        mm::OwnerMm,
        netdev::NetDev,
        param,
        port::Wanted,
        trace,
        usermem::in_user_range,
        wait::Bell, //
    },
    memtable::MemTable,
    queue::{
        self,
        Queue, //
    },
    stats::Stats,
    steering::Steered,
    vcore::{
        addr::{
            Hva,
            Seg, //
        },
        feat::{
            self,
            Features, //
        },
        iotlb::Entry, //
    },
    virtqueue::{
        Direction,
        Virtqueue, //
    },
    worker::{
        Kind,
        Worker, //
    },
};

/// The features on offer.
pub(crate) const FEATURES: Features = Features([
    feat::NET_F_MRG_RXBUF
        | feat::F_NOTIFY_ON_EMPTY
        | feat::VHOST_F_LOG_ALL
        | feat::VHOST_NET_F_VIRTIO_NET_HDR
        | feat::F_INDIRECT_DESC
        | feat::F_EVENT_IDX
        | feat::F_VERSION_1
        | feat::F_ACCESS_PLATFORM
        | feat::F_IN_ORDER
        | feat::F_RING_RESET
        | feat::NET_F_HASH_REPORT,
    feat::NET_F_GUEST_UDP_TUNNEL_GSO | feat::NET_F_HOST_UDP_TUNNEL_GSO,
]);
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
    iotlb: Arc<Iotlb>,
    /// The acknowledged features, for those who only look.
    features: [Atomic<u64>; 2],
    /// The acknowledged backend features.
    backend_features: Atomic<u64>,
}

/// What concerns the device as a whole.
struct Control {
    acked: Features,
    /// The memory table. Outlives an owner as an empty one, as that of C vhost-net does.
    table: Option<Arc<MemTable>>,
    /// Whether the threads are to be the owner's.
    fork_from_owner: bool,
}

/// The process that owns the device, and what it was given for that.
#[pin_data]
pub(crate) struct Owner {
    mm: OwnerMm,
    #[pin]
    rx: KillableMutex<Queue>,
    #[pin]
    tx: KillableMutex<Queue>,
    /// What is to run on the devices of packet sockets; none if they are but sockets. Held for moments.
    #[pin]
    by_socket: SpinLock<Option<Wanted>>,
    /// What is counted of both.
    stats: [Arc<Stats>; 2],
}

impl Device {
    /// A device without an owner.
    pub(crate) fn new() -> Result<Arc<Self>> {
        let id = OPENED.fetch_add(1, Relaxed);
        let iotlb = Iotlb::new(id)?;
        trace::open(id);
        Arc::pin_init(
            pin_init!(Self {
                id,
                control <- new_killable!(Control {
                    acked: Features::default(),
                    table: None,
                    fork_from_owner: param::fork_from_owner_default(),
                }, c"rvhost device"),
                owner <- new_spinlock!(None),
                iotlb,
                features: [Atomic::new(0), Atomic::new(0)],
                backend_features: Atomic::new(0),
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

    /// The port its queues run on, for who may steer it: the owner, and the network's administrator.
    pub(crate) fn steered(&self) -> Result<Steered> {
        match self.owner() {
            Err(_) if capable::net_admin() => self.any_owner().ok_or(EPERM)?,
            owner => owner?,
        }
        .steered()
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
        let (rx, rx_stats) = self.new_queue(Direction::Rx, &mm, &control)?;
        let (tx, tx_stats) = self.new_queue(Direction::Tx, &mm, &control)?;
        let owner = Arc::pin_init(
            pin_init!(Owner {
                mm,
                rx <- new_killable!(rx, c"rvhost RX queue"),
                tx <- new_killable!(tx, c"rvhost TX queue"),
                by_socket <- new_spinlock!(None),
                stats: [rx_stats, tx_stats],
            }),
            GFP_KERNEL,
        )?;
        *self.owner.lock() = Some(owner);
        let pid = current!().group_leader().pid();
        trace::owner(self.id, pid.unsigned_abs());
        log::debug(pid, self.id, c"has an owner");
        Ok(())
    }

    /// `VHOST_RESET_OWNER`: back to how the device was when it was opened.
    pub(crate) fn reset_owner(&self) -> Result {
        let mut control = self.control.lock()?;
        let owner = self.owner()?;
        let empty = MemTable::new(KVec::new())?;
        let (mut rx, mut tx) = (owner.rx.lock()?, owner.tx.lock()?);
        queue::end_all([&mut *rx, &mut *tx]);
        drop((rx, tx));
        self.acknowledge(&mut control, Features::default());
        control.table = Some(empty);
        control.fork_from_owner = param::fork_from_owner_default();
        self.backend_features.store(0, Relaxed);
        self.iotlb.switch_off();
        let gone = self.owner.lock().take();
        drop(gone);
        trace::owner(self.id, 0);
        log::debug(
            current!().group_leader().pid(),
            self.id,
            c"has no owner now",
        );
        Ok(())
    }

    /// `VHOST_SET_FORK_FROM_OWNER`: whether the threads of the next owner are to be its own.
    /// `choice` is asked for only if there is no owner yet.
    pub(crate) fn set_fork_from_owner(&self, choice: impl FnOnce() -> Result<bool>) -> Result {
        let mut control = self.control.lock()?;
        if self.any_owner().is_some() {
            return Err(EBUSY);
        }
        control.fork_from_owner = choice()?;
        Ok(())
    }

    /// `VHOST_GET_FORK_FROM_OWNER`.
    pub(crate) fn fork_from_owner(&self) -> Result<bool> {
        Ok(self.control.lock()?.fork_from_owner)
    }

    /// `VHOST_SET_FEATURES`, after the check of what is offered.
    pub(crate) fn set_features(&self, acked: Features) -> Result {
        let mut control = self.control.lock()?;
        let owner = self.any_owner();
        if let Some(owner) = &owner {
            if acked.any(feat::VHOST_F_LOG_ALL) && !owner.could_log()? {
                return Err(EFAULT);
            }
        }
        let was_virtual = control.acked.any(feat::F_ACCESS_PLATFORM);
        let is_virtual = acked.any(feat::F_ACCESS_PLATFORM);
        if is_virtual {
            // A new one each time: what was cached under other features is gone.
            self.iotlb.switch_on().map_err(|_| EFAULT)?;
        }
        if let Some(owner) = &owner {
            let iotlb = is_virtual.then(|| self.iotlb.clone());
            owner.for_each(|vq| {
                if was_virtual != is_virtual {
                    vq.forget_addresses();
                }
                vq.set_iotlb(iotlb.clone());
                vq.set_features(acked);
            })?;
        }
        if !is_virtual {
            self.iotlb.switch_off();
        }
        self.acknowledge(&mut control, acked);
        Ok(())
    }

    fn acknowledge(&self, control: &mut Control, acked: Features) {
        control.acked = acked;
        for (shown, word) in self.features.iter().zip(acked.0) {
            shown.store(word, Relaxed);
        }
    }

    /// Shows what there is to know of it, from what others write meanwhile: waits for no queue.
    pub(crate) fn show(&self, out: &SeqFile) {
        let [low, high] = [0, 1].map(|i| self.features[i].load(Relaxed));
        seq_print!(out, "rvhost:\t1\ndevice:\t{}\n", self.id);
        seq_print!(out, "features:\t{high:#x} {low:#x}\n");
        seq_print!(
            out,
            "backend-features:\t{:#x}\n",
            self.backend_features.load(Relaxed)
        );
        if let Some(owner) = self.any_owner() {
            for (stats, queue) in owner.stats.iter().zip(["rx", "tx"]) {
                stats.show(out, queue);
            }
        }
    }

    /// `VHOST_SET_BACKEND_FEATURES`, after the check of what is offered.
    pub(crate) fn set_backend_features(&self, acked: u64) {
        self.backend_features.store(acked, Relaxed);
    }

    /// Whether messages to user space are of the second version.
    pub(crate) fn messages_are_v2(&self) -> bool {
        self.backend_features.load(Relaxed) & BACKEND_FEATURES != 0
    }

    /// `VHOST_SET_MEM_TABLE`.
    pub(crate) fn set_mem_table(&self, owner: &Owner, table: Arc<MemTable>) -> Result {
        let mut control = self.control.lock()?;
        let (mut rx, mut tx) = (owner.rx.lock()?, owner.tx.lock()?);
        let mut queues = [&mut *rx, &mut *tx];
        for queue in &mut queues {
            if queue.has_backend() {
                let fits = queue.with(|vq| {
                    let log = &vq.ring.memory.log;
                    log.fits(log.base, &table, None)
                })?;
                if !fits || !table.in_user_range() {
                    return Err(EFAULT);
                }
            }
        }
        for queue in queues {
            queue.with(|vq| vq.ring.memory.set_table(Some(table.clone())))?;
        }
        control.table = Some(table);
        Ok(())
    }

    /// `VHOST_SET_LOG_BASE`: for both queues, or for none.
    pub(crate) fn set_log_base(&self, owner: &Owner, base: u64) -> Result {
        let _control = self.control.lock()?;
        let (mut rx, mut tx) = (owner.rx.lock()?, owner.tx.lock()?);
        let mut queues = [&mut *rx, &mut *tx];
        for queue in &mut queues {
            if queue.has_backend() && !queue.with(|vq| vq.log_ok(base, &vq.ring.layout))? {
                return Err(EFAULT);
            }
        }
        for queue in queues {
            queue.with(|vq| vq.ring.memory.log.base = base)?;
        }
        Ok(())
    }

    /// `VHOST_SET_LOG_FD`.
    pub(crate) fn set_log_event(&self, owner: &Owner, event: Option<EventFd>) -> Result {
        let _control = self.control.lock()?;
        let event = match event {
            Some(event) => Some(Arc::new(event, GFP_KERNEL)?),
            None => None,
        };
        owner.for_each(|vq| vq.ring.memory.log.event = event.clone())
    }

    /// The IOTLB.
    pub(crate) fn iotlb(&self) -> &Iotlb {
        &self.iotlb
    }

    /// Adds a mapping of `size` bytes to the IOTLB; queues that waited for it go on.
    pub(crate) fn add_mapping(&self, entry: Entry, size: u64) -> Result {
        let seg = Seg {
            at: Hva(entry.hva),
            len: size,
        };
        if !in_user_range(seg) {
            return Err(EFAULT);
        }
        let _control = self.control.lock()?;
        self.iotlb.update(entry)
    }

    /// Removes what touches `size` bytes at `iova` from the IOTLB. No queue uses it any more when
    /// this returns.
    pub(crate) fn remove_mappings(&self, iova: u64, size: u64) -> Result {
        let _control = self.control.lock()?;
        let (first, last) = match (iova, size) {
            // QEMU says so of the whole address space, whose size 64 bits do not hold.
            (0, 0) => (0, u64::MAX),
            // An empty range touches nothing.
            (_, 0) => (1, 0),
            // One that wraps ends at the top.
            (_, _) => (iova, iova.saturating_add(size - 1)),
        };
        self.iotlb.invalidate(first, last)
    }

    fn new_queue(
        &self,
        direction: Direction,
        mm: &OwnerMm,
        control: &Control,
    ) -> Result<(Queue, Arc<Stats>)> {
        let kind = if control.fork_from_owner {
            Kind::Process
        } else {
            Kind::Kernel
        };
        let worker = Worker::spawn(kind, direction, mm)?;
        let bell = worker.handoff().bell().clone();
        let mut vq = Virtqueue::new(self.id, direction, bell)?;
        vq.set_features(control.acked);
        vq.ring.memory.set_table(control.table.clone());
        if control.acked.any(feat::F_ACCESS_PLATFORM) {
            vq.set_iotlb(Some(self.iotlb.clone()));
        }
        let stats = vq.ring.stats.clone();
        Ok((Queue::new(direction, vq, worker), stats))
    }
}

#[pinned_drop]
impl PinnedDrop for Device {
    fn drop(self: Pin<&mut Self>) {
        // No reference is left, so that nobody has the locks.
        if let Some(owner) = self.any_owner() {
            if let (Ok(mut rx), Ok(mut tx)) = (owner.rx.lock(), owner.tx.lock()) {
                queue::end_all([&mut *rx, &mut *tx]);
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

    /// The bell of the thread of queue `index`.
    pub(crate) fn bell(&self, index: u32) -> Result<Arc<Bell>> {
        Ok(self.queue(index)?.lock()?.bell())
    }

    /// Whether running queues could log all writes.
    fn could_log(&self) -> Result<bool> {
        for queue in [&self.rx, &self.tx] {
            let mut queue = queue.lock()?;
            if !queue.has_backend() {
                continue;
            }
            let could = queue.with(|vq| {
                let before = core::mem::replace(&mut vq.ring.memory.log.buffers, true);
                let ok = vq.log_ok(vq.ring.memory.log.base, &vq.ring.layout);
                vq.ring.memory.log.buffers = before;
                ok
            })?;
            if !could {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn for_each(&self, mut f: impl FnMut(&mut Virtqueue)) -> Result {
        for queue in [&self.rx, &self.tx] {
            queue.lock()?.with(&mut f)?;
        }
        Ok(())
    }

    /// `VHOST_NET_SET_BACKEND`: runs queue `index` on what `fd` stands for, or on none.
    pub(crate) fn set_backend(&self, device: &Device, index: u32, fd: i32) -> Result {
        let mut queue = self.queue(index)?.lock()?;
        if fd == -1 {
            device.iotlb.forget(index);
        }
        queue.set_backend(&self.mm, |queue| {
            if fd == -1 {
                return Ok(None);
            }
            let given = Endpoint::get(fd)?;
            let wanted = *self.by_socket.lock();
            Ok(Some(match wanted {
                Some(wanted) => queue.or_its_device(&self.mm, given, &wanted)?,
                None => given,
            }))
        })
    }

    /// `RVHOST_NET_SET_SOCKET_NETDEV`: what is to run on the devices of packet sockets that are set as
    /// backends from now on.
    pub(crate) fn set_socket_netdev(&self, wanted: Option<Wanted>) {
        *self.by_socket.lock() = wanted;
    }

    /// `RVHOST_NET_SET_NETDEV`: runs both queues on a network device.
    pub(crate) fn set_netdev(&self, dev: &Arc<NetDev>, wanted: &Wanted) -> Result {
        let (mut rx, mut tx) = (self.rx.lock()?, self.tx.lock()?);
        for queue in [&mut *rx, &mut *tx] {
            if !queue.with(|vq| vq.access_ok())? {
                return Err(EFAULT);
            }
        }
        // The same queue of the port may be wanted again.
        rx.set_backend(&self.mm, |_| Ok(None))?;
        tx.set_backend(&self.mm, |_| Ok(None))?;
        let inlet = rx.on_device(&self.mm, dev, wanted)?;
        let outlet = tx.on_device(&self.mm, dev, wanted)?;
        rx.set_backend(&self.mm, |_| Ok(Some(inlet)))?;
        if let Err(e) = tx.set_backend(&self.mm, |_| Ok(Some(outlet))) {
            rx.set_backend(&self.mm, |_| Ok(None))?;
            return Err(e);
        }
        Ok(())
    }

    /// The port that the queues run on.
    fn steered(&self) -> Result<Steered> {
        let rx = self.rx.lock()?;
        Ok(rx.seat().ok_or_else(errno::enotconn)?.steered())
    }
}
