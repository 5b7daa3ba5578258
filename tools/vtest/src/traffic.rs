// SPDX-License-Identifier: GPL-2.0

//! Packets through a [`Vmm`] in both directions, laid out in buffers of any
//! shape and checked byte by byte.

use anyhow::bail;
use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;

use crate::device::RX;
use crate::device::TX;
use crate::frame::compare;
use crate::frame::NetHdr;
use crate::mem::BOUNDARY;
use crate::poll;
use crate::virtqueue::Seg;
use crate::virtqueue::Used;
use crate::vmm::Vmm;

/// How a packet with its header is cut into descriptors.
#[derive(Clone, Debug)]
pub(crate) enum Split {
    /// One buffer for everything.
    Whole,
    /// The header in a buffer of its own.
    HeaderAlone,
    /// The header together with this many bytes of the packet, then the rest.
    HeaderPlus(usize),
    /// This many buffers of one byte, then the rest.
    Bytes(usize),
    /// Buffers of this size.
    Every(usize),
}

impl Split {
    /// Lengths of the buffers for `total` bytes of which `header` are header.
    fn lengths(&self, header: usize, total: usize) -> Vec<usize> {
        let mut lengths = match self {
            Self::Whole => vec![total],
            Self::HeaderAlone => vec![header, total - header],
            Self::HeaderPlus(n) => {
                let first = (header + n).min(total);
                vec![first, total - first]
            }
            Self::Bytes(n) => {
                let ones = (*n).min(total);
                let mut lengths = vec![1; ones];
                lengths.push(total - ones);
                lengths
            }
            Self::Every(n) => {
                let mut lengths = vec![*n; total / n];
                lengths.push(total % n);
                lengths
            }
        };
        lengths.retain(|len| *len != 0);
        lengths
    }
}

/// A packet the guest received.
#[derive(Clone, Debug)]
pub(crate) struct Received {
    /// The header.
    pub(crate) hdr: NetHdr,
    /// The header's hash and what it is of, if it has them.
    pub(crate) hash: Option<(u32, u16)>,
    /// The packet.
    pub(crate) frame: Vec<u8>,
    /// The chains that held it.
    pub(crate) chains: Vec<Used>,
}

impl Vmm {
    /// Allocates buffers of the lengths that `split` gives, apart from each
    /// other and unaligned, and fills them.
    pub(crate) fn tx_segs(&self, hdr: &NetHdr, frame: &[u8], split: &Split) -> Result<Vec<Seg>> {
        let mut bytes = hdr.bytes(self.hdr_len);
        bytes.extend(frame);
        let mut rest = bytes.as_slice();
        let mut segs = Vec::new();
        for len in split.lengths(self.hdr_len, bytes.len()) {
            let (now, later) = rest.split_at(len);
            let addr = self.mem.tx_buffer(len as u64 + 3)? + 1;
            self.mem.write(addr, now)?;
            segs.push(Seg {
                addr,
                len: len as u32,
            });
            rest = later;
        }
        Ok(segs)
    }

    /// Puts a packet into the TX ring without publishing it.
    pub(crate) fn queue_tx(&mut self, hdr: &NetHdr, frame: &[u8], split: &Split) -> Result<u16> {
        let segs = self.tx_segs(hdr, frame, split)?;
        self.tx.add(&segs, &[])
    }

    /// Sends one packet from the guest and checks that it comes out as it
    /// went in and that its chain comes back.
    pub(crate) fn check_tx(&mut self, len: usize, split: &Split) -> Result<()> {
        let frame = self.tx_frames.plain(len);
        self.queue_tx(&NetHdr::default(), &frame, split)?;
        self.tx.flush()?;
        self.expect_on_wire(&frame)
            .with_context(|| format!("TX of {len} bytes as {split:?}"))?;
        let used = self.tx.wait_used()?;
        ensure!(used.len == 0, "TX used length is {}, not 0", used.len);
        Ok(())
    }

    /// Receives the next frame at the far side and compares it.
    pub(crate) fn expect_on_wire(&self, frame: &[u8]) -> Result<()> {
        let (hdr, seen) = self
            .wire
            .recv()
            .with_context(|| format!("TX queue: {}", self.tx.state()))?;
        compare("frame from the guest", &seen, frame)?;
        ensure!(
            hdr.gso_type == 0 && hdr.flags & crate::frame::NEEDS_CSUM == 0,
            "plain frame arrived with {hdr:?}"
        );
        Ok(())
    }

    /// Allocates receive buffers of the given lengths, apart and unaligned.
    pub(crate) fn rx_segs(&self, lengths: &[u32]) -> Result<Vec<Seg>> {
        lengths
            .iter()
            .map(|len| {
                let addr = self.mem.rx_buffer(u64::from(*len) + 3)? + 1;
                Ok(Seg { addr, len: *len })
            })
            .collect()
    }

    /// Puts a receive chain into the ring without publishing it.
    pub(crate) fn queue_rx(&mut self, lengths: &[u32]) -> Result<u16> {
        let segs = self.rx_segs(lengths)?;
        self.rx.add(&[], &segs)
    }

    /// Posts `count` receive chains of one shape and kicks as needed.
    pub(crate) fn post_rx(&mut self, count: usize, lengths: &[u32]) -> Result<()> {
        for _ in 0..count {
            self.queue_rx(lengths)?;
        }
        self.rx.flush()?;
        Ok(())
    }

