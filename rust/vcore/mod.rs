// SPDX-License-Identifier: GPL-2.0
//! The virtqueue core: rings, descriptor chains, the memory table and packet headers.
//!
//! Nothing here knows the kernel: no allocation, no `unsafe`, no kernel type. The same files are
//! compiled into the module and, by cargo, on the host, where they are tested and fuzzed. All
//! access to guest memory goes through [`mem::GuestMem`]; all storage is the caller's.
//!
//! Specification: Virtual I/O Device (VIRTIO) 1.3, section 2.7 (split virtqueues) and 5.1.6
//! (network device operation).
#![forbid(unsafe_code)]

pub mod addr;
pub mod chain;
pub mod dirty;
pub mod event;
pub mod feat;
pub mod flow;
pub mod hdr;
pub mod iotlb;
pub mod map;
pub mod mem;
#[cfg(any(test, rv_kunit, feature = "mock"))]
pub mod mock;
pub mod patience;
pub mod recent;
pub mod rss;
pub mod split;
pub mod wire;

/// Why a ring could not be processed any further, or why one chain was refused.
///
/// All of these are the driver's or the owner's doing. None changes the cursor: the entry is
/// looked at again when the driver kicks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Error {
    /// Owner memory that should hold a ring or a table could not be read or written.
    Fault,
    /// A buffer or an indirect table lies outside the memory table.
    Unmapped,
    /// The available index moved by more than the ring size.
    IndexJump,
    /// An available entry names a descriptor outside the table.
    BadHead,
    /// A `next` field names a descriptor outside its table.
    BadNext,
    /// A chain is longer than its table: it loops.
    Loop,
    /// An indirect table is empty or not a whole number of descriptors.
    IndirectLength,
    /// An indirect table has more than 65,536 entries.
    IndirectTooLong,
    /// An indirect table holds an indirect descriptor.
    NestedIndirect,
    /// A device-readable buffer follows a device-writable one (virtio 1.3, 2.7.4.2).
    ReadableAfterWritable,
    /// The chain has more segments than a packet may have.
    TooManySegments,
    /// The storage for chains is full; not the driver's fault.
    NoRoom,
    /// The chain has buffers of the wrong direction for its queue.
    WrongDirection,
    /// The chain has no bytes at all.
    Empty,
    /// The IOTLB has no mapping yet. Not an error: user space was asked for one.
    Miss,
    /// The IOTLB's mapping does not allow the access.
    Denied,
}

/// What the core's operations return.
pub type Result<T = ()> = core::result::Result<T, Error>;
