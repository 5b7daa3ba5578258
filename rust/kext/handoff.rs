// SPDX-License-Identifier: GPL-2.0
//! A value that belongs to a thread while it works, and to its controller while it does not.
//!
//! Whoever has the value has it whole, as `T`: no lock guards it and none is needed.

use kernel::{
    new_spinlock,
    prelude::*,
    sync::{
        Arc,
        SpinLock, //
    },
};

use super::{
    sched::{
        clock,
        interrupted, //
    },
    wait::{
        Bell,
        WaitQueue, //
    }, //
};

/// Events that every handed-to thread knows; others may use the bits above.
pub(crate) mod events {
    /// The controller wants something: see [`super::Handoff::wanted`].
    pub(crate) const CONTROL: u32 = 1 << 0;
    /// First bit for the thread's own events.
    pub(crate) const FIRST_OWN: u32 = 1 << 1;
}

enum Place<T> {
    /// Nowhere yet, or with the controller.
    Away,
    /// On its way to the thread.
    Given(T),
    /// With the thread.
    Working,
    /// On its way back.
    Returned(T),
}

struct State<T> {
    place: Place<T>,
    /// The controller waits for the value.
    wanted: bool,
    /// Since when the thread is to end, if it is.
    ending: Option<u64>,
    /// The thread has ended, or is about to and does nothing any more.
    ended: bool,
}

/// The place where the value changes hands.
#[pin_data]
pub(crate) struct Handoff<T> {
    #[pin]
    state: SpinLock<State<T>>,
    #[pin]
    changed: WaitQueue,
    bell: Arc<Bell>,
}

impl<T: Send + Unpin> Handoff<T> {
    pub(crate) fn new(bell: Arc<Bell>) -> impl PinInit<Self> {
        pin_init!(Self {
            state <- new_spinlock!(State {
                place: Place::Away,
                wanted: false,
                ending: None,
                ended: false,
            }),
            changed <- WaitQueue::new(),
            bell,
        })
    }

    /// The thread's bell.
    pub(crate) fn bell(&self) -> &Arc<Bell> {
        &self.bell
    }

    // The controller's side.

    /// Hands the value to the thread. Comes back to the caller if the thread has ended.
    pub(crate) fn give(&self, value: T) -> Result<(), T> {
        {
            let mut state = self.state.lock();
            if state.ended {
                return Err(value);
            }
            state.place = Place::Given(value);
            state.wanted = false;
        }
        self.bell.ring(events::CONTROL);
        Ok(())
    }

    /// Takes the value back, as soon as the thread is between two batches.
    ///
    /// # Errors
    ///
    /// `EINTR` if the caller is killed while it waits; the thread keeps the value.
    pub(crate) fn take(&self) -> Result<T> {
        self.state.lock().wanted = true;
        self.bell.ring(events::CONTROL);
        let taken = self.changed.wait_killable(|| {
            let mut state = self.state.lock();
            match core::mem::replace(&mut state.place, Place::Away) {
                Place::Given(value) | Place::Returned(value) => {
                    state.wanted = false;
                    Some(Ok(value))
                }
                Place::Away => Some(Err(ESRCH)),
                Place::Working => {
                    state.place = Place::Working;
                    None
                }
            }
        });
        match taken {
            Ok(value) => value,
            Err(e) => {
                // It may have come just now: then it goes back to work.
                let returned = {
                    let mut state = self.state.lock();
                    state.wanted = false;
                    match core::mem::replace(&mut state.place, Place::Away) {
                        Place::Returned(value) => {
                            state.place = Place::Given(value);
                            true
                        }
                        other => {
                            state.place = other;
                            false
                        }
                    }
                };
                if returned {
                    self.bell.ring(events::CONTROL);
                }
                Err(e)
            }
        }
    }

    /// Tells the thread to end. Returns when it was told so first, by [`clock`].
    pub(crate) fn tell_to_end(&self) -> u64 {
        let now = clock();
        let since = *self.state.lock().ending.get_or_insert(now);
        self.bell.ring(events::CONTROL);
        since
    }

    /// Tells the thread to end, waits for it, and takes the value back.
    ///
    /// Waits for `jiffies` at the most, or until the caller is killed: a thread that is held by a fault
    /// in someone's memory ends by itself later, and the value with it.
    pub(crate) fn end(&self, jiffies: c_long) -> Option<T> {
        self.tell_to_end();
        self.changed
            .wait_timeout(jiffies, || {
                let mut state = self.state.lock();
                state
                    .ended
                    .then(|| core::mem::replace(&mut state.place, Place::Away))
            })
            .and_then(|place| match place {
                Place::Given(value) | Place::Returned(value) => Some(value),
                Place::Away | Place::Working => None,
            })
    }

    /// Waits until the thread has ended.
    pub(crate) fn wait_ended(&self) {
        self.changed
            .wait_idle(|| self.state.lock().ended.then_some(()))
    }

    /// Whether the thread has ended.
    pub(crate) fn has_ended(&self) -> bool {
        self.state.lock().ended
    }

    // The thread's side.

    /// Waits for the value; `None` when the thread [is to end](Self::is_ending), or is
    /// [interrupted].
    pub(crate) fn receive(&self) -> Option<T> {
        loop {
            self.bell.answer(events::CONTROL);
            {
                let mut state = self.state.lock();
                if state.ending.is_some() {
                    return None;
                }
                // What is wanted back already stays for the controller to find.
                if !state.wanted {
                    match core::mem::replace(&mut state.place, Place::Working) {
                        Place::Given(value) => return Some(value),
                        other => state.place = other,
                    }
                }
            }
            if interrupted() {
                return None;
            }
            self.bell.sleep_until(events::CONTROL);
        }
    }

    /// Whether the thread is to end.
    pub(crate) fn is_ending(&self) -> bool {
        self.state.lock().ending.is_some()
    }

    /// Whether the value is to be given back. To be asked between batches, when the bell rings
    /// for `CONTROL`.
    pub(crate) fn wanted(&self) -> bool {
        self.bell.answer(events::CONTROL);
        let state = self.state.lock();
        state.wanted || state.ending.is_some()
    }

    /// Gives the value back.
    pub(crate) fn give_back(&self, value: T) {
        {
            let mut state = self.state.lock();
            // Whoever wanted it may have been killed meanwhile: then it is for the thread again.
            state.place = if state.wanted {
                Place::Returned(value)
            } else {
                Place::Given(value)
            };
        }
        self.changed.wake_all();
    }

    /// Says that the thread has ended. What it gave back stays for the controller, or goes with
    /// this place.
    pub(crate) fn ended(&self) {
        self.state.lock().ended = true;
        self.changed.wake_all();
    }
}
