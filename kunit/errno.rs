// SPDX-License-Identifier: GPL-2.0
//! `kext::errno`.

#[kernel::macros::kunit_tests(rvhost_kext_errno)]
mod tests {
    use crate::kext::errno;

    #[test]
    fn numbers_are_those_user_space_knows() {
        assert_eq!(errno::ebadfd().to_errno(), -77);
        assert_eq!(errno::enotsock().to_errno(), -88);
        assert_eq!(errno::eopnotsupp().to_errno(), -95);
        assert_eq!(errno::enobufs().to_errno(), -105);
    }
}
