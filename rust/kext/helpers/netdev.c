// SPDX-License-Identifier: GPL-2.0
#include <linux/etherdevice.h>
#include <linux/if_arp.h>
#include <linux/netdevice.h>
#include <linux/rtnetlink.h>
#include <linux/virtio_net.h>
#include <net/net_namespace.h>
#include <helpers/helpers.h>

void rvh_dev_hold(struct net_device *dev)
{
	dev_hold(dev);
}

void rvh_dev_put(struct net_device *dev)
{
	dev_put(dev);
}

bool rvh_dev_registered(struct net_device *dev)
{
	/* Pairs with the barriers between the change of state and the notifier's call. */
	smp_mb();
	return READ_ONCE(dev->reg_state) == NETREG_REGISTERED;
}

/* Where the private data of @dev, a TUN device, holds @sk among its queues. */
static struct sock *const *rvh_tap_slot(struct net_device *dev, struct sock *sk)
{
	struct sock *const *slot = netdev_priv(dev);
	struct sock *const *end = slot + dev->priv_len / sizeof(*slot);

	if (!dev->rtnl_link_ops || strcmp(dev->rtnl_link_ops->kind, "tun") ||
	    dev->pcpu_stat_type != NETDEV_PCPU_STAT_TSTATS)
		return NULL;
	for (; slot < end; slot++)
		if (READ_ONCE(*slot) == sk)
			return slot;
	return NULL;
}

static struct net_device *rvh_tap_find_in(struct net *net, struct sock *sk,
					  struct sock *const **slot)
{
	struct net_device *dev;

	for_each_netdev_rcu(net, dev) {
		*slot = rvh_tap_slot(dev, sk);
		if (*slot)
			return dev;
	}
	return NULL;
}

/*
 * The device that @sock, a TAP's, is a queue of, referenced; and where it says so. A TAP tells its
 * device to nobody in the kernel, but its private data points to the sockets of its queues. Where
 * that is not so, no device is found.
 */
struct net_device *rvh_tap_find(struct socket *sock, struct sock *const **slot)
{
	struct sock *sk = sock->sk;
	struct net_device *dev;
	struct net *net;

	rcu_read_lock();
	dev = rvh_tap_find_in(sock_net(sk), sk, slot);
	if (!dev) {
		for_each_net_rcu(net) {
			dev = rvh_tap_find_in(net, sk, slot);
			if (dev)
				break;
		}
	}
	dev_hold(dev);
	rcu_read_unlock();
	return dev;
}

bool rvh_tap_has_queues(struct net_device *dev)
{
	return READ_ONCE(dev->real_num_tx_queues) > 1;
}

/*
 * Whether packets from @sock, a queue of @dev, may pass it by: a TAP without XDP program and NAPI.
 * Headers are little-endian unless somebody asks for another order, which is not seen here.
 */
static bool rvh_tap_is_plain(struct net_device *dev, struct sock *sk, struct sock *const *slot)
{
	if (IS_ENABLED(CONFIG_TUN_VNET_CROSS_LE) || IS_ENABLED(CONFIG_CPU_BIG_ENDIAN) ||
	    dev->type != ARPHRD_ETHER)
		return false;
	return READ_ONCE(*slot) == sk && list_empty(&dev->napi_list) && !sock_flag(sk, SOCK_XDP);
}

/*
 * Has @dev receive packets all at once. Their headers of @header bytes, or none, stand before them.
 * Returns false, with nothing done, if they must go through the socket. The caller is within an
 * RCU read-side section.
 */
bool rvh_tap_receive(struct net_device *dev, struct socket *sock, struct sock *const *slot,
		     struct xdp_buff *bufs, unsigned int count, unsigned int header)
{
	/* The queues are what a TAP's private data starts with. */
	unsigned int queue = slot - (struct sock *const *)netdev_priv(dev);
	struct pcpu_sw_netstats *stats;
	void *skbs[RVH_TX_BATCH];
	unsigned int i, bytes = 0, packets = 0, got;
	LIST_HEAD(list);

	if (!rvh_tap_is_plain(dev, sock->sk, slot) || count > ARRAY_SIZE(skbs))
		return false;
	local_bh_disable();
	got = napi_skb_cache_get_bulk(skbs, count);
	for (i = 0; i < got; i++) {
		const struct xdp_buff *buf = &bufs[i];
		const struct virtio_net_hdr *hdr = buf->data - header;
		struct sk_buff *skb = skbs[i];
		unsigned int len = buf->data_end - buf->data;

		rvh_wrap(skb, buf);
		if (header && rvh_asks(hdr)) {
			skb->dev = dev;
			skb_set_network_header(skb, ETH_HLEN);
			if (virtio_net_hdr_to_skb(skb, hdr, true)) {
				dev_core_stats_rx_dropped_inc(dev);
				kfree_skb(skb);
				continue;
			}
		}
		skb->protocol = eth_type_trans(skb, dev);
		if (queue < READ_ONCE(dev->real_num_rx_queues))
			skb_record_rx_queue(skb, queue);
		list_add_tail(&skb->list, &list);
		bytes += len;
		packets++;
	}
	for (; i < count; i++) {
		dev_core_stats_rx_dropped_inc(dev);
		page_frag_free(bufs[i].data_hard_start);
	}
	stats = this_cpu_ptr(dev->tstats);
	u64_stats_update_begin(&stats->syncp);
	u64_stats_add(&stats->rx_bytes, bytes);
	u64_stats_add(&stats->rx_packets, packets);
	u64_stats_update_end(&stats->syncp);
	netif_receive_skb_list(&list);
	local_bh_enable();
	return true;
}
