// SPDX-License-Identifier: GPL-2.0
//! What went wrong, as the tracepoints tell it.

use crate::vcore;

/// A reason to stop a queue or to drop a packet. The numbers are those of
/// `include/trace/events/rvhost.h`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Problem {
    /// The ring or a chain is malformed.
    Ring(vcore::Error),
    /// The packet is shorter than its header and an Ethernet header.
    Short,
    /// The header contradicts the packet, or none can describe it.
    Header,
    /// The backend refused the packet.
    Backend,
    /// There is no memory for it.
    NoMemory,
    /// The buffers are too small for it.
    TooSmall,
    /// The backend is gone.
    NoBackend,
}

impl From<vcore::Error> for Problem {
    fn from(e: vcore::Error) -> Self {
        Self::Ring(e)
    }
}

impl Problem {
    pub(crate) fn number(self) -> u32 {
        use vcore::Error::*;
        match self {
            Self::Ring(Fault) => 0,
            Self::Ring(Unmapped) => 1,
            Self::Ring(IndexJump) => 2,
            Self::Ring(BadHead) => 3,
            Self::Ring(BadNext) => 4,
            Self::Ring(Loop) => 5,
            Self::Ring(IndirectLength) => 6,
            Self::Ring(IndirectTooLong) => 7,
            Self::Ring(NestedIndirect) => 8,
            Self::Ring(ReadableAfterWritable) => 9,
            Self::Ring(TooManySegments) => 10,
            Self::Ring(NoRoom) => 11,
            Self::Ring(WrongDirection) => 12,
            Self::Ring(Empty) => 13,
            Self::Ring(Miss) => 14,
            Self::Ring(Denied) => 15,
            Self::Short => 32,
            Self::Header => 33,
            Self::Backend => 34,
            Self::NoMemory => 35,
            Self::TooSmall => 36,
            Self::NoBackend => 37,
        }
    }
}

impl Problem {
    /// Its name.
    pub(crate) fn name(self) -> &'static str {
        let number = self.number();
        let mut known = REASONS.iter();
        known
            .find(|(n, _)| *n == number)
            .map_or("?", |(_, name)| name)
    }
}

/// The numbers of all problems, and their names: those of `include/trace/events/rvhost.h`.
pub(crate) const REASONS: [(u32, &str); 22] = [
    (0, "fault"),
    (1, "unmapped"),
    (2, "index_jump"),
    (3, "bad_head"),
    (4, "bad_next"),
    (5, "loop"),
    (6, "indirect_length"),
    (7, "indirect_too_long"),
    (8, "nested_indirect"),
    (9, "readable_after_writable"),
    (10, "too_many_segments"),
    (11, "no_room"),
    (12, "wrong_direction"),
    (13, "empty"),
    (14, "iotlb_miss"),
    (15, "iotlb_denied"),
    (32, "short"),
    (33, "header"),
    (34, "backend"),
    (35, "no_memory"),
    (36, "too_small"),
    (37, "no_backend"),
];
