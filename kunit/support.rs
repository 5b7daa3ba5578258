// SPDX-License-Identifier: GPL-2.0
//! What the suites share: user memory, files, threads, and a TAP with both of its ends.
//!
//! The C side is support.c. All of it is for cases that run one after the other.

use core::mem::ManuallyDrop;

use kernel::{
    error::to_result,
    fmt,
    prelude::*,
    str::CString,
    sync::{
        atomic::{
            Acquire,
            Atomic,
            Release, //
        },
        Arc, //
    },
};

use crate::{
    kext::{
        file::FileRef,
        kthread,
        mm::OwnerMm,
        tun::TapQueue,
        wait::{
            Bell,
            WaitQueue, //
        }, //
    },
    vcore::addr::Hva, //
};

/// Bytes of a page of user memory.
pub(crate) const PAGE: u64 = 4096;
/// Long enough for a thread to run on a busy machine, in jiffies.
pub(crate) const LONG: isize = 10_000;

pub(crate) const O_RDWR: c_int = 2;
pub(crate) const O_NONBLOCK: c_int = 0o4000;

/// How a frame is put in the TAP's ring; laid out as `struct rvk_how`.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub(crate) struct How {
    /// Bytes that are not in a page of their own; 0 for all.
    pub(crate) linear: u32,
    pub(crate) gso_type: u32,
    pub(crate) gso_size: u16,
    /// A tag held beside the data, if not 0.
    pub(crate) vlan: u16,
    pub(crate) csum_start: u16,
    pub(crate) csum_offset: u16,
    pub(crate) needs_csum: bool,
    /// As an XDP frame, which has none of the above.
    pub(crate) xdp: bool,
}

/// A frame that the TAP has brought in; laid out as `struct rvk_seen`.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub(crate) struct Seen {
    pub(crate) len: u32,
    pub(crate) gso_type: u32,
    pub(crate) gso_size: u16,
    pub(crate) csum_start: u16,
    pub(crate) csum_offset: u16,
    pub(crate) needs_csum: bool,
}

/// What the last tracepoint said; laid out as `struct rvk_told`.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub(crate) struct Told {
    pub(crate) times: u32,
    pub(crate) dev: u32,
    pub(crate) queue: u32,
    pub(crate) what: u32,
    pub(crate) bytes: u64,
}

extern "C" {
    fn rvk_map(len: usize, writable: bool) -> usize;
    fn rvk_map_alone() -> usize;
    fn rvk_unmap(at: usize, len: usize) -> c_int;
    fn rvk_free_pages() -> usize;
    fn rvk_open(path: *const c_char, flags: c_int) -> c_int;
    fn rvk_close(fd: c_int);
    fn rvk_settle();
    fn rvk_read(fd: c_int, to: *mut u8, len: usize) -> isize;
    fn rvk_write(fd: c_int, from: *const u8, len: usize) -> isize;
    fn rvk_ioctl(fd: c_int, cmd: c_uint, arg: usize, compat: bool) -> isize;
    fn rvk_eventfd() -> c_int;
    fn rvk_allow_kill();
    fn rvk_kill(pid: c_int) -> c_int;
    fn rvk_sleeps(pid: c_int) -> bool;
    fn rvk_nice() -> c_int;
    fn rvk_set_nice(nice: c_int);
    fn rvk_name(to: *mut u8);
    fn rvk_module_refs() -> c_int;
    fn rvk_shell(script: *const c_char) -> c_int;
    fn rvk_shares_cgroup(pid: c_int) -> bool;
    fn rvk_tap() -> c_int;
    fn rvk_tap_close();
    fn rvk_tap_set(cmd: c_uint, value: c_int) -> isize;
    fn rvk_inject(data: *const u8, len: u32, how: *const How) -> c_int;
    fn rvk_next(seen: *mut Seen, to: *mut u8, room: u32) -> c_int;
    fn rvk_waiting() -> c_uint;
    fn rvk_sent_packets() -> u64;
    fn rvk_packet_socket() -> c_int;
    fn rvk_listen() -> c_int;
    fn rvk_unlisten();
    fn rvk_told(out: *mut Told);
}

