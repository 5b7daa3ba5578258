// SPDX-License-Identifier: GPL-2.0
#include <linux/etherdevice.h>
#include <linux/if_arp.h>
#include <linux/if_packet.h>
#include <linux/if_tun.h>
#include <linux/if_vlan.h>
#include <linux/net.h>
#include <linux/netdevice.h>
#include <linux/nsproxy.h>
#include <linux/rtnetlink.h>
#include <linux/virtio_net.h>
#include <net/gso.h>
#include <net/net_namespace.h>
#include <net/sock.h>
#include <helpers/helpers.h>

void rvh_rtnl_lock(void)
{
	rtnl_lock();
}

void rvh_rtnl_unlock(void)
{
	rtnl_unlock();
}

void rvh_synchronize_net(void)
{
	synchronize_net();
}

static struct net_device *rvh_dev_in(struct net *net, int ifindex, const char *name)
{
	struct net_device *dev;

	if (!ns_capable(net->user_ns, CAP_NET_ADMIN))
		return ERR_PTR(-EPERM);
	dev = name ? dev_get_by_name(net, name) : dev_get_by_index(net, ifindex);
	if (!dev)
		return ERR_PTR(-ENODEV);
	if (dev->type != ARPHRD_ETHER || dev->flags & IFF_LOOPBACK) {
		dev_put(dev);
		return ERR_PTR(-EINVAL);
	}
	return dev;
}

/* The device with this name, or else this index, in the caller's namespace, referenced. */
struct net_device *rvh_dev_get(int ifindex, const char *name)
{
	return rvh_dev_in(current->nsproxy->net_ns, ifindex, name);
}

/* The device that @sock is bound to, if that is a packet socket, in its namespace, referenced. */
struct net_device *rvh_dev_of_socket(struct socket *sock)
{
	struct sockaddr_storage at = { };
	int ifindex, err;

	if (sock->sk->sk_family != AF_PACKET)
		return ERR_PTR(-EINVAL);
	err = kernel_getsockname(sock, (struct sockaddr *)&at);
	if (err < 0)
		return ERR_PTR(err);
	ifindex = ((struct sockaddr_ll *)&at)->sll_ifindex;
	if (!ifindex)
		return ERR_PTR(-EINVAL);
	return rvh_dev_in(sock_net(sock->sk), ifindex, NULL);
}

u32 rvh_dev_ifindex(const struct net_device *dev)
{
	return dev->ifindex;
}

/* With rtnl_lock: hands what @dev receives to @handler. */
int rvh_dev_hook(struct net_device *dev, rx_handler_func_t *handler, void *data)
{
	int err = netdev_rx_handler_register(dev, handler, data);

	/* What was merged by hardware cannot be told from what was sent so. */
	if (!err)
		dev_disable_lro(dev);
	return err;
}

/* With rtnl_lock: the data that @handler was registered with, if it was. */
void *rvh_dev_hooked(struct net_device *dev, rx_handler_func_t *handler)
{
	if (rtnl_dereference(dev->rx_handler) != handler)
		return NULL;
	return rtnl_dereference(dev->rx_handler_data);
}

/* With rtnl_lock: no handler runs any more when this returns. */
void rvh_dev_unhook(struct net_device *dev)
{
	netdev_rx_handler_unregister(dev);
}

/* With rtnl_lock. */
int rvh_dev_promisc(struct net_device *dev, bool on)
{
	return dev_set_promiscuity(dev, on ? 1 : -1);
}

/* With rtnl_lock. */
int rvh_dev_allmulti(struct net_device *dev, bool on)
{
	return dev_set_allmulti(dev, on ? 1 : -1);
}

/* With rtnl_lock. */
void rvh_dev_mac(struct net_device *dev, u8 *mac)
{
	ether_addr_copy(mac, dev->dev_addr);
}

bool rvh_dev_is_up(struct net_device *dev)
{
	return READ_ONCE(dev->flags) & IFF_UP;
}

struct ptr_ring *rvh_ring_new(int size)
{
	struct ptr_ring *ring = kzalloc(sizeof(*ring), GFP_KERNEL);

