// SPDX-License-Identifier: GPL-2.0
//! `kext::file`.

#[kernel::macros::kunit_tests(rvhost_kext_file)]
mod tests {
    use kernel::prelude::*;

    use crate::{
        kext::file::FileRef,
        support::{
            Fd,
            O_RDWR, //
        },
    };

    #[test]
    fn numbers_without_a_file_are_refused() {
        for fd in [-1, -2, i32::MIN, i32::MAX, 1 << 20] {
            assert_eq!(FileRef::get(fd).err(), Some(EBADF));
        }
    }

    #[test]
    fn same_file_is_equal_and_another_of_its_kind_is_not() -> Result {
        let one = Fd::open(c"/dev/null", O_RDWR)?;
        let other = Fd::open(c"/dev/null", O_RDWR)?;
        let file = one.file()?;
        assert!(file == one.file()?);
        assert!(file == file.clone());
        assert!(file != other.file()?);
        Ok(())
    }

    #[test]
    fn file_outlives_its_descriptor() -> Result {
        let fd = Fd::open(c"/dev/null", O_RDWR)?;
        let number = fd.number();
        let file = fd.file()?;
        let clone = file.clone();
        drop(fd);
        assert_eq!(FileRef::get(number).err(), Some(EBADF));
        drop(file);
        assert!(clone == clone.clone());
        Ok(())
    }
}
