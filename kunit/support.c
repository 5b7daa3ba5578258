// SPDX-License-Identifier: GPL-2.0
/*
 * What the suites need and safe Rust cannot have: user memory, files and what reads and writes
 * them, signals, a TAP with both of its ends. Cases run one after the other, so that one of each
 * is enough.
 */
#include <kunit/test.h>
#include <kunit/test-bug.h>
#include <linux/cgroup.h>
#include <linux/etherdevice.h>
#include <linux/fdtable.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/if_packet.h>
#include <linux/if_tun.h>
#include <linux/if_vlan.h>
#include <linux/kallsyms.h>
#include <linux/kprobes.h>
#include <linux/mman.h>
#include <linux/module.h>
#include <linux/netdevice.h>
#include <linux/rtnetlink.h>
#include <linux/sched/signal.h>
#include <linux/slab.h>
#include <linux/uaccess.h>
#include <linux/umh.h>
#include <net/sock.h>
#include <net/xdp.h>
#include "support.h"

/* Memory. */

unsigned long rvk_map(size_t len, bool writable)
{
	struct kunit *test = kunit_get_current_test();
	unsigned long at;

	if (!test)
		return 0;
	at = kunit_vm_mmap(test, NULL, 0, len, PROT_READ | (writable ? PROT_WRITE : 0),
			   MAP_ANONYMOUS | MAP_PRIVATE, 0);
	return IS_ERR_VALUE(at) ? 0 : at;
}

/* A page for a thread that is no case: that gets an address space of its own. */
unsigned long rvk_map_alone(void)
{
	unsigned long at;

	if (kunit_attach_mm())
		return 0;
	at = vm_mmap(NULL, 0, PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_ANONYMOUS | MAP_PRIVATE, 0);
	return IS_ERR_VALUE(at) ? 0 : at;
}

int rvk_unmap(unsigned long at, size_t len)
{
	return vm_munmap(at, len);
}

unsigned long rvk_free_pages(void)
{
	struct sysinfo info;

	si_meminfo(&info);
	return info.freeram;
}

/* Files. Kernel threads share one table of descriptors. */

static int new_fd(struct file *file)
{
	int fd;

	if (IS_ERR(file))
		return PTR_ERR(file);
	fd = get_unused_fd_flags(O_CLOEXEC);
	if (fd < 0)
		fput(file);
	else
		fd_install(fd, file);
	return fd;
}

int rvk_open(const char *path, int flags)
{
	return new_fd(filp_open(path, flags, 0));
}

/* Closed and, if nobody else has it, gone when this returns. */
void rvk_close(int fd)
{
	struct file *file = file_close_fd(fd);

	if (file)
		__fput_sync(file);
}

/* Ends what kernel threads put off when they give up a file. */
void rvk_settle(void)
{
	flush_delayed_fput();
}

long rvk_read(int fd, void *to, size_t len)
{
	struct file *file = fget(fd);
	loff_t pos = 0;
	long ret;

	if (!file)
		return -EBADF;
	ret = kernel_read(file, to, len, &pos);
	fput(file);
	return ret;
}

/* Up to a page. */
long rvk_write(int fd, const void *from, size_t len)
{
	struct file *file = fget(fd);
	unsigned long at;
	loff_t pos = 0;
	long ret;

	if (!file)
		return -EBADF;
	if (!file->f_op->write) {
		ret = kernel_write(file, from, len, &pos);
	} else {
		/* Such a file takes user memory only. */
		at = rvk_map(PAGE_SIZE, true);
		ret = -EFAULT;
		if (at && len <= PAGE_SIZE && !copy_to_user((void __user *)at, from, len))
			ret = file->f_op->write(file, (void __user *)at, len, &pos);
	}
	fput(file);
	return ret;
}

long rvk_ioctl(int fd, unsigned int cmd, unsigned long arg, bool compat)
{
	struct file *file = fget(fd);
	long ret = -ENOTTY;

	if (!file)
		return -EBADF;
	if (!compat)
		ret = file->f_op->unlocked_ioctl(file, cmd, arg);
#ifdef CONFIG_COMPAT
	else if (file->f_op->compat_ioctl)
		ret = file->f_op->compat_ioctl(file, cmd, arg);
#endif
	fput(file);
	return ret;
}