	if (ring && ptr_ring_init(ring, size, GFP_KERNEL)) {
		kfree(ring);
		return NULL;
	}
	return ring;
}

void rvh_ring_destroy(struct ptr_ring *ring)
{
	ptr_ring_cleanup(ring, tun_ptr_free);
	kfree(ring);
}

/* What a reader can do that takes these TUN_F_*. */
u64 rvh_offload_features(u32 offloads)
{
	netdev_features_t features = NETIF_F_SG | NETIF_F_FRAGLIST;

	if (!(offloads & TUN_F_CSUM))
		return features;
	features |= NETIF_F_HW_CSUM;
	if (offloads & TUN_F_TSO4)
		features |= NETIF_F_TSO;
	if (offloads & TUN_F_TSO6)
		features |= NETIF_F_TSO6;
	if (offloads & TUN_F_TSO_ECN && offloads & (TUN_F_TSO4 | TUN_F_TSO6))
		features |= NETIF_F_TSO_ECN;
	if (offloads & TUN_F_USO4 && offloads & TUN_F_USO6)
		features |= NETIF_F_GSO_UDP_L4;
	return features;
}

/*
 * Takes a packet that arrived, with its Ethernet header in front. Without a port in @arrival there
 * is nothing more to do than to return what this returns.
 */
rx_handler_result_t rvh_arrival_claim(struct sk_buff **pskb, struct rvh_arrival *arrival)
{
	struct sk_buff *skb = *pskb;

	arrival->port = NULL;
	if (unlikely(skb->pkt_type == PACKET_LOOPBACK))
		return RX_HANDLER_PASS;
	skb = skb_share_check(skb, GFP_ATOMIC);
	*pskb = skb;
	if (unlikely(!skb))
		return RX_HANDLER_CONSUMED;
	skb_push(skb, ETH_HLEN);
	/* It may stay as long as the guest likes. */
	if (unlikely(skb_orphan_frags_rx(skb, GFP_ATOMIC)) ||
	    (skb_headlen(skb) < RVH_HEAD_BYTES && skb_is_nonlinear(skb) &&
	     !pskb_may_pull(skb, min_t(unsigned int, skb->len, RVH_HEAD_BYTES)))) {
		dev_core_stats_rx_dropped_inc(skb->dev);
		kfree_skb_reason(skb, SKB_DROP_REASON_NOMEM);
		return RX_HANDLER_CONSUMED;
	}
	skb_orphan(skb);
	skb_dst_drop(skb);
	nf_reset_ct(skb);
	arrival->port = rcu_dereference(skb->dev->rx_handler_data);
	arrival->skb = skb;
	arrival->frame = skb->data;
	arrival->len = skb_headlen(skb);
	return RX_HANDLER_CONSUMED;
}

/* Drops a packet for which there is no place. */
void rvh_arrival_drop(struct sk_buff *skb)
{
	dev_core_stats_rx_dropped_inc(skb->dev);
	kfree_skb_reason(skb, SKB_DROP_REASON_FULL_RING);
}

static unsigned int rvh_ring_produce(struct ptr_ring *ring, struct sk_buff *skb,
				     struct net_device *dev)
{
	/* In a ring, packets outlive their device. */
	skb->dev = NULL;
	if (likely(!ptr_ring_produce(ring, skb)))
		return 0;
	skb->dev = dev;
	rvh_arrival_drop(skb);
	return 1;
}

/*
 * Puts a packet into a ring, segmented and with checksums as far as its reader lacks @features.
 * @hash is that of the packet, and of its segments. Returns how many packets were dropped.
 */
unsigned int rvh_arrival_deliver(struct ptr_ring *ring, struct sk_buff *skb, u64 features, u64 hash)
{
	struct net_device *dev = skb->dev;
	struct sk_buff *segs, *next;
	unsigned int dropped = 0;

	RVH_HASH(skb)->fields = hash;
	RVH_HASH(skb)->mark = RVH_HASH_MARK;
	if (netif_needs_gso(skb, features)) {
		segs = __skb_gso_segment(skb, features, false);
		if (IS_ERR(segs))
			goto drop;
		if (segs) {
			consume_skb(skb);
			skb_list_walk_safe(segs, skb, next) {
				skb_mark_not_on_list(skb);
				dropped += rvh_ring_produce(ring, skb, dev);
			}
			return dropped;
		}
	} else if (skb->ip_summed == CHECKSUM_PARTIAL && !(features & NETIF_F_CSUM_MASK) &&
		   skb_checksum_help(skb)) {
		goto drop;
	}
	return rvh_ring_produce(ring, skb, dev);
drop:
	rvh_arrival_drop(skb);
	return 1;
}

