// SPDX-License-Identifier: GPL-2.0
#include <linux/uaccess.h>
#include <asm/futex.h>
#include <helpers/helpers.h>

bool rvh_access_ok(u64 addr, u64 len)
{
	return access_ok(u64_to_user_ptr(addr), len);
}

unsigned long rvh_copy_from_user(void *to, u64 from, unsigned long len)
{
	return _copy_from_user(to, u64_to_user_ptr(from), len);
}

unsigned long rvh_copy_to_user(u64 to, const void *from, unsigned long len)
{
	return _copy_to_user(u64_to_user_ptr(to), from, len);
}

#ifdef arch_unsafe_get_user
int rvh_load_u16(u64 addr, u16 *value)
{
	return get_user(*value, (u16 __user *)u64_to_user_ptr(addr));
}
#else
/*
 * Here an access copies byte by byte, and the bytes may be of different times: those of two copies
 * that are alike are taken to be of one.
 */
int rvh_load_u16(u64 addr, u16 *value)
{
	const u16 __user *from = u64_to_user_ptr(addr);
	int i, err = get_user(*value, from);

	for (i = 0; !err && i < 8; i++) {
		u16 before = *value;

		err = get_user(*value, from);
		if (*value == before)
			break;
	}
	return err;
}
#endif

int rvh_store_u16(u64 addr, u16 value)
{
	return put_user(value, (u16 __user *)u64_to_user_ptr(addr));
}

int rvh_set_bits(u64 addr, u32 bits)
{
	u32 __user *word = u64_to_user_ptr(addr);
	int old;

	if (!access_ok(word, sizeof(*word)))
		return -EFAULT;
	return arch_futex_atomic_op_inuser(FUTEX_OP_OR, bits, &old, word);
}

#ifdef arch_unsafe_get_user
/* Up to this many bytes, copying word by word beats the processor's string instructions. */
#define RVH_SHORT 256

/*
 * Reads the 16-byte entries that @index names in one window of user access. An index is 16 bits,
 * so that they all lie in the MiB behind @table.
 */
int rvh_gather_descs(u64 table, const u16 *index, void *out, unsigned int count)
{
	const u64 __user *from = u64_to_user_ptr(table);
	u64 *to = out;
	unsigned int i, last = 0;

	for (i = 0; i < count; i++)
		last = max_t(unsigned int, last, index[i]);
	if (!user_read_access_begin(from, 16 * (size_t)(last + 1)))
		return -EFAULT;
	for (i = 0; i < count; i++) {
		unsafe_get_user(to[2 * i], from + 2 * (size_t)index[i], fault);
		unsafe_get_user(to[2 * i + 1], from + 2 * (size_t)index[i] + 1, fault);
	}
	user_read_access_end();
	return 0;
fault:
	user_read_access_end();
	return -EFAULT;
}
#else
/* There are no windows of user access: each access is a call, whatever its length. */
#define RVH_SHORT 0

/* Reads the 16-byte entries that @index names, neighbours at once. */
int rvh_gather_descs(u64 table, const u16 *index, void *out, unsigned int count)
{
	unsigned int i = 0, n;

	for (; i < count; i += n) {
		for (n = 1; i + n < count && index[i + n] == index[i] + n; n++)
			;
		if (copy_from_user(out + 16 * (size_t)i, u64_to_user_ptr(table + 16 * index[i]),
				   16 * (size_t)n))
			return -EFAULT;
	}
	return 0;
}
#endif

/* How many of the first @count copies are short, and touch user addresses only. */
static unsigned int rvh_short_copies(const struct rvh_copy *copies, unsigned int count)
{
	unsigned int i;

	for (i = 0; i < count; i++) {
		if (copies[i].len > RVH_SHORT ||
		    !access_ok(u64_to_user_ptr(copies[i].user), copies[i].len))
			break;
	}
	return i;
}

#define rvh_get(type, to, from, len, label)					\
	do {									\
		unsafe_get_user(*(type *)(to), (const type __user *)(from), label);	\
		(to) += sizeof(type);						\
		(from) += sizeof(type);						\
		(len) -= sizeof(type);						\
	} while (0)

#define rvh_put(type, to, from, len, label)					\
	do {									\
		unsafe_put_user(*(const type *)(from), (type __user *)(to), label);	\
		(to) += sizeof(type);						\
		(from) += sizeof(type);						\
		(len) -= sizeof(type);						\
	} while (0)

/* Copies by @one: 64 bytes at a time, then what is left. */
#define rvh_copy_short(one, to, from, len, label)				\
	do {									\
		while ((len) >= 64) {						\
			one(u64, to, from, len, label);				\
			one(u64, to, from, len, label);				\
			one(u64, to, from, len, label);				\
			one(u64, to, from, len, label);				\
			one(u64, to, from, len, label);				\
			one(u64, to, from, len, label);				\
			one(u64, to, from, len, label);				\
			one(u64, to, from, len, label);				\
		}								\
		while ((len) >= 8)						\
			one(u64, to, from, len, label);				\
		if ((len) >= 4)							\
			one(u32, to, from, len, label);				\
		if ((len) >= 2)							\
			one(u16, to, from, len, label);				\
		if (len)							\
			one(u8, to, from, len, label);				\
	} while (0)

/*
 * Copies in order, the short ones in as few windows of user access as possible. Returns how many
 * were done: less than @count if the next one faults.
 */
unsigned int rvh_copy_all_to_user(const struct rvh_copy *copies, unsigned int count)
{
	unsigned int i = 0;

	while (i < count) {
		unsigned int end = i + rvh_short_copies(copies + i, count - i);
		void __user *user = u64_to_user_ptr(copies[i].user);

		if (end == i) {
			if (_copy_to_user(user, copies[i].kernel, copies[i].len))
				return i;
			i++;
			continue;
		}
		if (!user_write_access_begin(user, copies[i].len))
			return i;
		for (; i < end; i++) {
			char __user *to = u64_to_user_ptr(copies[i].user);
			const char *from = copies[i].kernel;
			u64 len = copies[i].len;

			rvh_copy_short(rvh_put, to, from, len, fault);
		}
		user_write_access_end();
	}
	return i;
fault:
	user_write_access_end();
	return i;
}

unsigned int rvh_copy_all_from_user(const struct rvh_copy *copies, unsigned int count)
{
	unsigned int i = 0;

	while (i < count) {
		unsigned int end = i + rvh_short_copies(copies + i, count - i);
		const char __user *from = u64_to_user_ptr(copies[i].user);

		if (end == i) {
			if (_copy_from_user(copies[i].kernel, from, copies[i].len))
				return i;
			i++;
			continue;
		}
		if (!user_read_access_begin(from, copies[i].len))
			return i;
		for (; i < end; i++) {
			char *to = copies[i].kernel;
			u64 len = copies[i].len;

			from = u64_to_user_ptr(copies[i].user);
			rvh_copy_short(rvh_get, to, from, len, fault);
		}
		user_read_access_end();
	}
	return i;
fault:
	user_read_access_end();
	return i;
}
