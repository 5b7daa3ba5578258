// SPDX-License-Identifier: GPL-2.0
//! `kext::param`.

#[kernel::macros::kunit_tests(rvhost_kext_param)]
mod tests {
    use crate::kext::param;

    #[test]
    fn device_takes_the_place_of_c_vhost_net_unless_told_otherwise() {
        assert!(param::devname() == c"vhost-net");
    }

    #[test]
    fn threads_are_the_kernels_unless_told_otherwise() {
        assert!(!param::fork_from_owner_default());
    }

    #[test]
    fn packets_are_copied_unless_told_otherwise() {
        assert!(!param::zerocopy());
    }

    #[test]
    fn memory_table_has_room_for_all_slots_of_a_vm() {
        assert_eq!(param::max_mem_regions(), 509);
    }
}
