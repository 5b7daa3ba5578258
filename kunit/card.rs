// SPDX-License-Identifier: GPL-2.0
//! A network device for the suites, and how devices are.
//!
//! The C side is card.c.

use kernel::{
    error::to_result,
    prelude::*,
    str::CString,
    sync::Arc, //
};

use crate::{
    kext::netdev::{
        NetDev,
        Which, //
    },
    support::{
        shell,
        Fd,
        O_RDWR, //
    },
};

/// How a device is; laid out as `struct rvk_dev`.
#[derive(Clone, Copy, Default)]
#[repr(C)]
pub(crate) struct State {
    pub(crate) rx_dropped: u64,
    pub(crate) tx_dropped: u64,
    /// References to it.
    pub(crate) refs: i32,
    pub(crate) promiscuity: u32,
    pub(crate) allmulti: u32,
    /// Whether somebody takes what it receives.
    pub(crate) handled: bool,
    /// Whether somebody looks at what it receives.
    pub(crate) hooked: bool,
}

extern "C" {
    fn rvk_card() -> c_int;
    fn rvk_card_close();
    fn rvk_card_remove();
    fn rvk_card_receive(data: *const u8, len: u32) -> c_int;
    fn rvk_card_sending() -> c_uint;
    fn rvk_card_sent(count: c_uint);
    fn rvk_dev(ifindex: c_int, out: *mut State) -> c_int;
}

/// How the device with this index is; `ENODEV` if there is none.
fn state_of(ifindex: i32) -> Result<State> {
    let mut state = State::default();
    // SAFETY: May be written.
    to_result(unsafe { rvk_dev(ifindex, &mut state) })?;
    Ok(state)
}

/// A device that keeps what it is given to send until it is told that it was sent.
pub(crate) struct Card(i32);

impl Card {
    pub(crate) fn new() -> Result<Self> {
        // SAFETY: May be called by any case.
        let index = unsafe { rvk_card() };
        to_result(index)?;
        Ok(Self(index))
    }

    pub(crate) fn device(&self) -> Result<Arc<NetDev>> {
        NetDev::get(&Which::Index(self.0))
    }

    /// Receives a frame.
    pub(crate) fn receive(&self, frame: &[u8]) -> Result {
        // SAFETY: The device exists, and so many bytes can be read.
        to_result(unsafe { rvk_card_receive(frame.as_ptr(), frame.len() as u32) })
    }

    /// Packets it was given, and has not sent.
    pub(crate) fn sending(&self) -> usize {
        // SAFETY: The device exists.
        unsafe { rvk_card_sending() as usize }
    }

    /// Has sent so many packets.
    pub(crate) fn sent(&self, count: u32) {
        // SAFETY: The device exists.
        unsafe { rvk_card_sent(count) };
    }

    pub(crate) fn state(&self) -> Result<State> {
        state_of(self.0)
    }

    /// Takes it out of the system, once nobody has a reference.
    pub(crate) fn remove(&self) {
        // SAFETY: The device exists.
        unsafe { rvk_card_remove() };
    }
}

impl Drop for Card {
    fn drop(&mut self) {
        // SAFETY: Nobody uses it any more.
        unsafe { rvk_card_close() };
    }
}

/// Removes what a case leaves that fails.
pub(crate) fn clean_up() {
    // SAFETY: May be called at any time between cases.
    unsafe { rvk_card_close() };
}

/// The index of the MacVTap.
const VTAP: i32 = 4711;

/// A MacVTap on a card.
pub(crate) struct MacVtap(Card);

impl MacVtap {
    pub(crate) fn new() -> Result<Self> {
        let card = Card::new()?;
        let made = shell(fmt!(
            "ip link add link rvkcard name rvkvtap index {VTAP} type macvtap mode bridge &&
             ip link set rvkvtap up"
        ));
        made.then_some(Self(card)).ok_or(ENODEV)
    }

    /// Another queue of it.
    pub(crate) fn queue(&self) -> Result<Fd> {
        let path = CString::try_from_fmt(fmt!("/dev/tap{VTAP}"))?;
        Fd::open(&path, O_RDWR)
    }

    /// What it is on.
    pub(crate) fn card(&self) -> &Card {
        &self.0
    }

    pub(crate) fn state(&self) -> Result<State> {
        state_of(VTAP)
    }

    /// Deletes it, once nobody has a reference.
    pub(crate) fn remove(&self) -> bool {
        shell(fmt!("ip link del rvkvtap"))
    }
}
