// SPDX-License-Identifier: GPL-2.0
#include "ifname.c"
#include "macvtap.c"
#include "misc.c"
#include "netdev.c"
#include "port.c"
#include "socket.c"
#include "tun.c"
#include "usermem.c"