/*
 * Nothing that makes an eventfd is exported: finds the system call as kprobes do. -ENOSYS where
 * that is not to be had.
 */
int rvk_eventfd(void)
{
#if defined(CONFIG_KPROBES) && defined(CONFIG_X86_64)
	long (*eventfd2)(const struct pt_regs *);
	struct kprobe probe = { .symbol_name = "__x64_sys_eventfd2" };
	struct pt_regs args = { .di = 0, .si = O_NONBLOCK | O_CLOEXEC };
	char symbol[KSYM_SYMBOL_LEN];
	unsigned long offset = 0;
	char *plus;

	if (register_kprobe(&probe))
		return -ENOSYS;
	unregister_kprobe(&probe);
	/* A probe may sit behind the first instruction. */
	sprint_symbol(symbol, (unsigned long)probe.addr);
	plus = strchr(symbol, '+');
	if (!plus || sscanf(plus, "+0x%lx", &offset) != 1)
		return -ENOSYS;
	eventfd2 = (void *)probe.addr - offset;
	return eventfd2(&args);
#else
	return -ENOSYS;
#endif
}

/* Threads. */

void rvk_allow_kill(void)
{
	allow_signal(SIGKILL);
}

int rvk_kill(int pid)
{
	struct task_struct *task = get_pid_task(find_vpid(pid), PIDTYPE_PID);
	int ret;

	if (!task)
		return -ESRCH;
	ret = send_sig(SIGKILL, task, 1);
	put_task_struct(task);
	return ret;
}

/* Whether the thread sleeps, or is about to and will not look again unless woken. */
bool rvk_sleeps(int pid)
{
	struct task_struct *task = get_pid_task(find_vpid(pid), PIDTYPE_PID);
	bool sleeps;

	if (!task)
		return false;
	sleeps = !task_is_running(task);
	put_task_struct(task);
	return sleeps;
}

int rvk_nice(void)
{
	return task_nice(current);
}

void rvk_set_nice(int nice)
{
	set_user_nice(current, nice);
}

void rvk_name(char *to)
{
	char name[TASK_COMM_LEN];

	get_task_comm(name, current);
	memcpy(to, name, sizeof(name));
}

int rvk_module_refs(void)
{
	return module_refcount(THIS_MODULE);
}

int rvk_shell(const char *script)
{
	char *argv[] = { "/bin/sh", "-c", (char *)script, NULL };
	char *envp[] = { "PATH=/usr/sbin:/usr/bin:/sbin:/bin", NULL };

	return call_usermodehelper(argv[0], argv, envp, UMH_WAIT_PROC);
}

bool rvk_shares_cgroup(int pid)
{
	struct task_struct *task = get_pid_task(find_vpid(pid), PIDTYPE_PID);
	bool shares;

	if (!task)
		return false;
	rcu_read_lock();
	shares = task_dfl_cgroup(task) == task_dfl_cgroup(current);
	rcu_read_unlock();
	put_task_struct(task);
	return shares;
}

/* The TAP. */

#define MAX_SEEN 256

static struct {
	int fd;
	unsigned long page;
	struct net_device *dev;
	struct packet_type hook;
	spinlock_t lock;
	struct sk_buff *seen[MAX_SEEN];
	unsigned int head, tail;
} tap = { .lock = __SPIN_LOCK_UNLOCKED(tap.lock) };

static int see(struct sk_buff *skb, struct net_device *dev, struct packet_type *hook,
	       struct net_device *orig)
{
	bool kept = false;

	if (skb->pkt_type != PACKET_OUTGOING) {
		spin_lock_bh(&tap.lock);
		if (tap.tail < MAX_SEEN) {
			/* Nobody else keeps it: others who want it clone it. */
			tap.seen[tap.tail++] = skb;
			kept = true;
		}
		spin_unlock_bh(&tap.lock);
	}
	if (!kept)
		kfree_skb(skb);
	return 0;
}

