// SPDX-License-Identifier: GPL-2.0
//! The front: a character device whose files stand for queues of network devices, and answer what
//! programs ask of a TAP's (`linux/if_tun.h`).

use kernel::{
    ioctl::{
        _IOR,
        _IOW, //
    },
    iov::{
        IovIterDest,
        IovIterSource, //
    },
    new_spinlock,
    prelude::*,
    seq_file::SeqFile,
    seq_print,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        poll::PollTable,
        Arc,
        ArcBorrow,
        SpinLock, //
    },
};

use crate::{
    ioctl::Arg,
    kext::{
        chrdev::{
            OpenFile,
            OpenedFile,
            Operations, //
        },
        errno,
        file::FileRef,
        netdev::{
            NetDev,
            Which, //
        },
        poll::ready,
        port::{
            outlet::Outlet,
            Port,
            PortQueue,
            Wanted, //
        },
        wait::Waiters, //
    },
    steering::{
        self,
        Steered, //
    },
    tx::MIN_FRAME,
    vcore::hdr, //
};

/// The type of the ioctls of TUN and TAP.
const TUN: u32 = 'T' as u32; // CAST: a character's code.

const TUNSETNOCSUM: u32 = _IOW::<c_int>(TUN, 200);
const TUNSETIFF: u32 = _IOW::<c_int>(TUN, 202);
const TUNSETPERSIST: u32 = _IOW::<c_int>(TUN, 203);
const TUNGETFEATURES: u32 = _IOR::<c_int>(TUN, 207);
const TUNSETOFFLOAD: u32 = _IOW::<c_int>(TUN, 208);
const TUNGETIFF: u32 = _IOR::<c_int>(TUN, 210);
const TUNGETSNDBUF: u32 = _IOR::<c_int>(TUN, 211);
const TUNSETSNDBUF: u32 = _IOW::<c_int>(TUN, 212);
const TUNGETVNETHDRSZ: u32 = _IOR::<c_int>(TUN, 215);
const TUNSETVNETHDRSZ: u32 = _IOW::<c_int>(TUN, 216);
const TUNSETQUEUE: u32 = _IOW::<c_int>(TUN, 217);
const TUNSETVNETLE: u32 = _IOW::<c_int>(TUN, 220);
const TUNGETVNETLE: u32 = _IOR::<c_int>(TUN, 221);
const SIOCGIFHWADDR: u32 = 0x8927;

/// Flags of an interface, as `TUNSETIFF` takes them.
mod iff {
    pub(super) const TAP: u16 = 0x0002;
    pub(super) const MULTI_QUEUE: u16 = 0x0100;
    pub(super) const ATTACH_QUEUE: u16 = 0x0200;
    pub(super) const DETACH_QUEUE: u16 = 0x0400;
    pub(super) const PERSIST: u16 = 0x0800;
    pub(super) const NO_PI: u16 = 0x1000;
    /// Without a meaning for long.
    pub(super) const ONE_QUEUE: u16 = 0x2000;
    pub(super) const VNET_HDR: u16 = 0x4000;
    pub(super) const TUN_EXCL: u16 = 0x8000;

    /// Those on offer.
    pub(super) const OFFERED: u16 = TAP | NO_PI | MULTI_QUEUE | VNET_HDR;
}

/// Bits of `TUNSETOFFLOAD`.
mod offload {
    pub(super) const CSUM: usize = 0x01;
    pub(super) const TSO: usize = 0x02 | 0x04;
    pub(super) const TSO_ECN: usize = 0x08;
    pub(super) const UFO: usize = 0x10;
    pub(super) const USO: usize = 0x20 | 0x40;
}

// Where the fields of `struct ifreq` are, and how much of it 32-bit programs have as well.
const FLAGS_AT: u64 = 16;
const IFREQ_BYTES: usize = 32;
/// An address's family: Ethernet.
const ARPHRD_ETHER: u16 = 1;

/// Packets that may wait for a reader.
const RING: usize = 1024;

/// `/dev/rvhost-tap`.
pub(crate) struct Front;

