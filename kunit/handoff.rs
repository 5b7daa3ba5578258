// SPDX-License-Identifier: GPL-2.0
//! `kext::handoff`.

#[kernel::macros::kunit_tests(rvhost_kext_handoff)]
mod tests {
    use kernel::{
        prelude::*,
        sync::Arc, //
    };

    use crate::{
        kext::{
            handoff::{
                events,
                Handoff, //
            },
            kthread,
            wait::Bell, //
        },
        support::{
            kill,
            mortal,
            nap,
            sleeps,
            soon,
            Counted,
            Stage,
            LONG, //
        },
    };

    /// What is handed over: a number to change, and the count of those dropped.
    struct Value {
        number: i32,
        _counted: Counted,
    }

    impl Value {
        fn new(number: i32, dropped: &Arc<Stage>) -> Self {
            Self {
                number,
                _counted: Counted::new(dropped),
            }
        }
    }

    fn handoff() -> Result<Arc<Handoff<Value>>> {
        let bell = Arc::new(Bell::new(), GFP_KERNEL)?;
        Arc::pin_init(Handoff::new(bell), GFP_KERNEL)
    }

    fn number(value: Result<Value>) -> Result<i32> {
        value.map(|v| v.number)
    }

    /// A thread that adds one to each value it gets, and keeps it until it is wanted. While
    /// `stubborn` is 1 it does not look whether that is so.
    fn worker(handoff: &Arc<Handoff<Value>>, stubborn: &Arc<Stage>) -> Result {
        let (h, s) = (handoff.clone(), stubborn.clone());
        kthread::spawn(c"rvk-handoff", handoff.bell(), move || {
            while let Some(mut value) = h.receive() {
                value.number += 1;
                loop {
                    if s.get() == 1 {
                        s.leaves(1);
                    }
                    if h.wanted() {
                        break;
                    }
                    h.bell().sleep_until(events::CONTROL);
                }
                h.give_back(value);
            }
            h.ended();
        })
    }

    #[test]
    fn value_comes_back_from_a_thread_that_changes_it() -> Result {
        let (handoff, dropped, free) = (handoff()?, Stage::new()?, Stage::new()?);
        worker(&handoff, &free)?;
        let mut value = Value::new(0, &dropped);
        let (mut rounds, mut changes) = (0, 0);
        while changes < 50 && rounds < 100_000 {
            let before = value.number;
            assert!(handoff.give(value).is_ok());
            if rounds % 2 == 0 {
                crate::kext::sched::yield_if_due();
            } else {
                nap(1);
            }
            value = handoff.take()?;
            // At most once each time, for the thread may not have come to it.
            assert!(value.number == before || value.number == before + 1);
            changes += value.number - before;
            rounds += 1;
        }
        assert_eq!(changes, 50);
        assert_eq!(dropped.get(), 0);
        drop(value);
        assert!(handoff.end(LONG).is_none());
        assert_eq!(dropped.get(), 1);
        Ok(())
    }

    #[test]
    fn there_is_nothing_to_take_before_something_was_given() -> Result {
        let handoff = handoff()?;
        assert_eq!(number(handoff.take()).err(), Some(ESRCH));
        Ok(())
    }

    #[test]
    fn value_the_thread_never_saw_can_be_taken_back() -> Result {
        let (handoff, dropped) = (handoff()?, Stage::new()?);
        assert!(handoff.give(Value::new(5, &dropped)).is_ok());
        assert_eq!(number(handoff.take()), Ok(5));
        assert_eq!(number(handoff.take()).err(), Some(ESRCH));
        assert_eq!(dropped.get(), 1);
        Ok(())
    }

    #[test]
    fn value_is_wanted_only_when_someone_takes_or_ends() -> Result {
        let (handoff, dropped) = (handoff()?, Stage::new()?);
        assert!(!handoff.wanted());
        assert!(handoff.give(Value::new(1, &dropped)).is_ok());
        assert!(!handoff.wanted());
        let value = handoff.receive();
        assert!(value.is_some());
        assert!(!handoff.wanted());
        // What nobody wants is the thread's to receive again.
        if let Some(value) = value {
            handoff.give_back(value);
        }
        let value = handoff.receive();
        assert_eq!(value.as_ref().map(|v| v.number), Some(1));
        assert!(handoff.end(1).is_none());
        assert!(handoff.wanted());
        assert!(handoff.receive().is_none());
        Ok(())
    }

