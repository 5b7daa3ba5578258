/* SPDX-License-Identifier: GPL-2.0 */
#undef TRACE_SYSTEM
#define TRACE_SYSTEM rvhost

#if !defined(_TRACE_RVHOST_H) || defined(TRACE_HEADER_MULTI_READ)
#define _TRACE_RVHOST_H

#include <linux/tracepoint.h>

/*
 * dev: number of the open file, counted since the module was loaded.
 * queue: 0 is RX (host to guest), 1 is TX (guest to host).
 */

DECLARE_EVENT_CLASS(rvhost_dev,
	TP_PROTO(u32 dev),
	TP_ARGS(dev),
	TP_STRUCT__entry(
		__field(u32, dev)
	),
	TP_fast_assign(
		__entry->dev = dev;
	),
	TP_printk("dev=%u", __entry->dev)
);

DEFINE_EVENT(rvhost_dev, rvhost_open, TP_PROTO(u32 dev), TP_ARGS(dev));
DEFINE_EVENT(rvhost_dev, rvhost_release, TP_PROTO(u32 dev), TP_ARGS(dev));

/* A process owns the device; 0: nobody any more. */
TRACE_EVENT(rvhost_owner,
	TP_PROTO(u32 dev, u32 pid),
	TP_ARGS(dev, pid),
	TP_STRUCT__entry(
		__field(u32, dev)
		__field(u32, pid)
	),
	TP_fast_assign(
		__entry->dev = dev;
		__entry->pid = pid;
	),
	TP_printk("dev=%u pid=%u", __entry->dev, __entry->pid)
);

DECLARE_EVENT_CLASS(rvhost_queue,
	TP_PROTO(u32 dev, u32 queue),
	TP_ARGS(dev, queue),
	TP_STRUCT__entry(
		__field(u32, dev)
		__field(u32, queue)
	),
	TP_fast_assign(
		__entry->dev = dev;
		__entry->queue = queue;
	),
	TP_printk("dev=%u queue=%u", __entry->dev, __entry->queue)
);

/* The driver's kick was seen by the queue's thread. */
DEFINE_EVENT(rvhost_queue, rvhost_kick, TP_PROTO(u32 dev, u32 queue), TP_ARGS(dev, queue));
/* The driver was sent an interrupt. */
DEFINE_EVENT(rvhost_queue, rvhost_call, TP_PROTO(u32 dev, u32 queue), TP_ARGS(dev, queue));
/* The thread of a parked queue has it back. */
DEFINE_EVENT(rvhost_queue, rvhost_resume, TP_PROTO(u32 dev, u32 queue), TP_ARGS(dev, queue));

/* A control call has the queue, for which it waited. */
TRACE_EVENT(rvhost_park,
	TP_PROTO(u32 dev, u32 queue, u64 ns),
	TP_ARGS(dev, queue, ns),
	TP_STRUCT__entry(
		__field(u32, dev)
		__field(u32, queue)
		__field(u64, ns)
	),
	TP_fast_assign(
		__entry->dev = dev;
		__entry->queue = queue;
		__entry->ns = ns;
	),
	TP_printk("dev=%u queue=%u ns=%llu", __entry->dev, __entry->queue, __entry->ns)
);

DECLARE_EVENT_CLASS(rvhost_run,
	TP_PROTO(u32 dev, u32 queue, u32 num, u32 base),
	TP_ARGS(dev, queue, num, base),
	TP_STRUCT__entry(
		__field(u32, dev)
		__field(u32, queue)
		__field(u32, num)
		__field(u32, base)
	),
	TP_fast_assign(
		__entry->dev = dev;
		__entry->queue = queue;
		__entry->num = num;
		__entry->base = base;
	),
	TP_printk("dev=%u queue=%u num=%u base=%u", __entry->dev, __entry->queue,
		  __entry->num, __entry->base)
);

DEFINE_EVENT(rvhost_run, rvhost_queue_start,
	TP_PROTO(u32 dev, u32 queue, u32 num, u32 base), TP_ARGS(dev, queue, num, base));
DEFINE_EVENT(rvhost_run, rvhost_queue_stop,
	TP_PROTO(u32 dev, u32 queue, u32 num, u32 base), TP_ARGS(dev, queue, num, base));

TRACE_EVENT(rvhost_batch,
	TP_PROTO(u32 dev, u32 queue, u32 packets, u64 bytes, u64 ns),
	TP_ARGS(dev, queue, packets, bytes, ns),
	TP_STRUCT__entry(
		__field(u32, dev)
		__field(u32, queue)
		__field(u32, packets)
		__field(u64, bytes)
		__field(u64, ns)
	),
	TP_fast_assign(
		__entry->dev = dev;
		__entry->queue = queue;
		__entry->packets = packets;
		__entry->bytes = bytes;
		__entry->ns = ns;
	),
	TP_printk("dev=%u queue=%u packets=%u bytes=%llu ns=%llu", __entry->dev, __entry->queue,
		  __entry->packets, __entry->bytes, __entry->ns)
);