/// An open file.
#[pin_data]
pub(crate) struct Opened {
    /// What it stands for, once that was said. Held for moments.
    #[pin]
    queue: SpinLock<Option<Arc<FrontQueue>>>,
    /// As long as the file: others poll it.
    waiters: Arc<Waiters>,
}

/// A queue of a network device, as a file stands for it.
pub(crate) struct FrontQueue {
    inlet: PortQueue,
    outlet: Outlet,
    name: [u8; FLAGS_AT as usize],
    flags: u16,
    /// Bytes of the header that is read and written with each packet.
    header: Atomic<u32>,
    little_endian: Atomic<bool>,
    sndbuf: Atomic<i32>,
}

impl FrontQueue {
    /// The queue that `file` stands for; none if it is no front. `EINVAL` if it is one that stands for
    /// none.
    pub(crate) fn of(file: &FileRef) -> Result<Option<Arc<Self>>> {
        match Front::operations().of(file) {
            Some(opened) => match opened.queue.lock().clone() {
                Some(queue) => Ok(Some(queue)),
                None => Err(EINVAL),
            },
            None => Ok(None),
        }
    }

    /// The port.
    #[inline]
    pub(crate) fn port(&self) -> &Port {
        self.inlet.port()
    }

    /// Where it receives.
    #[inline]
    pub(crate) fn inlet(&self) -> &PortQueue {
        &self.inlet
    }

    /// Where it transmits.
    #[inline]
    pub(crate) fn outlet(&self) -> &Outlet {
        &self.outlet
    }

    /// Bytes of the header that goes with each packet.
    fn header(&self) -> usize {
        match self.flags & iff::VNET_HDR {
            0 => 0,
            // CAST: u32 to usize widens.
            _ => self.header.load(Relaxed) as usize,
        }
    }

    /// Its flags now.
    fn flags_now(&self) -> u16 {
        // The device is there without us.
        let flags = self.flags | iff::PERSIST;
        if self.inlet.is_open() {
            flags
        } else {
            flags | iff::DETACH_QUEUE
        }
    }
}

impl Opened {
    /// What it stands for; `EBADFD` if that is nothing, or nothing any more.
    fn queue(&self) -> Result<Arc<FrontQueue>> {
        let queue = self.queue.lock().clone();
        queue
            .filter(|queue| !queue.port().is_gone())
            .ok_or_else(errno::ebadfd)
    }

    fn ioctl(&self, cmd: u32, arg: Arg) -> Result<isize> {
        match cmd {
            steering::SET_RSS | steering::GET_RSS | steering::REBALANCE => {
                steering::ioctl(|| Ok(Steered::Port(self.queue()?.port().clone())), cmd, arg)
            }
            _ => self.tun_ioctl(cmd, arg).map(|()| 0),
        }
    }

    fn tun_ioctl(&self, cmd: u32, arg: Arg) -> Result {
        match cmd {
            TUNGETFEATURES => return arg.put(0, &u32::from(iff::OFFERED)),
            TUNSETIFF => return self.bind(arg),
            TUNSETQUEUE => return self.attach(arg.get(FLAGS_AT)?),
            SIOCGIFHWADDR => {
                arg.get::<[u8; IFREQ_BYTES]>(0)?;
            }
            _ => {}
        }
        let queue = self.queue()?;
        match cmd {
            TUNGETIFF => arg.put(0, &ifreq(&queue.name, &queue.flags_now().to_ne_bytes())),
            TUNSETOFFLOAD => {
                queue.port().set_offloads(offloads(arg.0)?);
                Ok(())
            }
            TUNGETVNETHDRSZ => arg.put(0, &queue.header.load(Relaxed)),
            TUNSETVNETHDRSZ => {
                let bytes: i32 = arg.get(0)?;
                let bytes = u32::try_from(bytes).map_err(|_| EINVAL)?;
                // CAST: small.
                if bytes < hdr::BASE_BYTES as u32 {
                    return Err(EINVAL);
                }
                queue.header.store(bytes, Relaxed);
                Ok(())
            }
            // Headers are little-endian in any case.
            TUNGETVNETLE => arg.put(0, &i32::from(queue.little_endian.load(Relaxed))),
            TUNSETVNETLE => {
                queue.little_endian.store(arg.get::<i32>(0)? != 0, Relaxed);
                Ok(())
            }
            TUNGETSNDBUF => arg.put(0, &queue.sndbuf.load(Relaxed)),
            TUNSETSNDBUF => {
                let bytes: i32 = arg.get(0)?;
                if bytes <= 0 {
                    return Err(EINVAL);
                }
                queue.sndbuf.store(bytes, Relaxed);
                queue.outlet.set_limit(bytes);
                Ok(())
            }
            TUNSETPERSIST if arg.0 != 0 => Ok(()),
            TUNSETNOCSUM => Ok(()),
            SIOCGIFHWADDR => {
                let mac = queue.port().mac().ok_or_else(errno::ebadfd)?;
                let [a, b] = ARPHRD_ETHER.to_ne_bytes();
                let [c, d, e, f, g, h] = mac;
                arg.put(0, &ifreq(&queue.name, &[a, b, c, d, e, f, g, h]))
            }
            _ => Err(EINVAL),
        }
    }

