// SPDX-License-Identifier: GPL-2.0
//! `kext::param`.

#[kernel::macros::kunit_tests(rvhost_kext_param)]
mod tests {
    use crate::kext::param;

    #[test]
    fn device_takes_the_place_of_c_vhost_net_unless_told_otherwise() {
        assert!(param::devname() == c"vhost-net");
    }
}
