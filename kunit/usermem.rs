// SPDX-License-Identifier: GPL-2.0
//! `kext::usermem`.

#[kernel::macros::kunit_tests(rvhost_kext_usermem)]
mod tests {
    use kernel::prelude::*;

    use crate::{
        kext::usermem::{
            in_user_range,
            Puts,
            UserMem, //
        },
        support::{
            map,
            map_readonly,
            unmap,
            PAGE, //
        },
        vcore::{
            addr::{
                Hva,
                Seg, //
            },
            wire::Desc,
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
        assert_eq!(user.read(at, &mut []), Ok(()));
        assert_eq!(user.write(at, &[]), Ok(()));
        Ok(())
    }

    /// Each access, at an address where none may succeed.
    fn all_fault(user: &mut UserMem<'_>, at: Hva) -> bool {
        let fault = Err(Error::Fault);
        user.read(at, &mut [0; 8]) == fault
            && user.write(at, &[0; 8]) == fault
            && user.load_u16(at) == Err(Error::Fault)
            && user.store_u16(at, 0) == fault
            && user.set_bits(Hva(at.0 & !3), 1) == fault
            && user.read_descs(at, &[0], &mut [Desc::default()]) == fault
    }

    #[test]
    fn unmapped_and_kernel_addresses_fault() -> Result {
        let (mm, at) = map(1)?;
        let mut user = mm.as_current().ok_or(EINVAL)?;
        let on_stack = [0u64; 2];
        let kernel = Hva(on_stack.as_ptr() as u64);
        for bad in [
            Hva(0),
            Hva(u64::MAX - 15),
            Hva(1 << 63),
            Hva(1 << 47),
            kernel,
        ] {
            assert!(all_fault(&mut user, bad));
        }
        assert_eq!(on_stack, [0; 2]);
        assert_eq!(user.read(at, &mut [0; 8]), Ok(()));
        unmap(at)?;
        assert!(all_fault(&mut user, at));
        Ok(())
    }

    #[test]
    fn access_that_is_good_in_part_only_fails() -> Result {
        let (mm, at) = map(2)?;
        let mut user = mm.as_current().ok_or(EINVAL)?;
        unmap(at.at(PAGE))?;
        let edge = at.at(PAGE - 8);
        assert_eq!(user.read(edge, &mut [0; 9]), Err(Error::Fault));
        assert_eq!(user.write(edge, &[0; 9]), Err(Error::Fault));
        assert_eq!(user.load_u16(at.at(PAGE - 1)), Err(Error::Fault));
        assert_eq!(user.store_u16(at.at(PAGE - 1), 0), Err(Error::Fault));
        assert_eq!(user.read(edge, &mut [0; 8]), Ok(()));
        let mut out = [Desc::default(); 3];
        let last = (PAGE / 16) as u16 - 1;
        assert_eq!(user.read_descs(at, &[0, last], &mut out), Ok(()));
        let beyond = user.read_descs(at, &[0, last, last + 1], &mut out);
        assert_eq!(beyond, Err(Error::Fault));
        assert_eq!(user.read_descs(edge, &[0], &mut out), Err(Error::Fault));
        Ok(())
    }

    #[test]
    fn memory_that_is_read_only_is_not_written() -> Result {
        let (mm, at) = map_readonly(1)?;
        let mut user = mm.as_current().ok_or(EINVAL)?;
        assert_eq!(user.load_u16(at), Ok(0));
        assert_eq!(user.write(at, &[1]), Err(Error::Fault));
        assert_eq!(user.store_u16(at, 1), Err(Error::Fault));
        assert_eq!(user.set_bits(at, 1), Err(Error::Fault));
        let mut out = [9; 8];
        assert_eq!(user.read(at, &mut out), Ok(()));
        assert_eq!(out, [0; 8]);
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
        assert_eq!(user.set_bits(at.at(4), 1), Ok(()));
        let mut out = [0; 12];
        assert_eq!(user.read(at, &mut out), Ok(()));
        assert_eq!(out, [1, 1, 0, 0x80, 1, 0, 0, 0, 0, 0, 0, 0]);
        Ok(())
    }

    #[test]
    fn descriptors_are_gathered_in_the_order_asked_for() -> Result {
        let (mm, at) = map(1)?;
        let mut user = mm.as_current().ok_or(EINVAL)?;
        for i in 0..4u8 {
            assert_eq!(user.write(at.at(16 * u64::from(i)), &[i; 16]), Ok(()));
        }
        let mut out = [Desc::from_bytes(&[9; 16]); 4];
        assert_eq!(user.read_descs(at, &[3, 0, 2], &mut out), Ok(()));
        assert_eq!(
            out.map(Desc::to_bytes),
            [[3; 16], [0; 16], [2; 16], [9; 16]]
        );
        // As far as both go.
        assert_eq!(user.read_descs(at, &[1, 1, 1], &mut out[..1]), Ok(()));
        assert_eq!(
            out.map(Desc::to_bytes),
            [[1; 16], [0; 16], [2; 16], [9; 16]]
        );
        assert_eq!(user.read_descs(at, &[], &mut out), Ok(()));
        Ok(())
    }

    #[test]
    fn descriptors_need_not_be_aligned() -> Result {
        let (mm, at) = map(2)?;
        let mut user = mm.as_current().ok_or(EINVAL)?;
        let odd = at.at(PAGE - 23);
        assert_eq!(user.write(odd.at(16), &[7; 16]), Ok(()));
        let mut out = [Desc::default()];
        assert_eq!(user.read_descs(odd, &[1], &mut out), Ok(()));
        assert_eq!(out.map(Desc::to_bytes), [[7; 16]]);
        Ok(())
    }

    #[test]
    fn pieces_are_put_in_order_whatever_their_length() -> Result {
        let (mm, at) = map(2)?;
        let mut user = mm.as_current().ok_or(EINVAL)?;
        static BYTES: [u8; 600] = {
            let mut bytes = [0; 600];
            let mut i = 0;
            while i < bytes.len() {
                bytes[i] = i as u8;
                i += 1;
            }
            bytes
        };
        // Every length up to beyond what goes word by word, at odd addresses.
        for len in 0..600 {
            assert_eq!(user.write(at, &[0xee; 700]), Ok(()));
            let mut puts = Puts::<3>::new();
            let bytes = BYTES.get(..len).ok_or(EINVAL)?;
            assert!(puts.push(at.at(1), bytes));
            assert!(puts.push(at.at(1 + len as u64), &[1, 2, 3]));
            assert!(puts.push(at.at(2), &[]));
            assert!(!puts.push(at.at(3), &[9]));
            assert_eq!((puts.len(), user.put_all(&puts)), (3, 3));
            let mut out = [0; 700];
            assert_eq!(user.read(at, &mut out), Ok(()));
            let (before, rest) = out.split_at(1);
            let (written, rest) = rest.split_at(len);
            assert!(before == [0xee] && written == bytes);
            assert_eq!(rest.first_chunk(), Some(&[1, 2, 3, 0xee]));
        }
        Ok(())
    }

    #[test]
    fn putting_ends_at_the_first_piece_that_faults() -> Result {
        let (mm, at) = map(2)?;
        let mut user = mm.as_current().ok_or(EINVAL)?;
        unmap(at.at(PAGE))?;
        let long = [7; 300];
        let kernel = Hva(long.as_ptr() as u64);
        for bad in [at.at(PAGE - 1), at.at(PAGE), kernel, Hva(u64::MAX)] {
            for (piece, good) in [(&long[..2], 3), (&long[..300], 2), (&long[..256], 0)] {
                let mut puts = Puts::<5>::new();
                for _ in 0..good {
                    assert!(puts.push(at, &long));
                }
                assert!(puts.push(bad, piece));
                assert!(puts.push(at.at(1000), &[1]));
                assert_eq!(user.put_all(&puts), good);
                // What follows was not written.
                let mut out = [0; 1];
                assert_eq!(user.read(at.at(1000), &mut out), Ok(()));
                assert_eq!(out, [0]);
                puts.truncate(good);
                assert_eq!(user.put_all(&puts), good);
            }
        }
        Ok(())
    }

    #[test]
    fn user_range_ends_where_the_kernel_begins() {
        let at = |at, len| in_user_range(Seg { at: Hva(at), len });
        assert!(at(0x1000, 0x1000));
        assert!(at(0, 0));
        assert!(!at(1 << 63, 1));
        assert!(!at(0x1000, u64::MAX));
        assert!(!at(u64::MAX, 2));
    }
}
