// SPDX-License-Identifier: GPL-2.0
#include <linux/module.h>
#include <linux/printk.h>
#include <linux/ratelimit.h>
#include <helpers/helpers.h>

static const char *rvh_direction(u32 queue)
{
	return queue ? "tx" : "rx";
}

/* The caller limits each queue; all of them together are limited here. */
void rvh_warn_problem(pid_t owner, u32 dev, u32 queue, const char *reason,
		      int len, u64 untold)
{
	pr_warn_ratelimited("%s: %s of device %u (process %d): error: %.*s (%llu earlier messages suppressed)\n",
			    THIS_MODULE->name, rvh_direction(queue), dev, owner, len, reason, untold);
}

/* Dynamic debug: 'module rvhost_net +p'. */
void rvh_debug_device(pid_t owner, u32 dev, const char *what)
{
	pr_debug("%s: device %u (process %d): %s\n", THIS_MODULE->name, dev, owner, what);
}

void rvh_debug_queue(pid_t owner, u32 dev, u32 queue, const char *what, u32 value)
{
	pr_debug("%s: %s of device %u (process %d): %s %u\n", THIS_MODULE->name,
		 rvh_direction(queue), dev, owner, what, value);
}