    /// Waits for the next packet to the guest and checks the form it has:
    /// lengths, number of buffers.
    pub(crate) fn recv(&mut self) -> Result<Received> {
        let mut chains = vec![self.rx.wait_used()?];
        let mut bytes = chains[0].bytes(&self.mem)?;
        // The header itself may lie in several mergeable buffers.
        while self.mergeable && bytes.len() < self.hdr_len {
            let next = self.rx.wait_used().context("buffer with more header")?;
            bytes.extend(next.bytes(&self.mem)?);
            chains.push(next);
        }
        ensure!(
            bytes.len() >= self.hdr_len,
            "used length {} is shorter than the header",
            bytes.len()
        );
        let hdr = NetHdr::parse(&bytes[..self.hdr_len]);
        if self.hdr_len >= 12 && !self.mergeable {
            ensure!(
                hdr.num_buffers == 1,
                "num_buffers is {} without MRG_RXBUF",
                hdr.num_buffers
            );
        }
        if self.mergeable {
            ensure!(
                usize::from(hdr.num_buffers) >= chains.len(),
                "num_buffers is {}, but {} hold the header",
                hdr.num_buffers,
                chains.len()
            );
            while chains.len() < usize::from(hdr.num_buffers) {
                let next = self.rx.wait_used().with_context(|| {
                    format!("buffer {} of {}", chains.len() + 1, hdr.num_buffers)
                })?;
                bytes.extend(next.bytes(&self.mem)?);
                chains.push(next);
            }
            for chain in &chains[..chains.len() - 1] {
                ensure!(
                    chain.len == chain.capacity(),
                    "a buffer of {} bytes that is not the last holds {}",
                    chain.capacity(),
                    chain.len
                );
            }
        }
        let frame = bytes.split_off(self.hdr_len);
        let hash = match bytes[..self.hdr_len] {
            [.., a, b, c, d, e, f, _, _] if self.hdr_len == 20 => {
                let value = u32::from_le_bytes([a, b, c, d]);
                Some((value, u16::from_le_bytes([e, f])))
            }
            _ => None,
        };
        Ok(Received {
            hdr,
            hash,
            frame,
            chains,
        })
    }

    /// Sends a packet to the guest from the far side, without waiting for it.
    pub(crate) fn send_rx(&mut self, len: usize) -> Result<Vec<u8>> {
        let frame = self.rx_frames.plain(len);
        self.wire.send(&NetHdr::default(), &frame)?;
        Ok(frame)
    }

    /// Waits for the next packet to the guest and compares it.
    pub(crate) fn expect_in_guest(&mut self, frame: &[u8]) -> Result<Received> {
        let received = self
            .recv()
            .with_context(|| format!("RX queue: {}", self.rx.state()))?;
        compare("frame to the guest", &received.frame, frame)?;
        let hdr = received.hdr.without_buffers();
        ensure!(
            hdr.gso_type == 0 && hdr.flags & crate::frame::NEEDS_CSUM == 0 && hdr.gso_size == 0,
            "plain frame arrived with {hdr:?}"
        );
        Ok(received)
    }

    /// Sends a packet to the guest and checks that it arrives.
    pub(crate) fn check_rx(&mut self, len: usize) -> Result<Received> {
        let frame = self.send_rx(len)?;
        self.expect_in_guest(&frame)
            .with_context(|| format!("RX of {len} bytes"))
    }

    /// Puts the buffers of a received packet back into the ring.
    pub(crate) fn repost(&mut self, received: &Received) -> Result<()> {
        for chain in &received.chains {
            self.rx.add(&[], &chain.segs)?;
        }
        self.rx.flush()?;
        Ok(())
    }

    /// Nothing unexpected is left: no frame, no used chain, no error signal.
    pub(crate) fn check_quiet(&mut self) -> Result<()> {
        self.fence(RX)?;
        self.fence(TX)?;
        self.wire.expect_silence()?;
        for queue in [&mut self.rx, &mut self.tx] {
            ensure!(
                queue.pop_used()?.is_none(),
                "a chain came back that nothing used: {}",
                queue.state()
            );
            expect("err signals", poll::take_signals(&queue.err), 0)?;
        }
        Ok(())
    }

    /// A buffer of `len` bytes that begins `before` bytes before the second
    /// memory region.
    pub(crate) fn crossing(before: u64, len: u32) -> Seg {
        Seg {
            addr: BOUNDARY - before,
            len,
        }
    }

    /// One packet each way: the device still works.
    pub(crate) fn check_alive(&mut self) -> Result<()> {
        self.check_tx(60, &Split::Whole)
            .context("afterwards, TX does not work")?;
        if self.rx.pending() == 0 {
            self.post_rx(1, &[2048])?;
        }
        let received = self.check_rx(60).context("afterwards, RX does not work")?;
        self.repost(&received)
    }
}

/// Fails with what was expected and seen unless both are equal.
pub(crate) fn expect<T: PartialEq + std::fmt::Debug>(
    what: &str,
    seen: T,
    expected: T,
) -> Result<()> {
    if seen != expected {
        bail!("{what}: expected {expected:?}, saw {seen:?}");
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splits_cover_the_packet() {
        for split in [
            Split::Whole,
            Split::HeaderAlone,
            Split::HeaderPlus(14),
            Split::Bytes(20),
            Split::Every(7),
            Split::Every(36),
        ] {
            let lengths = split.lengths(12, 72);
            assert_eq!(lengths.iter().sum::<usize>(), 72);
            assert!(!lengths.contains(&0));
        }
    }
}
