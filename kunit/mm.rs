// SPDX-License-Identifier: GPL-2.0
//! `kext::mm`.

#[kernel::macros::kunit_tests(rvhost_kext_mm)]
mod tests {
    use kernel::{
        prelude::*,
        sync::Arc, //
    };

    use crate::{
        kext::{
            handoff::Handoff,
            kthread,
            mm::OwnerMm,
            wait::Bell, //
        },
        support::{
            map,
            map_alone,
            module_refs,
            soon,
            Stage,
            PAGE, //
        },
        vcore::{
            addr::Hva,
            Error, //
        },
    };

    #[test]
    fn kernel_thread_owns_no_address_space() {
        assert!(OwnerMm::of_current().is_none());
    }

    #[test]
    fn owner_reaches_its_memory_without_borrowing() -> Result {
        let (mm, at) = map(1)?;
        assert!(mm.is_current());
        assert!(OwnerMm::of_current().is_some_and(|mm| mm.is_current()));
        let mut user = mm.as_current().ok_or(EINVAL)?;
        assert_eq!(user.write(at, &[1]), Ok(()));
        // One that has an address space cannot borrow one, its own least of all.
        assert!(mm.scope(|_| ()).is_none());
        Ok(())
    }

    #[test]
    fn thread_borrows_the_address_space_for_as_long_as_it_says() -> Result {
        let (mm, at) = map(1)?;
        let outcome = Stage::new()?;
        let (o, theirs) = (outcome.clone(), mm.clone());
        kthread::spawn(c"rvk-mm", &Bell::new(), move || {
            let apart = !theirs.is_current() && theirs.as_current().is_none();
            let inside = theirs.scope(|mut user| {
                // There is only one at a time.
                theirs.is_current()
                    && theirs.scope(|_| ()).is_none()
                    && user.write(at, b"hello") == Ok(())
            });
            let again = theirs.scope(|mut user| user.load_u16(at));
            let left = !theirs.is_current() && OwnerMm::of_current().is_none();
            let he = u16::from_le_bytes(*b"he");
            let good = apart && inside == Some(true) && again == Some(Ok(he)) && left;
            drop(theirs);
            o.set(if good { 1 } else { 2 });
        })?;
        assert_eq!(outcome.leaves(0), 1);
        let mut out = [0; 5];
        let read = mm.as_current().ok_or(EINVAL)?.read(at, &mut out);
        assert_eq!(read, Ok(()));
        assert_eq!(out, *b"hello");
        Ok(())
    }

    #[test]
    fn address_space_outlives_its_process_while_someone_keeps_it() -> Result {
        let before = module_refs();
        let bell = Arc::new(Bell::new(), GFP_KERNEL)?;
        let place = Arc::pin_init(Handoff::<(OwnerMm, Hva)>::new(bell), GFP_KERNEL)?;
        let theirs = place.clone();
        kthread::spawn(c"rvk-owner", &Bell::new(), move || {
            if let Ok((mm, at)) = map_alone() {
                let written = mm.as_current().map(|mut user| user.store_u16(at, 0x1234));
                if written == Some(Ok(())) {
                    let _ = theirs.give((mm, at));
                }
            }
        })?;
        assert!(soon(|| module_refs() == before));
        let (mm, at) = place.take()?;
        let read = mm.scope(|mut user| (user.load_u16(at), user.load_u16(at.at(PAGE))));
        assert_eq!(read, Some((Ok(0x1234), Err(Error::Fault))));
        Ok(())
    }
}
