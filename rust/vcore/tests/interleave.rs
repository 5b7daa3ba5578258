// SPDX-License-Identifier: GPL-2.0
//! All interleavings of a driver's and a device's accesses to a small ring: whoever sleeps is
//! woken when there is something to do, with both ways to suppress notifications.
//!
//! One access after the other: that fences are where they must be is not shown here.

use std::{
    collections::HashSet,
    hash::Hash, //
};

use vcore::vcore::{
    addr::{
        Gpa,
        Hva,
        RingAddr,
        Seg, //
    },
    chain::{
        Batch,
        Chain, //
    },
    feat,
    mem::{
        Access,
        Fence,
        GuestMem, //
    },
    mock::{
        MockRing,
        HVA_BASE, //
    },
    split::Cursor,
    wire::{
        used_elem,
        Desc,
        AVAIL_F_NO_INTERRUPT,
        USED_F_NO_NOTIFY, //
    },
    Error,
    Result, //
};

type Bytes = [u8; 128];

/// Memory that stops an operation of the device behind its next access.
///
/// What was accessed before is answered from memory of it: so an operation is repeated from its
/// start, one access longer each time, until it gets to its end.
struct OneMore<'a> {
    bytes: &'a mut Bytes,
    past: &'a mut Vec<Vec<u8>>,
    at: usize,
    fresh: bool,
    stopped: bool,
}

impl OneMore<'_> {
    fn access(&mut self, from: u64, len: usize, write: Option<&[u8]>) -> Result<Vec<u8>> {
        if self.at < self.past.len() {
            self.at += 1;
            return Ok(self.past[self.at - 1].clone());
        }
        if self.fresh || self.stopped {
            self.stopped = true;
            return Err(Error::Fault);
        }
        let from = (from - HVA_BASE) as usize;
        let place = &mut self.bytes[from..from + len];
        if let Some(data) = write {
            place.copy_from_slice(data);
        }
        self.past.push(place.to_vec());
        self.at += 1;
        self.fresh = true;
        Ok(place.to_vec())
    }
}

impl GuestMem for OneMore<'_> {
    fn read(&mut self, at: RingAddr, out: &mut [u8]) -> Result {
        out.copy_from_slice(&self.access(at.0, out.len(), None)?);
        Ok(())
    }

    fn write(&mut self, at: RingAddr, data: &[u8]) -> Result {
        self.access(at.0, data.len(), Some(data)).map(|_| ())
    }

    fn load_u16(&mut self, at: RingAddr) -> Result<u16> {
        let mut raw = [0; 2];
        self.read(at, &mut raw)?;
        Ok(u16::from_le_bytes(raw))
    }

    fn store_u16(&mut self, at: RingAddr, value: u16) -> Result {
        self.write(at, &value.to_le_bytes())
    }

    fn segment(&mut self, at: Gpa, len: u64, _access: Access) -> Result<Seg> {
        Ok(Seg { at: Hva(at.0), len })
    }

    fn read_segment(&mut self, _at: Hva, _out: &mut [u8]) -> Result {
        Err(Error::Fault)
    }

    fn fence(&self, _kind: Fence) {}
}

/// Where the device is: as in the passes of the driver's threads.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum DeviceAt {
    Suppress,
    Take,
    PutUsed(u16),
    Publish,
    WantsCall,
    Arm,
    Asleep,
}

/// Where the driver is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum DriverAt {
    WriteEntry,
    MoveIndex,
    LookWhetherToKick,
    LookForUsed,
    EnableCalls,
    LookAgain,
    DisableCalls,
    Asleep,
    Finished,
}

#[derive(Clone, Debug)]
struct State {
    bytes: Bytes,
    cursor: Cursor,
    device: DeviceAt,
    past: Vec<Vec<u8>>,
    driver: DriverAt,
    /// Chains made available, seen used, and free to be made available.
    made: u16,
    done: u16,
    free: u16,
    kick: bool,
    call: bool,
}

