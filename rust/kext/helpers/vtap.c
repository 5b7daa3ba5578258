// SPDX-License-Identifier: GPL-2.0
#include <linux/if_tap.h>
#include <linux/if_vlan.h>
#include <linux/netdevice.h>
#include <linux/netfilter.h>
#include <linux/netfilter_netdev.h>
#include <linux/rtnetlink.h>
#include <linux/slab.h>
#include <net/net_namespace.h>
#include <helpers/helpers.h>

/* With rtnl_lock: the device that @sock, that of a MacVTap's or IPVTap's queue, belongs to. */
struct net_device *rvh_vtap_dev(struct socket *sock)
{
	struct tap_queue *q = container_of(sock, struct tap_queue, sock);
	struct tap_dev *tap = rtnl_dereference(q->tap);

	return tap ? tap->dev : NULL;
}

#ifdef CONFIG_NETFILTER_INGRESS
/*
 * With rtnl_lock: has @hook look at what @dev receives before its receive handler, and after all other
 * hooks, as these may send packets elsewhere.
 */
struct nf_hook_ops *rvh_vtap_hook(struct net_device *dev, nf_hookfn *hook, void *priv)
{
	struct nf_hook_ops *ops = kzalloc(sizeof(*ops), GFP_KERNEL);
	int err;

	if (!ops)
		return ERR_PTR(-ENOMEM);
	ops->hook = hook;
	ops->priv = priv;
	ops->dev = dev;
	ops->pf = NFPROTO_NETDEV;
	ops->hooknum = NF_NETDEV_INGRESS;
	ops->priority = INT_MAX;
	err = nf_register_net_hook(dev_net(dev), ops);
	if (err) {
		kfree(ops);
		return ERR_PTR(err);
	}
	return ops;
}

/*
 * With rtnl_lock. Returns what the hook was registered with, which is in use until synchronize_net() is
 * over.
 */
void *rvh_vtap_unhook(struct net_device *dev, struct nf_hook_ops *ops)
{
	void *priv = ops->priv;

	nf_unregister_net_hook(dev_net(dev), ops);
	/* Who lists hooks may look at it meanwhile. */
	kfree_rcu(ops, rcu);
	return priv;
}
#else
struct nf_hook_ops *rvh_vtap_hook(struct net_device *dev, nf_hookfn *hook, void *priv)
{
	return ERR_PTR(-EOPNOTSUPP);
}

void *rvh_vtap_unhook(struct net_device *dev, struct nf_hook_ops *ops)
{
	return NULL;
}
#endif

/*
 * Finds the headers of a packet on its way to a receive handler. Returns false if it is somebody
 * else's as well, and must stay as it is.
 */
bool rvh_vtap_look(struct sk_buff *skb, struct rvh_arrival *arrival)
{
	unsigned int head = min_t(unsigned int, skb->len, RVH_HEAD_BYTES - ETH_HLEN);

	if (unlikely(skb_shared(skb)))
		return false;
	/* If there is no memory for that, what is there counts. */
	if (skb_headlen(skb) < head)
		pskb_may_pull(skb, head);
	arrival->frame = skb_mac_header(skb);
	arrival->len = skb->data + skb_headlen(skb) - arrival->frame;
	return true;
}

/*
 * Where @dev has the queue of @sock among @count that receive; negative if it does not receive there.
 * The caller is within an RCU read-side section.
 */
int rvh_vtap_index(struct socket *sock, struct net_device *dev, u32 *count)
{
	struct tap_queue *q = container_of(sock, struct tap_queue, sock);
	struct tap_dev *tap = rcu_dereference(q->tap);

	if (!tap || tap->dev != dev || !READ_ONCE(q->enabled))
		return -1;
	*count = READ_ONCE(tap->numvtaps);
	return READ_ONCE(q->queue_index);
}

/* Has the device choose its queue by @lead, and tells the reader of that queue the packet's hash. */
void rvh_vtap_mark(struct sk_buff *skb, u32 lead, u64 hash)
{
	__skb_set_sw_hash(skb, lead, true);
	RVH_HASH(skb)->fields = hash;
	RVH_HASH(skb)->mark = RVH_HASH_MARK;
}
