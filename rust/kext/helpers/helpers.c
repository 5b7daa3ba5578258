// SPDX-License-Identifier: GPL-2.0
/* One unit. The first come first, as those below use them without a call where that pays. */
#include "sender.c"
#include "skb.c"
#include "xmit.c"

#include "affinity.c"
#include "ifname.c"
#include "log.c"
#include "macvtap.c"
#include "misc.c"
#include "netdev.c"
#include "packets.c"
#include "port.c"
#include "socket.c"
#include "usermem.c"
#include "vtap.c"
