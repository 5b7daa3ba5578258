// SPDX-License-Identifier: GPL-2.0
/*
 * The tracepoints, without the trace events made of them: those are one of a kind, and the
 * module's own.
 */
#include <linux/tracepoint.h>
#undef TRACEPOINTS_ENABLED
#define CREATE_TRACE_POINTS
#define CREATE_RUST_TRACE_POINTS
#include <trace/events/rvhost.h>
#include "support.h"

static struct rvk_told told;
static bool listening;

static void on_batch(void *data, u32 dev, u32 queue, u32 packets, u64 bytes, u64 ns)
{
	told = (struct rvk_told) { told.times + 1, dev, queue, packets, bytes };
}

static void on_error(void *data, u32 dev, u32 queue, u32 problem)
{
	told = (struct rvk_told) { told.times + 1, dev, queue, problem };
}

int rvk_listen(void)
{
	int ret = register_trace_rvhost_batch(on_batch, NULL);

	if (ret)
		return ret;
	ret = register_trace_rvhost_error(on_error, NULL);
	if (ret)
		unregister_trace_rvhost_batch(on_batch, NULL);
	else
		listening = true;
	return ret;
}

void rvk_unlisten(void)
{
	if (!listening)
		return;
	unregister_trace_rvhost_batch(on_batch, NULL);
	unregister_trace_rvhost_error(on_error, NULL);
	tracepoint_synchronize_unregister();
	listening = false;
}

void rvk_told(struct rvk_told *out)
{
	*out = told;
}
