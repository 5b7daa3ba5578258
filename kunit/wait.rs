// SPDX-License-Identifier: GPL-2.0
//! `kext::wait`.

#[kernel::macros::kunit_tests(rvhost_kext_wait)]
mod tests {
    use kernel::{
        prelude::*,
        sync::Arc, //
    };

    use crate::{
        kext::{
            kthread,
            wait::{
                Bell,
                WaitQueue, //
            }, //
        },
        support::{
            kill,
            mortal,
            nap,
            pid,
            sleeps,
            soon,
            Stage, //
        },
    };

    fn queue() -> Result<Arc<WaitQueue>> {
        Arc::pin_init(WaitQueue::new(), GFP_KERNEL)
    }

    #[test]
    fn what_is_done_needs_no_waiting() -> Result {
        let queue = queue()?;
        assert_eq!(queue.wait_killable(|| Some(7)), Ok(7));
        assert_eq!(queue.wait_timeout(0, || Some(8)), Some(8));
        Ok(())
    }

    #[test]
    fn wait_ends_with_its_time() -> Result {
        let queue = queue()?;
        let mut looked = 0;
        let ended = queue.wait_timeout(3, || {
            looked += 1;
            None::<()>
        });
        assert!(ended.is_none());
        // Before sleeping and when the time was over.
        assert_eq!(looked, 2);
        assert!(queue.wait_timeout(0, || None::<()>).is_none());
        Ok(())
    }

    #[test]
    fn all_waiters_are_woken_and_look_again() -> Result {
        let (stage, woken) = (Stage::new()?, Stage::new()?);
        for _ in 0..3 {
            let (stage, woken) = (stage.clone(), woken.clone());
            kthread::spawn(c"rvk-wait", &Bell::new(), move || {
                if stage.becomes(2) {
                    woken.set(1);
                }
            })?;
        }
        nap(5);
        stage.set(1);
        nap(5);
        assert_eq!(woken.get(), 0);
        stage.set(2);
        assert!(woken.becomes(1));
        Ok(())
    }

    #[test]
    fn death_ends_a_killable_wait() -> Result {
        let (queue, outcome) = (queue()?, Stage::new()?);
        let (q, o) = (queue.clone(), outcome.clone());
        let waiter = mortal(move || {
            let ended = q.wait_killable(|| None::<()>);
            o.set(if ended == Err(EINTR) { 1 } else { 2 });
        })?;
        assert!(soon(|| sleeps(waiter)));
        queue.wake_all();
        assert!(soon(|| sleeps(waiter)));
        assert_eq!(outcome.get(), 0);
        kill(waiter)?;
        assert_eq!(outcome.leaves(0), 1);
        Ok(())
    }

    #[test]
    fn death_does_not_end_a_wait_for_time_nor_one_that_is_done() -> Result {
        let (queue, outcome) = (queue()?, Stage::new()?);
        let o = outcome.clone();
        mortal(move || {
            let _ = kill(pid());
            let timed = queue.wait_timeout(3, || None::<()>).is_none();
            let done = queue.wait_killable(|| Some(5)) == Ok(5);
            let dead = queue.wait_killable(|| None::<()>) == Err(EINTR);
            o.set(if timed && done && dead { 1 } else { 2 });
        })?;
        assert_eq!(outcome.leaves(0), 1);
        Ok(())
    }

    #[test]
    fn bell_keeps_what_was_rung_until_it_is_answered() {
        let bell = Bell::new();
        assert_eq!(bell.rung(), 0);
        bell.ring(1);
        bell.ring(4);
        bell.ring(4);
        assert_eq!(bell.rung(), 5);
        assert_eq!(bell.answer(4 | 8), 4);
        assert_eq!(bell.answer(4), 0);
        assert_eq!(bell.answer(!0), 1);
        assert_eq!(bell.rung(), 0);
    }

    #[test]
    fn sleeper_wakes_for_its_own_events_only() -> Result {
        let stage = Stage::new()?;
        let bell = Arc::new(Bell::new(), GFP_KERNEL)?;
        let (s, b) = (stage.clone(), bell.clone());
        kthread::spawn(c"rvk-bell", &bell, move || {
            s.set(pid());
            b.sleep_until(2);
            s.set(-1);
        })?;
        let sleeper = stage.leaves(0);
        assert!(soon(|| sleeps(sleeper)));
        bell.ring(1);
        nap(5);
        assert!(sleeps(sleeper) && stage.get() == sleeper);
        bell.ring(2);
        assert!(stage.becomes(-1));
        assert_eq!(bell.rung(), 3);
        Ok(())
    }

    #[test]
    fn bell_rung_before_sleeping_is_heard() -> Result {
        let stage = Stage::new()?;
        let bell = Arc::new(Bell::new(), GFP_KERNEL)?;
        bell.ring(2);
        let (s, b) = (stage.clone(), bell.clone());
        kthread::spawn(c"rvk-bell", &bell, move || {
            b.sleep_until(2);
            s.set(1);
        })?;
        assert!(stage.becomes(1));
        Ok(())
    }

    #[test]
    fn no_ring_is_lost_between_two_threads() -> Result {
        const ROUNDS: i32 = 1000;
        let stage = Stage::new()?;
        let ping = Arc::new(Bell::new(), GFP_KERNEL)?;
        let pong = Arc::new(Bell::new(), GFP_KERNEL)?;
        for (mine, theirs, first) in [(&ping, &pong, true), (&pong, &ping, false)] {
            let (m, t, s) = (mine.clone(), theirs.clone(), stage.clone());
            kthread::spawn(c"rvk-pingpong", mine, move || {
                for round in 0..ROUNDS {
                    if !(first && round == 0) {
                        m.sleep_until(1);
                        m.answer(1);
                    }
                    t.ring(1);
                }
                if !first {
                    s.set(1);
                }
            })?;
        }
        assert!(stage.becomes(1));
        Ok(())
    }
}