fn count(result: isize) -> Result<usize> {
    // CAST: error numbers are small.
    usize::try_from(result).map_err(|_| Error::from_errno(result as c_int))
}

// Memory.

fn mapped(at: usize) -> Result<(OwnerMm, Hva)> {
    if at == 0 {
        return Err(ENOMEM);
    }
    Ok((OwnerMm::of_current().ok_or(EINVAL)?, Hva(at as u64)))
}

/// Pages of user memory, mapped until the case ends; and the address space they are in.
pub(crate) fn map(pages: u64) -> Result<(OwnerMm, Hva)> {
    // SAFETY: May be called by any case.
    mapped(unsafe { rvk_map((pages * PAGE) as usize, true) })
}

/// The same, but not to be written.
pub(crate) fn map_readonly(pages: u64) -> Result<(OwnerMm, Hva)> {
    // SAFETY: May be called by any case.
    mapped(unsafe { rvk_map((pages * PAGE) as usize, false) })
}

/// A page in an address space that the calling kernel thread gets, and keeps.
pub(crate) fn map_alone() -> Result<(OwnerMm, Hva)> {
    // SAFETY: May be called by any kernel thread.
    mapped(unsafe { rvk_map_alone() })
}

/// Unmaps one page.
pub(crate) fn unmap(page: Hva) -> Result {
    // SAFETY: Nobody relies on user memory to be mapped.
    to_result(unsafe { rvk_unmap(page.0 as usize, PAGE as usize) })
}

/// Pages that the machine has free.
pub(crate) fn free_pages() -> usize {
    // SAFETY: May be called anywhere.
    unsafe { rvk_free_pages() }
}

// Files.

/// A descriptor, closed when dropped.
pub(crate) struct Fd(c_int);

impl Fd {
    fn new(fd: c_int) -> Result<Self> {
        to_result(fd)?;
        Ok(Self(fd))
    }

    pub(crate) fn open(path: &CStr, flags: c_int) -> Result<Self> {
        // SAFETY: The path is a string.
        Self::new(unsafe { rvk_open(path.as_char_ptr(), flags) })
    }

    /// A new eventfd that does not block.
    pub(crate) fn event() -> Result<Self> {
        // SAFETY: May be called by any case.
        Self::new(unsafe { rvk_eventfd() })
    }

    pub(crate) fn number(&self) -> i32 {
        self.0
    }

    pub(crate) fn file(&self) -> Result<FileRef> {
        FileRef::get(self.0)
    }

    pub(crate) fn read(&self, to: &mut [u8]) -> Result<usize> {
        // SAFETY: So many bytes may be written there.
        count(unsafe { rvk_read(self.0, to.as_mut_ptr(), to.len()) })
    }

    pub(crate) fn write(&self, from: &[u8]) -> Result<usize> {
        // SAFETY: So many bytes may be read there.
        count(unsafe { rvk_write(self.0, from.as_ptr(), from.len()) })
    }

    /// An eventfd's counter, which starts anew.
    pub(crate) fn events(&self) -> Result<u64> {
        let mut count = [0; 8];
        match self.read(&mut count) {
            Err(e) if e == EAGAIN => Ok(0),
            Err(e) => Err(e),
            Ok(_) => Ok(u64::from_ne_bytes(count)),
        }
    }

    /// An ioctl, of a process with a 32-bit ABI if `compat`.
    pub(crate) fn ioctl(&self, cmd: u32, arg: usize, compat: bool) -> Result<usize> {
        // SAFETY: What the files of these cases do with the number is safe.
        count(unsafe { rvk_ioctl(self.0, cmd, arg, compat) })
    }
}

impl Drop for Fd {
    fn drop(&mut self) {
        // SAFETY: The descriptor is ours.
        unsafe { rvk_close(self.0) };
    }
}

