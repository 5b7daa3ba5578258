// SPDX-License-Identifier: GPL-2.0

//! The device under test beside the model of it: a step is done to both.

use std::fs;
use std::fs::File;
use std::os::fd::AsRawFd;

use anyhow::bail;
use anyhow::Context;
use anyhow::Result;
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::eventfd::EFD_NONBLOCK;

use super::other::map;
use super::other::shared;
use super::other::system_call;
use super::other::Other;
use super::other::Room;
use super::Step;
use super::MIB;
use super::PAGE;
use crate::case::Ctx;
use crate::device;
use crate::errno::Errno;
use crate::ioctl::Outcome;
use crate::model::Arg;
use crate::model::Kind;
use crate::model::Model;
use crate::model::Op;
use crate::model::World;
use crate::tap::Tap;
use crate::tap::TapOptions;
use crate::wire::Wire;

/// Where rings may be.
pub(super) struct Rings {
    pub(super) desc: u64,
    pub(super) avail: u64,
    pub(super) used: u64,
    pub(super) log: u64,
    pub(super) hole: u64,
    pub(super) constant: u64,
}

/// Everything a run needs.
pub(super) struct Rig {
    device: std::path::PathBuf,
    pub(super) file: Option<File>,
    other: Other,
    room: Room,
    pub(super) rings: Rings,
    pub(super) world: World,
    model: Model,
    _open: (Vec<EventFd>, Vec<Tap>, Wire, Vec<File>),
}

impl Rig {
    pub(super) fn new(ctx: &Ctx) -> Result<Self> {
        let anonymous = libc::MAP_SHARED | libc::MAP_ANONYMOUS;
        let rings = Rings {
            desc: shared(MIB)?,
            avail: shared(MIB)?,
            used: shared(MIB)?,
            // Bits for guest addresses of up to 2^41.
            log: shared(64 * MIB)?,
            hole: map(MIB, libc::PROT_NONE, anonymous, -1)?,
            constant: map(MIB, libc::PROT_READ, anonymous, -1)?,
        };
        let events = [0; 2].map(|_| EventFd::new(EFD_NONBLOCK));
        let events: Vec<EventFd> = events.into_iter().collect::<Result<_, _>>()?;
        let taps = ["vt0", "vt1"].map(|name| Tap::open(name, &TapOptions::default()));
        let taps: Vec<Tap> = taps.into_iter().collect::<Result<_>>()?;
        let socket = Wire::unbound()?;
        let others = vec![Tap::open_unattached()?, File::open("/dev/null")?];
        let mut files = Vec::new();
        files.extend(events.iter().map(|event| (event.as_raw_fd(), Kind::Event)));
        files.extend(taps.iter().map(|tap| (tap.as_raw_fd(), Kind::Socket)));
        files.push((socket.as_raw_fd(), Kind::Socket));
        files.push((others[0].as_raw_fd(), Kind::Unattached));
        files.push((others[1].as_raw_fd(), Kind::Other));
        let la57 = fs::read_to_string("/proc/cpuinfo")?.contains(" la57");
        let user_bits = if la57 { 56 } else { 47 };
        let areas = [rings.desc, rings.avail, rings.used];
        let mut writable: Vec<_> = areas.map(|at| at..at + MIB as u64).into();
        writable.push(rings.log..rings.log + 64 * MIB as u64);
        let world = World {
            module: ctx.module,
            files,
            writable,
            user_end: (1 << user_bits) - PAGE as u64,
            max_regions: ctx.module.parameter("max_mem_regions")?.parse()?,
            fork_default: ctx.module.parameter("fork_from_owner_default")? == "Y",
        };
        Ok(Self {
            device: ctx.device.clone(),
            file: None,
            room: Room::new()?,
            // With all that is mapped by now.
            other: Other::start()?,
            rings,
            model: Model::new(&world),
            world,
            _open: (events, taps, socket, others),
        })
    }

    /// Does one step; the error says what it returned and should have.
    pub(super) fn step(&mut self, step: &Step) -> Result<Outcome> {
        let (who, op) = match step {
            Step::Reopen => {
                self.file = None;
                self.file = Some(device::open(&self.device)?);
                self.model = Model::new(&self.world);
                return Ok(Ok(0));
            }
            Step::Call(who, op) => (*who, op),
        };
        let fd = i64::from(self.file.as_ref().context("not open")?.as_raw_fd());
        let call = match op {
            Op::Ioctl(number, None) => [libc::SYS_ioctl, fd, *number as i64, 8],
            Op::Ioctl(number, Some(arg)) => {
                let at = self.room.put(&arg.bytes, arg.writable);
                [libc::SYS_ioctl, fd, *number as i64, at as i64]
            }
            Op::Read { len, wait } => {
                // Nobody would wake it.
                let flags = match *wait && !self.model.read_waits() {
                    true => 0,
                    false => libc::O_NONBLOCK,
                };
                system_call([libc::SYS_fcntl, fd, libc::F_SETFL.into(), flags.into()]);
                let at = self.room.put(&vec![0; *len], true);
                [libc::SYS_read, fd, at as i64, *len as i64]
            }
            Op::Write(bytes) => {
                let at = self.room.put(bytes, false);
                [libc::SYS_write, fd, at as i64, bytes.len() as i64]
            }
            Op::Poll => {
                let mut entry = (fd as i32).to_ne_bytes().to_vec();
                entry.extend([libc::POLLIN as u8, 0, 0, 0]);
                let at = self.room.put(&entry, true);
                [libc::SYS_poll, at as i64, 1, 0]
            }
        };
        let result = match who {
            0 => system_call(call),
            _ => self.other.call(call)?,
        };
        let outcome = if result < 0 {
            Err(Errno(-result as i32))
        } else {
            Ok(result as i32)
        };
        let after = match op {
            Op::Ioctl(_, Some(arg)) => Some(Arg {
                bytes: self.room.get(arg.bytes.len()),
                writable: arg.writable,
            }),
            _ => None,
        };
        let op = match op {
            Op::Read { len, wait } => &Op::Read {
                len: *len,
                wait: *wait && !self.model.read_waits(),
            },
            op => op,
        };
        let world = &self.world;
        let verdict = self.model.follow(world, who, op, outcome, after.as_ref());
        match verdict {
            Ok(()) => Ok(outcome),
            Err(text) => bail!(
                "{step:?} returned {outcome:?} and left {:02x?}; it {text}",
                after.map(|after| after.bytes).unwrap_or_default()
            ),
        }
    }

    /// Whether `steps` on a fresh device end in an error, and in which.
    fn failure(&mut self, steps: &[Step]) -> Option<(usize, anyhow::Error)> {
        for (i, step) in [Step::Reopen].iter().chain(steps).enumerate() {
            if let Err(error) = self.step(step) {
                return Some((i, error));
            }
        }
        None
    }

    /// Leaves out what the failure does not need.
    pub(super) fn shrink(&mut self, mut steps: Vec<Step>) -> Vec<Step> {
        let mut chunk = steps.len() / 2;
        while chunk > 0 {
            let mut at = 0;
            while at < steps.len() {
                let mut fewer = steps.clone();
                fewer.drain(at..(at + chunk).min(steps.len()));
                match self.failure(&fewer) {
                    Some((end, _)) => {
                        fewer.truncate(end);
                        steps = fewer;
                    }
                    None => at += chunk,
                }
            }
            chunk /= 2;
        }
        steps
    }
}
