// SPDX-License-Identifier: GPL-2.0

//! Calls that concern the device as a whole.

use std::os::fd::AsRawFd;

use super::Calls;
use super::Row;
use super::ANYBODY;
use super::CLOSED;
use super::INVALID;
use super::KERNEL;
use super::NOT_OPEN;
use super::NOWHERE;
use super::NO_POINTER;
use super::OWNER;
use super::UNREADABLE;
use super::UNSUPPORTED;
use crate::device::feature;
use crate::ioctl;
use crate::ioctl::MemoryRegion;

pub(super) const CALLS: Calls = &[
    (
        "GET_FEATURES",
        &[
            Row(
                "nowhere",
                |d| d.raw.call(ioctl::GET_FEATURES(), NOWHERE),
                UNREADABLE,
            ),
            Row(
                "u64",
                |d| d.raw.get(ioctl::GET_FEATURES(), &mut 0u64),
                ANYBODY,
            ),
        ],
    ),
    (
        "SET_FEATURES",
        &[
            Row(
                "nowhere",
                |d| d.raw.call(ioctl::SET_FEATURES(), NOWHERE),
                UNREADABLE,
            ),
            Row("bit 0", |d| d.raw.set_features(1), UNSUPPORTED),
            Row("bit 34", |d| d.raw.set_features(1 << 34), UNSUPPORTED),
            Row(
                "bit 32",
                |d| d.raw.set_features(feature::VERSION_1),
                ANYBODY,
            ),
        ],
    ),
    (
        "GET_FEATURES_ARRAY",
        &[
            Row(
                "nowhere",
                |d| d.raw.call(ioctl::GET_FEATURES_ARRAY(), NOWHERE),
                UNREADABLE,
            ),
            Row(
                "0 words",
                |d| d.raw.get(ioctl::GET_FEATURES_ARRAY(), &mut 0u64),
                ANYBODY,
            ),
            Row(
                "2 words",
                |d| d.raw.get(ioctl::GET_FEATURES_ARRAY(), &mut [2u64, 0, 0]),
                ANYBODY,
            ),
        ],
    ),
    (
        "SET_FEATURES_ARRAY",
        &[
            Row(
                "nowhere",
                |d| d.raw.call(ioctl::SET_FEATURES_ARRAY(), NOWHERE),
                UNREADABLE,
            ),
            Row(
                "bit 66",
                |d| d.raw.put(ioctl::SET_FEATURES_ARRAY(), &[2u64, 0, 4]),
                UNSUPPORTED,
            ),
            Row(
                "bit 128",
                |d| d.raw.put(ioctl::SET_FEATURES_ARRAY(), &[3u64, 0, 0, 1]),
                UNSUPPORTED,
            ),
            Row(
                "0 words",
                |d| d.raw.put(ioctl::SET_FEATURES_ARRAY(), &0u64),
                ANYBODY,
            ),
            Row(
                "bits 32, 65",
                |d| {
                    d.raw
                        .put(ioctl::SET_FEATURES_ARRAY(), &[2, feature::VERSION_1, 2])
                },
                ANYBODY,
            ),
        ],
    ),
    (
        "GET_BACKEND_FEATURES",
        &[
            Row(
                "nowhere",
                |d| d.raw.call(ioctl::GET_BACKEND_FEATURES(), NOWHERE),
                UNREADABLE,
            ),
            Row(
                "u64",
                |d| d.raw.get(ioctl::GET_BACKEND_FEATURES(), &mut 0u64),
                ANYBODY,
            ),
        ],
    ),
    (
        "SET_BACKEND_FEATURES",
        &[
            Row(
                "nowhere",
                |d| d.raw.call(ioctl::SET_BACKEND_FEATURES(), NOWHERE),
                UNREADABLE,
            ),
            Row(
                "bit 2",
                |d| d.raw.put(ioctl::SET_BACKEND_FEATURES(), &4u64),
                UNSUPPORTED,
            ),
            Row(
                "bit 1",
                |d| d.raw.put(ioctl::SET_BACKEND_FEATURES(), &2u64),
                ANYBODY,
            ),
        ],
    ),
    (
        "SET_OWNER",
        &[Row(
            "none",
            |d| d.raw.set_owner(),
            "ok EBUSY EBUSY EBUSY EBUSY ok EBUSY",
        )],
    ),
    (
        "RESET_OWNER",
        &[Row("none", |d| d.raw.reset_owner(), OWNER)],
    ),
    (
        "SET_FORK_FROM_OWNER",
        &[
            Row(
                "nowhere",
                |d| d.raw.call(ioctl::SET_FORK_FROM_OWNER(), NOWHERE),
                "EFAULT EBUSY EBUSY EBUSY EBUSY EFAULT EBUSY",
            ),
            Row(
                "2",
                |d| d.raw.put(ioctl::SET_FORK_FROM_OWNER(), &2u8),
                "EINVAL EBUSY EBUSY EBUSY EBUSY EINVAL EBUSY",
            ),
            Row(
                "1",
                |d| d.raw.put(ioctl::SET_FORK_FROM_OWNER(), &1u8),
                "ok EBUSY EBUSY EBUSY EBUSY ok EBUSY",
            ),
            Row(
                "0",
                |d| d.raw.put(ioctl::SET_FORK_FROM_OWNER(), &0u8),
                "ok EBUSY EBUSY EBUSY EBUSY ok EBUSY",
            ),
        ],
    ),
    (
        "GET_FORK_FROM_OWNER",
        &[
            Row(
                "nowhere",
                |d| d.raw.call(ioctl::GET_FORK_FROM_OWNER(), NOWHERE),
                UNREADABLE,
            ),
            Row(
                "u8",
                |d| d.raw.get(ioctl::GET_FORK_FROM_OWNER(), &mut 0u8),
                ANYBODY,
            ),
        ],
    ),
    (
        "SET_MEM_TABLE",
        &[
            Row(
                "nowhere",
                |d| d.raw.call(ioctl::SET_MEM_TABLE(), NOWHERE),
                NO_POINTER,
            ),
            Row(
                "padding 1",
                |d| d.raw.set_mem_table(1, &[]),
                "EPERM EOPNOTSUPP EOPNOTSUPP EPERM EOPNOTSUPP EPERM EOPNOTSUPP",
            ),
            Row(
                "region of size 0",
                |d| d.raw.set_mem_table(0, &[MemoryRegion::new(4096, 0, 0)]),
                NO_POINTER,
            ),
            Row(
                "region that wraps",
                |d| {
                    d.raw
                        .set_mem_table(0, &[MemoryRegion::new(u64::MAX - 4095, 8192, 0)])
                },
                NO_POINTER,
            ),
            Row(
                "kernel address",
                |d| {
                    d.raw
                        .set_mem_table(0, &[MemoryRegion::new(0, 4096, KERNEL)])
                },
                "EPERM ok ok EPERM EFAULT EPERM ok",
            ),
            Row("no region", |d| d.raw.set_mem_table(0, &[]), OWNER),
            Row(
                "one region",
                |d| {
                    d.raw
                        .set_mem_table(0, &[MemoryRegion::new(0, 4096, 1 << 20)])
                },
                OWNER,
            ),
        ],
    ),
    (
        "SET_LOG_BASE",
        &[
            Row(
                "nowhere",
                |d| d.raw.call(ioctl::SET_LOG_BASE(), NOWHERE),
                NO_POINTER,
            ),
            Row(
                "kernel address",
                |d| d.raw.put(ioctl::SET_LOG_BASE(), &KERNEL),
                OWNER,
            ),
            Row("0", |d| d.raw.put(ioctl::SET_LOG_BASE(), &0u64), OWNER),
        ],
    ),
    (
        "SET_LOG_FD",
        &[
            Row(
                "nowhere",
                |d| d.raw.call(ioctl::SET_LOG_FD(), NOWHERE),
                NO_POINTER,
            ),
            Row(
                "closed",
                |d| d.raw.put(ioctl::SET_LOG_FD(), &CLOSED),
                NOT_OPEN,
            ),
            Row(
                "/dev/null",
                |d| d.raw.put(ioctl::SET_LOG_FD(), &d.props.null.as_raw_fd()),
                INVALID,
            ),
            Row(
                "eventfd",
                |d| d.raw.put(ioctl::SET_LOG_FD(), &d.props.event.as_raw_fd()),
                OWNER,
            ),
            Row("-1", |d| d.raw.put(ioctl::SET_LOG_FD(), &-1i32), OWNER),
        ],
    ),
];
