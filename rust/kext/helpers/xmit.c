// SPDX-License-Identifier: GPL-2.0
#include <linux/etherdevice.h>
#include <linux/if_macvlan.h>
#include <linux/netdevice.h>
#include <linux/virtio_net.h>
#include <net/gso.h>
#include <net/rtnetlink.h>
#include <net/sch_generic.h>
#include <helpers/helpers.h>

/*
 * Transmission of many packets at once, by the shortest way on which nobody would see a difference.
 *
 * All of this runs in an RCU read-side section with bottom halves off, without which a device,
 * the one below it, and their queueing disciplines may go.
 */

/* What of a batch was sent, and what was not. */
struct rvh_sent {
	unsigned int packets, bytes, dropped;
};

/* Packets for one transmit queue of one device. */
struct rvh_run {
	struct net_device *upper;	/* the device that they are sent by */
	struct net_device *dev;		/* the one they go to: that, one below it, or none */
	struct Qdisc *passed;		/* the discipline of @upper, if the others go below it */
	bool self;			/* packets to @upper itself do not */
	struct netdev_queue *txq;
	struct sk_buff *first;
	struct sk_buff **end;
	bool checked;		/* none of them needs work that the device leaves to others */
	struct rvh_sent sent;
};

/* Whether nothing looks at what @dev sends, but its queueing discipline. */
static bool rvh_dev_is_plain(struct net_device *dev)
{
	if (!(READ_ONCE(dev->flags) & IFF_UP) || dev_nit_active_rcu(dev))
		return false;
#ifdef CONFIG_NET_XGRESS
	if (rcu_access_pointer(dev->tcx_egress))
		return false;
#endif
#ifdef CONFIG_NETFILTER_EGRESS
	if (rcu_access_pointer(dev->nf_hooks_egress))
		return false;
#endif
	return true;
}

/*
 * Whether packets may pass @q by: it is none, or one that does so itself with a packet that finds it
 * idle. Nobody else sends from it then, until rvh_qdisc_leave.
 */
static bool rvh_qdisc_enter(struct Qdisc *q)
{
	bool entered;

	if (!q->enqueue)
		return true;
	if (!(q->flags & TCQ_F_CAN_BYPASS))
		return false;
	if (q->flags & TCQ_F_NOLOCK) {
		if (!nolock_qdisc_is_empty(q) || !qdisc_run_begin(q))
			return false;
		if (nolock_qdisc_is_empty(q))
			return true;
		qdisc_run_end(q);
		return false;
	}
	spin_lock(qdisc_lock(q));
	entered = !test_bit(__QDISC_STATE_DEACTIVATED, &q->state) && !qdisc_qlen(q) &&
		  llist_empty(&q->defer_list) && qdisc_run_begin(q);
	spin_unlock(qdisc_lock(q));
	return entered;
}

static void rvh_qdisc_leave(struct Qdisc *q, const struct rvh_sent *sent)
{
	struct sk_buff *to_free;

	if (!q->enqueue)
		return;
	if (q->flags & TCQ_F_NOLOCK) {
		_bstats_update(this_cpu_ptr(q->cpu_bstats), sent->bytes, sent->packets);
		/* Sees to it that what came meanwhile is sent. */
		qdisc_run_end(q);
		return;
	}
	spin_lock(qdisc_lock(q));
	_bstats_update(&q->bstats, sent->bytes, sent->packets);
	to_free = qdisc_run_end(q);
	if (qdisc_qlen(q))
		__netif_schedule(q);
	spin_unlock(qdisc_lock(q));
	kfree_skb_list(to_free);
}

/*
 * The device to which @dev passes packets on, if it is a MacVLAN or MacVTap that does nothing else
 * with them: NULL if it has to choose for each. One in bridge mode with nobody beside it has no
 * choice, but for packets to itself: @self.
 */
static struct net_device *rvh_macvlan_lower(struct net_device *dev, bool *self)
{
	const struct macvlan_dev *vlan = netdev_priv(dev);
	struct net_device *lower;

