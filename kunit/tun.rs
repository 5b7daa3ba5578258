// SPDX-License-Identifier: GPL-2.0
//! `kext::tun`, and `kext::packets` by it.

#[kernel::macros::kunit_tests(rvhost_kext_tun)]
mod tests {
    use kernel::prelude::*;

    use crate::{
        kext::{
            errno,
            packets::{
                Headers,
                PacketView,
                Packets,
                RING_BATCH, //
            },
            tun::TapQueue,
        },
        support::{
            map,
            settle,
            unmap,
            Fd,
            How,
            Tap,
            O_RDWR,
            PAGE, //
        },
        vcore::addr::{
            Hva,
            Seg, //
        },
    };

    /// A few frames, told apart by length and first byte.
    static BYTES: [[u8; 600]; 3] = [[0; 600], [1; 600], [2; 600]];

    fn frame(i: usize) -> &'static [u8] {
        &BYTES[i % 3][..60 + i % 500]
    }

    /// Looks at the first packet.
    fn look(packets: &mut Packets, tunnel: bool) -> Option<PacketView<'_>> {
        packets.describe(Headers {
            tunnel,
            blank: false,
            hashed: false,
        });
        packets.get(0)
    }

    fn is_frame(packets: &mut Packets, i: usize) -> bool {
        look(packets, false).is_some_and(|view| {
            view.len() == 60 + i % 500 && view.bytes().is_some_and(|b| b[0] == (i % 3) as u8)
        })
    }

    /// Lengths count to 64 for all bytes of a frame with a pattern.
    static PATTERN: [u8; 64] = {
        let mut bytes = [0; 64];
        let mut i = 0;
        while i < bytes.len() {
            bytes[i] = i as u8;
            i += 1;
        }
        bytes
    };

    /// Takes the only packet there is.
    fn receive(queue: &TapQueue) -> Result<Packets> {
        let mut packets = Packets::new()?;
        match queue.receive(&mut packets) {
            1 => Ok(packets),
            _ => Err(ENOENT),
        }
    }

    #[test]
    fn files_that_are_no_tap_are_refused() -> Result {
        let null = Fd::open(c"/dev/null", O_RDWR)?;
        let refused = TapQueue::of(null.file()?).err();
        assert_eq!(refused, Some(errno::enotsock()));
        let tap = Tap::new()?;
        let socket = tap.packet_socket()?;
        let refused = TapQueue::of(socket.file()?).err();
        assert_eq!(refused, Some(errno::enotsock()));
        let queue = TapQueue::of(tap.file()?)?;
        assert!(queue.socket().file() == &tap.file()?);
        Ok(())
    }

    #[test]
    fn packets_come_in_order_and_go_back_in_order() -> Result {
        let (tap, queue) = Tap::with_queue()?;
        assert!(queue.is_empty());
        for i in 0..5 {
            tap.push(frame(i))?;
        }
        assert!(!queue.is_empty());
        let mut packets = Packets::new()?;
        assert_eq!(queue.receive(&mut packets), 5);
        assert!(queue.is_empty());
        assert!(is_frame(&mut packets, 0));
        packets.consume(1);
        packets.consume(1);
        tap.push(frame(5))?;
        queue.put_back(&mut packets);
        assert!(packets.is_empty() && look(&mut packets, false).is_none());
        assert_eq!(queue.receive(&mut packets), 4);
        for i in 2..6 {
            assert!(is_frame(&mut packets, i));
            packets.consume(1);
        }
        assert!(packets.is_empty());
        // There is nothing to pop, and nothing to put back.
        packets.consume(1);
        queue.put_back(&mut packets);
        assert!(queue.is_empty());
        Ok(())
    }

    #[test]
    fn ring_is_emptied_batch_by_batch() -> Result {
        let (tap, queue) = Tap::with_queue()?;
        for i in 0..RING_BATCH + 3 {
            tap.push(frame(i))?;
        }
        let mut packets = Packets::new()?;
        assert_eq!(queue.receive(&mut packets), RING_BATCH);
        // Nothing is taken on top of what is held.
        assert_eq!(queue.receive(&mut packets), 0);
        assert_eq!(packets.len(), RING_BATCH);
        for i in 0..RING_BATCH {
            assert!(is_frame(&mut packets, i));
            packets.consume(1);
        }
        assert_eq!(queue.receive(&mut packets), 3);
        assert!(is_frame(&mut packets, RING_BATCH));
        // What is left is freed with its holder.
        Ok(())
    }

    #[test]
    fn ring_that_filled_up_meanwhile_takes_back_what_it_can() -> Result {
        let (tap, queue) = Tap::with_queue()?;
        for _ in 0..3 {
            for i in 0..1200 {
                tap.push(frame(i))?;
            }
            let mut packets = Packets::new()?;
            assert_eq!(queue.receive(&mut packets), RING_BATCH);
            // To be put in their places.
            for i in 0..RING_BATCH {
                tap.push(frame(i))?;
            }
            packets.consume(1);
            queue.put_back(&mut packets);
            let mut left = 0;
            loop {
                if queue.receive(&mut packets) == 0 {
                    break;
                }
                while !packets.is_empty() {
                    packets.consume(1);
                    left += 1;
                }
            }
            // A TAP's ring has 1,000 places unless told otherwise.
            assert!((900..1200).contains(&left));
        }
        Ok(())
    }

    #[test]
    fn packets_count_as_sent_when_they_are_taken() -> Result {
        let (tap, queue) = Tap::with_queue()?;
        let before = tap.sent_packets();
        for i in 0..3 {
            tap.push(frame(i))?;
        }
        assert_eq!(tap.sent_packets(), before);
        let mut packets = Packets::new()?;
        assert_eq!(queue.receive(&mut packets), 3);
        assert_eq!(tap.sent_packets(), before + 3);
        Ok(())
    }

    #[test]
    fn plain_packet_has_a_plain_header() -> Result {
        let (tap, queue) = Tap::with_queue()?;
        tap.push(&PATTERN)?;
        let mut packets = receive(&queue)?;
        let view = look(&mut packets, false).ok_or(EINVAL)?;
        assert_eq!(view.len(), 64);
        assert!(view.bytes() == Some(&PATTERN));
        let header = view.header().ok_or(EINVAL)?;
        assert_eq!(header[..10], [0; 10]);
        let view = look(&mut packets, true).ok_or(EINVAL)?;
        let header = view.header().ok_or(EINVAL)?;
        assert_eq!(header[..10], [0; 10]);
        assert_eq!(header[12..], [0; 12]);
        Ok(())
    }

    #[test]
    fn header_tells_of_checksum_and_segmentation() -> Result {
        const GSO_TCPV4: u32 = 1;
        let (tap, queue) = Tap::with_queue()?;
        tap.inject(
            &BYTES[1],
            &How {
                needs_csum: true,
                csum_start: 34,
                csum_offset: 16,
                gso_type: GSO_TCPV4,
                gso_size: 1000,
                linear: 54,
                ..How::default()
            },
        )?;
        let mut packets = receive(&queue)?;
        let view = look(&mut packets, false).ok_or(EINVAL)?;
        let header = view.header().ok_or(EINVAL)?;
        // NEEDS_CSUM, TCPV4, hdr_len, gso_size, csum_start, csum_offset.
        assert_eq!(header[..10], [1, 1, 54, 0, 0xe8, 3, 34, 0, 16, 0]);
        Ok(())
    }

    #[test]
    fn packet_no_header_can_describe_has_none() -> Result {
        const GSO_ESP: u32 = 1 << 15;
        let (tap, queue) = Tap::with_queue()?;
        tap.inject(
            &PATTERN,
            &How {
                gso_type: GSO_ESP,
                gso_size: 1000,
                ..How::default()
            },
        )?;
        let mut packets = receive(&queue)?;
        let view = look(&mut packets, false).ok_or(EINVAL)?;
        assert!(view.header().is_none());
        assert_eq!(view.len(), 64);
        Ok(())
    }

    /// The first bytes at `at`.
    fn bytes_at<const N: usize>(user: &mut crate::kext::usermem::UserMem<'_>, at: Hva) -> [u8; N] {
        let mut out = [0xff; N];
        let _ = user.read(at, &mut out);
        out
    }

    #[test]
    fn packet_is_copied_behind_the_header_and_not_beyond_its_end() -> Result {
        let (mm, at) = map(1)?;
        let mut user = mm.as_current().ok_or(EINVAL)?;
        let (tap, queue) = Tap::with_queue()?;
        tap.push(&PATTERN)?;
        let mut packets = receive(&queue)?;
        let view = look(&mut packets, false).ok_or(EINVAL)?;
        let segs = [
            Seg { at, len: 20 },
            Seg {
                at: at.at(50),
                len: 1,
            },
            Seg {
                at: at.at(60),
                len: 92,
            },
        ];
        assert_eq!(view.copy_to(&mut user, &segs, 12), Ok(()));
        let out: [u8; 128] = bytes_at(&mut user, at);
        assert_eq!(out[..12], [0; 12]);
        assert_eq!(out[12..20], PATTERN[..8]);
        assert_eq!(out[20..50], [0; 30]);
        assert_eq!(out[50..52], [PATTERN[8], 0]);
        assert_eq!(out[60..115], PATTERN[9..]);
        assert_eq!(out[115..], [0; 13]);
        Ok(())
    }

    #[test]
    fn packet_in_several_pieces_is_copied_whole() -> Result {
        let (mm, at) = map(1)?;
        let mut user = mm.as_current().ok_or(EINVAL)?;
        let (tap, queue) = Tap::with_queue()?;
        tap.inject(
            &PATTERN,
            &How {
                linear: 20,
                ..How::default()
            },
        )?;
        let mut packets = receive(&queue)?;
        let view = look(&mut packets, false).ok_or(EINVAL)?;
        assert_eq!(view.len(), 64);
        assert!(view.bytes().is_none());
        assert_eq!(view.copy_to(&mut user, &[Seg { at, len: 64 }], 0), Ok(()));
        let out: [u8; 64] = bytes_at(&mut user, at);
        assert_eq!(out, PATTERN);
        Ok(())
    }

    #[test]
    fn vlan_tag_is_put_into_the_frame() -> Result {
        let (mm, at) = map(1)?;
        let mut user = mm.as_current().ok_or(EINVAL)?;
        let (tap, queue) = Tap::with_queue()?;
        tap.inject(
            &PATTERN,
            &How {
                vlan: 0x2064,
                needs_csum: true,
                csum_start: 34,
                csum_offset: 6,
                ..How::default()
            },
        )?;
        let mut packets = receive(&queue)?;
        let view = look(&mut packets, false).ok_or(EINVAL)?;
        assert_eq!(view.len(), 68);
        assert!(view.bytes().is_none());
        // What the header points at has moved as well.
        let header = view.header().ok_or(EINVAL)?;
        assert_eq!(header[6..8], [38, 0]);
        assert_eq!(view.copy_to(&mut user, &[Seg { at, len: 80 }], 10), Ok(()));
        let out: [u8; 80] = bytes_at(&mut user, at);
        assert_eq!(out[10..22], PATTERN[..12]);
        assert_eq!(out[22..26], [0x81, 0, 0x20, 0x64]);
        assert_eq!(out[26..78], PATTERN[12..]);
        assert_eq!(out[78..], [0; 2]);
        Ok(())
    }

    #[test]
    fn xdp_frame_is_a_packet_with_an_empty_header() -> Result {
        let (mm, at) = map(1)?;
        let mut user = mm.as_current().ok_or(EINVAL)?;
        let (tap, queue) = Tap::with_queue()?;
        tap.push(&BYTES[0][..60])?;
        tap.inject(
            &PATTERN,
            &How {
                xdp: true,
                ..How::default()
            },
        )?;
        let mut packets = Packets::new()?;
        assert_eq!(queue.receive(&mut packets), 2);
        packets.consume(1);
        // It can go back, too.
        queue.put_back(&mut packets);
        assert_eq!(queue.receive(&mut packets), 1);
        // But for the number of buffers.
        let mut header = [0; 24];
        header[10] = 1;
        for tunnel in [false, true] {
            let view = look(&mut packets, tunnel).ok_or(EINVAL)?;
            assert_eq!(view.len(), 64);
            assert!(view.bytes() == Some(&PATTERN));
            assert!(view.header() == Some(&header));
            assert_eq!(view.copy_to(&mut user, &[Seg { at, len: 76 }], 12), Ok(()));
        }
        let out: [u8; 80] = bytes_at(&mut user, at);
        assert_eq!(out[12..76], PATTERN);
        Ok(())
    }

    #[test]
    fn copy_that_is_not_whole_fails() -> Result {
        let (mm, at) = map(2)?;
        let mut user = mm.as_current().ok_or(EINVAL)?;
        let (tap, queue) = Tap::with_queue()?;
        // Nothing is mapped after that, which could take its place.
        unmap(at.at(PAGE))?;
        for kind in 0..4 {
            tap.inject(
                &PATTERN,
                &How {
                    xdp: kind == 1,
                    vlan: if kind == 2 { 5 } else { 0 },
                    linear: if kind == 3 { 20 } else { 0 },
                    ..How::default()
                },
            )?;
            let mut packets = receive(&queue)?;
            let view = look(&mut packets, false).ok_or(EINVAL)?;
            let len = view.len() as u64;
            for (at, len) in [
                (Hva(0), 200),
                // The last byte is not mapped; there is no room for it.
                (at.at(PAGE - len + 1), len),
                (at, len - 1),
                (at, 0),
            ] {
                let copied = view.copy_to(&mut user, &[Seg { at, len }], 0);
                assert_eq!(copied, Err(EFAULT));
            }
            assert_eq!(view.copy_to(&mut user, &[], 0), Err(EFAULT));
            let end = at.at(PAGE - len);
            assert_eq!(view.copy_to(&mut user, &[Seg { at: end, len }], 0), Ok(()));
        }
        Ok(())
    }

    #[test]
    fn queue_outlives_the_descriptor() -> Result {
        let (tap, queue) = Tap::with_queue()?;
        tap.push(frame(0))?;
        drop(tap);
        let mut packets = Packets::new()?;
        assert_eq!(queue.receive(&mut packets), 1);
        drop(queue);
        settle();
        // A packet outlives even the device.
        assert!(is_frame(&mut packets, 0));
        Ok(())
    }
}
