/* SPDX-License-Identifier: GPL-2.0 */
/*
 * Out-of-line copies of what C offers only as macros and static inlines. No policy here: what
 * can be Rust is Rust.
 */
#ifndef _RVHOST_HELPERS_H
#define _RVHOST_HELPERS_H

#include <linux/mutex.h>
#include <linux/netdevice.h>
#include <linux/netfilter.h>
#include <linux/poll.h>
#include <linux/ptr_ring.h>
#include <linux/skbuff.h>
#include <linux/uio.h>
#include <linux/wait.h>
#include <net/xdp.h>

struct vhost_task;

/* params.c */
extern char *rvh_param_devname;
extern char *rvh_param_tapname;
extern bool rvh_param_fork_from_owner_default;
extern unsigned short rvh_param_max_mem_regions;
extern int rvh_param_zcopytx;
bool rvh_param_cpus(u32 queue, struct cpumask *cpus);

/* misc.c: tasks, locks, polling */
void rvh_module_get(void);
void rvh_module_put(void);
void rvh_module_put_and_exit(void) __noreturn;
void rvh_inherit_nice(struct task_struct *task);
void rvh_set_current_state(unsigned int state);
bool rvh_fatal_signal_pending(void);
bool rvh_is_dying(void);
bool rvh_signal_pending(void);
u64 rvh_local_clock(void);
bool rvh_current_is_kthread(void);
void rvh_cond_resched(void);
bool rvh_net_admin(void);
void rvh_give_way(void);
bool rvh_need_resched(void);
bool rvh_alone(void);
void rvh_cpu_relax(void);
int rvh_mutex_lock_killable(struct mutex *lock);
void rvh_mutex_unlock(struct mutex *lock);
void rvh_waitqueue_init(struct wait_queue_head *wq);
void rvh_unlink_wait_entry(struct wait_queue_entry *entry);
__poll_t rvh_vfs_poll(struct file *file, struct poll_table_struct *table);
struct vhost_task *rvh_task_create(bool (*turn)(void *), void (*killed)(void *), void *state,
				   const char *name);
void rvh_task_start(struct vhost_task *task);
void rvh_task_stop(struct vhost_task *task);
pid_t rvh_task_id(struct task_struct *task);
u64 rvh_task_cpu_ns(struct task_struct *task);

/* affinity.c: CPUs that threads run on */
void rvh_inherit_cpus(struct task_struct *of);
void rvh_apply_cpus(u32 queue);
int rvh_set_cpus(struct task_struct *task, const u64 *words, unsigned int count);

/* log.c: the kernel's log */
void rvh_warn_problem(pid_t owner, u32 dev, u32 queue, const char *reason,
		      int len, u64 untold);
void rvh_debug_device(pid_t owner, u32 dev, const char *what);
void rvh_debug_queue(pid_t owner, u32 dev, u32 queue, const char *what, u32 value);

/* usermem.c: memory of the current address space */
bool rvh_access_ok(u64 addr, u64 len);
unsigned long rvh_copy_from_user(void *to, u64 from, unsigned long len);
unsigned long rvh_copy_to_user(u64 to, const void *from, unsigned long len);
int rvh_load_u16(u64 addr, u16 *value);
int rvh_store_u16(u64 addr, u16 value);
int rvh_set_bits(u64 addr, u32 bits);
int rvh_gather_descs(u64 table, const u16 *index, void *out, unsigned int count);

/* One of many copies between kernel and user memory. */
struct rvh_copy {
	u64 user;
	void *kernel;
	u64 len;
};

unsigned int rvh_copy_all_to_user(const struct rvh_copy *copies, unsigned int count);
unsigned int rvh_copy_all_from_user(const struct rvh_copy *copies, unsigned int count);

/* packets.c: rings, and the packets in them */

/* Bytes of a packet's start that are in one piece, as far as there are so many. */
#define RVH_HEAD_BYTES 128

/* NET_SKB_PAD + NET_IP_ALIGN, in a form that bindgen can read; checked where it is used. */
#define RVH_SKB_PAD_BYTES ((L1_CACHE_BYTES > 32 ? L1_CACHE_BYTES : 32) + NET_IP_ALIGN)

/* What a packet that was distributed here has in its cb while it is in a ring. */
struct rvh_hash {
	u64 fields;	/* the fields of the header that hold the hash */
	u64 mark;	/* RVH_HASH_MARK: others leave something else here */
};

#define RVH_HASH(skb) ((struct rvh_hash *)(skb)->cb)
#define RVH_HASH_MARK 0x7c1fa8f3b95e60d2ULL

/* What there is to know of a packet from a TAP's ring. */
struct rvh_packet {
	void *data;	/* its linear part */
	u32 linear;	/* bytes in that */
	u32 len;	/* bytes in all, with the VLAN tag */
	bool tagged;	/* a VLAN tag is held beside the data */
	bool bad;	/* no header can describe it */
	u8 header[24];	/* struct virtio_net_hdr, and what follows it for tunnels */
};

int rvh_ring_consume(struct ptr_ring *ring, void **packets, int max);
void rvh_ring_free(void **packets, int count);
void rvh_ring_unconsume(struct ptr_ring *ring, void **packets, int count);
bool rvh_ring_empty(struct ptr_ring *ring);
void rvh_tun_count_sent(struct net_device *dev, void **packets, int count, bool back);
void rvh_packets_describe(void **packets, struct rvh_packet *infos, int count, bool tunnel,
			  bool blank, bool hashed);
