// SPDX-License-Identifier: GPL-2.0

//! Calls that there are not, and the other system calls.

use std::time::Duration;

use super::Borrowed;
use super::Calls;
use super::Row;
use super::ANYBODY;
use super::NOWHERE;
use super::NO_POINTER;
use super::NO_QUEUE;
use super::NO_SUCH;
use super::UNREADABLE;
use crate::ioctl;
use crate::poll;

pub(super) const CALLS: Calls = &[
    (
        "NEW_WORKER",
        &[
            Row(
                "nowhere",
                |d| d.raw.call(ioctl::NEW_WORKER(), NOWHERE),
                NO_POINTER,
            ),
            Row("7 in memory", |d| d.state(ioctl::NEW_WORKER(), 7), NO_QUEUE),
            Row("0 in memory", |d| d.state(ioctl::NEW_WORKER(), 0), NO_SUCH),
        ],
    ),
    (
        "FREE_WORKER",
        &[
            Row("7", |d| d.state(ioctl::FREE_WORKER(), 7), NO_QUEUE),
            Row("0", |d| d.state(ioctl::FREE_WORKER(), 0), NO_SUCH),
        ],
    ),
    (
        "ATTACH_VRING_WORKER",
        &[
            Row(
                "queue 2",
                |d| d.state(ioctl::ATTACH_VRING_WORKER(), 2),
                NO_QUEUE,
            ),
            Row(
                "queue 0",
                |d| d.state(ioctl::ATTACH_VRING_WORKER(), 0),
                NO_SUCH,
            ),
        ],
    ),
    (
        "GET_VRING_WORKER",
        &[
            Row(
                "queue 2",
                |d| d.state(ioctl::GET_VRING_WORKER(), 2),
                NO_QUEUE,
            ),
            Row(
                "queue 0",
                |d| d.state(ioctl::GET_VRING_WORKER(), 0),
                NO_SUCH,
            ),
        ],
    ),
    (
        "SET_VRING_ENDIAN",
        &[
            Row(
                "queue 2",
                |d| d.state(ioctl::SET_VRING_ENDIAN(), 2),
                NO_QUEUE,
            ),
            Row(
                "queue 0",
                |d| d.state(ioctl::SET_VRING_ENDIAN(), 0),
                NO_SUCH,
            ),
        ],
    ),
    (
        "unknown_ioctl",
        &[
            Row("nowhere", |d| d.raw.call(0xaf7f, NOWHERE), NO_POINTER),
            Row("2 in memory", |d| d.state(0xaf7f, 2), NO_QUEUE),
            Row("1 in memory", |d| d.state(0xaf7f, 1), NO_SUCH),
        ],
    ),
    (
        "ioctl_of_another_device",
        &[
            Row("nowhere", |d| d.raw.call(0x5401, NOWHERE), NO_POINTER),
            Row("1 in memory", |d| d.state(0x5401, 1), NO_SUCH),
        ],
    ),
    (
        "read",
        &[
            Row("0 bytes", |d| d.read(0, true), ANYBODY),
            Row("71 bytes", |d| d.read(71, true), ANYBODY),
            Row(
                "72 bytes",
                |d| d.read(72, true),
                "EAGAIN EAGAIN EAGAIN EAGAIN EAGAIN EAGAIN EAGAIN",
            ),
            Row(
                "72, blocking",
                |d| d.read(72, false),
                "EBADFD EBADFD EBADFD EBADFD EBADFD EBADFD EBADFD",
            ),
        ],
    ),
    (
        "write",
        &[
            Row(
                "3 bytes",
                |d| d.write(3, 2),
                "EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL",
            ),
            Row(
                "39 bytes",
                |d| d.write(39, 2),
                "EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL",
            ),
            Row(
                "version 3",
                |d| d.write(72, 3),
                "EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL EINVAL",
            ),
            Row("UPDATE", |d| d.write(72, 2), UNREADABLE),
        ],
    ),
    (
        "poll",
        &[Row(
            "for input",
            |d| {
                let ready = poll::readable(&Borrowed(d.raw.0), Duration::ZERO);
                Ok(i32::from(ready.unwrap_or(true)))
            },
            ANYBODY,
        )],
    ),
    (
        "mmap",
        &[Row(
            "a page",
            |d| d.mmap(),
            "ENODEV ENODEV ENODEV ENODEV ENODEV ENODEV ENODEV",
        )],
    ),
    (
        "lseek",
        &[Row(
            "to 100",
            // SAFETY: Plain system call without pointers.
            |d| Ok(unsafe { libc::lseek(d.raw.0, 100, libc::SEEK_SET) } as i32),
            ANYBODY,
        )],
    ),
];
