// SPDX-License-Identifier: GPL-2.0
#include <linux/netdevice.h>
#include <linux/nsproxy.h>
#include <net/net_namespace.h>
#include <net/sock.h>
#include <helpers/helpers.h>

/*
 * Owns the packets that one queue has in flight, as a socket's send buffer does: the stack tells it of
 * each that is freed. Lives until the last one is.
 */
struct rvh_sender {
	struct sock sk;
	void (*space)(void *data);
	void __rcu *data;
};

static struct proto rvh_sender_proto = {
	.name = "rvhost",
	.owner = THIS_MODULE,
	.obj_size = sizeof(struct rvh_sender),
};

static void rvh_sender_write_space(struct sock *sk)
{
	struct rvh_sender *sender = container_of(sk, struct rvh_sender, sk);
	void *data;

	/* Pairs with that of who wants to know of space. */
	smp_mb__after_atomic();
	if (!sock_writeable(sk))
		return;
	rcu_read_lock();
	data = rcu_dereference(sender->data);
	if (data)
		sender->space(data);
	rcu_read_unlock();
}

/* With no limit. @space is called, with @data, when much of what was in flight is not any more. */
struct rvh_sender *rvh_sender_new(void (*space)(void *data), void *data)
{
	struct net *net = current->nsproxy->net_ns;
	struct rvh_sender *sender;
	struct sock *sk = sk_alloc(net, AF_UNSPEC, GFP_KERNEL, &rvh_sender_proto, 1);

	if (!sk)
		return NULL;
	sender = container_of(sk, struct rvh_sender, sk);
	sock_init_data(NULL, sk);
	sk->sk_sndbuf = INT_MAX;
	sk->sk_write_space = rvh_sender_write_space;
	sender->space = space;
	RCU_INIT_POINTER(sender->data, data);
	return sender;
}

/* For who sends no more. Nobody is called any more when this returns. */
void rvh_sender_put(struct rvh_sender *sender)
{
	RCU_INIT_POINTER(sender->data, NULL);
	/* A packet counts until after the call for it. */
	if (sk_wmem_alloc_get(&sender->sk))
		synchronize_net();
	smp_mb();
	sock_put(&sender->sk);
}

/* As for sockets, a packet or two may be in flight in any case. */
void rvh_sender_limit(struct rvh_sender *sender, int bytes)
{
	WRITE_ONCE(sender->sk.sk_sndbuf, max_t(int, bytes, SOCK_MIN_SNDBUF));
}

/* How many bytes there is room for. */
size_t rvh_sender_room(struct rvh_sender *sender)
{
	int limit = READ_ONCE(sender->sk.sk_sndbuf);

	if (limit == INT_MAX)
		return SIZE_MAX;
	return max(limit - sk_wmem_alloc_get(&sender->sk), 0);
}

/* Whether it is time to go on after a wait for room. */
bool rvh_sender_writeable(struct rvh_sender *sender)
{
	return sock_writeable(&sender->sk);
}

/* Who is to own packets from @sender: nobody, if there is no limit. */
static struct sock *rvh_sender_owner(struct rvh_sender *sender)
{
	return READ_ONCE(sender->sk.sk_sndbuf) == INT_MAX ? NULL : &sender->sk;
}