    #[test]
    fn end_takes_the_value_from_the_thread() -> Result {
        let (handoff, dropped, free) = (handoff()?, Stage::new()?, Stage::new()?);
        worker(&handoff, &free)?;
        assert!(handoff.give(Value::new(0, &dropped)).is_ok());
        let ended = handoff.end(LONG);
        assert!(ended.is_some());
        assert_eq!(dropped.get(), 0);
        // Nobody is there any more: what is given comes straight back.
        let back = handoff.give(Value::new(9, &dropped)).err();
        assert_eq!(back.map(|v| v.number), Some(9));
        assert_eq!(dropped.get(), 1);
        assert!(handoff.end(LONG).is_none());
        drop(ended);
        assert_eq!(dropped.get(), 2);
        Ok(())
    }

    #[test]
    fn end_does_not_wait_for_ever_for_a_thread_that_hangs() -> Result {
        let (handoff, dropped, hangs) = (handoff()?, Stage::new()?, Stage::new()?);
        hangs.set(1);
        worker(&handoff, &hangs)?;
        assert!(handoff.give(Value::new(0, &dropped)).is_ok());
        nap(5);
        assert!(handoff.end(5).is_none());
        assert_eq!(dropped.get(), 0);
        // When it goes on, it ends, and what it had goes with it.
        hangs.set(0);
        drop(handoff);
        assert!(dropped.becomes(1));
        Ok(())
    }

    #[test]
    fn thread_keeps_the_value_when_who_wanted_it_is_killed() -> Result {
        let (handoff, dropped, hangs) = (handoff()?, Stage::new()?, Stage::new()?);
        let outcome = Stage::new()?;
        hangs.set(1);
        worker(&handoff, &hangs)?;
        assert!(handoff.give(Value::new(0, &dropped)).is_ok());
        // The thread must have it, or it could be taken at once.
        assert!(soon(|| handoff.bell().rung() == 0));
        nap(3);
        let (h, o) = (handoff.clone(), outcome.clone());
        let controller = mortal(move || {
            let taken = number(h.take());
            o.set(if taken == Err(EINTR) { 1 } else { 2 });
        })?;
        assert!(soon(|| sleeps(controller)));
        assert_eq!(outcome.get(), 0);
        kill(controller)?;
        assert_eq!(outcome.leaves(0), 1);
        assert_eq!(dropped.get(), 0);
        assert!(!handoff.wanted());
        // The thread goes on with it as if nothing had been, and gives it to who comes next.
        hangs.set(0);
        nap(3);
        assert_eq!(number(handoff.take()), Ok(1));
        assert!(handoff.end(LONG).is_none());
        Ok(())
    }

    #[test]
    fn killing_whoever_takes_never_loses_the_value() -> Result {
        let (handoff, dropped, free) = (handoff()?, Stage::new()?, Stage::new()?);
        worker(&handoff, &free)?;
        for round in 0..50 {
            assert!(handoff.give(Value::new(0, &dropped)).is_ok());
            let taken = Stage::new()?;
            let (h, t) = (handoff.clone(), taken.clone());
            let controller = mortal(move || {
                let number = number(h.take());
                t.set(if number.is_ok() { 1 } else { 2 });
            })?;
            let _ = kill(controller);
            // Either it got the value, or the thread still has it.
            if taken.leaves(0) == 2 {
                assert!(number(handoff.take()).is_ok());
            }
            assert_eq!(dropped.get(), round + 1);
        }
        assert!(handoff.end(LONG).is_none());
        Ok(())
    }

    #[test]
    fn value_goes_with_the_place_if_nobody_takes_it() -> Result {
        let (handoff, dropped) = (handoff()?, Stage::new()?);
        assert!(handoff.give(Value::new(0, &dropped)).is_ok());
        drop(handoff);
        assert_eq!(dropped.get(), 1);
        Ok(())
    }
}
