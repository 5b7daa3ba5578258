/* SPDX-License-Identifier: GPL-2.0 WITH Linux-syscall-note */
/*
 * What rvhost_net's device files do beyond the interface of linux/vhost.h.
 */
#ifndef _UAPI_LINUX_RVHOST_H
#define _UAPI_LINUX_RVHOST_H

#include <linux/ioctl.h>
#include <linux/types.h>

/* The first free queue. */
#define RVHOST_NETDEV_ANY_QUEUE		0xffffffffU

/* The device shall receive what is not addressed to it as well. */
#define RVHOST_NETDEV_F_PROMISC		(1U << 0)

/**
 * struct rvhost_net_netdev - argument of RVHOST_NET_SET_NETDEV and RVHOST_NET_SET_SOCKET_NETDEV
 * @ifindex: the network device, of the caller's network namespace; SET_SOCKET_NETDEV: 0
 * @flags: RVHOST_NETDEV_F_*
 * @queue: which of the port, below 256, or RVHOST_NETDEV_ANY_QUEUE
 * @offloads: what the guest takes: TUN_F_* of linux/if_tun.h
 * @ring: packets that may wait for the guest; 0: 1024
 * @sndbuf: bytes that the queue may have in flight, below 2^31, as TUNSETSNDBUF counts them; 0: any
 *	number
 * @reserved: 0
 *
 * Runs both virtqueues on a network device, for which CAP_NET_ADMIN is needed. What the device
 * receives goes to the guest and nowhere else; what the guest sends is transmitted by the device.
 * Queue pairs of one owner on one device share what it receives: they are the queues of a port.
 *
 * Each virtqueue is stopped by VHOST_NET_SET_BACKEND with -1.
 *
 * Errors: EPERM: no capability. ENODEV: no such device. EINVAL: no Ethernet device, or an unknown
 * flag, or a field out of range. EBUSY: the device is enslaved, or another owner's, or the queue is taken. E2BIG: all are.
 */
struct rvhost_net_netdev {
	__u32 ifindex;
	__u32 flags;
	__u32 queue;
	__u32 offloads;
	__u32 ring;
	__u32 sndbuf;
	__u32 reserved[2];
};

#define RVHOST_NET_SET_NETDEV	_IOW(0xAF, 0xE0, struct rvhost_net_netdev)

/* What RVHOST_NET_SET_RSS is to change. */
#define RVHOST_RSS_F_TYPES		(1U << 0)	/* hash_types */
#define RVHOST_RSS_F_UNCLASSIFIED	(1U << 1)	/* unclassified */
#define RVHOST_RSS_F_KEY		(1U << 2)	/* key and key_len */
#define RVHOST_RSS_F_SYMMETRIC		(1U << 3)	/* a random key for which both directions are alike */
#define RVHOST_RSS_F_TABLE		(1U << 4)	/* table and table_len */
#define RVHOST_RSS_F_EVEN		(1U << 5)	/* the table follows the queues there are, evenly */

/**
 * struct rvhost_net_rss - argument of RVHOST_NET_SET_RSS and RVHOST_NET_GET_RSS
 * @flags: SET: RVHOST_RSS_F_*; GET: EVEN if that is so
 * @hash_types: VIRTIO_NET_HASH_TYPE_* bits
 * @unclassified: the queue for what cannot be hashed
 * @table_len: a power of two, up to 128
 * @key_len: up to 40; GET: 40
 * @reserved: 0
 * @key: the key
 * @table: queues
 * @carried: GET: packets that fell on each entry; none while a port of a network device
 *	has one queue only, unless one has reported hashes
 *
 * How a port distributes what its device receives (virtio 1.3, 5.1.6.5.7). The port is that of the
 * queue pair behind the file. May be changed while packets flow: a flow moves only if its entry of
 * the table does. For the device's owner, and for whoever has the file (as by pidfd_getfd()) and
 * CAP_NET_ADMIN in the initial user namespace.
 *
 * The queue pairs on the queues of a MacVTap or IPVTap are a port as well. Such a device distributes
 * by itself until the first SET, whatever its flags, or the start of a queue pair that negotiated
 * VIRTIO_NET_F_HASH_REPORT.
 *
 * Errors: EPERM for others; EINVAL; ENOTCONN if the queue pair is on no port, and, but for SET, if its
 * device distributes by itself; for a MacVTap: EOPNOTSUPP if the kernel has no ingress hooks, EBADFD if
 * the device is gone.
 */
struct rvhost_net_rss {
	__u32 flags;
	__u32 hash_types;
	__u16 unclassified;
	__u16 table_len;
	__u16 key_len;
	__u16 reserved;
	__u8 key[40];
	__u16 table[128];
	__u64 carried[128];
};

#define RVHOST_NET_SET_RSS	_IOW(0xAF, 0xE1, struct rvhost_net_rss)
#define RVHOST_NET_GET_RSS	_IOR(0xAF, 0xE1, struct rvhost_net_rss)

/*
 * Moves up to so many entries of the table from busy to idle queues, by what they carried since
 * this was last asked for. Returns how many were moved. Permissions are those of SET_RSS.
 */
#define RVHOST_NET_REBALANCE	_IOW(0xAF, 0xE2, __u32)

/**
 * struct rvhost_net_cpus - argument of RVHOST_NET_SET_CPUS
 * @queue: the virtqueue: 0 or 1
 * @bytes: length of the set at @mask: a multiple of 8, up to 1024; 0: all CPUs
 * @mask: address of the set: bit N of the 64-bit word M is CPU 64 * M + N
 *
 * Keeps the thread of a queue to those CPUs of the set that the calling thread may run on as well,
 * so that nobody leaves a cpuset this way. Later changes of the cpuset change it again. For the
 * device's owner; others use sched_setaffinity() with the thread's number from fdinfo.
 *
 * Errors: EINVAL if no CPU is left, or @bytes is out of range; ESRCH if the thread has not begun
 * to run; ENOBUFS if there is no such queue; EPERM for others than the owner.
 */
struct rvhost_net_cpus {
	__u32 queue;
	__u32 bytes;
	__u64 mask;
};

#define RVHOST_NET_SET_CPUS	_IOW(0xAF, 0xE3, struct rvhost_net_cpus)

/*
 * From now on, VHOST_NET_SET_BACKEND with a raw packet socket (AF_PACKET, SOCK_RAW) runs its virtqueue on
 * the network device that the socket is bound to, as RVHOST_NET_SET_NETDEV does for both. With 0 in place
 * of the argument's address, such a socket is a socket again, as it is for C vhost_net. What runs already
 * stays as it is; VHOST_RESET_OWNER forgets what was said.
 *
 * The device is that of the socket's network namespace, in which the caller of SET_BACKEND needs
 * CAP_NET_ADMIN. The socket does no more than to name it: it is not kept, and may be closed or bound to
 * something else then. If it stays open and its protocol is ETH_P_ALL, the kernel still gives it a copy of
 * each packet.
 *
 * Virtqueue 0 receives, and is a queue of the port; virtqueue 1 transmits. Each may run by itself. Setting
 * a virtqueue's backend again makes a new queue, which must not have the number of the old one.
 *
 * Errors: EINVAL: @ifindex is not 0, or an unknown flag, or a reserved field is not 0, or @sndbuf is 2^31
 * or more. EPERM for others than the owner. SET_BACKEND: those of RVHOST_NET_SET_NETDEV, and EINVAL for a socket that is bound to
 * no device; what ran before goes on then.
 */
#define RVHOST_NET_SET_SOCKET_NETDEV	_IOW(0xAF, 0xE4, struct rvhost_net_netdev)

#endif
