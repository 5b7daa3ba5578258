// SPDX-License-Identifier: GPL-2.0
/* Parameters of types that the `module!` macro does not know. */
#include <linux/moduleparam.h>
#include <helpers/helpers.h>

char *rvh_param_devname = "vhost-net";
module_param_named(devname, rvh_param_devname, charp, 0444);
MODULE_PARM_DESC(devname,
		 "Name of the device node. With 'vhost-net', the default, it takes the place of C vhost_net; with any other name it gets a dynamic minor beside it");
