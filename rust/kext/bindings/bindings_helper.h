/* SPDX-License-Identifier: GPL-2.0 */
/* The first include is that of the kernel's own list: bindgen orders enums by it. */
#include <linux/hrtimer_types.h>

#include <linux/cgroup.h>
#include <linux/eventfd.h>
#include <linux/file.h>
#include <linux/if_tap.h>
#include <linux/if_tun.h>
#include <linux/kthread.h>
#include <linux/miscdevice.h>
#include <linux/netdevice.h>
#include <linux/notifier.h>
#include <linux/page_frag_cache.h>
#include <linux/poll.h>
#include <linux/ptr_ring.h>
#include <linux/sched/clock.h>
#include <linux/skbuff.h>
#include <linux/vhost.h>
#include <linux/virtio_net.h>
#include <net/sock.h>
#include <net/xdp.h>
#include <helpers/helpers.h>
#include <trace/events/rvhost.h>

/* Macros whose values bindgen cannot read; the build drops the prefix. */
const unsigned int RUST_CONST_HELPER_RVH_TASK_IDLE = TASK_IDLE;
const unsigned int RUST_CONST_HELPER_RVH_TASK_KILLABLE = TASK_KILLABLE;
const unsigned int RUST_CONST_HELPER_RVH_EPOLLIN = EPOLLIN;
const unsigned int RUST_CONST_HELPER_RVH_EPOLLOUT = EPOLLOUT;
const unsigned int RUST_CONST_HELPER_RVH_EPOLLERR = EPOLLERR;
const unsigned long RUST_CONST_HELPER_RVH_PAGE_SIZE = PAGE_SIZE;
const unsigned long RUST_CONST_HELPER_RVH_SMP_CACHE_BYTES = SMP_CACHE_BYTES;
const unsigned long RUST_CONST_HELPER_RVH_SHARED_INFO =
	SKB_DATA_ALIGN(sizeof(struct skb_shared_info));
const unsigned long RUST_CONST_HELPER_RVH_SKB_PAD = RVH_SKB_PAD_BYTES;
const unsigned long RUST_CONST_HELPER_RVH_XDP_HEADROOM = XDP_PACKET_HEADROOM;