impl State {
    /// The same for the same states only.
    fn key(&self) -> impl Eq + Hash {
        let Self {
            bytes,
            cursor,
            device,
            past,
            driver,
            made,
            done,
            free,
            kick,
            call,
        } = self.clone();
        let cursor = format!("{cursor:?}");
        let driver = (driver, made, done, free);
        (bytes, cursor, device, past, driver, kick, call)
    }
}

/// What may be left out, to see that it is missed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Mistake {
    None,
    /// The device sleeps once it has armed, whatever has come meanwhile.
    DeviceDoesNotLookAgain,
    /// The device looks at who wants a call before it publishes.
    DeviceLooksForCallsFirst,
    /// The driver sleeps once it has asked for calls, whatever has come meanwhile.
    DriverDoesNotLookAgain,
    /// The driver looks whether to kick before it moves the index.
    DriverLooksForKicksFirst,
}

/// What does not change.
struct World {
    mistake: Mistake,
    ring: MockRing,
    event_idx: bool,
    /// Indices at the start, to have them wrap.
    base: u16,
    /// Chains to go through the ring.
    chains: u16,
    /// Chains taken at once.
    batch: usize,
}

impl World {
    fn num(&self) -> u16 {
        self.ring.num()
    }

    fn avail_at(&self) -> usize {
        (self.ring.layout().readable(true)[1].at.0 - HVA_BASE) as usize
    }

    fn used_at(&self) -> usize {
        (self.ring.layout().writable(true).at.0 - HVA_BASE) as usize
    }

    fn start(&self) -> State {
        let mut state = State {
            bytes: [0; 128],
            cursor: Cursor::default(),
            device: DeviceAt::Suppress,
            past: Vec::new(),
            driver: DriverAt::WriteEntry,
            made: 0,
            done: 0,
            free: self.num(),
            kick: false,
            call: false,
        };
        for i in 0..self.num() {
            let desc = Desc {
                addr: 0,
                len: 1,
                flags: 0,
                next: 0,
            };
            let at = 16 * usize::from(i);
            state.bytes[at..at + 16].copy_from_slice(&desc.to_bytes());
        }
        put(&mut state.bytes, self.avail_at() + 2, self.base);
        put(&mut state.bytes, self.used_at() + 2, self.base);
        // As a driver leaves it that never asked for an interrupt.
        let event = self.avail_at() + 4 + 2 * usize::from(self.num());
        put(&mut state.bytes, event, self.base.wrapping_sub(1));
        let features = if self.event_idx { feat::F_EVENT_IDX } else { 0 };
        state.cursor.set_features(features);
        state.cursor.set_base(self.base);
        let mut past = Vec::new();
        // Starting is over before anything else begins.
        loop {
            let mut cursor = state.cursor;
            let mut mem = one_more(&mut state.bytes, &mut past);
            let _ = cursor.start(&self.ring.layout(), &mut mem);
            if !mem.stopped {
                state.cursor = cursor;
                return state;
            }
        }
    }