static struct sk_buff *next_seen(void)
{
	struct sk_buff *skb = NULL;

	spin_lock_bh(&tap.lock);
	if (tap.head < tap.tail)
		skb = tap.seen[tap.head++];
	if (tap.head == tap.tail)
		tap.head = tap.tail = 0;
	spin_unlock_bh(&tap.lock);
	return skb;
}

void rvk_tap_close(void)
{
	struct sk_buff *skb;

	if (!tap.dev)
		return;
	dev_remove_pack(&tap.hook);
	while ((skb = next_seen()))
		kfree_skb(skb);
	dev_put(tap.dev);
	tap.dev = NULL;
	rvk_close(tap.fd);
	rvk_settle();
}

long rvk_tap_set(unsigned int cmd, int value)
{
	if (copy_to_user((void __user *)tap.page, &value, sizeof(value)))
		return -EFAULT;
	return rvk_ioctl(tap.fd, cmd, tap.page, false);
}

/* A descriptor of a new TAP that is up, with packet headers of 10 bytes. */
int rvk_tap(void)
{
	struct ifreq ifr = { .ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR };
	struct net_device *dev;
	int ret;

	/* A case that failed leaves its own behind. */
	rvk_tap_close();
	tap.page = rvk_map(PAGE_SIZE, true);
	if (!tap.page)
		return -ENOMEM;
	tap.fd = rvk_open("/dev/net/tun", O_RDWR);
	if (tap.fd < 0)
		return tap.fd;
	strscpy(ifr.ifr_name, "rvk%d", IFNAMSIZ);
	ret = copy_to_user((void __user *)tap.page, &ifr, sizeof(ifr)) ? -EFAULT :
	      rvk_ioctl(tap.fd, TUNSETIFF, tap.page, false);
	if (!ret && copy_from_user(&ifr, (void __user *)tap.page, sizeof(ifr)))
		ret = -EFAULT;
	if (ret)
		goto close;
	rtnl_lock();
	dev = dev_get_by_name(&init_net, ifr.ifr_name);
	ret = -ENODEV;
	if (dev) {
		/* IPv6 would send of its own accord, but not with packets so small. */
		ret = dev_set_mtu(dev, 1000);
		ret = ret ?: dev_open(dev, NULL);
	}
	rtnl_unlock();
	if (!ret) {
		tap.dev = dev;
		tap.hook = (struct packet_type) {
			.type = htons(ETH_P_ALL),
			.dev = dev,
			.func = see,
		};
		dev_add_pack(&tap.hook);
		return tap.fd;
	}
	dev_put(dev);
close:
	rvk_close(tap.fd);
	return ret;
}

static int inject_xdp(const u8 *data, u32 len)
{
	struct page *page = dev_alloc_page();
	struct xdp_rxq_info rxq = { .mem.type = MEM_TYPE_PAGE_ORDER0 };
	struct xdp_frame *xdpf;
	struct xdp_buff xdp;
	int sent = 0;

	if (!page)
		return -ENOMEM;
	xdp_init_buff(&xdp, PAGE_SIZE, &rxq);
	xdp_prepare_buff(&xdp, page_address(page), XDP_PACKET_HEADROOM, len, false);
	memcpy(xdp.data, data, len);
	xdpf = xdp_convert_buff_to_frame(&xdp);
	if (xdpf) {
		local_bh_disable();
		sent = tap.dev->netdev_ops->ndo_xdp_xmit(tap.dev, 1, &xdpf, XDP_XMIT_FLUSH);
		local_bh_enable();
	}
	if (sent == 1)
		return 0;
	put_page(page);
	return sent < 0 ? sent : -ENOSPC;
}

