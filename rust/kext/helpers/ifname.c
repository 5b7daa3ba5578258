// SPDX-License-Identifier: GPL-2.0
#include <linux/fs.h>
#include <linux/if_packet.h>
#include <linux/if_tap.h>
#include <linux/if_tun.h>
#include <linux/net.h>
#include <linux/netdevice.h>
#include <linux/seq_file.h>
#include <net/sock.h>
#include <helpers/helpers.h>

static void name_of_index(struct sock *sk, int index, char *name)
{
	struct net_device *dev;

	rcu_read_lock();
	dev = dev_get_by_index_rcu(sock_net(sk), index);
	if (dev)
		strscpy(name, dev->name, IFNAMSIZ);
	rcu_read_unlock();
}

/* A TAP tells its name to no other part of the kernel, but in its file's fdinfo. */
static void name_of_tun(struct file *file, char *name)
{
	char text[IFNAMSIZ + 16] = "";
	struct seq_file to = {
		.buf = text,
		.size = sizeof(text),
	};

	if (!file->f_op->show_fdinfo)
		return;
	file->f_op->show_fdinfo(&to, file);
	if (seq_has_overflowed(&to))
		return;
	text[to.count] = '\0';
	if (sscanf(text, "iff: %15s", name) != 1)
		name[0] = '\0';
}

/* @name: room for IFNAMSIZ bytes, all of them 0. May take the RTNL. */
enum rvh_netdev_kind rvh_netdev(struct file *file, char *name)
{
	struct sockaddr_storage addr = { };
	struct sockaddr_ll *ll = (struct sockaddr_ll *)&addr;
	struct socket *sock = sock_from_file(file);
	int index;

	if (sock) {
		if (sock->ops->getname(sock, (struct sockaddr *)&addr, 0) >= 0 &&
		    ll->sll_family == AF_PACKET)
			name_of_index(sock->sk, ll->sll_ifindex, name);
		return RVH_NETDEV_PACKET;
	}
	if (!IS_ERR(tun_get_socket(file))) {
		name_of_tun(file, name);
		return RVH_NETDEV_TAP;
	}
	sock = tap_get_socket(file);
	if (IS_ERR(sock))
		return RVH_NETDEV_NONE;
	/* The node of a MacVTap is named after its interface's index. */
	if (sscanf(file->f_path.dentry->d_name.name, "tap%d", &index) == 1)
		name_of_index(sock->sk, index, name);
	return RVH_NETDEV_MACVTAP;
}

/* @name: room for IFNAMSIZ bytes. */
void rvh_dev_name(struct net_device *dev, char *name)
{
	strscpy(name, dev->name, IFNAMSIZ);
}