/// Ends what is left to do for files that were given up.
pub(crate) fn settle() {
    // SAFETY: This thread may sleep.
    unsafe { rvk_settle() };
}

// Threads.

/// A number that threads wait for.
#[pin_data]
pub(crate) struct Stage {
    value: Atomic<i32>,
    #[pin]
    changed: WaitQueue,
}

impl Stage {
    pub(crate) fn new() -> Result<Arc<Self>> {
        Arc::pin_init(
            pin_init!(Self {
                value: Atomic::new(0),
                changed <- WaitQueue::new(),
            }),
            GFP_KERNEL,
        )
    }

    pub(crate) fn set(&self, value: i32) {
        self.value.store(value, Release);
        self.changed.wake_all();
    }

    pub(crate) fn get(&self) -> i32 {
        self.value.load(Acquire)
    }

    /// Waits until it is `value`, but not for ever.
    pub(crate) fn becomes(&self, value: i32) -> bool {
        self.changed
            .wait_timeout(LONG, || (self.get() == value).then_some(()))
            .is_some()
    }

    /// Waits until it is something else than `value`; 0 if it stays so.
    pub(crate) fn leaves(&self, value: i32) -> i32 {
        self.changed
            .wait_timeout(LONG, || Some(self.get()).filter(|&now| now != value))
            .unwrap_or(0)
    }
}

/// A value that counts how many of its kind were dropped.
pub(crate) struct Counted(Arc<Stage>);

impl Counted {
    pub(crate) fn new(dropped: &Arc<Stage>) -> Self {
        Self(dropped.clone())
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.set(self.0.get() + 1);
    }
}

/// Looks until `done`, but not for ever.
pub(crate) fn soon(done: impl Fn() -> bool) -> bool {
    for _ in 0..LONG / 2 {
        if done() {
            return true;
        }
        nap(2);
    }
    false
}

/// Sleeps for so many jiffies.
pub(crate) fn nap(jiffies: isize) {
    if let Ok(stage) = Stage::new() {
        let _ = stage.changed.wait_timeout(jiffies, || None::<()>);
    }
}

/// The calling thread's number.
pub(crate) fn pid() -> i32 {
    kernel::current!().pid()
}

/// A thread that can be killed, as those of user space can. Its number, once it runs.
pub(crate) fn mortal(body: impl FnOnce() + Send + 'static) -> Result<i32> {
    let stage = Stage::new()?;
    let theirs = stage.clone();
    kthread::spawn(c"rvk-mortal", &Bell::new(), move || {
        // SAFETY: Concerns this thread only.
        unsafe { rvk_allow_kill() };
        theirs.set(pid());
        drop(theirs);
        body();
    })?;
    match stage.leaves(0) {
        0 => Err(ETIMEDOUT),
        pid => Ok(pid),
    }
}

/// Kills a thread, if it lets itself be killed.
pub(crate) fn kill(pid: i32) -> Result {
    // SAFETY: May be called with any number; our threads are told of it, and no more.
    to_result(unsafe { rvk_kill(pid) })
}

/// Whether a thread sleeps.
pub(crate) fn sleeps(pid: i32) -> bool {
    // SAFETY: May be called with any number.
    unsafe { rvk_sleeps(pid) }
}

pub(crate) fn nice() -> i32 {
    // SAFETY: Concerns this thread only.
    unsafe { rvk_nice() }
}

pub(crate) fn set_nice(nice: i32) {
    // SAFETY: Concerns this thread only.
    unsafe { rvk_set_nice(nice) };
}

/// The calling thread's name, padded with zeroes.
pub(crate) fn name() -> [u8; 16] {
    let mut name = [0; 16];
    // SAFETY: That is as long as names are.
    unsafe { rvk_name(name.as_mut_ptr()) };
    name
}

/// References to this module.
pub(crate) fn module_refs() -> i32 {
    // SAFETY: May be called anywhere.
    unsafe { rvk_module_refs() }
}

