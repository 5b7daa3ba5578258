// SPDX-License-Identifier: GPL-2.0

//! Where the replacement is better on purpose: the rows of
//! Documentation/compat.rst, which `vtest compare` writes from here. Every
//! row is shown by a case at least.

use crate::case::Better;

/// The rows, in the order of the document.
pub(crate) const ROWS: &[&Better] = &[
    &TX_SPIN,
    &TX_FILTERED,
    &TX_LEAK,
    &RX_LEAK,
    &RX_REWIND,
    &RX_PAYLOAD,
    &RX_WRAP,
    &HEADER_SIZE,
    &TAP_GONE,
    &IN_ORDER_HEADS,
    &INDIRECT_NEXT,
    &MISS_REPEATED,
    &MISS_UNREAD,
    &MISS_FAULT,
    &MISS_FORGOTTEN,
    &RING_DENIED,
    &LOG_BASE_HALF,
    &LOG_IN_ORDER,
    &KICK_FULL,
    &ZERO_REGION,
    &HASH_REPORT,
    &ARRAY_ENDLESS,
    &OWNER_SIGNAL,
    &OWNER_LIMIT,
    &BUSY_YIELDS,
    &WAIT_KILLABLE,
    &KERNEL_SCHED,
];

/// Cases `bad_tx::…_is_dropped`.
pub(crate) const TX_SPIN: Better = Better {
    when: "TX packet whose header asks for a checksum beyond its end, that is shorter than its \
           header, that cannot be read, or that is too large for the TAP",
    c: "retried for ever at full CPU load; the queue is blocked",
    rust: "dropped, its chain given back; err is signalled where the buffers cannot be read",
    why: "a VMM sees an idle queue where there was a blocked one",
};

/// Chains to send that are refused.
pub(crate) const TX_LEAK: Better = Better {
    when: "TX chain with writable buffers, or without a byte to send",
    c: "err; never given back",
    rust: "err; given back with length 0",
    why: "err comes as before; a driver that counts its chains gets them all back",
};

/// Chains to receive into that are refused.
pub(crate) const RX_LEAK: Better = Better {
    when: "RX chain with readable buffers, or without a byte to write",
    c: "err; never given back, the packet waits for a kick",
    rust: "err; given back with length 0, the packet goes to the next chain",
    why: "err comes as before; a driver that counts its chains gets them all back",
};

/// Such a chain as one of several of a packet.
pub(crate) const RX_REWIND: Better = Better {
    when: "such a chain among the buffers of a mergeable packet",
    c: "err; the rewind is one short: the first buffer is lost",
    rust: "err; the ring is rewound to the first buffer, or the bad one given back",
    why: "the ring is broken either way; no buffer is lost",
};

/// A packet of which a part can be written.
pub(crate) const RX_PAYLOAD: Better = Better {
    when: "RX packet whose buffers can be written in part only",
    c: "delivered with its full length, its payload missing",
    rust: "dropped, the buffer stays",
    why: "a network may lose a packet; it does not hand over old memory as one",
};

/// A receive buffer of nearly 4 GiB.
pub(crate) const RX_WRAP: Better = Better {
    when: "RX buffers of 2 GiB and more",
    c: "their size counts as a negative number: the packet is dropped, or takes further buffers",
    rust: "one of them holds the packet",
    why: "no driver makes such buffers",
};

/// TUNSETVNETHDRSZ and the features disagree.
pub(crate) const HEADER_SIZE: Better = Better {
    when: "TAP whose header size is not the one that the features imply",
    c: "drops every packet to the guest until they agree",
    rust: "delivers: it writes the header itself, as long as the features say",
    why: "VMMs set the size; between their calls packets were lost",
};

/// Packets for a TAP that was deleted.
pub(crate) const TAP_GONE: Better = Better {
    when: "TAP deleted while packets are sent to it",
    c: "err; the chains of the batch are never given back",
    rust: "err; all are given back",
    why: "err comes as before; a driver that counts its chains gets them all back",
};

/// A miss that user space does not answer.
pub(crate) const MISS_REPEATED: Better = Better {
    when: "IOTLB miss that is not answered",
    c: "asked for again by each kick, without limit",
    rust: "asked for once",
    why: "a VMM answers each message; the second says nothing new",
};

/// SET_MEM_TABLE with a region {0, 0}.
pub(crate) const ZERO_REGION: Better = Better {
    when: "memory region of size 0 at address 0",
    c: "taken for the whole address space; SET_BACKEND fails later",
    rust: "EFAULT at once",
    why: "no VMM has an empty region; C returns EFAULT for it at any other address",
};

/// Where IN_ORDER takes heads from, and what it writes.
pub(crate) const IN_ORDER_HEADS: Better = Better {
    when: "IN_ORDER",
    c: "heads are counted, not read; after a stop and a start with chains of several \
        descriptors the count is wrong, and the ring is broken",
    rust: "heads are read from the available ring; each buffer has a used element of its own",
    why: "a driver that negotiated it puts in the ring what C counts, and must take single \
          elements",
};

/// `next` in indirect tables.
pub(crate) const INDIRECT_NEXT: Better = Better {
    when: "indirect table whose entries are not in sequence",
    c: "`next` is ignored: the entries are taken in sequence",
    rust: "`next` is followed, with bounds (virtio 1.3, 2.7.5.3)",
    why: "drivers fill tables in sequence; the same comes out",
};

