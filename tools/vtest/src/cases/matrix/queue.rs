// SPDX-License-Identifier: GPL-2.0

//! Calls that concern one queue.

use std::os::fd::AsRawFd;

use super::Calls;
use super::Row;
use super::CLOSED;
use super::INVALID;
use super::KERNEL;
use super::NOT_OPEN;
use super::NOWHERE;
use super::NO_POINTER;
use super::NO_QUEUE;
use super::OWNER;
use super::STOPPED;
use super::STOPPED_INVALID;
use super::STOPPED_UNREADABLE;
use super::UNREADABLE;
use crate::ioctl;
use crate::ioctl::VringState;

pub(super) const CALLS: Calls = &[
    (
        "SET_VRING_NUM",
        &[
            Row(
                "nowhere",
                |d| d.raw.call(ioctl::SET_VRING_NUM(), NOWHERE),
                NO_POINTER,
            ),
            Row("queue 2", |d| d.raw.set_vring_num(2, 256), NO_QUEUE),
            Row(
                "half of it",
                |d| d.half(ioctl::SET_VRING_NUM()),
                STOPPED_UNREADABLE,
            ),
            Row("0", |d| d.raw.set_vring_num(0, 0), STOPPED_INVALID),
            Row("255", |d| d.raw.set_vring_num(0, 255), STOPPED_INVALID),
            Row("65536", |d| d.raw.set_vring_num(0, 65_536), STOPPED_INVALID),
            Row("256", |d| d.raw.set_vring_num(0, 256), STOPPED),
        ],
    ),
    (
        "SET_VRING_BASE",
        &[
            Row(
                "nowhere",
                |d| d.raw.call(ioctl::SET_VRING_BASE(), NOWHERE),
                NO_POINTER,
            ),
            Row("queue 2", |d| d.raw.set_vring_base(2, 0), NO_QUEUE),
            Row(
                "half of it",
                |d| d.half(ioctl::SET_VRING_BASE()),
                STOPPED_UNREADABLE,
            ),
            Row(
                "65536",
                |d| d.raw.set_vring_base(0, 65_536),
                STOPPED_INVALID,
            ),
            Row("65535", |d| d.raw.set_vring_base(0, 65_535), STOPPED),
        ],
    ),
    (
        "GET_VRING_BASE",
        &[
            Row(
                "nowhere",
                |d| d.raw.call(ioctl::GET_VRING_BASE(), NOWHERE),
                NO_POINTER,
            ),
            Row("queue 2", |d| d.state(ioctl::GET_VRING_BASE(), 2), NO_QUEUE),
            Row(
                "read-only",
                |d| d.raw.call(ioctl::GET_VRING_BASE(), d.constant()),
                NO_POINTER,
            ),
            Row("queue 0", |d| d.state(ioctl::GET_VRING_BASE(), 0), OWNER),
        ],
    ),
    (
        "SET_VRING_ADDR",
        &[
            Row(
                "nowhere",
                |d| d.raw.call(ioctl::SET_VRING_ADDR(), NOWHERE),
                NO_POINTER,
            ),
            Row("queue 2", |d| d.addr(|a| a.index = 2), NO_QUEUE),
            Row(
                "half of it",
                |d| d.half(ioctl::SET_VRING_ADDR()),
                NO_POINTER,
            ),
            Row(
                "flag 2",
                |d| d.addr(|a| a.flags = 2),
                "EPERM EOPNOTSUPP EOPNOTSUPP EPERM EOPNOTSUPP EPERM EOPNOTSUPP",
            ),
            Row("odd avail", |d| d.addr(|a| a.avail += 1), INVALID),
            Row("used at 2 mod 4", |d| d.addr(|a| a.used += 2), INVALID),
            Row("log at 2 mod 4", |d| d.addr(|a| a.log = 2), INVALID),
            Row(
                "kernel address",
                |d| d.addr(|a| a.desc = KERNEL),
                "EPERM ok ok EPERM EINVAL EPERM ok",
            ),
            Row("odd desc", |d| d.addr(|a| a.desc += 1), OWNER),
            Row("good", |d| d.addr(|_| ()), OWNER),
        ],
    ),
    ("SET_VRING_KICK", &EVENTS_KICK),
    ("SET_VRING_CALL", &EVENTS_CALL),
    ("SET_VRING_ERR", &EVENTS_ERR),
    (
        "SET_VRING_BUSYLOOP_TIMEOUT",
        &[
            Row(
                "nowhere",
                |d| d.raw.call(ioctl::SET_VRING_BUSYLOOP_TIMEOUT(), NOWHERE),
                NO_POINTER,
            ),
            Row(
                "queue 2",
                |d| d.state(ioctl::SET_VRING_BUSYLOOP_TIMEOUT(), 2),
                NO_QUEUE,
            ),
            Row(
                "half of it",
                |d| d.half(ioctl::SET_VRING_BUSYLOOP_TIMEOUT()),
                NO_POINTER,
            ),
            Row(
                "2^32 - 1",
                |d| {
                    let state = VringState {
                        index: 0,
                        num: u32::MAX,
                    };
                    let set = d.raw.put(ioctl::SET_VRING_BUSYLOOP_TIMEOUT(), &state);
                    // Not left there: it would last for more than an hour.
                    let _ = d.state(ioctl::SET_VRING_BUSYLOOP_TIMEOUT(), 0);
                    set
                },
                OWNER,
            ),
        ],
    ),
    (
        "GET_VRING_BUSYLOOP_TIMEOUT",
        &[
            Row(
                "nowhere",
                |d| d.raw.call(ioctl::GET_VRING_BUSYLOOP_TIMEOUT(), NOWHERE),
                NO_POINTER,
            ),
            Row(
                "queue 2",
                |d| d.state(ioctl::GET_VRING_BUSYLOOP_TIMEOUT(), 2),
                NO_QUEUE,
            ),
            Row(
                "read-only",
                |d| {
                    d.raw
                        .call(ioctl::GET_VRING_BUSYLOOP_TIMEOUT(), d.constant())
                },
                NO_POINTER,
            ),
            Row(
                "queue 0",
                |d| d.state(ioctl::GET_VRING_BUSYLOOP_TIMEOUT(), 0),
                OWNER,
            ),
        ],
    ),
    (
        "NET_SET_BACKEND",
        &[
            Row(
                "nowhere",
                |d| d.raw.call(ioctl::NET_SET_BACKEND(), NOWHERE),
                UNREADABLE,
            ),
            Row("queue 2", |d| d.raw.set_backend(2, -1), NO_QUEUE),
            Row(
                "closed",
                |d| d.raw.set_backend(0, CLOSED),
                "EPERM EFAULT ENOTSOCK EPERM ENOTSOCK EPERM ENOTSOCK",
            ),
            Row(
                "-2",
                |d| d.raw.set_backend(0, -2),
                "EPERM EFAULT ENOTSOCK EPERM ENOTSOCK EPERM ENOTSOCK",
            ),
            Row(
                "eventfd",
                |d| d.raw.set_backend(0, d.props.event.as_raw_fd()),
                "EPERM EFAULT ENOTSOCK EPERM ENOTSOCK EPERM ENOTSOCK",
            ),
            Row(
                "packet socket",
                |d| d.raw.set_backend(0, d.props.socket.as_raw_fd()),
                "EPERM EFAULT ok EPERM ok EPERM EFAULT",
            ),
            Row(
                "the same",
                |d| d.raw.set_backend(0, d.props.socket.as_raw_fd()),
                "EPERM EFAULT ok EPERM ok EPERM EFAULT",
            ),
            Row(
                "-1",
                |d| d.raw.set_backend(0, -1),
                "EPERM EFAULT ok EPERM ok EPERM ok",
            ),
            Row(
                "-1 again",
                |d| d.raw.set_backend(0, -1),
                "EPERM EFAULT ok EPERM ok EPERM ok",
            ),
        ],
    ),
];

macro_rules! events {
    ($name:ident, $number:expr) => {
        const $name: [Row; 8] = [
            Row("nowhere", |d| d.raw.call($number, NOWHERE), NO_POINTER),
            Row(
                "queue 2",
                |d| d.raw.set_vring_file($number, 2, -1),
                NO_QUEUE,
            ),
            Row("half of it", |d| d.half($number), NO_POINTER),
            Row(
                "closed",
                |d| d.raw.set_vring_file($number, 0, CLOSED),
                NOT_OPEN,
            ),
            Row("-2", |d| d.raw.set_vring_file($number, 0, -2), NOT_OPEN),
            Row(
                "/dev/null",
                |d| d.raw.set_vring_file($number, 0, d.props.null.as_raw_fd()),
                INVALID,
            ),
            Row(
                "eventfd",
                |d| d.raw.set_vring_file($number, 0, d.props.event.as_raw_fd()),
                OWNER,
            ),
            Row("-1", |d| d.raw.set_vring_file($number, 0, -1), OWNER),
        ];
    };
}

events!(EVENTS_KICK, ioctl::SET_VRING_KICK());
events!(EVENTS_CALL, ioctl::SET_VRING_CALL());
events!(EVENTS_ERR, ioctl::SET_VRING_ERR());
