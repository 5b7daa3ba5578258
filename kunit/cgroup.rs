// SPDX-License-Identifier: GPL-2.0
//! `kext::cgroup`.

#[kernel::macros::kunit_tests(rvhost_kext_cgroup)]
mod tests {
    use kernel::{
        current,
        prelude::*,
        sync::aref::ARef,
        task::Task, //
    };

    use crate::{
        kext::{
            cgroup,
            kthread,
            wait::Bell, //
        },
        support::{
            pid,
            shares_cgroup,
            shell,
            soon,
            Stage, //
        },
    };

    #[test]
    fn joining_oneself_changes_nothing() -> Result {
        let this = ARef::<Task>::from(&**current!());
        assert_eq!(cgroup::join_all(&this), Ok(()));
        assert!(shares_cgroup(pid()));
        Ok(())
    }

    #[test]
    fn thread_joins_the_group_of_another() -> Result {
        const GROUP: &str = "/sys/fs/cgroup/rvk";
        let (outcome, end) = (Stage::new()?, Stage::new()?);
        let this = ARef::<Task>::from(&**current!());
        assert!(shell(fmt!(
            "mkdir {0} && echo {1} > {0}/cgroup.procs",
            GROUP,
            pid()
        )));
        let (o, e, owner) = (outcome.clone(), end.clone(), pid());
        kthread::spawn(c"rvk-cgroup", &Bell::new(), move || {
            let apart = !shares_cgroup(owner);
            let joined = cgroup::join_all(&this);
            let together = shares_cgroup(owner);
            o.set(if apart && joined == Ok(()) && together {
                1
            } else {
                2
            });
            e.becomes(1);
        })?;
        let outcome = outcome.leaves(0);
        end.set(1);
        // So that the group can go, both leave it.
        let left = shell(fmt!("echo {} > /sys/fs/cgroup/cgroup.procs", pid()));
        let gone = soon(|| shell(fmt!("rmdir {}", GROUP)));
        assert_eq!(outcome, 1);
        assert!(left && gone);
        Ok(())
    }
}
