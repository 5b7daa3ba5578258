// SPDX-License-Identifier: GPL-2.0
#include <linux/if_tun.h>
#include <linux/if_vlan.h>
#include <linux/net.h>
#include <net/sock.h>
#include <helpers/helpers.h>

struct socket *rvh_packet_socket(struct file *file)
{
	struct socket *sock = sock_from_file(file);

	if (!sock || sock->sk->sk_type != SOCK_RAW || sock->sk->sk_family != AF_PACKET)
		return NULL;
	return sock;
}

bool rvh_sock_wants_headroom(struct socket *sock)
{
	return sock_flag(sock->sk, SOCK_XDP);
}

bool rvh_sock_unlimited(struct socket *sock)
{
	return READ_ONCE(sock->sk->sk_sndbuf) == INT_MAX;
}

int rvh_sock_send_batch(struct socket *sock, struct xdp_buff *bufs, unsigned short count)
{
	struct tun_msg_ctl ctl = {
		.type = TUN_MSG_PTR,
		.num = count,
		.ptr = bufs,
	};
	struct msghdr msg = {
		.msg_control = &ctl,
		.msg_controllen = sizeof(ctl),
		.msg_flags = MSG_DONTWAIT,
	};

	return sock->ops->sendmsg(sock, &msg, 0);
}

bool rvh_sock_zerocopy(struct socket *sock)
{
	return sock_flag(sock->sk, SOCK_ZEROCOPY);
}

void rvh_ubuf_init(struct ubuf_info *ubuf, const struct ubuf_info_ops *ops)
{
	ubuf->ops = ops;
	ubuf->flags = SKBFL_ZEROCOPY_FRAG;
	refcount_set(&ubuf->refcnt, 1);
}

bool rvh_ubuf_put(struct ubuf_info *ubuf)
{
	return refcount_dec_and_test(&ubuf->refcnt);
}

/* With @ubuf, the socket, a TAP's, may use the packet where it is. */
int rvh_sock_send(struct socket *sock, const struct iovec *iov, unsigned long nr,
		  size_t skip, size_t len, bool more, struct ubuf_info *ubuf)
{
	struct tun_msg_ctl ctl = {
		.type = TUN_MSG_UBUF,
		.ptr = ubuf,
	};
	struct msghdr msg = {
		.msg_flags = MSG_DONTWAIT | (more ? MSG_MORE : 0),
	};

	if (ubuf) {
		msg.msg_control = &ctl;
		msg.msg_controllen = sizeof(ctl);
	}
	iov_iter_init(&msg.msg_iter, ITER_SOURCE, iov, nr, skip + len);
	iov_iter_advance(&msg.msg_iter, skip);
	return sock->ops->sendmsg(sock, &msg, len);
}

/* The length of the next packet; 0 if there is none. */
int rvh_sock_peek(struct socket *sock)
{
	struct sk_buff_head *queue = &sock->sk->sk_receive_queue;
	struct sk_buff *skb;
	unsigned long flags;
	int len = 0;

	spin_lock_irqsave(&queue->lock, flags);
	skb = skb_peek(queue);
	if (skb)
		len = skb->len + (skb_vlan_tag_present(skb) ? VLAN_HLEN : 0);
	spin_unlock_irqrestore(&queue->lock, flags);
	return len;
}

/* The packet's own length, whatever of it there was room for. */
int rvh_sock_receive(struct socket *sock, const struct iovec *iov, unsigned long nr,
		     size_t skip, size_t len)
{
	struct msghdr msg = { };

	iov_iter_init(&msg.msg_iter, ITER_DEST, iov, nr, skip + len);
	iov_iter_advance(&msg.msg_iter, skip);
	return sock->ops->recvmsg(sock, &msg, len, MSG_DONTWAIT | MSG_TRUNC);
}

void rvh_sock_discard(struct socket *sock)
{
	struct msghdr msg = { };

	iov_iter_kvec(&msg.msg_iter, ITER_DEST, NULL, 0, 0);
	sock->ops->recvmsg(sock, &msg, 0, MSG_DONTWAIT | MSG_TRUNC);
}
