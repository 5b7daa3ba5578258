// SPDX-License-Identifier: GPL-2.0
//! `kext::counter`.

#[kernel::macros::kunit_tests(rvhost_kext_counter)]
mod tests {
    use crate::kext::counter::Counter;

    #[test]
    fn counter_adds_and_is_set() {
        let counter = Counter::default();
        counter.add(3);
        counter.add(4);
        assert_eq!(counter.get(), 7);
        counter.set(1);
        assert_eq!(counter.get(), 1);
    }

    #[test]
    fn overflow_wraps_and_counting_goes_on() {
        let counter = Counter::default();
        counter.set(u64::MAX - 1);
        counter.add(3);
        assert_eq!(counter.get(), 1);
        counter.add(u64::MAX);
        assert_eq!(counter.get(), 0);
    }
}
