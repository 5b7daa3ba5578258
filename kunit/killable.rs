// SPDX-License-Identifier: GPL-2.0
//! `kext::killable`.

#[kernel::macros::kunit_tests(rvhost_kext_killable)]
mod tests {
    use kernel::{
        prelude::*,
        sync::Arc, //
    };

    use crate::{
        kext::{
            killable::{
                new_killable,
                KillableMutex, //
            },
            kthread,
            sched::yield_if_due,
            wait::Bell, //
        },
        support::{
            kill,
            mortal,
            nap,
            pid,
            sleeps,
            soon,
            Counted,
            Stage, //
        },
    };

    fn mutex<T>(data: T) -> Result<Arc<KillableMutex<T>>> {
        Arc::pin_init(new_killable!(data, c"rvk mutex"), GFP_KERNEL)
    }

    #[test]
    fn holder_changes_the_data() -> Result {
        let mutex = mutex(5)?;
        *mutex.lock()? += 1;
        let now = *mutex.lock()?;
        assert_eq!(now, 6);
        Ok(())
    }

    #[test]
    fn one_is_let_in_at_a_time() -> Result {
        const ROUNDS: i32 = 200;
        let (mutex, stage) = (mutex(0)?, Stage::new()?);
        for _ in 0..3 {
            let (m, s) = (mutex.clone(), stage.clone());
            kthread::spawn(c"rvk-mutex", &Bell::new(), move || {
                for _ in 0..ROUNDS {
                    if let Ok(mut counter) = m.lock() {
                        let before = *counter;
                        yield_if_due();
                        *counter = before + 1;
                    }
                }
                if let Ok(counter) = m.lock() {
                    s.set(*counter);
                }
            })?;
        }
        assert!(stage.becomes(3 * ROUNDS));
        Ok(())
    }

    #[test]
    fn waiter_that_is_killed_gives_up_and_the_holder_keeps_the_lock() -> Result {
        let (mutex, held, outcome) = (mutex(0)?, Stage::new()?, Stage::new()?);
        let (m, h) = (mutex.clone(), held.clone());
        kthread::spawn(c"rvk-holder", &Bell::new(), move || {
            if let Ok(mut data) = m.lock() {
                h.set(1);
                h.becomes(2);
                *data = 7;
            }
        })?;
        assert!(held.becomes(1));
        let (m, o) = (mutex.clone(), outcome.clone());
        let waiter = mortal(move || {
            let got = m.lock().map(|data| *data);
            o.set(if got == Err(EINTR) { 1 } else { 2 });
        })?;
        assert!(soon(|| sleeps(waiter)));
        nap(3);
        assert_eq!(outcome.get(), 0);
        kill(waiter)?;
        assert_eq!(outcome.leaves(0), 1);
        held.set(2);
        // Waits for the holder, as nobody kills this one.
        let data = *mutex.lock()?;
        assert_eq!(data, 7);
        Ok(())
    }

    #[test]
    fn free_lock_is_had_even_in_death() -> Result {
        let (mutex, outcome) = (mutex(3)?, Stage::new()?);
        let o = outcome.clone();
        mortal(move || {
            let _ = kill(pid());
            let got = mutex.lock().map(|data| *data);
            o.set(if got == Ok(3) { 1 } else { 2 });
        })?;
        assert_eq!(outcome.leaves(0), 1);
        Ok(())
    }

    #[test]
    fn data_is_dropped_with_the_mutex() -> Result {
        let dropped = Stage::new()?;
        let mutex = mutex(Counted::new(&dropped))?;
        drop(mutex.lock()?);
        assert_eq!(dropped.get(), 0);
        drop(mutex);
        assert_eq!(dropped.get(), 1);
        Ok(())
    }
}