	*self = false;
	if (!dev->rtnl_link_ops || READ_ONCE(dev->real_num_tx_queues) != 1 ||
	    (strcmp(dev->rtnl_link_ops->kind, "macvtap") &&
	     strcmp(dev->rtnl_link_ops->kind, "macvlan")) ||
	    vlan->accel_priv || netdev_get_sb_channel(dev))
		return NULL;
	lower = vlan->lowerdev;
	*self = READ_ONCE(vlan->mode) == MACVLAN_MODE_BRIDGE;
	if (*self && !list_is_singular(&lower->adj_list.upper))
		return NULL;
	return rvh_dev_is_plain(lower) ? lower : NULL;
}

/* Has the stack send a list of packets, one by one. */
static void rvh_queue_list(struct sk_buff *skb, struct rvh_sent *sent)
{
	struct sk_buff *next;

	skb_list_walk_safe(skb, skb, next) {
		unsigned int len = skb->len;
		int rc;

		skb_mark_not_on_list(skb);
		rc = dev_queue_xmit(skb);
		if (likely(rc == NET_XMIT_SUCCESS || rc == NET_XMIT_CN)) {
			sent->packets++;
			sent->bytes += len;
		} else {
			sent->dropped++;
		}
	}
}

/* Has the device's driver send a list of packets, and tells it which is the last. */
static struct sk_buff *rvh_start_list(struct rvh_run *run, struct sk_buff *skb, bool queued,
				      struct rvh_sent *sent)
{
	struct net_device *dev = run->dev;
	struct netdev_queue *txq = run->txq;

	HARD_TX_LOCK(dev, txq, smp_processor_id());
	dev_xmit_recursion_inc();
	while (skb && !(queued ? netif_xmit_frozen_or_stopped(txq) : netif_xmit_stopped(txq))) {
		struct sk_buff *next = skb->next;
		unsigned int len = skb->len;
		int rc;

		skb_mark_not_on_list(skb);
		rc = netdev_start_xmit(skb, dev, txq, next);
		if (unlikely(!dev_xmit_complete(rc))) {
			skb->next = next;
			break;
		}
		if (likely(rc == NETDEV_TX_OK || rc == NET_XMIT_CN)) {
			sent->packets++;
			sent->bytes += len;
		} else {
			sent->dropped++;
		}
		skb = next;
	}
	dev_xmit_recursion_dec();
	HARD_TX_UNLOCK(dev, txq);
	return skb;
}

/* Sends what was collected. */
static void rvh_run_flush(struct rvh_run *run)
{
	struct sk_buff *skb = run->first, *next;
	struct rvh_sent sent = { };
	struct Qdisc *q;
	bool again;

	if (!skb)
		return;
	*run->end = NULL;
	run->first = NULL;
	run->end = &run->first;
	q = rcu_dereference_bh(run->txq->qdisc);
	if (!rvh_qdisc_enter(q)) {
		rvh_queue_list(skb, &run->sent);
		return;
	}
	if (!run->checked)
		skb = validate_xmit_skb_list(skb, run->dev, &again);
	skb = rvh_start_list(run, skb, q->enqueue, &sent);
	rvh_qdisc_leave(q, &sent);
	if (unlikely(skb)) {
		/* The driver's queue is full: those behind wait in the discipline, if there is one. */
		if (q->enqueue) {
			rvh_queue_list(skb, &sent);
		} else {
			skb_list_walk_safe(skb, skb, next) {
				skb_mark_not_on_list(skb);
				dev_core_stats_tx_dropped_inc(run->dev);
				kfree_skb(skb);
				sent.dropped++;
			}
		}
	}
	run->sent.packets += sent.packets;
	run->sent.bytes += sent.bytes;
	run->sent.dropped += sent.dropped;
}

/* The transmit queue that @dev has for @skb, as the stack would choose it. */
static struct netdev_queue *rvh_pick_txq(struct net_device *dev, struct sk_buff *skb)
{
	const struct net_device_ops *ops = dev->netdev_ops;
	u16 index = 0;

#ifdef CONFIG_XPS
	if (skb->sender_cpu - 1 >= (u32)NR_CPUS)
		skb->sender_cpu = raw_smp_processor_id() + 1;
#endif
	if (READ_ONCE(dev->real_num_tx_queues) != 1) {
		index = ops->ndo_select_queue ? ops->ndo_select_queue(dev, skb, NULL) :
						netdev_pick_tx(dev, skb, NULL);
		index = netdev_cap_txqueue(dev, index);
	}
	skb_set_queue_mapping(skb, index);
	return netdev_get_tx_queue(dev, index);
}