/* In the order of `Problem` in drivers/rvhost/trace.rs. */
#define rvhost_problems						\
	{ 0, "fault" }, { 1, "unmapped" }, { 2, "index_jump" },	\
	{ 3, "bad_head" }, { 4, "bad_next" }, { 5, "loop" },	\
	{ 6, "indirect_length" }, { 7, "indirect_too_long" },	\
	{ 8, "nested_indirect" }, { 9, "readable_after_writable" }, \
	{ 10, "too_many_segments" }, { 11, "no_room" },		\
	{ 12, "wrong_direction" }, { 13, "empty" },		\
	{ 14, "iotlb_miss" }, { 15, "iotlb_denied" },		\
	{ 32, "short" }, { 33, "header" }, { 34, "backend" },	\
	{ 35, "no_memory" }, { 36, "too_small" }, { 37, "no_backend" }

DECLARE_EVENT_CLASS(rvhost_problem,
	TP_PROTO(u32 dev, u32 queue, u32 problem),
	TP_ARGS(dev, queue, problem),
	TP_STRUCT__entry(
		__field(u32, dev)
		__field(u32, queue)
		__field(u32, problem)
	),
	TP_fast_assign(
		__entry->dev = dev;
		__entry->queue = queue;
		__entry->problem = problem;
	),
	TP_printk("dev=%u queue=%u reason=%s", __entry->dev, __entry->queue,
		  __print_symbolic(__entry->problem, rvhost_problems))
);

/* The ring is broken at its next entry: the queue waits for a kick. */
DEFINE_EVENT(rvhost_problem, rvhost_error,
	TP_PROTO(u32 dev, u32 queue, u32 problem), TP_ARGS(dev, queue, problem));
/* One packet or one chain was dropped; the queue goes on. */
DEFINE_EVENT(rvhost_problem, rvhost_drop,
	TP_PROTO(u32 dev, u32 queue, u32 problem), TP_ARGS(dev, queue, problem));

/* A queue needs a mapping that the IOTLB lacks; user space was asked for it. */
TRACE_EVENT(rvhost_iotlb_miss,
	TP_PROTO(u32 dev, u32 queue, u64 iova, u32 perm),
	TP_ARGS(dev, queue, iova, perm),
	TP_STRUCT__entry(
		__field(u32, dev)
		__field(u32, queue)
		__field(u64, iova)
		__field(u32, perm)
	),
	TP_fast_assign(
		__entry->dev = dev;
		__entry->queue = queue;
		__entry->iova = iova;
		__entry->perm = perm;
	),
	TP_printk("dev=%u queue=%u iova=%#llx perm=%u", __entry->dev, __entry->queue,
		  __entry->iova, __entry->perm)
);

DECLARE_EVENT_CLASS(rvhost_range,
	TP_PROTO(u32 dev, u64 first, u64 last),
	TP_ARGS(dev, first, last),
	TP_STRUCT__entry(
		__field(u32, dev)
		__field(u64, first)
		__field(u64, last)
	),
	TP_fast_assign(
		__entry->dev = dev;
		__entry->first = first;
		__entry->last = last;
	),
	TP_printk("dev=%u first=%#llx last=%#llx", __entry->dev, __entry->first, __entry->last)
);

/* User space added a mapping; it removed those that touch a range, which no queue uses now. */
DEFINE_EVENT(rvhost_range, rvhost_iotlb_update,
	TP_PROTO(u32 dev, u64 first, u64 last), TP_ARGS(dev, first, last));
DEFINE_EVENT(rvhost_range, rvhost_iotlb_invalidate,
	TP_PROTO(u32 dev, u64 first, u64 last), TP_ARGS(dev, first, last));

/* How a port chooses queues has changed: hash types, entries, whether evenly by itself. */
TRACE_EVENT(rvhost_steering,
	TP_PROTO(u32 ifindex, u32 types, u32 entries, u32 even),
	TP_ARGS(ifindex, types, entries, even),
	TP_STRUCT__entry(
		__field(u32, ifindex)
		__field(u32, types)
		__field(u32, entries)
		__field(u32, even)
	),
	TP_fast_assign(
		__entry->ifindex = ifindex;
		__entry->types = types;
		__entry->entries = entries;
		__entry->even = even;
	),
	TP_printk("ifindex=%u types=%#x entries=%u even=%u", __entry->ifindex, __entry->types,
		  __entry->entries, __entry->even)
);

#endif

/* Found through -I$(src)/include. */
#undef TRACE_INCLUDE_PATH
#define TRACE_INCLUDE_PATH trace/events
#undef TRACE_INCLUDE_FILE
#define TRACE_INCLUDE_FILE rvhost
#include <trace/define_trace.h>
