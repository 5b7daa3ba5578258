// SPDX-License-Identifier: GPL-2.0
//! `kext::mm` and `kext::usermem`.

#[kernel::macros::kunit_tests(rvhost_kext_usermem)]
mod tests {
    use kernel::prelude::*;

    use crate::{
        kext::{
            mm::OwnerMm,
            usermem::in_user_range, //
        },
        support::{
            map,
            PAGE, //
        },
        vcore::{
            addr::{
                Hva,
                Seg, //
            },
            Error, //
        },
    };

    #[test]
    fn what_is_written_can_be_read_across_pages() -> Result {
        let (mm, at) = map(2)?;
        let mut user = mm.as_current().ok_or(EINVAL)?;
        let at = at.at(PAGE - 3);
        assert_eq!(user.write(at, &[1, 2, 3, 4, 5, 6]), Ok(()));
        let mut out = [0; 6];
        assert_eq!(user.read(at, &mut out), Ok(()));
        assert_eq!(out, [1, 2, 3, 4, 5, 6]);
        Ok(())
    }

    #[test]
    fn unmapped_and_kernel_addresses_fault() -> Result {
        let (mm, at) = map(1)?;
        let mut user = mm.as_current().ok_or(EINVAL)?;
        let on_stack = [0u8; 8];
        let kernel = Hva(on_stack.as_ptr() as u64);
        for bad in [Hva(0), Hva(u64::MAX - 3), Hva(1 << 63), kernel] {
            assert_eq!(user.read(bad, &mut [0; 8]), Err(Error::Fault));
            assert_eq!(user.write(bad, &[0; 8]), Err(Error::Fault));
            assert_eq!(user.load_u16(bad), Err(Error::Fault));
            assert_eq!(user.store_u16(bad, 0), Err(Error::Fault));
            assert_eq!(user.set_bits(Hva(bad.0 & !3), 1), Err(Error::Fault));
            assert_eq!(
                user.read_descs(bad, &[0], &mut [[0; 16]]),
                Err(Error::Fault)
            );
        }
        assert_eq!(user.read(at, &mut [0; 8]), Ok(()));
        Ok(())
    }

    #[test]
    fn fields_are_little_endian() -> Result {
        let (mm, at) = map(1)?;
        let mut user = mm.as_current().ok_or(EINVAL)?;
        assert_eq!(user.store_u16(at, 0x1234), Ok(()));
        let mut out = [0; 2];
        assert_eq!(user.read(at, &mut out), Ok(()));
        assert_eq!(out, [0x34, 0x12]);
        assert_eq!(user.load_u16(at), Ok(0x1234));
        Ok(())
    }

    #[test]
    fn bits_are_added_to_those_that_are_set() -> Result {
        let (mm, at) = map(1)?;
        let mut user = mm.as_current().ok_or(EINVAL)?;
        assert_eq!(user.set_bits(at, 0x100), Ok(()));
        assert_eq!(user.set_bits(at, 0x8000_0001), Ok(()));
        let mut out = [0; 4];
        assert_eq!(user.read(at, &mut out), Ok(()));
        assert_eq!(u32::from_le_bytes(out), 0x8000_0101);
        Ok(())
    }

    #[test]
    fn descriptors_are_gathered_in_the_order_asked_for() -> Result {
        let (mm, at) = map(1)?;
        let mut user = mm.as_current().ok_or(EINVAL)?;
        for i in 0..4u8 {
            assert_eq!(user.write(at.at(16 * u64::from(i)), &[i; 16]), Ok(()));
        }
        let mut out = [[9; 16]; 3];
        assert_eq!(user.read_descs(at, &[3, 0, 2], &mut out), Ok(()));
        assert_eq!(out, [[3; 16], [0; 16], [2; 16]]);
        Ok(())
    }

    #[test]
    fn user_range_ends_where_the_kernel_begins() {
        let at = |at, len| in_user_range(Seg { at: Hva(at), len });
        assert!(at(0x1000, 0x1000));
        assert!(!at(1 << 63, 1));
        assert!(!at(0x1000, u64::MAX));
        assert!(!at(u64::MAX, 2));
    }

    #[test]
    fn kernel_thread_without_memory_owns_none() {
        assert!(OwnerMm::of_current().is_none());
    }
}
