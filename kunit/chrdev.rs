// SPDX-License-Identifier: GPL-2.0
//! `kext::chrdev`.

use kernel::{
    iov::{
        IovIterDest,
        IovIterSource, //
    },
    new_poll_condvar,
    prelude::*,
    seq_file::SeqFile,
    seq_print,
    sync::{
        atomic::{
            Atomic,
            Relaxed, //
        },
        poll::{
            PollCondVar,
            PollTable, //
        },
        Arc,
        ArcBorrow, //
    },
};

use crate::kext::{
    chrdev::{
        OpenFile,
        OpenedFile,
        Operations, //
    },
    poll::ready, //
};

/// Files opened, files released, and how often a name was taken.
static OPENED: Atomic<i32> = Atomic::new(0);
static RELEASED: Atomic<i32> = Atomic::new(0);
static TAKEN: Atomic<i32> = Atomic::new(0);
/// Whether opening is to fail.
static CLOSED: Atomic<i32> = Atomic::new(0);

/// An open file, which keeps the sum of the bytes written to it for a read to take.
#[pin_data(PinnedDrop)]
struct Sum {
    sum: Atomic<i32>,
    #[pin]
    changed: PollCondVar,
}

#[pinned_drop]
impl PinnedDrop for Sum {
    fn drop(self: Pin<&mut Self>) {
        RELEASED.add(1, Relaxed);
    }
}

struct Device;

impl OpenFile for Device {
    type Ptr = Arc<Sum>;

    const MODULE: &'static ThisModule = &crate::THIS_MODULE;

    fn operations() -> &'static Operations<Self> {
        static OPERATIONS: Operations<Device> = Operations::new();
        &OPERATIONS
    }

    fn open() -> Result<Arc<Sum>> {
        if CLOSED.load(Relaxed) != 0 {
            return Err(ENXIO);
        }
        OPENED.add(1, Relaxed);
        Arc::pin_init(
            pin_init!(Sum {
                sum: Atomic::new(0),
                changed <- new_poll_condvar!("rvk sum"),
            }),
            GFP_KERNEL,
        )
    }

    fn ioctl(_this: ArcBorrow<'_, Sum>, cmd: u32, arg: usize) -> Result<isize> {
        match cmd {
            0 => Err(ENOTTY),
            cmd => Ok((arg >> cmd) as isize),
        }
    }

    fn read(this: ArcBorrow<'_, Sum>, wait: bool, to: &mut IovIterDest<'_>) -> Result<usize> {
        match (this.sum.xchg(0, Relaxed), wait) {
            (0, true) => Ok(0),
            (0, false) => Err(EAGAIN),
            (sum, _) => Ok(to.copy_to_iter(&sum.to_ne_bytes())),
        }
    }

    fn write(this: ArcBorrow<'_, Sum>, from: &mut IovIterSource<'_>) -> Result<usize> {
        let mut bytes = [0; 8];
        let n = from.copy_from_iter(&mut bytes);
        let sum: i32 = bytes.iter().map(|&b| i32::from(b)).sum();
        this.sum.add(sum, Relaxed);
        this.changed.notify_all();
        Ok(n)
    }

    fn poll(this: ArcBorrow<'_, Sum>, file: &OpenedFile<'_>, table: PollTable<'_>) -> u32 {
        file.wait_on(&this.changed, table);
        if this.sum.load(Relaxed) != 0 {
            ready::IN
        } else {
            0
        }
    }

    fn show(this: ArcBorrow<'_, Sum>, out: &SeqFile) {
        seq_print!(out, "sum:\t{}\n", this.sum.load(Relaxed));
    }
}

fn count_taken(_name: &CStr) {
    TAKEN.add(1, Relaxed);
}

#[kernel::macros::kunit_tests(rvhost_kext_chrdev)]
mod tests {
    use kernel::{
        prelude::*,
        sync::{
            atomic::Relaxed,
            Arc, //
        },
    };

    use super::{
        count_taken,
        Device,
        CLOSED,
        OPENED,
        RELEASED,
        TAKEN, //
    };
    use crate::{
        kext::{
            chrdev::{
                Registration,
                DYNAMIC_MINOR, //
            },
            poll::{
                ready,
                PollHook, //
            },
            wait::Bell, //
        },
        support::{
            module_refs,
            Fd,
            O_NONBLOCK,
            O_RDWR, //
        },
    };

    /// A minor number that nobody has.
    const MINOR: c_int = 77;

    fn device(name: &'static CStr, minor: c_int) -> Result<Pin<KBox<Registration<Device>>>> {
        KBox::pin_init(Registration::new(name, minor, count_taken), GFP_KERNEL)
    }

    fn open() -> Result<Fd> {
        Fd::open(c"/dev/rvk", O_RDWR)
    }

    #[test]
    fn file_is_opened_and_released_once_each() -> Result {
        let device = device(c"rvk", DYNAMIC_MINOR)?;
        let before = (OPENED.load(Relaxed), RELEASED.load(Relaxed));
        let (one, other) = (open()?, open()?);
        let opened = OPENED.load(Relaxed) - before.0;
        drop(one);
        let first = RELEASED.load(Relaxed) - before.1;
        drop(other);
        let second = RELEASED.load(Relaxed) - before.1;
        drop(device);
        assert_eq!((opened, first, second), (2, 1, 2));
        Ok(())
    }

