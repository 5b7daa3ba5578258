// SPDX-License-Identifier: GPL-2.0
#include <linux/if_tap.h>
#include <linux/if_tun.h>
#include <linux/netdevice.h>
#include <helpers/helpers.h>

/*
 * Sends packets for @sock, that of a MacVTap's or IPVTap's queue, and takes them over. Their
 * headers of @header bytes stand before them. Returns false, with nothing done, if they must go
 * through the socket.
 */
bool rvh_vtap_send(struct socket *sock, struct xdp_buff *bufs, unsigned int count,
		   unsigned int header)
{
	struct tap_queue *q = container_of(sock, struct tap_queue, sock);
	unsigned int i, refused;
	struct tap_dev *tap;

	/* Headers are little-endian unless somebody asks for another order, which is not seen here. */
	if (IS_ENABLED(CONFIG_TUN_VNET_CROSS_LE) || IS_ENABLED(CONFIG_CPU_BIG_ENDIAN))
		return false;
	if (!(q->flags & IFF_VNET_HDR))
		header = 0;
	rcu_read_lock();
	local_bh_disable();
	tap = rcu_dereference(q->tap);
	if (likely(tap)) {
		refused = rvh_send_all(tap->dev, NULL, bufs, count, header, UINT_MAX);
		while (tap->count_tx_dropped && refused--)
			tap->count_tx_dropped(tap);
	} else {
		/* The device is gone: packets go nowhere. */
		for (i = 0; i < count; i++)
			page_frag_free(bufs[i].data_hard_start);
	}
	local_bh_enable();
	rcu_read_unlock();
	return true;
}
