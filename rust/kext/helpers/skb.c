// SPDX-License-Identifier: GPL-2.0
#include <linux/etherdevice.h>
#include <linux/if_vlan.h>
#include <linux/ip.h>
#include <linux/ipv6.h>
#include <linux/netdevice.h>
#include <linux/skbuff.h>
#include <linux/virtio_net.h>
#include <net/gso.h>
#include <net/sock.h>
#include <helpers/helpers.h>

/* Makes @skb, which has no data yet, a packet of the frame in @buf, which belongs to it from now on. */
static void rvh_wrap(struct sk_buff *skb, const struct xdp_buff *buf)
{
	build_skb_around(skb, buf->data_hard_start, buf->frame_sz);
	skb_reserve(skb, buf->data - buf->data_hard_start);
	__skb_put(skb, buf->data_end - buf->data);
}

/* Whether @hdr asks for more than to send the frame as it is. */
static bool rvh_asks(const struct virtio_net_hdr *hdr)
{
	return hdr->flags & VIRTIO_NET_HDR_F_NEEDS_CSUM ||
	       hdr->gso_type != VIRTIO_NET_HDR_GSO_NONE;
}

/* Finds the transport header, as skb_probe_transport_header, sooner for what there is most of. */
static void rvh_probe_transport(struct sk_buff *skb)
{
	if (skb_transport_header_was_set(skb))
		return;
	if (skb->protocol == htons(ETH_P_IP) && skb->len >= ETH_HLEN + sizeof(struct iphdr)) {
		const struct iphdr *ip = ip_hdr(skb);

		if (ip->ihl >= 5 && (ip->protocol == IPPROTO_TCP || ip->protocol == IPPROTO_UDP)) {
			skb_set_transport_header(skb, min(ETH_HLEN + ip->ihl * 4U, skb->len));
			return;
		}
	} else if (skb->protocol == htons(ETH_P_IPV6) &&
		   skb->len >= ETH_HLEN + sizeof(struct ipv6hdr)) {
		u8 next = ipv6_hdr(skb)->nexthdr;

		if (next == IPPROTO_TCP || next == IPPROTO_UDP) {
			skb_set_transport_header(skb, ETH_HLEN + sizeof(struct ipv6hdr));
			return;
		}
	}
	skb_probe_transport_header(skb);
}

/* Makes a frame for @dev of all of @skb, by its header @hdr if it has one. False if that is bad. */
static bool rvh_frame(struct sk_buff *skb, const struct virtio_net_hdr *hdr, struct net_device *dev)
{
	int depth;

	skb->dev = dev;
	skb_reset_mac_header(skb);
	skb_set_network_header(skb, ETH_HLEN);
	skb->protocol = eth_hdr(skb)->h_proto;
	if (hdr && rvh_asks(hdr) && virtio_net_hdr_to_skb(skb, hdr, true))
		return false;
	rvh_probe_transport(skb);
	if (eth_type_vlan(skb->protocol) &&
	    vlan_get_protocol_and_depth(skb, skb->protocol, &depth))
		skb_set_network_header(skb, depth);
	return true;
}

/* Whether @skb is no longer than @max, or cut into pieces that are not. */
static bool rvh_fits(const struct sk_buff *skb, unsigned int max)
{
	return skb_is_gso(skb) ? skb_gso_validate_mac_len(skb, max) : skb->len <= max;
}

/* Has @owner, if there is one, own @skb until it is freed. */
static void rvh_own(struct sk_buff *skb, struct sock *owner)
{
	if (owner)
		skb_set_owner_w(skb, owner);
}
