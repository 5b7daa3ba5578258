// SPDX-License-Identifier: GPL-2.0
/*
 * Only in modules built with COVERAGE=1 (scripts/driver-coverage): which of the module's blocks
 * have run, on whatever thread. The kernel's own KCOV counts one task at a time.
 */
#include <linux/fs.h>
#include <linux/module.h>
#include <linux/moduleparam.h>
#include <linux/slab.h>
#include <linux/vmalloc.h>

#define RVH_COVERED (1UL << 20)

static u8 rvh_reached[RVH_COVERED];

void __sanitizer_cov_trace_pc(void);

/* The compiler calls it at the start of every block. */
void notrace __sanitizer_cov_trace_pc(void)
{
	unsigned long at = (unsigned long)__builtin_return_address(0) -
			   (unsigned long)THIS_MODULE->mem[MOD_TEXT].base;

	if (at < RVH_COVERED)
		WRITE_ONCE(rvh_reached[at], 1);
}

/* Writes the addresses that were reached to the file that is named. */
static int rvh_dump(const char *value, const struct kernel_param *param)
{
	char *name = kstrdup(value, GFP_KERNEL);
	struct file *file;
	unsigned long at;
	char line[20];
	loff_t pos = 0;
	int rc = 0;

	if (!name)
		return -ENOMEM;
	file = filp_open(strim(name), O_WRONLY | O_CREAT | O_TRUNC, 0600);
	kfree(name);
	if (IS_ERR(file))
		return PTR_ERR(file);
	for (at = 0; at < RVH_COVERED && rc >= 0; at++) {
		if (!READ_ONCE(rvh_reached[at]))
			continue;
		rc = scnprintf(line, sizeof(line), "%lx\n",
			       at + (unsigned long)THIS_MODULE->mem[MOD_TEXT].base);
		rc = kernel_write(file, line, rc, &pos);
	}
	filp_close(file, NULL);
	return rc < 0 ? rc : 0;
}

static const struct kernel_param_ops rvh_dump_ops = { .set = rvh_dump };
module_param_cb(coverage, &rvh_dump_ops, NULL, 0200);
