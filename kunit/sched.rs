// SPDX-License-Identifier: GPL-2.0
//! `kext::sched`.

#[kernel::macros::kunit_tests(rvhost_kext_sched)]
mod tests {
    use kernel::prelude::*;

    use crate::{
        kext::sched::{
            poll,
            yield_if_due,
            yield_unless_killed, //
        },
        support::{
            kill,
            mortal,
            pid,
            Stage, //
        },
    };

    #[test]
    fn nothing_is_looked_for_without_time() {
        let mut looked = 0;
        let found = poll(0, || {
            looked += 1;
            true
        });
        assert!(!found);
        assert_eq!(looked, 0);
    }

    #[test]
    fn looking_ends_when_it_is_found() {
        let mut looked = 0;
        // Someone else may need the CPU now and then: that ends it, too.
        for _ in 0..100 {
            looked = 0;
            let found = poll(1_000_000, || {
                looked += 1;
                looked == 3
            });
            if found {
                break;
            }
            yield_if_due();
        }
        assert_eq!(looked, 3);
    }

    #[test]
    fn looking_ends_with_its_time() {
        assert!(!poll(50, || false));
        assert!(!poll(1, || false));
    }

    #[test]
    fn who_is_killed_is_told_so() -> Result {
        assert_eq!(yield_unless_killed(), Ok(()));
        let outcome = Stage::new()?;
        let o = outcome.clone();
        mortal(move || {
            let before = yield_unless_killed();
            let _ = kill(pid());
            let after = yield_unless_killed();
            o.set(if before == Ok(()) && after == Err(EINTR) {
                1
            } else {
                2
            });
        })?;
        assert_eq!(outcome.leaves(0), 1);
        Ok(())
    }
}
