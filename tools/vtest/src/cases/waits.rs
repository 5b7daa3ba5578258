// SPDX-License-Identifier: GPL-2.0

//! What an INVALIDATE waits for: whoever sends it may reuse the memory when
//! the call has returned.

use std::os::fd::AsRawFd;
use std::thread;
use std::thread::JoinHandle;

use anyhow::ensure;
use anyhow::Result;

use super::iotlb::translated;
use super::iotlb::update_all;
use super::iotlb::Message;
use super::iotlb::INVALIDATE;
use super::iotlb::MESSAGE;
use super::memory::in_a_page;
use crate::case::Ctx;
use crate::case::Table;
use crate::device::TX;
use crate::ioctl::Outcome;
use crate::late::Late;
use crate::mem::PAGE;
use crate::traffic::expect;
use crate::traffic::Split;
use crate::vmm::Setup;
use crate::vmm::Vmm;

pub(super) fn register(table: &mut Table) {
    table.add("iotlb::invalidate_waits_for_a_packet_under_way", packet);
    table.add("iotlb::invalidate_waits_for_a_start_under_way", start);
}

/// Removes the mapping of a page, in a thread: what the write returned.
fn remove(vmm: &Vmm, iova: u64) -> JoinHandle<Option<isize>> {
    let fd = vmm.vhost.as_raw_fd();
    let message = Message {
        iova,
        size: PAGE,
        uaddr: 0,
        perm: 0,
        kind: INVALIDATE,
    };
    thread::spawn(move || {
        let bytes = message.bytes(2);
        // SAFETY: The buffer is valid for its length.
        let written = unsafe { libc::write(fd, bytes.as_ptr().cast(), bytes.len()) };
        Some(written)
    })
}

/// Time enough for a call that does not wait: another device is set up, and
/// carries traffic.
fn time_passes(ctx: &Ctx) -> Result<()> {
    Setup::new().tap_name("vt1").build(ctx)?.check_alive()
}

fn returned<T: PartialEq + std::fmt::Debug>(
    what: &str,
    call: JoinHandle<T>,
    wanted: T,
) -> Result<()> {
    expect(what, call.join().ok(), Some(wanted))
}

fn packet(ctx: &Ctx) -> Result<()> {
    let mut vmm = translated(ctx)?;
    update_all(&vmm)?;
    vmm.start()?;
    vmm.check_tx(60, &Split::Whole)?;
    let (iova, bytes, frame) = in_a_page(&mut vmm)?;
    let at = vmm.mem.host(iova)?;
    let late = Late::page(at)?;
    vmm.tx.flush_and_kick()?;
    late.wait_touched()?;
    let removal = remove(&vmm, iova);
    time_passes(ctx)?;
    ensure!(!removal.is_finished(), "the page is still being read");
    late.provide(at, &bytes)?;
    returned("INVALIDATE", removal, Some(MESSAGE as isize))?;
    vmm.expect_on_wire(&frame)?;
    vmm.tx.wait_used()?;
    Ok(())
}

/// SET_BACKEND reads the used index.
fn start(ctx: &Ctx) -> Result<()> {
    let mut vmm = translated(ctx)?;
    update_all(&vmm)?;
    let used = vmm.tx.ring.layout().used;
    let bytes = vmm.mem.read(used, PAGE as usize)?;
    let at = vmm.mem.host(used)?;
    let late = Late::page(at)?;
    let (raw, tap) = (vmm.vhost.raw(), vmm.tap.as_raw_fd());
    let start: JoinHandle<Outcome> = thread::spawn(move || raw.set_backend(TX as u32, tap));
    late.wait_touched()?;
    let removal = remove(&vmm, used);
    time_passes(ctx)?;
    ensure!(!removal.is_finished(), "the page is still being read");
    late.provide(at, &bytes)?;
    returned("SET_BACKEND", start, Ok(0))?;
    returned("INVALIDATE", removal, Some(MESSAGE as isize))?;
    update_all(&vmm)?;
    vmm.tx.kick()?;
    vmm.check_tx(60, &Split::Whole)
}