/* Puts a frame in the TAP's ring, as the stack would; past the stack's own checks. */
int rvk_inject(const u8 *data, u32 len, const struct rvk_how *how)
{
	u32 linear = how->linear ? min(how->linear, len) : len;
	struct sk_buff *skb;

	if (len > PAGE_SIZE / 2)
		return -EMSGSIZE;
	if (how->xdp)
		return inject_xdp(data, len);
	skb = alloc_skb(NET_SKB_PAD + linear, GFP_KERNEL);
	if (!skb)
		return -ENOMEM;
	skb_reserve(skb, NET_SKB_PAD);
	skb_put_data(skb, data, linear);
	if (linear < len) {
		struct page *page = alloc_page(GFP_KERNEL);

		if (!page) {
			kfree_skb(skb);
			return -ENOMEM;
		}
		memcpy(page_address(page), data + linear, len - linear);
		skb_add_rx_frag(skb, 0, page, 0, len - linear, PAGE_SIZE);
	}
	skb_reset_mac_header(skb);
	skb->dev = tap.dev;
	if (how->vlan)
		__vlan_hwaccel_put_tag(skb, htons(ETH_P_8021Q), how->vlan);
	if (how->needs_csum) {
		skb->ip_summed = CHECKSUM_PARTIAL;
		skb->csum_start = skb_headroom(skb) + how->csum_start;
		skb->csum_offset = how->csum_offset;
	}
	skb_shinfo(skb)->gso_type = how->gso_type;
	skb_shinfo(skb)->gso_size = how->gso_size;
	rcu_read_lock_bh();
	tap.dev->netdev_ops->ndo_start_xmit(skb, tap.dev);
	rcu_read_unlock_bh();
	return 0;
}

/* Next of the frames that the TAP has brought in: up to @room bytes of it. */
int rvk_next(struct rvk_seen *seen, u8 *to, u32 room)
{
	struct sk_buff *skb = next_seen();
	int mac;

	if (!skb)
		return -ENOENT;
	mac = skb_mac_header(skb) - skb->data;
	seen->len = skb->len - mac;
	seen->gso_type = skb_shinfo(skb)->gso_type;
	seen->gso_size = skb_shinfo(skb)->gso_size;
	seen->needs_csum = skb->ip_summed == CHECKSUM_PARTIAL;
	seen->csum_start = seen->needs_csum ? skb_checksum_start_offset(skb) - mac : 0;
	seen->csum_offset = seen->needs_csum ? skb->csum_offset : 0;
	skb_copy_bits(skb, mac, to, min(room, seen->len));
	kfree_skb(skb);
	return 0;
}

unsigned int rvk_waiting(void)
{
	return tap.tail - tap.head;
}

u64 rvk_sent_packets(void)
{
	struct rtnl_link_stats64 stats = { };

	dev_get_stats(tap.dev, &stats);
	return stats.tx_packets;
}

/* A descriptor of a packet socket on the TAP. */
int rvk_packet_socket(void)
{
	struct sockaddr_ll at = {
		.sll_family = AF_PACKET,
		.sll_protocol = htons(ETH_P_ALL),
		.sll_ifindex = tap.dev->ifindex,
	};
	struct socket *sock;
	int ret;

	ret = sock_create_kern(&init_net, AF_PACKET, SOCK_RAW, htons(ETH_P_ALL), &sock);
	if (ret)
		return ret;
	ret = kernel_bind(sock, (void *)&at, sizeof(at));
	if (ret) {
		sock_release(sock);
		return ret;
	}
	/* Releases the socket if it fails. */
	return new_fd(sock_alloc_file(sock, O_CLOEXEC, NULL));
}

/* The look for leaked memory. */

static int leak(const char *text, const struct kernel_param *param)
{
	unsigned int i, count;
	int rc = kstrtouint(text, 0, &count);

	/* Volatile, or they are not even allocated. */
	for (i = 0; !rc && i < count; i++) {
		void *volatile lost = kmalloc(1000, GFP_KERNEL);

		lost = NULL;
		(void)lost;
	}
	return rc;
}

static const struct kernel_param_ops leak_ops = { .set = leak };

module_param_cb(leak, &leak_ops, NULL, 0);
MODULE_PARM_DESC(leak, "Forget so many allocations, to see that this is noticed");
