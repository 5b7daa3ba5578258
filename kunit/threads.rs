// SPDX-License-Identifier: GPL-2.0
//! `kext::kthread`, `kext::wait`, `kext::handoff` and `kext::killable`.

#[kernel::macros::kunit_tests(rvhost_kext_threads)]
mod tests {
    use kernel::{
        prelude::*,
        sync::{
            atomic::{
                Acquire,
                Atomic,
                Relaxed,
                Release, //
            },
            Arc, //
        },
    };

    use crate::{
        kext::{
            handoff::{
                events,
                Handoff, //
            },
            killable::{
                new_killable,
                KillableMutex, //
            },
            kthread,
            wait::{
                Bell,
                WaitQueue, //
            },
        },
        support::map,
    };

    /// Long enough for a thread to run on a busy machine, in jiffies.
    const LONG: isize = 5000;

    #[pin_data]
    struct Shared {
        value: Atomic<i32>,
        #[pin]
        changed: WaitQueue,
        #[pin]
        counter: KillableMutex<i32>,
    }

    fn shared() -> Result<Arc<Shared>> {
        Arc::pin_init(
            pin_init!(Shared {
                value: Atomic::new(0),
                changed <- WaitQueue::new(),
                counter <- new_killable!(0, c"rvk counter"),
            }),
            GFP_KERNEL,
        )
    }

    impl Shared {
        fn set(&self, value: i32) {
            self.value.store(value, Release);
            self.changed.wake_all();
        }

        fn becomes(&self, value: i32) -> bool {
            self.changed
                .wait_timeout(LONG, || (self.value.load(Acquire) == value).then_some(()))
                .is_some()
        }
    }

    #[test]
    fn thread_runs_its_body_and_hears_its_bell() -> Result {
        let shared = shared()?;
        let bell = Arc::new(Bell::new(), GFP_KERNEL)?;
        let (s, b) = (shared.clone(), bell.clone());
        kthread::spawn(c"rvk-bell", &bell, move || {
            s.set(1);
            b.sleep_until(2);
            s.set(2);
        })?;
        assert!(shared.becomes(1));
        bell.ring(1);
        bell.ring(2);
        assert!(shared.becomes(2));
        assert_eq!(bell.answer(!0), 3);
        assert_eq!(bell.rung(), 0);
        Ok(())
    }

    #[test]
    fn wait_ends_with_its_time() -> Result {
        let shared = shared()?;
        assert!(shared.changed.wait_timeout(2, || None::<()>).is_none());
        assert_eq!(shared.changed.wait_killable(|| Some(7)), Ok(7));
        Ok(())
    }

    #[test]
    fn value_goes_to_the_thread_and_comes_back_changed() -> Result {
        let bell = Arc::new(Bell::new(), GFP_KERNEL)?;
        let handoff = Arc::pin_init(Handoff::<i32>::new(bell), GFP_KERNEL)?;
        let theirs = handoff.clone();
        kthread::spawn(c"rvk-handoff", handoff.bell(), move || {
            while let Some(mut value) = theirs.receive() {
                value += 1;
                while !theirs.wanted() {
                    theirs.bell().sleep_until(events::CONTROL);
                }
                theirs.give_back(value);
            }
            theirs.ended();
        })?;
        assert_eq!(handoff.take().err(), Some(ESRCH));
        let mut value = 0;
        for _ in 0..1000 {
            assert_eq!(handoff.give(value), Ok(()));
            value = handoff.take()?;
        }
        // Each time the thread came to it before it was wanted again.
        assert!(value <= 1000);
        assert_eq!(handoff.give(value), Ok(()));
        assert!(handoff.end(LONG).is_some());
        assert_eq!(handoff.give(5), Err(5));
        Ok(())
    }

    #[test]
    fn mutex_lets_one_in_at_a_time() -> Result {
        let shared = shared()?;
        for _ in 0..2 {
            let s = shared.clone();
            let bell = Bell::new();
            kthread::spawn(c"rvk-mutex", &bell, move || {
                for _ in 0..1000 {
                    if let Ok(mut counter) = s.counter.lock() {
                        let before = *counter;
                        crate::kext::sched::yield_if_due();
                        *counter = before + 1;
                    }
                }
                s.value.add(1, Relaxed);
                s.changed.wake_all();
            })?;
        }
        assert!(shared.becomes(2));
        let counter = *shared.counter.lock()?;
        assert_eq!(counter, 2000);
        Ok(())
    }

    #[test]
    fn thread_can_borrow_an_address_space() -> Result {
        let (mm, at) = map(1)?;
        // This thread has an address space already: it cannot borrow one.
        assert!(mm.scope(|_| ()).is_none());
        let shared = shared()?;
        let (s, theirs) = (shared.clone(), mm.clone());
        let bell = Bell::new();
        kthread::spawn(c"rvk-mm", &bell, move || {
            let written = theirs.scope(|mut user| user.write(at, b"hello"));
            s.set(if written == Some(Ok(())) { 1 } else { 2 });
        })?;
        assert!(shared.becomes(1));
        let mut out = [0; 5];
        let read = mm.as_current().ok_or(EINVAL)?.read(at, &mut out);
        assert_eq!(read, Ok(()));
        assert_eq!(out, *b"hello");
        Ok(())
    }
}
