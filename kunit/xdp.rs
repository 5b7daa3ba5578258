// SPDX-License-Identifier: GPL-2.0
//! `kext::xdp`.

#[kernel::macros::kunit_tests(rvhost_kext_xdp)]
mod tests {
    use kernel::prelude::*;

    use crate::{
        kext::{
            errno,
            tun::TapQueue,
            usermem::UserMem,
            xdp::{
                Refused,
                Source,
                TxBatch,
                BATCH, //
            },
        },
        support::{
            free_pages,
            map,
            Tap,
            PAGE,
            TUNSETVNETHDRSZ, //
        },
        vcore::{
            addr::{
                Hva,
                Seg, //
            },
            hdr,
        },
    };

    /// The longest packet that a batch takes.
    fn longest(header: usize, headroom: bool) -> Result<usize> {
        let (mm, at) = map(2)?;
        let mut user = mm.as_current().ok_or(EINVAL)?;
        let mut batch = TxBatch::new()?;
        let len = 2 * PAGE;
        let segs = [Seg { at, len }];
        let mut packet = Source {
            segs: &segs,
            skip: 0,
            len: len as usize,
        };
        batch.begin(header, headroom);
        while batch.add(&mut user, &packet) == Err(Refused::Length) {
            packet.len = packet.len.checked_sub(1).ok_or(EINVAL)?;
        }
        Ok(packet.len)
    }

