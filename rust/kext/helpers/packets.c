// SPDX-License-Identifier: GPL-2.0
#include <linux/if_tun.h>
#include <linux/if_vlan.h>
#include <linux/netdevice.h>
#include <linux/virtio_net.h>
#include <helpers/helpers.h>

int rvh_ring_consume(struct ptr_ring *ring, void **packets, int max)
{
	return ptr_ring_consume_batched(ring, packets, max);
}

void rvh_ring_unconsume(struct ptr_ring *ring, void **packets, int count)
{
	ptr_ring_unconsume(ring, packets, count, tun_ptr_free);
}

/*
 * Counts packets that were taken from a ring as sent by @dev, as a TUN device's own read path does, or
 * no more if they are to be put @back. A packet in a ring keeps no reference to its device, which may
 * be gone, and @dev another one.
 */
void rvh_tun_count_sent(struct net_device *dev, void **packets, int count, bool back)
{
	unsigned long bytes = 0, sent = 0;
	struct pcpu_sw_netstats *stats;
	int i;

	for (i = 0; i < count; i++) {
		struct sk_buff *skb = packets[i];

		if (tun_is_xdp_frame(packets[i])) {
			bytes += tun_ptr_to_xdp(packets[i])->len;
			sent++;
		} else if (skb->dev == dev) {
			bytes += skb->len + (skb_vlan_tag_present(skb) ? VLAN_HLEN : 0);
			sent++;
		}
	}
	preempt_disable();
	stats = this_cpu_ptr(dev->tstats);
	u64_stats_update_begin(&stats->syncp);
	u64_stats_add(&stats->tx_packets, back ? -sent : sent);
	u64_stats_add(&stats->tx_bytes, back ? -bytes : bytes);
	u64_stats_update_end(&stats->syncp);
	preempt_enable();
}

bool rvh_ring_empty(struct ptr_ring *ring)
{
	return __ptr_ring_empty(ring);
}

/* Frees packets that were delivered. */
void rvh_ring_free(void **packets, int count)
{
	int i;

	/* Lets the skbs be freed together, as in a network device's poll. */
	local_bh_disable();
	for (i = 0; i < count; i++) {
		if (tun_is_xdp_frame(packets[i]))
			xdp_return_frame(tun_ptr_to_xdp(packets[i]));
		else
			napi_consume_skb(packets[i], 1);
	}
	local_bh_enable();
}

static void rvh_packet_describe(void *packet, bool tunnel, bool blank, bool hashed,
				struct rvh_packet *info)
{
	struct virtio_net_hdr_v1_hash_tunnel *header = (void *)info->header;
	u64 hash = 0;

	BUILD_BUG_ON(sizeof(info->header) != sizeof(*header));
	BUILD_BUG_ON(RVH_SKB_PAD_BYTES != NET_SKB_PAD + NET_IP_ALIGN);
	info->tagged = false;
	info->bad = false;
	if (tun_is_xdp_frame(packet)) {
		struct xdp_frame *frame = tun_ptr_to_xdp(packet);

		info->data = frame->data;
		info->linear = frame->len;
		info->len = frame->len;
		memset(info->header, 0, sizeof(info->header));
	} else {
		struct sk_buff *skb = packet;
		int vlan = skb_vlan_tag_present(skb) ? VLAN_HLEN : 0;

		info->data = skb->data;
		info->linear = skb_headlen(skb);
		info->len = skb->len + vlan;
		info->tagged = vlan;
		if (blank) {
			memset(info->header, 0, sizeof(info->header));
		} else if (tunnel) {
			memset(info->header, 0, sizeof(info->header));
			info->bad = virtio_net_hdr_tnl_from_skb(skb, header, true, true, vlan,
								true, false);
		} else {
			info->bad = virtio_net_hdr_from_skb(skb, (void *)header, true, true, vlan);
		}
		if (hashed && RVH_HASH(skb)->mark == RVH_HASH_MARK)
			hash = RVH_HASH(skb)->fields;
	}
	memcpy(info->header + sizeof(header->hash_hdr.hdr), &hash, sizeof(hash));
	header->hash_hdr.hdr.num_buffers = cpu_to_le16(1);
}

void rvh_packets_describe(void **packets, struct rvh_packet *infos, int count, bool tunnel,
			  bool blank, bool hashed)
{
	int i;

	for (i = 0; i < count; i++)
		rvh_packet_describe(packets[i], tunnel, blank, hashed, &infos[i]);
}

/* What finds no room is cut off. */
int rvh_packet_to_iter(void *packet, const struct rvh_packet *info, struct iov_iter *iter)
{
	struct sk_buff *skb = packet;
	int offset = 0;

	if (tun_is_xdp_frame(packet)) {
		if (copy_to_iter(info->data, info->len, iter) != info->len && iov_iter_count(iter))
			return -EFAULT;
		return 0;
	}
	if (info->tagged) {
		struct {
			__be16 proto;
			__be16 tci;
		} tag = { skb->vlan_proto, htons(skb_vlan_tag_get(skb)) };

		offset = offsetof(struct vlan_ethhdr, h_vlan_proto);
		if (skb_copy_datagram_iter(skb, 0, iter, offset) ||
		    (copy_to_iter(&tag, sizeof(tag), iter) != sizeof(tag) && iov_iter_count(iter)))
			return -EFAULT;
	}
	return skb_copy_datagram_iter(skb, offset, iter, skb->len - offset);
}

int rvh_packet_to_user(void *packet, const struct rvh_packet *info, const struct iovec *iov,
		       unsigned long nr, size_t skip)
{
	struct iov_iter iter;

	iov_iter_init(&iter, ITER_DEST, iov, nr, skip + info->len);
	iov_iter_advance(&iter, skip);
	return rvh_packet_to_iter(packet, info, &iter);
}