/* The longest frame of @dev: devices rely on their MTU, and guests need not keep to it. */
static unsigned int rvh_dev_max(const struct net_device *dev)
{
	return READ_ONCE(dev->mtu) + ETH_HLEN + VLAN_HLEN;
}

/*
 * Transmits packets whose headers of @header bytes stand before them, and takes them over. Returns
 * how many were refused. The caller is within an RCU read-side section.
 */
unsigned int rvh_dev_transmit(struct net_device *dev, struct rvh_sender *sender,
			      struct xdp_buff *bufs, unsigned int count, unsigned int header)
{
	struct sock *owner = rvh_sender_owner(sender);
	unsigned int i, refused;

	local_bh_disable();
	refused = rvh_send_all(dev, owner, bufs, count, header, rvh_dev_max(dev));
	for (i = 0; i < refused; i++)
		dev_core_stats_tx_dropped_inc(dev);
	local_bh_enable();
	return refused;
}

/* A packet of any length, about @linear bytes of which are in one piece. */
struct sk_buff *rvh_skb_from_iter(struct iov_iter *iter, size_t len, size_t linear)
{
	struct sk_buff *skb;
	int err;

	linear = min(clamp_t(size_t, linear, RVH_HEAD_BYTES, SZ_1K), len);
	skb = alloc_skb_with_frags(RVH_SKB_PAD_BYTES + linear, len - linear,
				   PAGE_ALLOC_COSTLY_ORDER, &err, GFP_KERNEL);
	if (!skb)
		return ERR_PTR(err);
	skb_reserve(skb, RVH_SKB_PAD_BYTES);
	skb_put(skb, linear);
	skb->data_len = len - linear;
	skb->len += len - linear;
	if (skb_copy_datagram_from_iter(skb, 0, iter, len)) {
		kfree_skb(skb);
		return ERR_PTR(-EFAULT);
	}
	return skb;
}

/*
 * A packet of any length in user memory. Of its header, of @header bytes, the part that all have
 * goes to @base, a struct virtio_net_hdr.
 */
struct sk_buff *rvh_skb_from_user(const struct iovec *iov, unsigned long nr, size_t skip,
				  size_t len, size_t header, void *base)
{
	struct virtio_net_hdr *hdr = base;
	size_t known = min(header, sizeof(*hdr));
	struct iov_iter iter;

	memset(hdr, 0, sizeof(*hdr));
	iov_iter_init(&iter, ITER_SOURCE, iov, nr, skip + len);
	iov_iter_advance(&iter, skip);
	if (copy_from_iter(hdr, known, &iter) != known)
		return ERR_PTR(-EFAULT);
	iov_iter_advance(&iter, header - known);
	return rvh_skb_from_iter(&iter, len - header, __virtio16_to_cpu(true, hdr->hdr_len));
}

/*
 * Transmits and takes over @skb, whose header is @base. Returns false if it was refused. The caller
 * is within an RCU read-side section.
 */
bool rvh_skb_transmit(struct sk_buff *skb, const void *base, struct net_device *dev,
		      struct rvh_sender *sender)
{
	bool sent;

	local_bh_disable();
	sent = rvh_frame(skb, base, dev) && rvh_fits(skb, rvh_dev_max(dev));
	if (sent) {
		rvh_own(skb, rvh_sender_owner(sender));
		dev_queue_xmit(skb);
	} else {
		dev_core_stats_tx_dropped_inc(dev);
		kfree_skb(skb);
	}
	local_bh_enable();
	return sent;
}

void rvh_skb_free(struct sk_buff *skb)
{
	kfree_skb(skb);
}