/// An UPDATE that comes before the MISS is read.
pub(crate) const MISS_UNREAD: Better = Better {
    when: "IOTLB UPDATE that comes before the MISS it answers was read",
    c: "the queue stays stalled until it is kicked, or the MISS read and answered again",
    rust: "the queue goes on",
    why: "a VMM that answers what it read sees no difference",
};

/// A read of a MISS into memory that is not there.
pub(crate) const MISS_FAULT: Better = Better {
    when: "IOTLB message read into memory that cannot be written",
    c: "returns 0, and the message is lost",
    rust: "EFAULT, and it can be read again",
    why: "VMMs read into memory that is there",
};

/// SET_BACKEND -1 on one queue.
pub(crate) const MISS_FORGOTTEN: Better = Better {
    when: "VHOST_NET_SET_BACKEND -1 on one queue while the other waits for an IOTLB answer",
    c: "drops the messages of both; the other stalls until it is kicked",
    rust: "drops that queue's",
    why: "the message that stays is one that the VMM would have answered",
};

/// Mappings of rings that do not permit what is needed.
pub(crate) const RING_DENIED: Better = Better {
    when: "ring area mapped without the permission that is needed",
    c: "the queue rests silently",
    rust: "err",
    why: "err is what C signals for a buffer of that kind",
};

/// SET_LOG_BASE that one queue cannot take.
pub(crate) const LOG_BASE_HALF: Better = Better {
    when: "VHOST_SET_LOG_BASE that is bad for one queue of two",
    c: "EFAULT, but the other queue has changed",
    rust: "EFAULT, and nothing has changed",
    why: "a VMM that sees it fail gives the migration up",
};

/// Log ranges of in-order rings.
pub(crate) const LOG_IN_ORDER: Better = Better {
    when: "dirty log of a used ring with IN_ORDER",
    c: "marks as many elements as were used from where it wrote one, past the ring's end too",
    rust: "marks what was written",
    why: "a page that is marked without need is sent once more",
};

/// Eventfds that cannot count any further.
pub(crate) const KICK_FULL: Better = Better {
    when: "eventfd that can no longer be signalled, as kick",
    c: "EINVAL, but installed",
    rust: "EINVAL, and nothing has changed",
    why: "VMMs give up where it fails",
};

/// What GET_FEATURES returns.
pub(crate) const HASH_REPORT: Better = Better {
    when: "VIRTIO_NET_F_HASH_REPORT",
    c: "not offered",
    rust:
        "offered: packets come with the hash that chose their queue, from backends where that is \
           done here, and with none from others",
    why: "VMMs offer it to their guests only where they are told to, as by QEMU's hash=on",
};

/// SET_FEATURES_ARRAY {2^31, 0, …}.
pub(crate) const ARRAY_ENDLESS: Better = Better {
    when: "VHOST_SET_FEATURES_ARRAY of thousands of millions of words",
    c: "reads them all, for minutes, and cannot be killed",
    rust: "can be killed",
    why: "VMMs pass two words",
};

/// SET_OWNER while signals come.
pub(crate) const OWNER_SIGNAL: Better = Better {
    when: "VHOST_SET_OWNER while signals come",
    c: "ENOMEM now and then, as its thread cannot be made",
    rust: "succeeds",
    why: "what failed now and then does not fail",
};

/// Threads that count as the user's.
pub(crate) const OWNER_LIMIT: Better = Better {
    when: "VHOST_SET_OWNER at the limit of processes of the owner's user",
    c: "ENOMEM, as its thread counts, unless VHOST_SET_FORK_FROM_OWNER says 0",
    rust: "succeeds, as the threads are the kernel's, unless it says 1",
    why: "what failed does not fail; /sys/module/rvhost_net/parameters/fork_from_owner_default \
          brings C's default",
};

/// `backend::packet_socket_behind_a_filter_that_drops_goes_on`.
pub(crate) const TX_FILTERED: Better = Better {
    when: "packet to a packet socket whose device drops it, by a filter or for want of room",
    c: "retried for ever at full CPU load; the queue is blocked until \
        the device takes it",
    rust: "retried for a second or two, with sleeps in between; then dropped and counted, and so \
           are those behind it until the device takes one",
    why: "a VMM sees packets lost that its host was told to drop",
};

/// Control calls on a queue that polls busily.
pub(crate) const BUSY_YIELDS: Better = Better {
    when: "control call on a queue that polls busily",
    c: "waits until the timeout is over, however long, and cannot be killed",
    rust: "the queue stops polling and lets it in",
    why: "the same call returns sooner",
};

/// Nice value and CPUs of kernel threads.
pub(crate) const KERNEL_SCHED: Better = Better {
    when: "nice value and CPUs of an owner's kernel threads",
    c: "0, and all",
    rust: "the owner's",
    why:
        "so it is with C's default, threads of the owner's: who starts a VMM with nice or taskset \
          means them too",
};

/// Control calls that wait for a page of the owner's.
pub(crate) const WAIT_KILLABLE: Better = Better {
    when: "control call on a queue, or end of a device, whose thread waits for a page of the owner's memory",
    c: "waits for the page: the owner of kernel threads cannot be killed",
    rust: "the owner can be killed; an end waits for five seconds, and the thread goes when the page comes",
    why: "the call returns the same when the page comes",
};
