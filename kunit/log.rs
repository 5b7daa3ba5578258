// SPDX-License-Identifier: GPL-2.0
//! `kext::log`.

#[kernel::macros::kunit_tests(rvhost_kext_log)]
mod tests {
    use crate::kext::log::Limit;

    const MINUTE: u64 = 60_000_000_000;

    #[test]
    fn few_lines_pass_in_a_minute_and_the_next_tells_what_was_left_out() {
        let limit = Limit::default();
        let passed = |now| limit.pass(now);
        assert_eq!([1, 2, 3].map(|i| passed(MINUTE + i)), [Some(0); 3]);
        assert_eq!([4, 5].map(|i| passed(MINUTE + i)), [None; 2]);
        assert_eq!(passed(2 * MINUTE), None);
        assert_eq!(passed(2 * MINUTE + 1), Some(3));
        assert_eq!(passed(2 * MINUTE + 2), Some(0));
    }
}