    #[test]
    fn device_is_there_as_long_as_it_is_registered() -> Result {
        assert!(open().is_err());
        let device = device(c"rvk", DYNAMIC_MINOR)?;
        let there = open().is_ok();
        drop(device);
        assert!(there);
        assert!(open().is_err());
        Ok(())
    }

    #[test]
    fn module_stays_while_a_file_is_open() -> Result {
        let device = device(c"rvk", DYNAMIC_MINOR)?;
        let before = module_refs();
        let fd = open()?;
        let during = module_refs();
        drop(fd);
        let after = module_refs();
        drop(device);
        assert_eq!((during, after), (before + 1, before));
        Ok(())
    }

    #[test]
    fn open_file_outlives_the_registration() -> Result {
        let device = device(c"rvk", DYNAMIC_MINOR)?;
        let fd = open()?;
        drop(device);
        assert_eq!(fd.write(&[1, 2, 3]), Ok(3));
        let mut sum = [0; 4];
        assert_eq!(fd.read(&mut sum), Ok(4));
        assert_eq!(i32::from_ne_bytes(sum), 6);
        Ok(())
    }

    #[test]
    fn failure_to_open_is_told() -> Result {
        let device = device(c"rvk", DYNAMIC_MINOR)?;
        let refs = module_refs();
        CLOSED.store(1, Relaxed);
        let refused = open().err();
        CLOSED.store(0, Relaxed);
        drop(device);
        assert_eq!(refused, Some(ENXIO));
        assert_eq!(module_refs(), refs);
        Ok(())
    }

    #[test]
    fn files_do_not_share_what_is_written() -> Result {
        let device = device(c"rvk", DYNAMIC_MINOR)?;
        let (one, other) = (open()?, open()?);
        drop(device);
        assert_eq!(one.write(&[5; 8]), Ok(8));
        let mut sum = [0; 4];
        // Nothing to read: who need not wait is told so.
        assert_eq!(other.read(&mut sum), Ok(0));
        assert_eq!(one.read(&mut sum), Ok(4));
        assert_eq!(i32::from_ne_bytes(sum), 40);
        Ok(())
    }

    #[test]
    fn reader_waits_unless_the_file_says_otherwise() -> Result {
        let device = device(c"rvk", DYNAMIC_MINOR)?;
        let waits = open()?;
        let does_not = Fd::open(c"/dev/rvk", O_RDWR | O_NONBLOCK)?;
        drop(device);
        assert_eq!(waits.read(&mut [0; 4]), Ok(0));
        assert_eq!(does_not.read(&mut [0; 4]), Err(EAGAIN));
        Ok(())
    }

    #[test]
    fn ioctl_gets_number_and_argument_and_gives_value_or_error() -> Result {
        let device = device(c"rvk", DYNAMIC_MINOR)?;
        let fd = open()?;
        drop(device);
        assert_eq!(fd.ioctl(0, 1, false), Err(ENOTTY));
        assert_eq!(fd.ioctl(4, 0x7f0, false), Ok(0x7f));
        assert_eq!(fd.ioctl(32, 0x7_0000_0000, false), Ok(7));
        // A process with a 32-bit ABI has no upper half.
        if cfg!(CONFIG_COMPAT) {
            assert_eq!(fd.ioctl(4, 0x7f0, true), Ok(0x7f));
            assert_eq!(fd.ioctl(32, 0x7_0000_0000, true), Ok(0));
        }
        Ok(())
    }

    #[test]
    fn poll_tells_now_and_later() -> Result {
        let device = device(c"rvk", DYNAMIC_MINOR)?;
        let fd = open()?;
        drop(device);
        let bell = Arc::new(Bell::new(), GFP_KERNEL)?;
        let mut hook = PollHook::new(fd.file()?, ready::IN, bell.clone(), 1)?;
        assert!(!hook.as_mut().hook_and_look());
        assert_eq!(bell.rung(), 0);
        assert_eq!(fd.write(&[1]), Ok(1));
        assert_eq!(bell.answer(!0), 1);
        assert!(hook.as_mut().hook_and_look());
        assert_eq!(fd.read(&mut [0; 4]), Ok(4));
        assert!(!hook.as_mut().hook_and_look());
        hook.as_mut().unhook();
        Ok(())
    }

    #[test]
    fn minor_that_is_taken_is_told_and_refused() -> Result {
        let taken = TAKEN.load(Relaxed);
        let one = device(c"rvk", MINOR)?;
        let other = device(c"rvk-other", MINOR).err();
        let told = TAKEN.load(Relaxed) - taken;
        drop(one);
        let again = device(c"rvk-other", MINOR).is_ok();
        assert_eq!(other, Some(EBUSY));
        assert_eq!(told, 1);
        assert!(again);
        Ok(())
    }
}
