// SPDX-License-Identifier: GPL-2.0
//! `kext::trace`.

#[kernel::macros::kunit_tests(rvhost_kext_trace)]
mod tests {
    use kernel::prelude::*;

    use crate::{
        kext::trace,
        support::{
            told,
            Listener, //
        },
    };

    #[test]
    fn nobody_is_told_unless_they_listen() {
        let before = told().times;
        trace::batch(1, 2, 3, 4, 5);
        trace::error(1, 2, 3);
        assert_eq!(told().times, before);
    }

    #[test]
    fn listener_is_told_what_happened() -> Result {
        let before = told().times;
        let listener = Listener::new()?;
        trace::batch(u32::MAX, 1, 64, u64::MAX - 1, 9);
        let batch = told();
        trace::error(7, 0, 36);
        let error = told();
        trace::drop(7, 0, 36);
        trace::open(1);
        trace::kick(1, 1);
        let others = told();
        drop(listener);
        trace::batch(0, 0, 0, 0, 0);
        let after = told();
        assert_eq!(batch.times, before + 1);
        assert_eq!((batch.dev, batch.queue), (u32::MAX, 1));
        assert_eq!((batch.what, batch.bytes), (64, u64::MAX - 1));
        assert_eq!(error.times, before + 2);
        assert_eq!((error.dev, error.queue, error.what), (7, 0, 36));
        assert_eq!(others.times, error.times);
        assert_eq!(after.times, error.times);
        Ok(())
    }
}
