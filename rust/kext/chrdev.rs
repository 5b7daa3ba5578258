// SPDX-License-Identifier: GPL-2.0
//! Misc character devices.
//!
//! `kernel::miscdevice` lets the module go while a file is open, and knows neither fixed minors
//! nor names chosen at run time.
//!
//! C headers: `include/linux/miscdevice.h`, `include/linux/fs.h`.

use core::{
    marker::PhantomData,
    ptr, //
};

use kernel::{
    error::to_result,
    fs::File,
    iov::{
        IovIterDest,
        IovIterSource, //
    },
    prelude::*,
    seq_file::SeqFile,
    sync::poll::{
        PollCondVar,
        PollTable, //
    },
    types::{
        ForeignOwnable,
        Opaque, //
    },
};

use super::{
    bindings,
    file::FileRef,
    poll::ready, //
};

/// The minor number that user space expects of vhost-net.
pub(crate) const VHOST_NET_MINOR: c_int = bindings::VHOST_NET_MINOR as c_int;
/// Any free minor number.
pub(crate) const DYNAMIC_MINOR: c_int = bindings::MISC_DYNAMIC_MINOR as c_int;

/// An open file of a device.
pub(crate) trait OpenFile: Sized + 'static {
    /// What holds it while it is open.
    type Ptr: ForeignOwnable + Send + Sync;

    /// The module that must stay while a file is open.
    const MODULE: &'static ThisModule;

    /// Its operations: a `static` of its own, by which its files are known.
    fn operations() -> &'static Operations<Self>;

    /// A file is opened.
    fn open() -> Result<Self::Ptr>;

    /// An ioctl, from a caller with the native or the 32-bit ABI: pointers are translated.
    fn ioctl(
        this: <Self::Ptr as ForeignOwnable>::Borrowed<'_>,
        cmd: u32,
        arg: usize,
    ) -> Result<isize>;

    /// A read into `to`, which is to wait for data if `wait`. Returns the bytes written there.
    fn read(
        this: <Self::Ptr as ForeignOwnable>::Borrowed<'_>,
        wait: bool,
        to: &mut IovIterDest<'_>,
    ) -> Result<usize>;

    /// A write of `from`. Returns the bytes that count as written.
    fn write(
        this: <Self::Ptr as ForeignOwnable>::Borrowed<'_>,
        from: &mut IovIterSource<'_>,
    ) -> Result<usize>;

    /// What it is ready for, of [`ready`]; registers `table` for when that
    /// changes.
    fn poll(
        this: <Self::Ptr as ForeignOwnable>::Borrowed<'_>,
        file: &OpenedFile<'_>,
        table: PollTable<'_>,
    ) -> u32;

    /// Shows what there is to know of it in `/proc/<pid>/fdinfo`. It stays open during the call.
    fn show(this: <Self::Ptr as ForeignOwnable>::Borrowed<'_>, out: &SeqFile);
}

/// The file through which a device is polled.
pub(crate) struct OpenedFile<'a>(&'a File);

impl OpenedFile<'_> {
    /// Has `table` wait on `condition`.
    pub(crate) fn wait_on(&self, condition: &PollCondVar, table: PollTable<'_>) {
        table.register_wait(self.0, condition);
    }
}

/// What a device's files do.
pub(crate) struct Operations<T> {
    table: bindings::file_operations,
    _files: PhantomData<T>,
}

// SAFETY: Nobody writes to it.
unsafe impl<T> Sync for Operations<T> {}

impl<T: OpenFile> Operations<T> {
    pub(crate) const fn new() -> Self {
        Self {
            table: bindings::file_operations {
                owner: T::MODULE.as_ptr(),
                open: Some(Self::open),
                release: Some(Self::release),
                read_iter: Some(Self::read_iter),
                write_iter: Some(Self::write_iter),
                poll: Some(Self::poll),
                unlocked_ioctl: Some(Self::ioctl),
                compat_ioctl: bindings::compat_ptr_ioctl,
                llseek: Some(bindings::noop_llseek),
                show_fdinfo: Some(Self::show_fdinfo),
                ..pin_init::zeroed()
            },
            _files: PhantomData,
        }
    }

