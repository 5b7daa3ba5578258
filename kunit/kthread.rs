// SPDX-License-Identifier: GPL-2.0
//! `kext::kthread`.

#[kernel::macros::kunit_tests(rvhost_kext_kthread)]
mod tests {
    use kernel::prelude::*;

    use crate::{
        kext::{
            kthread,
            wait::Bell, //
        },
        support::{
            module_refs,
            name,
            nice,
            pid,
            set_nice,
            soon,
            Counted,
            Stage, //
        },
    };

    #[test]
    fn body_runs_in_another_thread_and_is_dropped_after() -> Result {
        let (stage, dropped) = (Stage::new()?, Stage::new()?);
        let (s, owned) = (stage.clone(), Counted::new(&dropped));
        kthread::spawn(c"rvk-body", &Bell::new(), move || {
            let _owned = owned;
            s.set(pid());
            s.becomes(1);
        })?;
        let thread = stage.leaves(0);
        assert!(thread > 0 && thread != pid());
        assert_eq!(dropped.get(), 0);
        stage.set(1);
        assert!(dropped.becomes(1));
        Ok(())
    }

    #[test]
    fn thread_has_its_name() -> Result {
        let stage = Stage::new()?;
        let s = stage.clone();
        kthread::spawn(c"vhost-12345-rx", &Bell::new(), move || {
            s.set(if name() == *b"vhost-12345-rx\0\0" {
                1
            } else {
                2
            });
        })?;
        assert_eq!(stage.leaves(0), 1);
        Ok(())
    }

    #[test]
    fn name_is_no_format() -> Result {
        let stage = Stage::new()?;
        let s = stage.clone();
        kthread::spawn(c"rvk-%s%d%n", &Bell::new(), move || {
            s.set(if name().starts_with(b"rvk-%s%d%n\0") {
                1
            } else {
                2
            });
        })?;
        assert_eq!(stage.leaves(0), 1);
        Ok(())
    }

    #[test]
    fn thread_is_as_nice_as_its_maker() -> Result {
        let before = nice();
        for wanted in [7, -3, 0] {
            set_nice(wanted);
            let stage = Stage::new()?;
            let s = stage.clone();
            let spawned = kthread::spawn(c"rvk-nice", &Bell::new(), move || {
                s.set(if nice() == wanted { 1 } else { 2 });
            });
            set_nice(before);
            spawned?;
            assert_eq!(stage.leaves(0), 1);
        }
        Ok(())
    }

    #[test]
    fn module_stays_while_a_thread_runs_and_no_longer() -> Result {
        let before = module_refs();
        let stage = Stage::new()?;
        for _ in 0..3 {
            let s = stage.clone();
            kthread::spawn(c"rvk-refs", &Bell::new(), move || {
                s.becomes(1);
            })?;
        }
        assert_eq!(module_refs(), before + 3);
        stage.set(1);
        assert!(soon(|| module_refs() == before));
        Ok(())
    }

    #[test]
    fn hundred_threads_leave_nothing_behind() -> Result {
        let before = module_refs();
        for i in 0..100 {
            let stage = Stage::new()?;
            let s = stage.clone();
            kthread::spawn(c"rvk-many", &Bell::new(), move || s.set(i + 1))?;
            assert!(stage.becomes(i + 1));
        }
        assert!(soon(|| module_refs() == before));
        Ok(())
    }
}
