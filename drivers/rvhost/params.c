// SPDX-License-Identifier: GPL-2.0
/* Parameters of types that the `module!` macro does not know. */
#include <linux/cpumask.h>
#include <linux/moduleparam.h>
#include <linux/spinlock.h>
#include <helpers/helpers.h>

char *rvh_param_devname = "vhost-net";
module_param_named(devname, rvh_param_devname, charp, 0444);
MODULE_PARM_DESC(devname,
		 "Name of the device node. With 'vhost-net', the default, it takes the place of C vhost_net; with any other name it gets a dynamic minor beside it");

char *rvh_param_tapname = "rvhost-tap";
module_param_named(tapname, rvh_param_tapname, charp, 0444);
MODULE_PARM_DESC(tapname,
		 "Name of the device node through which network devices are used as TAPs are (default: rvhost-tap)");

bool rvh_param_fork_from_owner_default;
module_param_named(fork_from_owner_default, rvh_param_fork_from_owner_default, bool, 0444);
MODULE_PARM_DESC(fork_from_owner_default,
		 "Whether a device's threads are threads of its owner's process, as C vhost_net's are, unless VHOST_SET_FORK_FROM_OWNER says otherwise (default: N, kernel threads)");

unsigned short rvh_param_max_mem_regions = 509;
module_param_named(max_mem_regions, rvh_param_max_mem_regions, ushort, 0444);
MODULE_PARM_DESC(max_mem_regions, "Regions that a guest's memory table may have (default: 509, at most 4096)");

int rvh_param_zcopytx;
module_param_named(experimental_zcopytx, rvh_param_zcopytx, int, 0444);
MODULE_PARM_DESC(experimental_zcopytx,
		 "Whether packets larger than a page are sent from guest memory without a copy, where TAP and stack can: 0 or 1 (default: 0, as in C vhost_net)");

/* CPUs by queue: 0 is RX (network to guest), 1 is TX. Empty: all. */
static struct cpumask rvh_cpus[2];
static DEFINE_SPINLOCK(rvh_cpus_lock);

static int rvh_cpus_set(const char *text, const struct kernel_param *kp)
{
	struct cpumask *cpus = kp->arg;
	cpumask_var_t wanted;
	int err;

	if (!alloc_cpumask_var(&wanted, GFP_KERNEL))
		return -ENOMEM;
	err = cpulist_parse(text, wanted);
	if (!err) {
		spin_lock(&rvh_cpus_lock);
		cpumask_copy(cpus, wanted);
		spin_unlock(&rvh_cpus_lock);
	}
	free_cpumask_var(wanted);
	return err;
}

static int rvh_cpus_get(char *text, const struct kernel_param *kp)
{
	return cpumap_print_to_pagebuf(true, text, kp->arg);
}

static const struct kernel_param_ops rvh_cpus_ops = {
	.set = rvh_cpus_set,
	.get = rvh_cpus_get,
};

module_param_cb(rx_cpus, &rvh_cpus_ops, &rvh_cpus[0], 0644);
__MODULE_PARM_TYPE(rx_cpus, "list of CPUs");
MODULE_PARM_DESC(rx_cpus,
		 "CPUs for the threads that carry packets to guests, as 0-3,8, of those that their owner may use; for threads started from then on (default: all of these)");
module_param_cb(tx_cpus, &rvh_cpus_ops, &rvh_cpus[1], 0644);
__MODULE_PARM_TYPE(tx_cpus, "list of CPUs");
MODULE_PARM_DESC(tx_cpus, "The same for the threads that carry packets from guests");

/* The list for @queue. Returns whether there is one. */
bool rvh_param_cpus(u32 queue, struct cpumask *cpus)
{
	spin_lock(&rvh_cpus_lock);
	cpumask_copy(cpus, &rvh_cpus[queue & 1]);
	spin_unlock(&rvh_cpus_lock);
	return !cpumask_empty(cpus);
}
