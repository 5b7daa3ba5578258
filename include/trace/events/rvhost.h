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
	TP_PROTO(u32 dev, u32 queue, u32 packets, u64 bytes),
	TP_ARGS(dev, queue, packets, bytes),
	TP_STRUCT__entry(
		__field(u32, dev)
		__field(u32, queue)
		__field(u32, packets)
		__field(u64, bytes)
	),
	TP_fast_assign(
		__entry->dev = dev;
		__entry->queue = queue;
		__entry->packets = packets;
		__entry->bytes = bytes;
	),
	TP_printk("dev=%u queue=%u packets=%u bytes=%llu", __entry->dev, __entry->queue,
		  __entry->packets, __entry->bytes)
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

#endif

/* Found through -I$(src)/include. */
#undef TRACE_INCLUDE_PATH
#define TRACE_INCLUDE_PATH trace/events
#undef TRACE_INCLUDE_FILE
#define TRACE_INCLUDE_FILE rvhost
#include <trace/define_trace.h>
