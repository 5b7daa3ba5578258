// SPDX-License-Identifier: GPL-2.0
/* What the suites need and only C can have: user memory, and a TAP with packets in it. */
#include <kunit/test.h>
#include <kunit/test-bug.h>
#include <linux/etherdevice.h>
#include <linux/fdtable.h>
#include <linux/file.h>
#include <linux/fs.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <linux/mman.h>
#include <linux/netdevice.h>
#include <linux/rtnetlink.h>
#include <linux/uaccess.h>

/* Maps @len bytes for the running case; 0 if that fails. Unmapped when the case ends. */
unsigned long rvk_map(size_t len);
unsigned long rvk_map(size_t len)
{
	struct kunit *test = kunit_get_current_test();
	unsigned long at;

	if (!test)
		return 0;
	at = kunit_vm_mmap(test, NULL, 0, len, PROT_READ | PROT_WRITE,
			   MAP_ANONYMOUS | MAP_PRIVATE, 0);
	return IS_ERR_VALUE(at) ? 0 : at;
}

/* The TAP of the running case: cases run one after the other. */
static char tap_name[IFNAMSIZ];

/* A descriptor of a new TAP that is up, with packet headers of 10 bytes. */
int rvk_tap(void);
int rvk_tap(void)
{
	struct ifreq ifr = { .ifr_flags = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR };
	unsigned long at = rvk_map(PAGE_SIZE);
	struct net_device *dev;
	struct file *file;
	int fd, ret;

	if (!at)
		return -ENOMEM;
	strscpy(ifr.ifr_name, "rvk%d", IFNAMSIZ);
	if (copy_to_user((void __user *)at, &ifr, sizeof(ifr)))
		return -EFAULT;
	file = filp_open("/dev/net/tun", O_RDWR, 0);
	if (IS_ERR(file))
		return PTR_ERR(file);
	ret = file->f_op->unlocked_ioctl(file, TUNSETIFF, at);
	if (ret)
		goto put;
	if (copy_from_user(&ifr, (void __user *)at, sizeof(ifr))) {
		ret = -EFAULT;
		goto put;
	}
	strscpy(tap_name, ifr.ifr_name, IFNAMSIZ);
	rtnl_lock();
	dev = __dev_get_by_name(&init_net, tap_name);
	ret = dev ? dev_open(dev, NULL) : -ENODEV;
	rtnl_unlock();
	if (ret)
		goto put;
	fd = get_unused_fd_flags(O_CLOEXEC);
	if (fd < 0) {
		ret = fd;
		goto put;
	}
	fd_install(fd, file);
	return fd;
put:
	fput(file);
	return ret;
}

void rvk_close(int fd);
void rvk_close(int fd)
{
	close_fd(fd);
}

/* Has the stack send a frame of @len bytes, all of them @fill, to the TAP. */
int rvk_send(unsigned int len, u8 fill);
int rvk_send(unsigned int len, u8 fill)
{
	struct net_device *dev = dev_get_by_name(&init_net, tap_name);
	struct sk_buff *skb;
	int ret;

	if (!dev)
		return -ENODEV;
	skb = alloc_skb(len + NET_SKB_PAD, GFP_KERNEL);
	if (!skb) {
		dev_put(dev);
		return -ENOMEM;
	}
	skb_reserve(skb, NET_SKB_PAD);
	memset(skb_put(skb, len), fill, len);
	skb->dev = dev;
	skb_reset_mac_header(skb);
	skb->protocol = htons(ETH_P_802_3);
	ret = dev_queue_xmit(skb);
	dev_put(dev);
	return ret;
}

/* Frames that the TAP has brought in. */
u64 rvk_received(void);
u64 rvk_received(void)
{
	struct net_device *dev = dev_get_by_name(&init_net, tap_name);
	struct rtnl_link_stats64 stats = { };

	if (!dev)
		return 0;
	dev_get_stats(dev, &stats);
	dev_put(dev);
	return stats.rx_packets;
}
