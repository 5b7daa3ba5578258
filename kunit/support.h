/* SPDX-License-Identifier: GPL-2.0 */
/* What C does for the suites; the Rust side is support.rs. */
#ifndef _RVHOST_KUNIT_SUPPORT_H
#define _RVHOST_KUNIT_SUPPORT_H

#include <linux/types.h>

unsigned long rvk_map(size_t len, bool writable);
unsigned long rvk_map_alone(void);
int rvk_unmap(unsigned long at, size_t len);
unsigned long rvk_free_pages(void);

int rvk_open(const char *path, int flags);
void rvk_close(int fd);
void rvk_settle(void);
long rvk_read(int fd, void *to, size_t len);
long rvk_write(int fd, const void *from, size_t len);
long rvk_ioctl(int fd, unsigned int cmd, unsigned long arg, bool compat);
int rvk_eventfd(void);

void rvk_allow_kill(void);
int rvk_kill(int pid);
bool rvk_sleeps(int pid);
int rvk_nice(void);
void rvk_set_nice(int nice);
void rvk_name(char *to);
int rvk_module_refs(void);
int rvk_shell(const char *script);
bool rvk_shares_cgroup(int pid);

/* How a frame is put in the TAP's ring. */
struct rvk_how {
	u32 linear;	/* bytes that are not in a page of their own; 0 for all */
	u32 gso_type;
	u16 gso_size;
	u16 vlan;	/* tag held beside the data, if not 0 */
	u16 csum_start;
	u16 csum_offset;
	bool needs_csum;
	bool xdp;	/* as an XDP frame, which has none of the above */
};

/* A frame that the TAP has brought in. */
struct rvk_seen {
	u32 len;
	u32 gso_type;
	u16 gso_size;
	u16 csum_start;
	u16 csum_offset;
	bool needs_csum;
};

int rvk_tap(void);
void rvk_tap_close(void);
long rvk_tap_set(unsigned int cmd, int value);
int rvk_inject(const u8 *data, u32 len, const struct rvk_how *how);
int rvk_next(struct rvk_seen *seen, u8 *to, u32 room);
unsigned int rvk_waiting(void);
u64 rvk_sent_packets(void);
int rvk_packet_socket(void);

/* card.c: a network device */
struct rvk_dev {
	u64 rx_dropped, tx_dropped;
	int refs;
	u32 promiscuity, allmulti;
	bool handled, hooked;
};

int rvk_card(void);
void rvk_card_close(void);
void rvk_card_remove(void);
int rvk_card_receive(const u8 *data, u32 len);
unsigned int rvk_card_sending(void);
void rvk_card_sent(unsigned int count);
int rvk_dev(int ifindex, struct rvk_dev *out);

/* trace.c: what the last tracepoint said. */
struct rvk_told {
	u32 times, dev, queue, what;
	u64 bytes;
};

int rvk_listen(void);
void rvk_unlisten(void);
void rvk_told(struct rvk_told *out);

#endif