    /// What `file` is to the device; none if it is none of its files.
    pub(crate) fn of<'a>(
        &'static self,
        file: &'a FileRef,
    ) -> Option<<T::Ptr as ForeignOwnable>::Borrowed<'a>> {
        // SAFETY: The file is referenced, and its operations stay what they are once it is open.
        let ours = unsafe { ptr::eq((*file.as_ptr()).f_op, &self.table) };
        // SAFETY: It has our operations, so `open` put the pointer there; and it stays open as long
        // as it is referenced.
        ours.then(|| unsafe { T::Ptr::borrow((*file.as_ptr()).private_data) })
    }

    /// # Safety
    ///
    /// Called by the VFS, for a file of this device that is being opened.
    unsafe extern "C" fn open(_inode: *mut bindings::inode, file: *mut bindings::file) -> c_int {
        match T::open() {
            Ok(this) => {
                // SAFETY: Nobody else has the file yet.
                unsafe { (*file).private_data = this.into_foreign() };
                0
            }
            Err(e) => e.to_errno(),
        }
    }

    /// # Safety
    ///
    /// Called by the VFS, once, for an open file of this device.
    unsafe extern "C" fn release(_inode: *mut bindings::inode, file: *mut bindings::file) -> c_int {
        // SAFETY: `open` put the pointer there, and nobody uses it any more.
        drop(unsafe { T::Ptr::from_foreign((*file).private_data) });
        0
    }

    /// # Safety
    ///
    /// Called by the VFS, for an open file of this device.
    unsafe extern "C" fn ioctl(file: *mut bindings::file, cmd: c_uint, arg: c_ulong) -> c_long {
        // SAFETY: `open` put the pointer there, and the file stays open during the call.
        let this = unsafe { T::Ptr::borrow((*file).private_data) };
        match T::ioctl(this, cmd, arg) {
            Ok(value) => value,
            // CAST: widens.
            Err(e) => e.to_errno() as c_long,
        }
    }

    /// # Safety
    ///
    /// Called by the VFS, for an open file of this device.
    unsafe extern "C" fn read_iter(
        kiocb: *mut bindings::kiocb,
        to: *mut bindings::iov_iter,
    ) -> isize {
        // SAFETY: The VFS passes a valid request for an open file, whose pointer `open` set.
        let (this, flags) = unsafe {
            let file = (*kiocb).ki_filp;
            (T::Ptr::borrow((*file).private_data), (*file).f_flags)
        };
        // SAFETY: The VFS passes a valid iterator to read into.
        let to = unsafe { IovIterDest::from_raw(to) };
        byte_count(T::read(this, flags & bindings::O_NONBLOCK == 0, to))
    }

    /// # Safety
    ///
    /// Called by the VFS, for an open file of this device.
    unsafe extern "C" fn write_iter(
        kiocb: *mut bindings::kiocb,
        from: *mut bindings::iov_iter,
    ) -> isize {
        // SAFETY: The VFS passes a valid request for an open file, whose pointer `open` set.
        let this = unsafe { T::Ptr::borrow((*(*kiocb).ki_filp).private_data) };
        // SAFETY: The VFS passes a valid iterator to write from.
        byte_count(T::write(this, unsafe { IovIterSource::from_raw(from) }))
    }

    /// # Safety
    ///
    /// Called by the VFS, for an open file of this device.
    unsafe extern "C" fn poll(
        file: *mut bindings::file,
        table: *mut bindings::poll_table_struct,
    ) -> bindings::__poll_t {
        // SAFETY: `open` put the pointer there, and the file stays open during the call.
        let this = unsafe { T::Ptr::borrow((*file).private_data) };
        // SAFETY: The file is open; polling does not touch its position.
        let opened = OpenedFile(unsafe { File::from_raw_file(file) });
        // SAFETY: The VFS passes null or a table that is valid during the call.
        let state = T::poll(this, &opened, unsafe { PollTable::from_raw(table) });
        let mut mask = state & ready::ERR;
        if state & ready::IN != 0 {
            mask |= bindings::POLLIN | bindings::POLLRDNORM;
        }
        if state & ready::OUT != 0 {
            mask |= bindings::POLLOUT | bindings::POLLWRNORM;
        }
        mask
    }

    /// # Safety
    ///
    /// Called by procfs, for an open file of this device.
    unsafe extern "C" fn show_fdinfo(out: *mut bindings::seq_file, file: *mut bindings::file) {
        // SAFETY: `open` put the pointer there, and the file stays open during the call.
        let this = unsafe { T::Ptr::borrow((*file).private_data) };
        // SAFETY: procfs passes a valid file to write to, which is this thread's.
        T::show(this, unsafe { SeqFile::from_raw(out) });
    }
}

fn byte_count(result: Result<usize>) -> isize {
    match result {
        // CAST: no request is longer than `isize::MAX`.
        Ok(n) => n as isize,
        // CAST: widens.
        Err(e) => e.to_errno() as isize,
    }
}

/// A registered device, until it is dropped.
#[pin_data(PinnedDrop)]
pub(crate) struct Registration<T> {
    #[pin]
    inner: Opaque<bindings::miscdevice>,
    _files: PhantomData<T>,
}

// SAFETY: A device may be deregistered on any thread.
unsafe impl<T> Send for Registration<T> {}
// SAFETY: No method takes `&self`.
unsafe impl<T> Sync for Registration<T> {}

impl<T: OpenFile> Registration<T> {
    /// Registers a device; `EBUSY` or `EEXIST`, after a call of `taken`, if its minor number or
    /// its name is taken.
    pub(crate) fn new(
        name: &'static CStr,
        minor: c_int,
        taken: fn(&CStr),
    ) -> impl PinInit<Self, Error> {
        try_pin_init!(Self {
            inner <- Opaque::try_ffi_init(move |slot: *mut bindings::miscdevice| {
                let device = bindings::miscdevice {
                    minor,
                    name: name.as_char_ptr(),
                    fops: &T::operations().table,
                    ..pin_init::zeroed()
                };
                // SAFETY: The slot is ours to write, and stays pinned until deregistration.
                let registered = unsafe {
                    slot.write(device);
                    to_result(bindings::misc_register(slot))
                };
                if registered == Err(EBUSY) || registered == Err(EEXIST) {
                    taken(name);
                }
                registered
            }),
            _files: PhantomData,
        })
    }
}

#[pinned_drop]
impl<T> PinnedDrop for Registration<T> {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: Registered, as the value exists.
        unsafe { bindings::misc_deregister(self.inner.get()) };
    }
}
