// SPDX-License-Identifier: GPL-2.0
//! `kext::poll`.

#[kernel::macros::kunit_tests(rvhost_kext_poll)]
mod tests {
    use kernel::{
        prelude::*,
        sync::Arc, //
    };

    use crate::{
        kext::{
            eventfd::EventFd,
            poll::{
                ready,
                PollHook, //
            },
            wait::Bell, //
        },
        support::{
            Fd,
            Tap,
            O_RDWR, //
        },
    };

    const EVENT: u32 = 4;

    fn bell() -> Result<Arc<Bell>> {
        Ok(Arc::new(Bell::new(), GFP_KERNEL)?)
    }

    #[test]
    fn hook_rings_only_while_it_is_hooked() -> Result {
        let fd = Fd::event()?;
        let (event, bell) = (EventFd::get(fd.number())?, bell()?);
        let mut hook = PollHook::new(fd.file()?, ready::IN, bell.clone(), EVENT)?;
        event.signal();
        assert_eq!(bell.rung(), 0);
        assert!(hook.as_mut().hook_and_look());
        assert_eq!(fd.events()?, 1);
        assert!(!hook.as_mut().hook_and_look());
        event.signal();
        assert_eq!(bell.answer(!0), EVENT);
        hook.as_mut().unhook();
        event.signal();
        assert_eq!(bell.rung(), 0);
        // It can be hooked again, and looks at what has come meanwhile.
        assert!(hook.as_mut().hook_and_look());
        event.signal();
        assert_eq!(bell.answer(!0), EVENT);
        Ok(())
    }

    #[test]
    fn hook_that_is_dropped_rings_no_more() -> Result {
        let fd = Fd::event()?;
        let (event, bell) = (EventFd::get(fd.number())?, bell()?);
        for hooked in [true, false] {
            let mut hook = PollHook::new(fd.file()?, ready::IN, bell.clone(), EVENT)?;
            hook.as_mut().hook();
            if !hooked {
                hook.as_mut().unhook();
                hook.as_mut().unhook();
            }
            drop(hook);
            event.signal();
            assert_eq!(bell.rung(), 0);
        }
        Ok(())
    }

    #[test]
    fn hook_hears_only_what_it_is_for() -> Result {
        let fd = Fd::event()?;
        let (event, bell) = (EventFd::get(fd.number())?, bell()?);
        let mut reader = PollHook::new(fd.file()?, ready::IN, bell.clone(), 1)?;
        let mut writer = PollHook::new(fd.file()?, ready::OUT, bell.clone(), 2)?;
        assert!(!reader.as_mut().hook_and_look());
        assert!(writer.as_mut().hook_and_look());
        event.signal();
        assert_eq!(bell.answer(!0), 1);
        assert_eq!(fd.events()?, 1);
        assert_eq!(bell.answer(!0), 2);
        Ok(())
    }

    #[test]
    fn hook_for_once_rings_once_each_time_it_is_hooked() -> Result {
        let fd = Fd::event()?;
        let (event, bell) = (EventFd::get(fd.number())?, bell()?);
        let mut hook = PollHook::once(fd.file()?, ready::IN, bell.clone(), EVENT)?;
        for _ in 0..3 {
            assert!(!hook.as_mut().hook_and_look());
            event.signal();
            assert_eq!(bell.answer(!0), EVENT);
            event.signal();
            assert_eq!(bell.rung(), 0);
            assert_eq!(fd.events()?, 2);
            hook.as_mut().unhook();
        }
        // Unhooked before it has heard anything, and dropped after it has.
        assert!(!hook.as_mut().hook_and_look());
        hook.as_mut().unhook();
        event.signal();
        assert_eq!(bell.rung(), 0);
        assert!(hook.as_mut().hook_and_look());
        event.signal();
        drop(hook);
        event.signal();
        assert_eq!(bell.answer(!0), EVENT);
        Ok(())
    }

    #[test]
    fn broken_file_is_heard_of_and_seen() -> Result {
        let fd = Fd::event()?;
        let (event, bell) = (EventFd::get(fd.number())?, bell()?);
        fd.write(&(u64::MAX - 1).to_ne_bytes())?;
        let mut hook = PollHook::new(fd.file()?, ready::OUT, bell.clone(), EVENT)?;
        assert_eq!(hook.as_mut().hook() & ready::ERR, 0);
        // The counter overflows.
        event.signal();
        assert_eq!(hook.as_mut().hook() & ready::ERR, ready::ERR);
        hook.as_mut().unhook();
        Ok(())
    }

    #[test]
    fn hook_outlives_the_descriptor_and_keeps_the_file() -> Result {
        let fd = Fd::event()?;
        let (event, bell) = (EventFd::get(fd.number())?, bell()?);
        let mut hook = PollHook::new(fd.file()?, ready::IN, bell.clone(), EVENT)?;
        hook.as_mut().hook();
        drop(fd);
        event.signal();
        assert_eq!(bell.answer(!0), EVENT);
        drop(event);
        drop(hook);
        Ok(())
    }

    #[test]
    fn file_that_never_waits_is_ready_at_once() -> Result {
        let (null, bell) = (Fd::open(c"/dev/null", O_RDWR)?, bell()?);
        let mut hook = PollHook::new(null.file()?, ready::IN, bell.clone(), EVENT)?;
        assert!(hook.as_mut().hook_and_look());
        assert!(hook.as_mut().hook_and_look());
        assert!(hook.file() == &null.file()?);
        hook.as_mut().unhook();
        Ok(())
    }

    #[test]
    fn packet_that_arrives_at_a_tap_rings() -> Result {
        let (tap, bell) = (Tap::new()?, bell()?);
        let mut hook = PollHook::new(tap.file()?, ready::IN, bell.clone(), EVENT)?;
        assert!(!hook.as_mut().hook_and_look());
        tap.push(&[1; 60])?;
        assert_eq!(bell.answer(!0), EVENT);
        hook.as_mut().unhook();
        tap.push(&[1; 60])?;
        assert_eq!(bell.rung(), 0);
        assert!(hook.as_mut().hook_and_look());
        Ok(())
    }
}