    /// The device's next access; `None` if it sleeps.
    fn device(&self, mut state: State) -> Option<State> {
        if state.device == DeviceAt::Asleep {
            if !state.kick {
                return None;
            }
            state.kick = false;
            state.device = DeviceAt::Suppress;
            return Some(state);
        }
        let layout = self.ring.layout();
        let mut cursor = state.cursor;
        let mut call = state.call;
        let mut mem = one_more(&mut state.bytes, &mut state.past);
        let (cursor_ref, mem_ref) = (&mut cursor, &mut mem);
        let next = match state.device {
            DeviceAt::Suppress => {
                let _ = cursor_ref.suppress(&layout, mem_ref);
                DeviceAt::Take
            }
            DeviceAt::Take => {
                let mut chains = [Chain::default(); 2];
                let mut segs = [Seg::default(); 4];
                let mut batch = Batch::new(&mut chains[..], &mut segs[..]);
                let taken = cursor_ref.take(&layout, mem_ref, Access::Read, self.batch, &mut batch);
                match taken {
                    Ok(0) => DeviceAt::Arm,
                    // CAST: two at most.
                    Ok(n) => DeviceAt::PutUsed(n as u16),
                    Err(e) => {
                        assert!(mem.stopped, "the device met {e:?}");
                        DeviceAt::Take
                    }
                }
            }
            DeviceAt::PutUsed(n) => {
                let elems = vec![used_elem(0, 0); n.into()];
                let _ = cursor_ref.put_used(&layout, mem_ref, &elems);
                match self.mistake {
                    Mistake::DeviceLooksForCallsFirst => DeviceAt::WantsCall,
                    _ => DeviceAt::Publish,
                }
            }
            DeviceAt::Publish => {
                let _ = cursor_ref.publish(&layout, mem_ref);
                match self.mistake {
                    Mistake::DeviceLooksForCallsFirst => DeviceAt::Suppress,
                    _ => DeviceAt::WantsCall,
                }
            }
            DeviceAt::WantsCall => {
                let drained = cursor_ref.drained();
                call |= cursor_ref.wants_call(&layout, mem_ref, drained);
                match self.mistake {
                    Mistake::DeviceLooksForCallsFirst => DeviceAt::Publish,
                    _ => DeviceAt::Suppress,
                }
            }
            DeviceAt::Arm => match cursor_ref.arm(&layout, mem_ref) {
                Ok(true) if self.mistake == Mistake::DeviceDoesNotLookAgain => DeviceAt::Asleep,
                Ok(false) => DeviceAt::Asleep,
                _ => DeviceAt::Suppress,
            },
            DeviceAt::Asleep => DeviceAt::Asleep,
        };
        if !mem.stopped {
            state.cursor = cursor;
            state.call = call;
            state.device = next;
            state.past.clear();
        }
        Some(state)
    }

    /// The driver's next access; `None` if it sleeps or is through.
    fn driver(&self, mut state: State) -> Option<State> {
        let (avail, used) = (self.avail_at(), self.used_at());
        let num = usize::from(self.num());
        let idx = self.base.wrapping_add(state.made);
        let seen = self.base.wrapping_add(state.done);
        state.driver = match state.driver {
            DriverAt::WriteEntry if state.free == 0 || state.made == self.chains => {
                DriverAt::LookForUsed
            }
            DriverAt::WriteEntry => {
                let slot = idx & (self.num() - 1);
                put(&mut state.bytes, avail + 4 + 2 * usize::from(slot), slot);
                match self.mistake {
                    Mistake::DriverLooksForKicksFirst => DriverAt::LookWhetherToKick,
                    _ => DriverAt::MoveIndex,
                }
            }
            DriverAt::MoveIndex => {
                put(&mut state.bytes, avail + 2, idx.wrapping_add(1));
                state.made += 1;
                state.free -= 1;
                match self.mistake {
                    Mistake::DriverLooksForKicksFirst => DriverAt::WriteEntry,
                    _ => DriverAt::LookWhetherToKick,
                }
            }
            DriverAt::LookWhetherToKick => {
                let first = self.mistake == Mistake::DriverLooksForKicksFirst;
                let last = if first { idx } else { idx.wrapping_sub(1) };
                state.kick |= if self.event_idx {
                    get(&state.bytes, used + 4 + 8 * num) == last
                } else {
                    get(&state.bytes, used) & USED_F_NO_NOTIFY == 0
                };
                if first {
                    DriverAt::MoveIndex
                } else {
                    DriverAt::WriteEntry
                }
            }
            DriverAt::LookForUsed if get(&state.bytes, used + 2) == seen => {
                if state.done == self.chains {
                    DriverAt::Finished
                } else {
                    DriverAt::EnableCalls
                }
            }
            DriverAt::LookForUsed => {
                state.done += 1;
                state.free += 1;
                DriverAt::LookForUsed
            }
            DriverAt::EnableCalls => {
                if self.event_idx {
                    put(&mut state.bytes, avail + 4 + 2 * num, seen);
                } else {
                    put(&mut state.bytes, avail, 0);
                }
                match self.mistake {
                    Mistake::DriverDoesNotLookAgain => DriverAt::Asleep,
                    _ => DriverAt::LookAgain,
                }
            }
            DriverAt::LookAgain if get(&state.bytes, used + 2) != seen => DriverAt::DisableCalls,
            // There may be something else to do than to wait.
            DriverAt::LookAgain if state.free > 0 && state.made < self.chains => {
                DriverAt::WriteEntry
            }
            DriverAt::LookAgain => DriverAt::Asleep,
            DriverAt::DisableCalls => {
                if !self.event_idx {
                    put(&mut state.bytes, avail, AVAIL_F_NO_INTERRUPT);
                }
                DriverAt::LookForUsed
            }
            DriverAt::Asleep if state.call => {
                state.call = false;
                DriverAt::DisableCalls
            }
            DriverAt::Asleep | DriverAt::Finished => return None,
        };
        Some(state)
    }

