// SPDX-License-Identifier: GPL-2.0

//! The calls that are made up.

use super::rig::Rings;
use super::Step;
use super::MIB;
use super::PAGE;
use crate::case::Module;
use crate::device::feature;
use crate::frame::Rng;
use crate::ioctl;
use crate::model::Arg;
use crate::model::Kind;
use crate::model::Op;
use crate::model::World;

const KERNEL: u64 = 0xffff_8880_0000_0000;
const CLOSED: i32 = 999;

/// Makes up calls: most could be a VMM's, some are nearly right, some are not.
pub(super) struct Calls<'a> {
    pub(super) rng: Rng,
    pub(super) rings: &'a Rings,
    pub(super) world: &'a World,
}

impl Calls<'_> {
    fn one_in(&mut self, n: u64) -> bool {
        self.rng.below(n) == 0
    }

    fn of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.rng.below(choices.len() as u64) as usize]
    }

    /// The first one mostly.
    fn mostly<T: Copy>(&mut self, choices: &[T]) -> T {
        if self.one_in(4) {
            self.of(choices)
        } else {
            choices[0]
        }
    }

    fn garbage(&mut self) -> u64 {
        match self.rng.below(4) {
            0 => self.rng.below(PAGE as u64),
            1 => u64::MAX - self.rng.below(PAGE as u64),
            // Never user space's: what is there is ours.
            _ => self.rng.next() | 1 << 63,
        }
    }

    fn index(&mut self) -> u32 {
        if self.one_in(30) {
            self.of(&[2, 3, u32::MAX, 1 << 31])
        } else {
            self.rng.below(2) as u32
        }
    }

    fn event(&mut self) -> i32 {
        let files = &self.world.files;
        let some = self.rng.below(files.len() as u64 + 3) as usize;
        match files.get(some) {
            Some((fd, _)) => *fd,
            None => self.of(&[-1, -2, CLOSED]),
        }
    }

    fn region(&mut self) -> [u64; 4] {
        let (used, end) = (self.rings.used, self.world.user_end);
        let garbage = self.garbage();
        let page = PAGE as u64;
        [
            self.mostly(&[
                0,
                0,
                page,
                1 << 20,
                1 << 40,
                u64::MAX - page + 1,
                3,
                garbage,
            ]),
            self.mostly(&[MIB as u64, page, 1, 0, 2 * page, 1 << 30, u64::MAX, garbage]),
            self.mostly(&[used, 0, end - page, end - MIB as u64, end, KERNEL, garbage]),
            self.of(&[0, 0, garbage]),
        ]
    }

    fn mem_table(&mut self) -> Vec<u8> {
        let most = self.world.max_regions;
        let count = if self.one_in(20) {
            self.of(&[most, most + 1, u32::MAX])
        } else {
            self.mostly(&[1, 0, 2, 3, 8])
        };
        let padding = u32::from(self.one_in(30));
        let mut bytes = words(&[count, padding]);
        for i in 0..u64::from(count.min(most)) {
            let mut region = self.region();
            region[0] = region[0].wrapping_add(i << 42);
            bytes.extend(longs(&region));
        }
        bytes
    }

    fn addr(&mut self) -> Vec<u8> {
        let Rings {
            desc,
            avail,
            used,
            hole,
            constant,
            ..
        } = *self.rings;
        let end = self.world.user_end;
        let garbage = self.garbage();
        let index = self.index();
        let flags = self.mostly(&[0, 1, 1, 2, u32::MAX]);
        let mut bytes = words(&[index, flags]);
        let half = MIB as u64 / 2;
        bytes.extend(longs(&[
            self.mostly(&[
                desc,
                desc + 1,
                desc + half,
                0,
                hole,
                end - 16,
                KERNEL,
                garbage,
            ]),
            self.mostly(&[
                used,
                used + 4,
                used + 2,
                used + half,
                0,
                hole,
                constant,
                end - 12,
                KERNEL,
                garbage,
            ]),
            self.mostly(&[
                avail,
                avail + 2,
                avail + 1,
                avail + half,
                0,
                hole,
                end - 6,
                KERNEL,
                garbage,
            ]),
            self.mostly(&[0, 4, 2, 1 << 12, 1 << 40, garbage]),
        ]));
        bytes
    }

    fn features(&mut self) -> u64 {
        let [offered, _] = feature::offered(Module::C);
        let event_idx = 1 << 29;
        let log_all = 1 << 26;
        let platform = 1 << 33;
        let version = 1 << 32;
        let bits = [
            version,
            version | event_idx,
            0,
            version | log_all,
            version | platform,
        ];
        match self.rng.below(12) {
            0 => offered,
            1 => self.rng.next() & offered,
            2 => 1 << self.rng.below(64),
            3 => self.rng.next(),
            _ => self.of(&bits),
        }
    }

    fn message(&mut self) -> Vec<u8> {
        let Rings {
            desc,
            avail,
            used,
            hole,
            ..
        } = *self.rings;
        let garbage = self.garbage();
        let iova = self.of(&[used, used, desc, avail, hole, 0, garbage]);
        // What is mapped elsewhere is written by nobody.
        let uaddr = match iova {
            at if [used, desc, avail].contains(&at) => self.mostly(&[at, hole, KERNEL]),
            _ => self.of(&[hole, KERNEL, garbage]),
        };
        let size = self.mostly(&[MIB as u64, PAGE as u64, 4, 2, 0, u64::MAX, garbage]);
        let perm = self.mostly(&[3, 1, 2]);
        let kind = self.mostly(&[2, 3, 3, 1, 4, 5, 6, 0, 255]);
        let mut bytes = words(&[self.mostly(&[2, 1, 0, 3]), 0]);
        bytes.extend(longs(&[iova, size, uaddr]));
        bytes.extend([perm, kind]);
        bytes.resize(self.mostly(&[72, 40, 39, 3, 0, 71, 144]), 0);
        bytes
    }

    fn ioctl(&mut self) -> (libc::c_ulong, Vec<u8>) {
        let index = self.index();
        match self.rng.below(48) {
            0 => (ioctl::GET_FEATURES(), longs(&[0])),
            1..=3 => (ioctl::SET_FEATURES(), longs(&[self.features()])),
            4 => {
                let count = self.mostly(&[2, 0, 1, 3, 4, 1 << 61, u64::MAX]);
                (ioctl::GET_FEATURES_ARRAY(), longs(&[count, 5, 5, 5, 5]))
            }
            5 => {
                let count = self.mostly(&[2, 0, 1, 3, 4, 1 << 61, u64::MAX]);
                let features = self.features();
                let more = self.mostly(&[0, 2, 8, 4]);
                let rest = self.mostly(&[0, 1]);
                (
                    ioctl::SET_FEATURES_ARRAY(),
                    longs(&[count, features, more, rest]),
                )
            }
            6 => (ioctl::GET_BACKEND_FEATURES(), longs(&[7])),
            7 => (
                ioctl::SET_BACKEND_FEATURES(),
                longs(&[self.mostly(&[2, 0, 1, 4])]),
            ),
            8..=9 => (ioctl::SET_OWNER(), Vec::new()),
            10 if self.one_in(3) => (ioctl::RESET_OWNER(), Vec::new()),
            11 => (ioctl::SET_FORK_FROM_OWNER(), vec![self.of(&[0, 1, 1, 2])]),
            12 => (ioctl::GET_FORK_FROM_OWNER(), vec![9]),
            13..=17 => (ioctl::SET_MEM_TABLE(), self.mem_table()),
            18..=19 => {
                let (log, garbage) = (self.rings.log, self.garbage());
                (
                    ioctl::SET_LOG_BASE(),
                    longs(&[self.mostly(&[log, 0, KERNEL, garbage])]),
                )
            }
            20 => (ioctl::SET_LOG_FD(), words(&[self.event() as u32])),
            21..=22 => {
                let num = self.mostly(&[256, 1, 32_768, 2, 0, 3, 65_535, 65_536, u32::MAX]);
                (ioctl::SET_VRING_NUM(), words(&[index, num]))
            }
            23..=24 => {
                let base = self.mostly(&[0, 1, 65_535, 65_536, u32::MAX]);
                (ioctl::SET_VRING_BASE(), words(&[index, base]))
            }
            25..=26 => (ioctl::GET_VRING_BASE(), words(&[index, 7])),
            27..=32 => (ioctl::SET_VRING_ADDR(), self.addr()),
            33..=35 => {
                let number = self.of(&[
                    ioctl::SET_VRING_KICK(),
                    ioctl::SET_VRING_CALL(),
                    ioctl::SET_VRING_ERR(),
                ]);
                (number, words(&[index, self.event() as u32]))
            }
            36 => {
                let timeout = self.of(&[0, 1, 50]);
                (
                    ioctl::SET_VRING_BUSYLOOP_TIMEOUT(),
                    words(&[index, timeout]),
                )
            }
            37 => (ioctl::GET_VRING_BUSYLOOP_TIMEOUT(), words(&[index, 7])),
            38..=44 => (
                ioctl::NET_SET_BACKEND(),
                words(&[index, self.backend() as u32]),
            ),
            _ => {
                let number = self.of(&[
                    ioctl::NEW_WORKER(),
                    ioctl::FREE_WORKER(),
                    ioctl::ATTACH_VRING_WORKER(),
                    ioctl::GET_VRING_WORKER(),
                    ioctl::SET_VRING_ENDIAN(),
                    0xaf7f,
                    0x5401,
                ]);
                (number, words(&[self.index(), 0]))
            }
        }
    }

    fn backend(&mut self) -> i32 {
        match self.rng.below(4) {
            0 => -1,
            1 => self.event(),
            _ => {
                let sockets = self.world.files.iter();
                let sockets = sockets.filter(|(_, kind)| *kind == Kind::Socket);
                let sockets: Vec<i32> = sockets.map(|(fd, _)| *fd).collect();
                self.of(&sockets)
            }
        }
    }

    pub(super) fn call(&mut self) -> Step {
        let who = usize::from(self.one_in(25));
        let op = match self.rng.below(20) {
            0 => Op::Read {
                len: self.mostly(&[72, 71, 0, 144]),
                wait: self.one_in(2),
            },
            1..=2 => Op::Write(self.message()),
            3 => Op::Poll,
            _ => {
                let (number, mut bytes) = self.ioctl();
                let mut writable = true;
                let mut nowhere = false;
                if self.one_in(15) {
                    match self.rng.below(3) {
                        0 => nowhere = true,
                        1 => writable = false,
                        _ => bytes.truncate(self.rng.below(bytes.len() as u64 + 1) as usize),
                    }
                }
                let arg = Arg { bytes, writable };
                Op::Ioctl(number, (!nowhere).then_some(arg))
            }
        };
        Step::Call(who, op)
    }

    /// What a VMM does first, nearly.
    pub(super) fn set_up(&mut self) -> Vec<Step> {
        let Rings {
            desc, avail, used, ..
        } = *self.rings;
        let mut region = words(&[1, 0]);
        region.extend(longs(&[0, MIB as u64, used, 0]));
        // Threads of the owner are where it is: see [`model`].
        let fork = self.mostly(&[1, 0]);
        let mut calls = vec![
            (ioctl::SET_FORK_FROM_OWNER(), vec![fork]),
            (ioctl::SET_OWNER(), Vec::new()),
            (ioctl::SET_MEM_TABLE(), region),
        ];
        for index in [0, 1] {
            let mut addr = words(&[index, 0]);
            addr.extend(longs(&[desc, used, avail, 0]));
            calls.push((ioctl::SET_VRING_NUM(), words(&[index, 256])));
            calls.push((ioctl::SET_VRING_ADDR(), addr));
            calls.push((
                ioctl::NET_SET_BACKEND(),
                words(&[index, self.backend() as u32]),
            ));
        }
        calls.retain(|_| self.rng.below(15) != 0);
        let step = |(number, bytes)| {
            let arg = Arg {
                bytes,
                writable: true,
            };
            Step::Call(0, Op::Ioctl(number, Some(arg)))
        };
        calls.into_iter().map(step).collect()
    }

    /// All that is done with one open device.
    pub(super) fn life(&mut self) -> Vec<Step> {
        let mut steps = vec![Step::Reopen];
        // A close takes longer than all that comes between.
        for _ in 0..1 + self.rng.below(8) {
            if !self.one_in(4) {
                steps.extend(self.set_up());
            }
            let more = self.rng.below(150);
            steps.extend((0..more).map(|_| self.call()));
            let arg = None;
            steps.push(Step::Call(0, Op::Ioctl(ioctl::RESET_OWNER(), arg)));
        }
        steps
    }
}

fn words(values: &[u32]) -> Vec<u8> {
    values
        .iter()
        .flat_map(|value| value.to_ne_bytes())
        .collect()
}

fn longs(values: &[u64]) -> Vec<u8> {
    values
        .iter()
        .flat_map(|value| value.to_ne_bytes())
        .collect()
}
