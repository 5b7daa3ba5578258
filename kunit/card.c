// SPDX-License-Identifier: GPL-2.0
/*
 * A network device for the suites, whose driver keeps what it is given to send until it is told that
 * it was sent. One is enough.
 */
#include <linux/etherdevice.h>
#include <linux/netdevice.h>
#include <linux/rtnetlink.h>
#include <net/net_namespace.h>
#include "support.h"

static struct net_device *card;
static struct sk_buff_head sending;

static netdev_tx_t card_start(struct sk_buff *skb, struct net_device *dev)
{
	skb_queue_tail(&sending, skb);
	return NETDEV_TX_OK;
}

static const struct net_device_ops card_ops = {
	.ndo_start_xmit = card_start,
	.ndo_set_mac_address = eth_mac_addr,
	.ndo_validate_addr = eth_validate_addr,
};

unsigned int rvk_card_sending(void)
{
	return skb_queue_len(&sending);
}

/* Has sent so many packets. */
void rvk_card_sent(unsigned int count)
{
	struct sk_buff *skb;

	local_bh_disable();
	while (count-- && (skb = skb_dequeue(&sending)))
		consume_skb(skb);
	local_bh_enable();
}

void rvk_card_remove(void)
{
	if (!card || card->reg_state != NETREG_REGISTERED)
		return;
	/* Waits until nobody has a reference. */
	unregister_netdev(card);
}

void rvk_card_close(void)
{
	if (!card)
		return;
	rvk_card_remove();
	free_netdev(card);
	card = NULL;
	rvk_card_sent(UINT_MAX);
}

/* Makes the device, and brings it up. Its index. */
int rvk_card(void)
{
	int ret;

	/* A case that failed leaves its own behind. */
	rvk_card_close();
	skb_queue_head_init(&sending);
	card = alloc_netdev(0, "rvkcard", NET_NAME_UNKNOWN, ether_setup);
	if (!card)
		return -ENOMEM;
	card->netdev_ops = &card_ops;
	card->priv_flags |= IFF_NO_QUEUE;
	/* IPv6 would send of its own accord, but not with packets so small. */
	card->mtu = 1000;
	eth_hw_addr_random(card);
	ret = register_netdev(card);
	if (ret) {
		free_netdev(card);
		card = NULL;
		return ret;
	}
	rtnl_lock();
	ret = dev_open(card, NULL);
	rtnl_unlock();
	return ret ?: card->ifindex;
}

/* Receives a frame. */
int rvk_card_receive(const u8 *data, u32 len)
{
	struct sk_buff *skb = alloc_skb(NET_SKB_PAD + len, GFP_KERNEL);

	if (!skb)
		return -ENOMEM;
	skb_reserve(skb, NET_SKB_PAD);
	skb_put_data(skb, data, len);
	skb->protocol = eth_type_trans(skb, card);
	local_bh_disable();
	netif_receive_skb(skb);
	local_bh_enable();
	return 0;
}

/* How a device is now. */
int rvk_dev(int ifindex, struct rvk_dev *out)
{
	struct rtnl_link_stats64 stats = { };
	struct net_device *dev;

	memset(out, 0, sizeof(*out));
	dev = dev_get_by_index(&init_net, ifindex);
	if (!dev)
		return -ENODEV;
	rtnl_lock();
	/* Ours does not count. */
	out->refs = netdev_refcnt_read(dev) - 1;
	out->promiscuity = dev->promiscuity;
	out->allmulti = dev->allmulti;
	out->handled = rtnl_dereference(dev->rx_handler);
#ifdef CONFIG_NETFILTER_INGRESS
	out->hooked = rtnl_dereference(dev->nf_hooks_ingress);
#endif
	rtnl_unlock();
	dev_get_stats(dev, &stats);
	out->rx_dropped = stats.rx_dropped;
	out->tx_dropped = stats.tx_dropped;
	dev_put(dev);
	return 0;
}