    /// Goes through all states there can be. Returns how many there are, or one in which all
    /// sleep and there is work to do.
    fn explore(&self) -> core::result::Result<usize, Box<State>> {
        let mut seen = HashSet::new();
        let mut open = vec![self.start()];
        while let Some(state) = open.pop() {
            if !seen.insert(state.key()) {
                continue;
            }
            let next = [self.device(state.clone()), self.driver(state.clone())];
            if next.iter().all(Option::is_none) && state.driver != DriverAt::Finished {
                return Err(Box::new(state));
            }
            open.extend(next.into_iter().flatten());
        }
        Ok(seen.len())
    }
}

fn one_more<'a>(bytes: &'a mut Bytes, past: &'a mut Vec<Vec<u8>>) -> OneMore<'a> {
    OneMore {
        bytes,
        past,
        at: 0,
        fresh: false,
        stopped: false,
    }
}

fn put(bytes: &mut Bytes, at: usize, value: u16) {
    bytes[at..at + 2].copy_from_slice(&value.to_le_bytes());
}

fn get(bytes: &Bytes, at: usize) -> u16 {
    u16::from_le_bytes([bytes[at], bytes[at + 1]])
}

fn worlds(event_idx: bool, mistake: Mistake) -> Vec<World> {
    let mut worlds = Vec::new();
    for num in [1, 2, 4] {
        for batch in [1, 2] {
            // Around the ring once at least, and more where that is cheap.
            let chains = if num == 4 { 5 } else { num + 2 };
            // The indices wrap at each of them, and not at all.
            for before in 0..=chains {
                worlds.push(World {
                    mistake,
                    ring: MockRing::new(num),
                    event_idx,
                    base: 0u16.wrapping_sub(before),
                    chains,
                    batch,
                });
            }
        }
    }
    worlds
}

fn nobody_oversleeps(event_idx: bool) {
    for world in worlds(event_idx, Mistake::None) {
        let states = world.explore().unwrap();
        assert!(states > 20);
    }
}

/// What nobody finds would not be found in the device either.
fn is_found(mistake: Mistake) {
    for event_idx in [false, true] {
        let found = worlds(event_idx, mistake)
            .iter()
            .any(|world| world.explore().is_err());
        assert!(found, "{mistake:?}, event_idx {event_idx}");
    }
}

#[test]
#[cfg_attr(miri, ignore = "the same few paths, a hundred thousand times")]
fn whoever_does_not_look_again_oversleeps() {
    is_found(Mistake::DeviceDoesNotLookAgain);
    is_found(Mistake::DriverDoesNotLookAgain);
}

#[test]
#[cfg_attr(miri, ignore = "the same few paths, a hundred thousand times")]
fn whoever_looks_too_early_lets_the_other_oversleep() {
    is_found(Mistake::DeviceLooksForCallsFirst);
    is_found(Mistake::DriverLooksForKicksFirst);
}

#[test]
#[cfg_attr(miri, ignore = "the same few paths, a hundred thousand times")]
fn nobody_oversleeps_with_flags() {
    nobody_oversleeps(false);
}

#[test]
#[cfg_attr(miri, ignore = "the same few paths, a hundred thousand times")]
fn nobody_oversleeps_with_event_indices() {
    nobody_oversleeps(true);
}