int rvh_packet_to_iter(void *packet, const struct rvh_packet *info, struct iov_iter *iter);
int rvh_packet_to_user(void *packet, const struct rvh_packet *info, const struct iovec *iov,
		       unsigned long nr, size_t skip);

/* netdev.c: network devices */

/* Packets sent to a TAP at once. */
#define RVH_TX_BATCH 64

void rvh_dev_hold(struct net_device *dev);
void rvh_dev_put(struct net_device *dev);
bool rvh_dev_registered(struct net_device *dev);
struct net_device *rvh_tap_find(struct socket *sock, struct sock *const **slot);
bool rvh_tap_has_queues(struct net_device *dev);
bool rvh_tap_receive(struct net_device *dev, struct socket *sock, struct sock *const *slot,
		     struct xdp_buff *bufs, unsigned int count, unsigned int header);

/* macvtap.c: MacVTaps and IPVTaps */
bool rvh_vtap_send(struct socket *sock, struct xdp_buff *bufs, unsigned int count,
		   unsigned int header);

/* vtap.c: which of their queues receives a packet */
struct rvh_arrival;

struct net_device *rvh_vtap_dev(struct socket *sock);
struct nf_hook_ops *rvh_vtap_hook(struct net_device *dev, nf_hookfn *hook, void *priv);
void *rvh_vtap_unhook(struct net_device *dev, struct nf_hook_ops *ops);
bool rvh_vtap_look(struct sk_buff *skb, struct rvh_arrival *arrival);
int rvh_vtap_index(struct socket *sock, struct net_device *dev, u32 *count);
void rvh_vtap_mark(struct sk_buff *skb, u32 lead, u64 hash);

/* sender.c: what a queue has in flight */
struct rvh_sender;

struct rvh_sender *rvh_sender_new(void (*space)(void *data), void *data);
void rvh_sender_put(struct rvh_sender *sender);
void rvh_sender_limit(struct rvh_sender *sender, int bytes);
size_t rvh_sender_room(struct rvh_sender *sender);
bool rvh_sender_writeable(struct rvh_sender *sender);

/* port.c: network devices whose packets go to rings, and that transmit ours */

/* A packet that arrived. */
struct rvh_arrival {
	void *port;		/* what the handler was registered with */
	struct sk_buff *skb;
	const u8 *frame;	/* from the Ethernet header on */
	u32 len;		/* of its linear part */
};

void rvh_rtnl_lock(void);
void rvh_rtnl_unlock(void);
void rvh_synchronize_net(void);
struct net_device *rvh_dev_get(int ifindex, const char *name);
struct net_device *rvh_dev_of_socket(struct socket *sock);
u32 rvh_dev_ifindex(const struct net_device *dev);
int rvh_dev_hook(struct net_device *dev, rx_handler_func_t *handler, void *data);
void *rvh_dev_hooked(struct net_device *dev, rx_handler_func_t *handler);
void rvh_dev_unhook(struct net_device *dev);
int rvh_dev_promisc(struct net_device *dev, bool on);
int rvh_dev_allmulti(struct net_device *dev, bool on);
void rvh_dev_mac(struct net_device *dev, u8 *mac);
bool rvh_dev_is_up(struct net_device *dev);
struct ptr_ring *rvh_ring_new(int size);
void rvh_ring_destroy(struct ptr_ring *ring);
u64 rvh_offload_features(u32 offloads);
rx_handler_result_t rvh_arrival_claim(struct sk_buff **pskb, struct rvh_arrival *arrival);
void rvh_arrival_drop(struct sk_buff *skb);
unsigned int rvh_arrival_deliver(struct ptr_ring *ring, struct sk_buff *skb, u64 features, u64 hash);
unsigned int rvh_dev_transmit(struct net_device *dev, struct rvh_sender *sender,
			      struct xdp_buff *bufs, unsigned int count, unsigned int header);
struct sk_buff *rvh_skb_from_user(const struct iovec *iov, unsigned long nr, size_t skip,
				  size_t len, size_t header, void *base);
struct sk_buff *rvh_skb_from_iter(struct iov_iter *iter, size_t len, size_t linear);
bool rvh_skb_transmit(struct sk_buff *skb, const void *base, struct net_device *dev,
		      struct rvh_sender *sender);
void rvh_skb_free(struct sk_buff *skb);

/* socket.c: any backend's socket */
struct socket *rvh_packet_socket(struct file *file);
bool rvh_sock_wants_headroom(struct socket *sock);
bool rvh_sock_unlimited(struct socket *sock);
int rvh_sock_send_batch(struct socket *sock, struct xdp_buff *bufs, unsigned short count);
int rvh_sock_send(struct socket *sock, const struct iovec *iov, unsigned long nr,
		  size_t skip, size_t len, bool more, struct ubuf_info *ubuf);
bool rvh_sock_zerocopy(struct socket *sock);
void rvh_ubuf_init(struct ubuf_info *ubuf, const struct ubuf_info_ops *ops);
bool rvh_ubuf_put(struct ubuf_info *ubuf);
int rvh_sock_peek(struct socket *sock);
int rvh_sock_receive(struct socket *sock, const struct iovec *iov, unsigned long nr,
		     size_t skip, size_t len);
void rvh_sock_discard(struct socket *sock);

/* ifname.c: which device a backend's file stands for */
enum rvh_netdev_kind {
	RVH_NETDEV_NONE,
	RVH_NETDEV_PACKET,
	RVH_NETDEV_TAP,
	RVH_NETDEV_MACVTAP,
	RVH_NETDEV_DEVICE,
};

enum rvh_netdev_kind rvh_netdev(struct file *file, char *name);
void rvh_dev_name(struct net_device *dev, char *name);

#endif
