// SPDX-License-Identifier: GPL-2.0
//! `kext::file`, `kext::eventfd`, `kext::poll`, `kext::socket`, `kext::tun` and `kext::xdp`, on a
//! real TAP.

#[kernel::macros::kunit_tests(rvhost_kext_tap)]
mod tests {
    use kernel::{
        prelude::*,
        sync::Arc, //
    };

    use crate::{
        kext::{
            eventfd::EventFd,
            file::FileRef,
            poll::{
                ready,
                PollHook, //
            },
            socket::Socket,
            tun::{
                Packets,
                TapQueue,
                RING_BATCH, //
            },
            wait::Bell,
            xdp::{
                Refused,
                Source,
                TxBatch,
                BATCH, //
            },
        },
        support::{
            map,
            Tap,
            PAGE, //
        },
        vcore::addr::{
            Hva,
            Seg, //
        },
    };

    #[test]
    fn descriptors_resolve_to_their_files() -> Result {
        let tap = Tap::new()?;
        assert!(tap.file()? == tap.file()?);
        assert_eq!(FileRef::get(-1).err(), Some(EBADF));
        assert_eq!(FileRef::get(1 << 20).err(), Some(EBADF));
        assert_eq!(EventFd::get(tap.fd()).err(), Some(EINVAL));
        assert_eq!(EventFd::get(-1).err(), Some(EBADF));
        assert!(Socket::packet(tap.file()?).is_err());
        Ok(())
    }

    #[test]
    fn hook_rings_only_while_it_is_hooked() -> Result {
        let tap = Tap::new()?;
        let bell = Arc::new(Bell::new(), GFP_KERNEL)?;
        let mut hook = PollHook::new(tap.file()?, ready::IN, bell.clone(), 4)?;
        assert!(!hook.as_mut().hook_and_look());
        assert_eq!(bell.rung(), 0);
        tap.push(60, 1)?;
        assert_eq!(bell.answer(!0), 4);
        hook.as_mut().unhook();
        tap.push(60, 2)?;
        assert_eq!(bell.rung(), 0);
        assert!(hook.as_mut().hook_and_look());
        Ok(())
    }

    fn fill_of(packets: &Packets) -> Option<(usize, u8)> {
        let view = packets.first(false)?;
        Some((view.len(), *view.bytes()?.first()?))
    }

    #[test]
    fn packets_come_in_order_and_go_back_in_order() -> Result {
        let tap = Tap::new()?;
        let queue = TapQueue::of(tap.file()?)?;
        assert!(queue.is_empty());
        for i in 0..5 {
            tap.push(60 + u32::from(i), i)?;
        }
        let mut packets = Packets::new()?;
        assert_eq!(queue.receive(&mut packets), 5);
        assert_eq!(fill_of(&packets), Some((60, 0)));
        packets.pop();
        packets.pop();
        queue.put_back(&mut packets);
        assert!(packets.is_empty());
        assert_eq!(queue.receive(&mut packets), 3);
        assert_eq!(fill_of(&packets), Some((62, 2)));
        packets.pop();
        assert_eq!(fill_of(&packets), Some((63, 3)));
        // What is left is freed with its holder.
        Ok(())
    }

    #[test]
    fn ring_is_emptied_batch_by_batch() -> Result {
        let tap = Tap::new()?;
        let queue = TapQueue::of(tap.file()?)?;
        for i in 0..RING_BATCH as u32 + 3 {
            tap.push(60 + i, 0)?;
        }
        let mut packets = Packets::new()?;
        assert_eq!(queue.receive(&mut packets), RING_BATCH);
        // Nothing is taken on top of what is held.
        assert_eq!(queue.receive(&mut packets), 0);
        while !packets.is_empty() {
            packets.pop();
        }
        assert_eq!(queue.receive(&mut packets), 3);
        Ok(())
    }

