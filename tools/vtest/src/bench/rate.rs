// SPDX-License-Identifier: GPL-2.0

//! Packets per second of one device or several, driven by one thread.

use std::collections::BTreeMap;
use std::time::Duration;
use std::time::Instant;

use anyhow::Result;

use crate::bench::path::Ends;
use crate::bench::rig::Patience;
use crate::bench::rig::Rig;
use crate::bench::Way;

/// How often the clock is looked at, as that is a system call in User-Mode Linux: each so many looks.
const TURNS: u32 = 256;

/// When to stop: at a time, or after so many packets of each device.
pub(crate) struct Limit {
    end: Option<Instant>,
    count: u64,
}

impl Limit {
    pub(crate) fn packets(count: u64) -> Self {
        Self { end: None, count }
    }

    pub(crate) fn time(seconds: f64) -> Self {
        Self {
            end: Some(Instant::now() + Duration::from_secs_f64(seconds)),
            count: u64::MAX,
        }
    }

    fn reached(&self, packets: u64) -> bool {
        packets >= self.count || self.end.is_some_and(|end| Instant::now() >= end)
    }
}

/// What was measured.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Rate {
    pub(crate) tx_packets: u64,
    pub(crate) rx_packets: u64,
    /// Packets received, those between two measured rounds as well.
    pub(crate) rx_all: u64,
    pub(crate) kicks: u64,
    pub(crate) time: Duration,
}

/// The devices of a measurement.
pub(crate) struct Bench {
    rigs: Vec<Rig>,
    batch: u16,
    window: u16,
    burst: u64,
}

impl Bench {
    pub(crate) fn new(rigs: Vec<Rig>, batch: u16, window: u16, burst: u64) -> Self {
        Self {
            rigs,
            batch,
            window,
            burst,
        }
    }

    /// The devices themselves.
    pub(crate) fn into_rigs(self) -> Vec<Rig> {
        self.rigs
    }

    /// Bytes of a frame.
    pub(crate) fn frame_len(&self) -> usize {
        self.rigs[0].frame_len
    }

    /// Packets that have left the guests so far.
    pub(crate) fn arrived(&self) -> Result<u64> {
        // The queues of one TAP are counted together.
        let ends: BTreeMap<&str, &Ends> = self
            .rigs
            .iter()
            .map(|rig| (rig.ends.count.0.as_str(), &rig.ends))
            .collect();
        ends.into_values().map(Ends::left).sum()
    }

    fn kicks(&self) -> u64 {
        self.rigs.iter().map(|rig| rig.kicks).sum()
    }

    /// Measures until the limit.
    pub(crate) fn run(&mut self, way: Way, limit: &Limit) -> Result<Rate> {
        let kicks = self.kicks();
        let mut rate = match way {
            Way::Tx => self.tx(limit)?,
            Way::Rx | Way::Both => self.rounds(way == Way::Both, limit)?,
        };
        rate.kicks = self.kicks() - kicks;
        Ok(rate)
    }

    /// Publishes batches where the window allows, of at most `left` packets
    /// for each device.
    fn push_tx(&mut self, left: &mut [u64]) -> Result<bool> {
        let mut progress = false;
        for (rig, left) in self.rigs.iter_mut().zip(left) {
            let window = self.window.min(rig.chains);
            let batch = u16::try_from(*left).map_or(self.batch, |left| left.min(self.batch));
            if batch > 0 && rig.tx_in_flight() <= window - batch {
                rig.publish_tx(batch)?;
                *left -= u64::from(batch);
                progress = true;
            }
        }
        Ok(progress)
    }

    fn tx_in_flight(&self) -> bool {
        self.rigs.iter().any(|rig| rig.tx_in_flight() != 0)
    }

    /// Keeps the windows filled until the limit.
    fn tx(&mut self, limit: &Limit) -> Result<Rate> {
        let mut patience = Patience::new();
        let mut left = vec![limit.count; self.rigs.len()];
        let mut turns = 0;
        let start = Instant::now();
        while left.iter().any(|left| *left > 0) {
            if self.push_tx(&mut left)? {
                patience.renew();
            } else {
                patience.spin("TX")?;
            }
            turns = (turns + 1) % TURNS;
            if turns == 0 && limit.reached(0) {
                break;
            }
        }
        while self.tx_in_flight() {
            patience.spin("TX")?;
        }
        Ok(Rate {
            tx_packets: left.iter().map(|left| limit.count - left).sum(),
            time: start.elapsed(),
            ..Rate::default()
        })
    }

    /// Takes what came; `left` counts down.
    fn pull_rx(&mut self, left: &mut [u64], repost: bool) -> Result<bool> {
        let mut progress = false;
        for (rig, left) in self.rigs.iter_mut().zip(left) {
            let new = rig.take_rx()?;
            if new > 0 {
                progress = true;
                *left -= new;
                if repost {
                    rig.repost(self.batch)?;
                }
            }
        }
        Ok(progress)
    }

    /// Fills the TAPs while there are no buffers, then measures how long the
    /// devices take to empty them, and to send as many packets, if `both`.
    fn rounds(&mut self, both: bool, limit: &Limit) -> Result<Rate> {
        let mut rate = Rate::default();
        let mut patience = Patience::new();
        while !limit.reached(rate.rx_packets) {
            // What is left of the last round's buffers is used up first.
            let mut early: Vec<u64> = Vec::new();
            for rig in &self.rigs {
                let packets = u64::from(rig.rx_posted() / rig.pieces);
                rig.source.send(packets as usize)?;
                early.push(packets);
                rate.rx_all += packets;
            }
            patience.renew();
            while early.iter().any(|left| *left > 0) {
                self.pull_rx(&mut early, false)?;
                patience.wait("RX without buffers")?;
            }
            for rig in &self.rigs {
                rig.source.send(self.burst as usize)?;
            }
            let mut rx_left = vec![self.burst; self.rigs.len()];
            let mut tx_left = vec![if both { self.burst } else { 0 }; self.rigs.len()];
            patience.renew();
            let start = Instant::now();
            for rig in &mut self.rigs {
                rig.publish_rx(rig.buffers)?;
            }
            loop {
                let sent = self.push_tx(&mut tx_left)?;
                let came = self.pull_rx(&mut rx_left, true)?;
                if sent || came {
                    patience.renew();
                    continue;
                }
                let mut left = rx_left.iter().chain(&tx_left);
                if left.all(|left| *left == 0) && !self.tx_in_flight() {
                    break;
                }
                patience.spin("RX")?;
            }
            rate.time += start.elapsed();
            let packets = self.burst * self.rigs.len() as u64;
            rate.rx_packets += packets;
            rate.rx_all += packets;
            if both {
                rate.tx_packets += packets;
            }
        }
        Ok(rate)
    }
}