    /// `TUNSETQUEUE`: takes part in steering, or not.
    fn attach(&self, flags: u16) -> Result {
        let queue = self.queue().map_err(|_| EINVAL)?;
        match flags {
            flags if flags & iff::ATTACH_QUEUE != 0 => queue.inlet.set_open(true),
            flags if flags & iff::DETACH_QUEUE == 0 => Err(EINVAL),
            _ if queue.flags & iff::MULTI_QUEUE == 0 => Err(EINVAL),
            _ => queue.inlet.set_open(false),
        }
    }

    /// `TUNSETIFF`: stands for a queue of an existing device from now on.
    fn bind(&self, arg: Arg) -> Result {
        let mut name: [u8; FLAGS_AT as usize] = arg.get(0)?;
        let flags: u16 = arg.get(FLAGS_AT)?;
        let [.., last] = &mut name;
        *last = 0;
        if self.queue().is_ok() {
            return Err(EEXIST);
        }
        if flags & iff::TUN_EXCL != 0 {
            return Err(EBUSY);
        }
        let needed = iff::TAP | iff::NO_PI;
        if flags & !(iff::OFFERED | iff::ONE_QUEUE) != 0 || flags & needed != needed {
            return Err(EINVAL);
        }
        let wanted = Wanted {
            queue: None,
            promiscuous: false,
            // What groups the guest is in is not known.
            all_groups: true,
            alone: flags & iff::MULTI_QUEUE == 0,
            offloads: 0,
            ring: RING,
            sndbuf: i32::MAX,
        };
        let inlet = Port::bind_file(
            NetDev::get(&Which::Name(name))?,
            &wanted,
            self.waiters.clone(),
        )?;
        let queue = FrontQueue {
            outlet: Outlet::new_file(inlet.port().device().clone(), self.waiters.clone())?,
            inlet,
            name,
            flags: flags & iff::OFFERED,
            // CAST: small.
            header: Atomic::new(hdr::BASE_BYTES as u32),
            little_endian: Atomic::new(false),
            sndbuf: Atomic::new(i32::MAX),
        };
        let queue = Arc::new(queue, GFP_KERNEL)?;
        let mut here = self.queue.lock();
        if here.as_ref().is_some_and(|here| !here.port().is_gone()) {
            // Somebody else was faster.
            drop(here);
            return Err(EEXIST);
        }
        let old = here.replace(queue);
        drop(here);
        drop(old);
        // It is done, whether the caller can be told or not.
        arg.put(0, &name)
    }
}

/// The start of a `struct ifreq`.
fn ifreq(name: &[u8], value: &[u8]) -> [u8; IFREQ_BYTES] {
    let mut all = [0; IFREQ_BYTES];
    // CAST: small.
    let (first, second) = all.split_at_mut(FLAGS_AT as usize);
    first
        .iter_mut()
        .zip(name)
        .for_each(|(to, &byte)| *to = byte);
    second
        .iter_mut()
        .zip(value)
        .for_each(|(to, &byte)| *to = byte);
    all
}