    #[test]
    fn packet_is_copied_to_user_memory_behind_the_header() -> Result {
        let (mm, at) = map(1)?;
        let mut user = mm.as_current().ok_or(EINVAL)?;
        let tap = Tap::new()?;
        let queue = TapQueue::of(tap.file()?)?;
        tap.push(100, 7)?;
        let mut packets = Packets::new()?;
        assert_eq!(queue.receive(&mut packets), 1);
        let view = packets.first(false).ok_or(EINVAL)?;
        assert_eq!(view.header().map(|h| h[0]), Some(0));
        let segs = [
            Seg { at, len: 20 },
            Seg {
                at: at.at(50),
                len: 92,
            },
        ];
        assert_eq!(view.copy_to(&mut user, &segs, 12), Ok(()));
        let mut out = [0; 160];
        assert_eq!(user.read(at, &mut out), Ok(()));
        assert_eq!(out[11], 0);
        assert_eq!(out[12..20], [7; 8]);
        assert_eq!(out[20], 0);
        assert_eq!(out[50..142], [7; 92]);
        assert_eq!(out[142], 0);
        let nowhere = [Seg {
            at: Hva(0),
            len: 200,
        }];
        assert_eq!(view.copy_to(&mut user, &nowhere, 0), Err(EFAULT));
        Ok(())
    }

    #[test]
    fn batch_of_packets_reaches_the_stack() -> Result {
        let (mm, at) = map(1)?;
        let mut user = mm.as_current().ok_or(EINVAL)?;
        let tap = Tap::new()?;
        let queue = TapQueue::of(tap.file()?)?;
        let segs = [
            Seg { at, len: 10 },
            Seg {
                at: at.at(100),
                len: 60,
            },
        ];
        let packet = Source {
            segs: &segs,
            skip: 0,
            len: 70,
            header: 10,
        };
        let mut batch = TxBatch::new()?;
        for _ in 0..BATCH {
            assert_eq!(batch.add(&mut user, &packet, false, |_| true), Ok(()));
        }
        // A full batch takes no more.
        let more = batch.add(&mut user, &packet, false, |_| true);
        assert_eq!(more, Err(Refused::Length));
        let before = tap.received();
        assert_eq!(queue.send_batch(&mut batch), Ok(()));
        assert_eq!(tap.received() - before, BATCH as u64);
        assert_eq!(queue.send_batch(&mut batch), Ok(()));
        Ok(())
    }

    #[test]
    fn bad_packets_are_refused_without_a_trace() -> Result {
        let (mm, at) = map(1)?;
        let mut user = mm.as_current().ok_or(EINVAL)?;
        let mut batch = TxBatch::new()?;
        let refused = |batch: &mut TxBatch, user: &mut _, at, len, header, ok| {
            let segs = [Seg { at, len: 4096 }];
            let packet = Source {
                segs: &segs,
                skip: 0,
                len,
                header,
            };
            batch.add(user, &packet, false, |_| ok).err()
        };
        let unmapped = at.at(PAGE - 20);
        for _ in 0..2 * BATCH {
            assert_eq!(
                refused(&mut batch, &mut user, unmapped, 70, 10, true),
                Some(Refused::Fault)
            );
            assert_eq!(
                refused(&mut batch, &mut user, at, 70, 10, false),
                Some(Refused::Header)
            );
            assert_eq!(
                refused(&mut batch, &mut user, at, 9, 10, true),
                Some(Refused::Length)
            );
            assert_eq!(
                refused(&mut batch, &mut user, at, 70, 25, true),
                Some(Refused::Length)
            );
        }
        // Kept ones are freed with the batch.
        assert_eq!(refused(&mut batch, &mut user, at, 70, 10, true), None);
        Ok(())
    }

    #[test]
    fn packet_fits_if_its_buffer_is_no_longer_than_a_page() {
        assert!(TxBatch::fits(1514 + 12, 12, true));
        assert!(!TxBatch::fits(4096, 12, false));
        assert!(!TxBatch::fits(usize::MAX, 12, false));
        let longest = (0..4096).rev().find(|&len| TxBatch::fits(len, 12, false));
        let with_headroom = (0..4096).rev().find(|&len| TxBatch::fits(len, 12, true));
        assert_eq!(longest.zip(with_headroom).map(|(a, b)| a - b), Some(256));
    }

    #[test]
    fn socket_of_a_tap_is_unlimited_and_without_xdp_wants_no_headroom() -> Result {
        let tap = Tap::new()?;
        let queue = TapQueue::of(tap.file()?)?;
        assert!(queue.socket().file() == &tap.file()?);
        assert!(queue.socket().is_unlimited());
        assert!(!queue.socket().wants_headroom());
        Ok(())
    }
}
