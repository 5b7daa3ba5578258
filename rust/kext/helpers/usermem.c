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

int rvh_load_u16(u64 addr, u16 *value)
{
	return get_user(*value, (u16 __user *)u64_to_user_ptr(addr));
}

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
