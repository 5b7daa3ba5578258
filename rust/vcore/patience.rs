// SPDX-License-Identifier: GPL-2.0
//! Whether to look for work a little longer before going to sleep.
//!
//! A thread that sleeps costs its driver a kick, and the kick costs the guest an exit: more than a
//! short look for what comes next. But looking in vain costs a CPU that others could use. So it is
//! done only where it paid lately, and tried now and then where it did not.

/// How often to look, when looking pays: a few microseconds in all.
const MOST: u16 = 64;
/// How many sleeps there are to one try, where it does not.
const TRY: u16 = 64;

/// What was learnt lately.
#[derive(Clone, Copy, Debug, Default)]
pub struct Patience {
    looks: u16,
    sleeps: u16,
}

impl Patience {
    /// How often to look before this sleep.
    #[inline]
    pub fn looks(&mut self) -> u16 {
        if self.looks != 0 {
            return self.looks;
        }
        self.sleeps = (self.sleeps + 1) % TRY;
        match self.sleeps {
            0 => MOST,
            _ => 0,
        }
    }

    /// Learns whether something came while it was looked for.
    #[inline]
    pub fn learn(&mut self, came: bool) {
        self.looks = match came {
            true => MOST,
            false => self.looks / 2,
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goes to sleep `times` times; something comes at each look if it `pays`. How often it looked.
    fn sleeps(patience: &mut Patience, times: usize, pays: bool) -> usize {
        let mut looks = 0;
        for _ in 0..times {
            let n = patience.looks();
            if n != 0 {
                patience.learn(pays);
                looks += if pays { 1 } else { usize::from(n) };
            }
        }
        looks
    }

    #[test]
    fn in_vain_it_costs_one_look_per_sleep() {
        let mut patience = Patience::default();
        assert_eq!(sleeps(&mut patience, 63, false), 0);
        assert_eq!(sleeps(&mut patience, 6400 - 63, false), 6400);
    }

    #[test]
    fn where_it_pays_it_is_done_before_every_sleep() {
        let mut patience = Patience::default();
        assert_eq!(sleeps(&mut patience, 63, true), 0);
        assert_eq!(sleeps(&mut patience, 1000, true), 1000);
    }

    #[test]
    fn once_it_pays_no_more_it_stops_soon() {
        let mut patience = Patience::default();
        patience.learn(true);
        // 64 + 32 + … + 1
        assert_eq!(sleeps(&mut patience, 7, false), 127);
        assert_eq!(patience.looks(), 0);
    }
}
