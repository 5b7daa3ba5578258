// SPDX-License-Identifier: GPL-2.0
//! Event-index arithmetic (virtio 1.3, 2.7.7.2 and 2.7.10).

/// Whether moving an index from `old` to `new` passed `event`, that is, whether the other side
/// asked to be told of it.
#[inline]
pub fn passed(event: u16, new: u16, old: u16) -> bool {
    new.wrapping_sub(event).wrapping_sub(1) < new.wrapping_sub(old)
}

#[cfg_attr(rv_kunit, ::kernel::macros::kunit_tests(rvhost_vcore_event))]
#[cfg(any(test, rv_kunit))]
mod tests {
    use super::*;

    #[test]
    fn event_is_passed_iff_old_le_event_lt_new_around_every_wrap() {
        for base in [0u16, 1, 0x7ffe, 0x8000, 0xfff8, 0xffff] {
            for moved in 0..12u16 {
                for event in 0..16u16 {
                    let told = passed(
                        base.wrapping_add(event),
                        base.wrapping_add(moved),
                        base, //
                    );
                    assert_eq!(told, event < moved);
                }
            }
        }
    }
}