/// What the argument of `TUNSETOFFLOAD` says, if a TAP took it.
fn offloads(asked: usize) -> Result<u32> {
    let mut unknown = asked;
    if asked & offload::CSUM != 0 {
        unknown &= !(offload::CSUM | offload::UFO);
        if asked & offload::TSO != 0 {
            unknown &= !(offload::TSO | offload::TSO_ECN);
        }
        if asked & offload::USO == offload::USO {
            unknown &= !offload::USO;
        }
    }
    if unknown != 0 {
        return Err(EINVAL);
    }
    u32::try_from(asked).map_err(|_| EINVAL)
}

impl OpenFile for Front {
    type Ptr = Arc<Opened>;

    const MODULE: &'static ThisModule = &crate::THIS_MODULE;

    fn operations() -> &'static Operations<Self> {
        static OPERATIONS: Operations<Front> = Operations::new();
        &OPERATIONS
    }

    fn open() -> Result<Arc<Opened>> {
        let waiters = Waiters::new()?;
        Arc::pin_init(
            pin_init!(Opened {
                queue <- new_spinlock!(None),
                waiters,
            }),
            GFP_KERNEL,
        )
    }

    fn ioctl(opened: ArcBorrow<'_, Opened>, cmd: u32, arg: usize) -> Result<isize> {
        opened.ioctl(cmd, Arg(arg))
    }

    fn read(opened: ArcBorrow<'_, Opened>, wait: bool, to: &mut IovIterDest<'_>) -> Result<usize> {
        let queue = opened.queue()?;
        let room = to.len();
        if room == 0 {
            return Ok(0);
        }
        loop {
            if let Some(packet) = queue.inlet.take() {
                return Ok(packet.write_to(to, queue.header())?.min(room));
            }
            if queue.port().is_gone() {
                return Err(errno::ebadfd());
            }
            if !wait {
                return Err(EAGAIN);
            }
            opened
                .waiters
                .wait(|| (queue.inlet.want() || queue.port().is_gone()).then_some(()))?;
        }
    }

    fn write(opened: ArcBorrow<'_, Opened>, from: &mut IovIterSource<'_>) -> Result<usize> {
        let queue = opened.queue()?;
        let (all, header) = (from.len(), queue.header());
        let frame = all.checked_sub(header).ok_or(EINVAL)?;
        let mut base = [0; hdr::BASE_BYTES];
        // A TAP takes what its header has beyond the base for a part of the frame here.
        let mut limit = frame;
        if header > 0 {
            if from.copy_from_iter(&mut base) != base.len() {
                return Err(EFAULT);
            }
            limit = from.len();
            from.advance(header - base.len());
            hdr::cover_csum(&mut base, limit).map_err(|_| EINVAL)?;
        }
        let headers = usize::from(hdr::hdr_len(&base));
        if frame < MIN_FRAME || headers > limit || headers > 0 && headers < MIN_FRAME {
            return Err(EINVAL);
        }
        if !queue.port().is_up() {
            return Err(EIO);
        }
        queue.outlet.write(from, &base)?;
        Ok(all)
    }

    fn poll(opened: ArcBorrow<'_, Opened>, file: &OpenedFile<'_>, table: PollTable<'_>) -> u32 {
        file.wait_on(opened.waiters.polling(), table);
        let queue = opened.queue.lock();
        let Some(queue) = &*queue else {
            return ready::ERR;
        };
        // Before the look at the device: who is told that it goes looks here.
        let mut state = if queue.inlet.want() { ready::IN } else { 0 };
        if queue.port().is_gone() {
            return ready::ERR;
        }
        if queue.outlet.want() && queue.port().is_up() {
            state |= ready::OUT;
        }
        state
    }

    fn show(opened: ArcBorrow<'_, Opened>, out: &SeqFile) {
        let queue = opened.queue.lock().clone();
        let Some(queue) = queue else {
            seq_print!(out, "iff:\t\n");
            return;
        };
        seq_print!(
            out,
            "iff:\t{}\n",
            queue.port().device().named().name().unwrap_or("")
        );
        seq_print!(out, "queue:\t{}\n", queue.inlet.number());
        seq_print!(out, "iff-flags:\t{:#x}\n", queue.flags_now());
    }
}