    /// A packet of `len` bytes.
    fn packet<'a>(segs: &'a [Seg], len: usize) -> Source<'a> {
        Source { segs, skip: 0, len }
    }

    /// A batch of packets with such headers.
    fn batch_of(header: usize) -> Result<TxBatch> {
        let mut batch = TxBatch::new()?;
        batch.begin(header, false);
        Ok(batch)
    }

    /// Adds a packet and fills the batch.
    fn add_packet(
        batch: &mut TxBatch,
        user: &mut UserMem<'_>,
        packet: &Source<'_>,
        mut fix: impl FnMut(&mut [u8; hdr::BASE_BYTES]) -> bool,
    ) -> Result<(), Refused> {
        batch.add(user, packet)?;
        let mut outcome = Ok(());
        batch.fill(user, |base, _| fix(base), |e| outcome = Err(e));
        outcome
    }

    /// Adds the `len` bytes at `at`.
    fn add(
        batch: &mut TxBatch,
        user: &mut UserMem<'_>,
        at: Hva,
        len: usize,
    ) -> Result<(), Refused> {
        let segs = [Seg {
            at,
            len: len as u64,
        }];
        add_packet(batch, user, &packet(&segs, len), |_| true)
    }

    #[test]
    fn packet_fits_if_its_buffer_is_no_longer_than_a_page() -> Result {
        // As in C vhost-net.
        assert_eq!(longest(12, false), Ok(3648));
        // An XDP program takes its 256 bytes.
        assert_eq!(longest(12, true), Ok(3392));
        Ok(())
    }

    #[test]
    fn longest_packet_goes_through_and_a_longer_one_is_refused() -> Result {
        let (mm, at) = map(1)?;
        let mut user = mm.as_current().ok_or(EINVAL)?;
        let (tap, queue) = Tap::with_queue()?;
        let len = longest(10, false)?;
        assert_eq!(user.write(at.at(len as u64 - 4), &[1, 2, 3, 4]), Ok(()));
        let mut batch = batch_of(10)?;
        assert_eq!(add(&mut batch, &mut user, at, len), Ok(()));
        let longer = add(&mut batch, &mut user, at, len + 1);
        assert_eq!(longer, Err(Refused::Length));
        assert_eq!(queue.send_batch(&mut batch, false), Ok(()));
        let mut bytes = [0; 4096];
        let seen = tap.next(&mut bytes).ok_or(ENOENT)?;
        assert_eq!(seen.len as usize, len - 10);
        assert_eq!(bytes[len - 14..len - 10], [1, 2, 3, 4]);
        assert!(tap.next(&mut bytes).is_none());
        Ok(())
    }

    #[test]
    fn frame_reaches_the_stack_gathered_and_without_its_header() -> Result {
        let (mm, at) = map(2)?;
        let mut user = mm.as_current().ok_or(EINVAL)?;
        let (tap, queue) = Tap::with_queue()?;
        for i in 0..70u8 {
            assert_eq!(user.write(at.at(3 * u64::from(i)), &[i]), Ok(()));
        }
        let segs = [(); 70];
        let mut segs = segs.map(|()| Seg { at, len: 1 });
        for (i, seg) in segs.iter_mut().enumerate() {
            seg.at = at.at(3 * i as u64);
        }
        // Behind five bytes of something else; the header is 10 bytes of zeroes.
        assert_eq!(user.write(at.at(PAGE), &[0; 15]), Ok(()));
        let mut all = [Seg {
            at: at.at(PAGE),
            len: 15,
        }; 71];
        all[1..].copy_from_slice(&segs);
        let packet = Source {
            segs: &all,
            skip: 5,
            len: 80,
        };
        let mut batch = batch_of(10)?;
        let mut told = 0;
        let added = add_packet(&mut batch, &mut user, &packet, |base| {
            told = base.len();
            *base == [0; 10]
        });
        assert_eq!(added, Ok(()));
        assert_eq!(told, 10);
        assert_eq!(queue.send_batch(&mut batch, false), Ok(()));
        assert_eq!(batch.len(), 0);
        let mut bytes = [0xff; 80];
        let seen = tap.next(&mut bytes).ok_or(ENOENT)?;
        assert_eq!(seen.len, 70);
        for (i, byte) in bytes.iter().take(70).enumerate() {
            assert_eq!(usize::from(*byte), i);
        }
        assert_eq!(bytes[70..], [0xff; 10]);
        Ok(())
    }

    #[test]
    fn device_sees_the_header_as_it_was_fixed() -> Result {
        let (mm, at) = map(1)?;
        let mut user = mm.as_current().ok_or(EINVAL)?;
        let (tap, queue) = Tap::with_queue()?;
        assert_eq!(user.write(at, &[0; 10]), Ok(()));
        let segs = [Seg { at, len: 110 }];
        let packet = packet(&segs, 110);
        let mut batch = batch_of(10)?;
        let added = add_packet(&mut batch, &mut user, &packet, |base| {
            // A checksum at offset 16 of what begins at 34.
            *base = [1, 0, 52, 0, 0, 0, 34, 0, 16, 0];
            true
        });
        assert_eq!(added, Ok(()));
        let start = batch.start(0).ok_or(ENOENT)?;
        assert_eq!(start[..10], [1, 0, 52, 0, 0, 0, 34, 0, 16, 0]);
        assert_eq!(queue.send_batch(&mut batch, false), Ok(()));
        let seen = tap.next(&mut []).ok_or(ENOENT)?;
        assert!(seen.needs_csum);
        assert_eq!((seen.csum_start, seen.csum_offset), (34, 16));
        // What the guest sees was not touched.
        let mut out = [9; 10];
        assert_eq!(user.read(at, &mut out), Ok(()));
        assert_eq!(out, [0; 10]);
        Ok(())
    }

    #[test]
    fn header_is_zeroed_up_to_the_longest_the_device_reads() -> Result {
        let (mm, at) = map(1)?;
        let mut user = mm.as_current().ok_or(EINVAL)?;
        let mut batch = batch_of(12)?;
        assert_eq!(user.write(at, &[0xee; 2048]), Ok(()));
        // Twice, so that the buffers are of memory that was used before.
        for round in 0..2 {
            for i in 0..BATCH {
                assert_eq!(add(&mut batch, &mut user, at, 1500), Ok(()));
                let start = batch.start(i).ok_or(ENOENT)?;
                assert_eq!(start[..12], [0xee; 12]);
                assert_eq!(start[12..], [0; 12]);
            }
            assert_eq!(batch.len(), BATCH);
            batch.clear();
            assert_eq!(batch.len() + round, round);
        }
        assert!(batch.start(0).is_none());
        for header in [0, 10, 24] {
            batch.begin(header, false);
            assert_eq!(add(&mut batch, &mut user, at, 100), Ok(()));
            let start = batch.start(batch.len() - 1).ok_or(ENOENT)?;
            assert_eq!(start[..header], [0xee; 24][..header]);
            assert_eq!(start[header..], [0; 24][header..]);
        }
        Ok(())
    }

    #[test]
    fn headers_of_12_and_24_bytes_are_stripped_as_well() -> Result {
        let (mm, at) = map(1)?;
        let mut user = mm.as_current().ok_or(EINVAL)?;
        let (tap, queue) = Tap::with_queue()?;
        let mut batch = batch_of(10)?;
        for header in [12, 24] {
            tap.set(TUNSETVNETHDRSZ, header)?;
            let header = header as usize;
            batch.begin(header, false);
            assert_eq!(user.write(at, &[0; 24]), Ok(()));
            assert_eq!(user.write(at.at(header as u64), &[5; 60]), Ok(()));
            assert_eq!(add(&mut batch, &mut user, at, header + 60), Ok(()));
            assert_eq!(queue.send_batch(&mut batch, false), Ok(()));
            let mut bytes = [0; 60];
            let seen = tap.next(&mut bytes).ok_or(ENOENT)?;
            assert_eq!(seen.len, 60);
            assert_eq!(bytes, [5; 60]);
        }
        Ok(())
    }

    #[test]
    fn full_batch_takes_no_more_and_arrives_whole() -> Result {
        let (mm, at) = map(1)?;
        let mut user = mm.as_current().ok_or(EINVAL)?;
        let (tap, queue) = Tap::with_queue()?;
        let mut batch = batch_of(10)?;
        for round in 0..3u8 {
            for i in 0..BATCH as u8 {
                assert_eq!(user.write(at.at(10), &[i + round; 60]), Ok(()));
                assert_eq!(add(&mut batch, &mut user, at, 70), Ok(()));
            }
            let more = add(&mut batch, &mut user, at, 70);
            assert_eq!(more, Err(Refused::Length));
            assert_eq!(queue.send_batch(&mut batch, false), Ok(()));
            assert_eq!(tap.waiting(), BATCH);
            for i in 0..BATCH as u8 {
                let mut bytes = [0; 60];
                let seen = tap.next(&mut bytes).ok_or(ENOENT)?;
                assert_eq!(seen.len, 60);
                assert_eq!(bytes, [i + round; 60]);
            }
        }
        // An empty batch is nothing to send.
        assert_eq!(queue.send_batch(&mut batch, false), Ok(()));
        assert_eq!(tap.waiting(), 0);
        Ok(())
    }

    #[test]
    fn packets_that_cannot_be_copied_do_not_hold_up_the_others() -> Result {
        let (mm, at) = map(1)?;
        let mut user = mm.as_current().ok_or(EINVAL)?;
        let (tap, queue) = Tap::with_queue()?;
        // Whatever their length, and however many pieces they are in.
        let good = [Seg { at, len: 70 }];
        let long = [Seg { at, len: 1000 }];
        let gone = [Seg {
            at: at.at(PAGE - 30),
            len: 70,
        }];
        let half = [Seg { at, len: 35 }, gone[0]];
        let pieces = [Seg { at, len: 1 }; 200];
        let mut bytes = [0; 1000];
        for bad in 0..64u64 {
            let mut batch = batch_of(10)?;
            for bit in 0..6 {
                let (segs, len): (&[Seg], _) = match (bad >> bit & 1, bit) {
                    (1, 0 | 3 | 5) => (&gone, 70),
                    (1, _) => (&half, 70),
                    (_, 0 | 4) => (&long, 1000),
                    (_, 2) => (&pieces, 200),
                    (_, _) => (&good, 70),
                };
                let packet = packet(segs, len);
                assert_eq!(batch.add(&mut user, &packet), Ok(()));
            }
            let (mut fixed, mut faults) = (0, 0);
            batch.fill(
                &mut user,
                |_, len| {
                    fixed += 1;
                    len >= 70
                },
                |e| faults += u32::from(e == Refused::Fault),
            );
            assert_eq!(faults, bad.count_ones());
            assert_eq!(fixed, 6 - bad.count_ones());
            assert_eq!(batch.len() as u32, fixed);
            assert_eq!(queue.send_batch(&mut batch, false), Ok(()));
            for _ in 0..fixed {
                assert!(tap.next(&mut bytes).is_some());
            }
            assert!(tap.next(&mut bytes).is_none());
        }
        Ok(())
    }

    #[test]
    fn packets_added_and_not_filled_are_freed() -> Result {
        let (mm, at) = map(1)?;
        let mut user = mm.as_current().ok_or(EINVAL)?;
        let (_tap, queue) = Tap::with_queue()?;
        let before = free_pages();
        let segs = [Seg { at, len: 1500 }];
        let packet = packet(&segs, 1500);
        for _ in 0..200 {
            let mut batch = batch_of(10)?;
            for _ in 0..BATCH {
                assert_eq!(batch.add(&mut user, &packet), Ok(()));
            }
            assert_eq!(batch.add(&mut user, &packet), Err(Refused::Length));
            assert_eq!(queue.send_batch(&mut batch, false), Ok(()));
            assert_eq!(batch.add(&mut user, &packet), Ok(()));
        }
        // 13,000 packets would be 26 MiB. The debug kernel keeps what was freed, for a while.
        assert!(before < free_pages() + 4096);
        Ok(())
    }

    #[test]
    fn refused_packets_leave_nothing_behind() -> Result {
        let (mm, at) = map(1)?;
        let mut user = mm.as_current().ok_or(EINVAL)?;
        let mut batch = batch_of(10)?;
        assert_eq!(add(&mut batch, &mut user, at, 1500), Ok(()));
        let before = free_pages();
        let segs = [Seg { at, len: 1500 }];
        let packet = packet(&segs, 1500);
        let short = Source {
            len: 1501,
            ..packet
        };
        for _ in 0..2000 {
            let fault = add(&mut batch, &mut user, at.at(PAGE - 1499), 1500);
            assert_eq!(fault, Err(Refused::Fault));
            let bad = add_packet(&mut batch, &mut user, &packet, |_| false);
            assert_eq!(bad, Err(Refused::Header));
            let short = add_packet(&mut batch, &mut user, &short, |_| true);
            assert_eq!(short, Err(Refused::Fault));
        }
        let wrong = add(&mut batch, &mut user, at, 9);
        assert_eq!(wrong, Err(Refused::Length));
        assert_eq!(batch.len(), 1);
        batch.clear();
        // 6,000 packets would be 10 MiB and more.
        assert!(before < free_pages() + 1024);
        Ok(())
    }

    #[test]
    fn packets_kept_are_freed_with_the_batch() -> Result {
        let (mm, at) = map(1)?;
        let mut user = mm.as_current().ok_or(EINVAL)?;
        let before = free_pages();
        for _ in 0..100 {
            let mut batch = batch_of(10)?;
            for _ in 0..BATCH {
                assert_eq!(add(&mut batch, &mut user, at, 1500), Ok(()));
            }
        }
        // 6,400 packets, again.
        assert!(before < free_pages() + 1024);
        Ok(())
    }

    #[test]
    fn batch_for_a_device_that_is_gone_is_freed() -> Result {
        let (mm, at) = map(1)?;
        let mut user = mm.as_current().ok_or(EINVAL)?;
        let null = crate::support::Fd::open(c"/dev/net/tun", crate::support::O_RDWR)?;
        // A TAP's file that has no TAP.
        let queue = TapQueue::of(null.file()?)?;
        let mut batch = batch_of(10)?;
        assert_eq!(add(&mut batch, &mut user, at, 70), Ok(()));
        assert_eq!(
            queue.send_batch(&mut batch, false).err(),
            Some(errno::ebadfd())
        );
        assert_eq!(batch.len(), 0);
        Ok(())
    }
}