static void rvh_run_add(struct rvh_run *run, struct sk_buff *skb, bool plain)
{
	struct netdev_queue *txq;

	skb->dev = run->dev;
	qdisc_skb_cb(skb)->pkt_len = skb->len;
	qdisc_skb_cb(skb)->pkt_segs = 1;
	txq = rvh_pick_txq(run->dev, skb);
	if (txq != run->txq) {
		rvh_run_flush(run);
		run->txq = txq;
	}
	if (!run->first)
		run->checked = true;
	run->checked &= plain;
	*run->end = skb;
	run->end = &skb->next;
}

/* Begins to send by @dev, past its queueing discipline if its packets go to the device below. */
static void rvh_run_begin(struct rvh_run *run, struct net_device *dev)
{
	struct net_device *lower;
	struct Qdisc *q;
	bool self;

	*run = (struct rvh_run) { .upper = dev, .end = &run->first };
	if (!rvh_dev_is_plain(dev))
		return;
	run->dev = dev;
	lower = rvh_macvlan_lower(dev, &self);
	q = rcu_dereference_bh(netdev_get_tx_queue(dev, 0)->qdisc);
	if (lower && rvh_qdisc_enter(q)) {
		run->dev = lower;
		run->passed = q;
		run->self = self;
	}
}

/* Sends what was collected, and counts it as sent by the upper device. */
static void rvh_run_end(struct rvh_run *run)
{
	const struct macvlan_dev *vlan = netdev_priv(run->upper);
	struct vlan_pcpu_stats *stats;

	rvh_run_flush(run);
	if (!run->passed)
		return;
	rvh_qdisc_leave(run->passed, &run->sent);
	stats = this_cpu_ptr(vlan->pcpu_stats);
	u64_stats_update_begin(&stats->syncp);
	u64_stats_add(&stats->tx_packets, run->sent.packets);
	u64_stats_add(&stats->tx_bytes, run->sent.bytes);
	u64_stats_update_end(&stats->syncp);
	this_cpu_add(vlan->pcpu_stats->tx_dropped, run->sent.dropped);
}

/* Sends one packet, in order with @run. */
static void rvh_send_one(struct sk_buff *skb, struct rvh_run *run)
{
	bool summed = skb->ip_summed != CHECKSUM_PARTIAL, again;
	struct net_device *dev = run->upper;

	if (unlikely(!run->dev)) {
		dev_queue_xmit(skb);
		return;
	}
	/* What large packets are counted and checked by, the stack keeps to itself. */
	if (skb_is_gso(skb) ||
	    (run->self && ether_addr_equal(eth_hdr(skb)->h_dest, dev->dev_addr))) {
		rvh_run_end(run);
		dev_queue_xmit(skb);
		rvh_run_begin(run, dev);
		return;
	}
	if (!summed && run->passed)
		skb = validate_xmit_skb_list(skb, dev, &again);
	if (likely(skb))
		rvh_run_add(run, skb, summed);
}

/*
 * Has @dev send @count packets, each in one piece, of up to @max bytes, and takes them over. Their
 * headers of @header bytes, or none, stand before them. @owner owns them, if there is one. Returns
 * how many were refused.
 */
static unsigned int rvh_send_all(struct net_device *dev, struct sock *owner, struct xdp_buff *bufs,
				 unsigned int count, unsigned int header, unsigned int max)
{
	unsigned int i, got, refused = 0;
	void *skbs[RVH_TX_BATCH];
	struct rvh_run run;

	rvh_run_begin(&run, dev);
	got = napi_skb_cache_get_bulk(skbs, min(count, RVH_TX_BATCH));
	for (i = 0; i < got; i++) {
		const struct xdp_buff *buf = &bufs[i];
		struct sk_buff *skb = skbs[i];

		rvh_wrap(skb, buf);
		if (likely(rvh_frame(skb, header ? buf->data - header : NULL, dev) &&
			   rvh_fits(skb, max))) {
			rvh_own(skb, owner);
			rvh_send_one(skb, &run);
			continue;
		}
		kfree_skb(skb);
		refused++;
	}
	for (; i < count; i++) {
		page_frag_free(bufs[i].data_hard_start);
		refused++;
	}
	rvh_run_end(&run);
	return refused;
}