/// Whether a shell script ends well.
pub(crate) fn shell(script: fmt::Arguments<'_>) -> bool {
    CString::try_from_fmt(script).is_ok_and(|script| {
        // SAFETY: The script is a string.
        unsafe { rvk_shell(script.as_char_ptr()) == 0 }
    })
}

/// Whether the calling thread is in the same control group as another.
pub(crate) fn shares_cgroup(pid: i32) -> bool {
    // SAFETY: May be called with any number.
    unsafe { rvk_shares_cgroup(pid) }
}

// The TAP.

pub(crate) const TUNSETSNDBUF: u32 = 0x400454d4;
pub(crate) const TUNSETVNETHDRSZ: u32 = 0x400454d8;

/// A TAP with headers of 10 bytes, which exists as long as this does.
pub(crate) struct Tap(ManuallyDrop<Fd>);

impl Tap {
    pub(crate) fn new() -> Result<Self> {
        // SAFETY: May be called by any case.
        let fd = Fd::new(unsafe { rvk_tap() })?;
        // It is closed with the rest of the TAP.
        Ok(Self(ManuallyDrop::new(fd)))
    }

    /// A TAP with its queue.
    pub(crate) fn with_queue() -> Result<(Self, TapQueue)> {
        let tap = Self::new()?;
        let queue = TapQueue::of(tap.file()?)?;
        Ok((tap, queue))
    }

    pub(crate) fn file(&self) -> Result<FileRef> {
        self.0.file()
    }

    pub(crate) fn set(&self, cmd: u32, value: i32) -> Result<usize> {
        // SAFETY: The TAP exists.
        count(unsafe { rvk_tap_set(cmd, value) })
    }

    /// Puts a frame in the ring, as the stack would.
    pub(crate) fn inject(&self, frame: &[u8], how: &How) -> Result {
        // SAFETY: The TAP exists, and so many bytes can be read.
        to_result(unsafe { rvk_inject(frame.as_ptr(), frame.len() as u32, how) })
    }

    /// The same, with nothing special about it.
    pub(crate) fn push(&self, frame: &[u8]) -> Result {
        self.inject(frame, &How::default())
    }

    /// Frames brought in, and not looked at yet.
    pub(crate) fn waiting(&self) -> usize {
        // SAFETY: May be called anywhere.
        unsafe { rvk_waiting() as usize }
    }

    /// The next of those, and its first bytes.
    pub(crate) fn next(&self, to: &mut [u8]) -> Option<Seen> {
        let mut seen = Seen::default();
        // SAFETY: Both may be written.
        let ret = unsafe { rvk_next(&mut seen, to.as_mut_ptr(), to.len() as u32) };
        (ret == 0).then_some(seen)
    }

    /// Packets counted as sent through the TAP.
    pub(crate) fn sent_packets(&self) -> u64 {
        // SAFETY: The TAP exists.
        unsafe { rvk_sent_packets() }
    }

    /// A raw packet socket on the TAP.
    pub(crate) fn packet_socket(&self) -> Result<Fd> {
        // SAFETY: The TAP exists.
        Fd::new(unsafe { rvk_packet_socket() })
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        // SAFETY: Nobody uses it any more.
        unsafe { rvk_tap_close() };
    }
}

// Tracepoints.

/// Listens to some of the tracepoints as long as it lives.
pub(crate) struct Listener(());

impl Listener {
    pub(crate) fn new() -> Result<Self> {
        // SAFETY: May be called by any case.
        to_result(unsafe { rvk_listen() })?;
        Ok(Self(()))
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        // SAFETY: May be called by any case.
        unsafe { rvk_unlisten() };
    }
}

/// What was heard last.
pub(crate) fn told() -> Told {
    let mut told = Told::default();
    // SAFETY: May be written.
    unsafe { rvk_told(&mut told) };
    told
}

/// Ends what a case leaves that fails, whose values are not dropped.
pub(crate) fn clean_up() {
    // SAFETY: May be called at any time between cases.
    unsafe {
        rvk_tap_close();
        rvk_unlisten();
    }
}
