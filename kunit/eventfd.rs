// SPDX-License-Identifier: GPL-2.0
//! `kext::eventfd`.

#[kernel::macros::kunit_tests(rvhost_kext_eventfd)]
mod tests {
    use kernel::prelude::*;

    use crate::{
        kext::{
            eventfd::EventFd,
            file::FileRef, //
        },
        support::{
            Fd,
            O_RDWR, //
        },
    };

    #[test]
    fn each_signal_adds_one() -> Result {
        let fd = Fd::event()?;
        let event = EventFd::get(fd.number())?;
        assert_eq!(fd.events()?, 0);
        event.signal();
        assert_eq!(fd.events()?, 1);
        event.signal();
        event.signal();
        assert_eq!(fd.events()?, 2);
        Ok(())
    }

    #[test]
    fn counter_saturates() -> Result {
        let fd = Fd::event()?;
        let event = EventFd::get(fd.number())?;
        fd.write(&(u64::MAX - 1).to_ne_bytes())?;
        event.signal();
        event.signal();
        assert_eq!(fd.events()?, u64::MAX);
        event.signal();
        assert_eq!(fd.events()?, 1);
        Ok(())
    }

    #[test]
    fn descriptor_may_be_closed_while_it_is_signalled() -> Result {
        let fd = Fd::event()?;
        let number = fd.number();
        let (by_number, by_file) = (EventFd::get(number)?, EventFd::of(&fd.file()?)?);
        drop(fd);
        assert_eq!(FileRef::get(number).err(), Some(EBADF));
        by_number.signal();
        by_file.signal();
        Ok(())
    }

    #[test]
    fn other_files_are_refused() -> Result {
        assert_eq!(EventFd::get(-1).err(), Some(EBADF));
        assert_eq!(EventFd::get(i32::MAX).err(), Some(EBADF));
        let null = Fd::open(c"/dev/null", O_RDWR)?;
        assert_eq!(EventFd::get(null.number()).err(), Some(EINVAL));
        assert_eq!(EventFd::of(&null.file()?).err(), Some(EINVAL));
        Ok(())
    }
}
