// SPDX-License-Identifier: GPL-2.0
/* Parameters of types that the `module!` macro does not know. */
#include <linux/moduleparam.h>
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
