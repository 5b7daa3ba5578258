// SPDX-License-Identifier: GPL-2.0
//! `kext::socket`.

#[kernel::macros::kunit_tests(rvhost_kext_socket)]
mod tests {
    use kernel::prelude::*;

    use crate::{
        kext::{
            errno,
            packets::{
                Headers,
                Packets, //
            },
            socket::Socket,
            tun::TapQueue,
        },
        support::{
            map,
            unmap,
            Fd,
            Tap,
            O_RDWR,
            PAGE,
            TUNSETSNDBUF, //
        },
        vcore::addr::Seg, //
    };

    /// A frame to all, of a protocol that nobody knows.
    const FRAME: [u8; 70] = {
        let mut bytes = [7; 70];
        let mut i = 0;
        while i < 6 {
            bytes[i] = 0xff;
            i += 1;
        }
        bytes[12] = 0x88;
        bytes[13] = 0xb5;
        bytes
    };

    #[test]
    fn only_raw_packet_sockets_are_packet_sockets() -> Result {
        let null = Fd::open(c"/dev/null", O_RDWR)?;
        let refused = Socket::packet(null.file()?).err();
        assert!(refused == Some(null.file()?));
        let tap = Tap::new()?;
        let refused = Socket::packet(tap.file()?).err();
        assert!(refused == Some(tap.file()?));
        let fd = tap.packet_socket()?;
        let socket = Socket::packet(fd.file()?).map_err(|_| EINVAL)?;
        assert!(socket.file() == &fd.file()?);
        Ok(())
    }

    #[test]
    fn tap_is_unlimited_until_told_otherwise() -> Result {
        let (tap, queue) = Tap::with_queue()?;
        assert!(queue.socket().is_unlimited());
        tap.set(TUNSETSNDBUF, 4096)?;
        assert!(!queue.socket().is_unlimited());
        Ok(())
    }

    #[test]
    fn packet_is_sent_from_user_memory_without_what_is_skipped() -> Result {
        let (mm, at) = map(1)?;
        let mut user = mm.as_current().ok_or(EINVAL)?;
        let (tap, queue) = Tap::with_queue()?;
        assert_eq!(user.write(at.at(15), &FRAME), Ok(()));
        let segs = [
            Seg { at, len: 40 },
            Seg {
                at: at.at(40),
                len: 100,
            },
        ];
        let sent = queue.socket().send(&mut user, &segs, 5, 80, false);
        assert_eq!(sent, Ok(()));
        let mut bytes = [0; 70];
        let seen = tap.next(&mut bytes).ok_or(ENOENT)?;
        assert_eq!(seen.len, 70);
        assert_eq!(bytes, FRAME);
        Ok(())
    }

    #[test]
    fn packet_that_cannot_be_read_is_not_sent() -> Result {
        let (mm, at) = map(2)?;
        let mut user = mm.as_current().ok_or(EINVAL)?;
        let (tap, queue) = Tap::with_queue()?;
        // Nothing is mapped after that, which could take its place.
        unmap(at.at(PAGE))?;
        let segs = [Seg {
            at: at.at(PAGE - 40),
            len: 80,
        }];
        let sent = queue.socket().send(&mut user, &segs, 0, 80, false);
        assert_eq!(sent, Err(EFAULT));
        assert_eq!(tap.waiting(), 0);
        Ok(())
    }

    #[test]
    fn sender_is_told_when_the_buffer_is_full_and_may_go_on_later() -> Result {
        let (mm, at) = map(1)?;
        let mut user = mm.as_current().ok_or(EINVAL)?;
        let (tap, queue) = Tap::with_queue()?;
        tap.set(TUNSETSNDBUF, 8192)?;
        assert_eq!(user.write(at.at(10), &FRAME), Ok(()));
        let segs = [Seg { at, len: 80 }];
        // The frames stay with who has seen them, and so count.
        let mut sent = 0;
        let full = loop {
            match queue.socket().send(&mut user, &segs, 0, 80, false) {
                Ok(()) if sent < 200 => sent += 1,
                other => break other,
            }
        };
        assert_eq!(full, Err(EAGAIN));
        assert!(sent > 1);
        assert_eq!(tap.waiting(), sent);
        while tap.next(&mut []).is_some() {}
        let again = queue.socket().send(&mut user, &segs, 0, 80, false);
        assert_eq!(again, Ok(()));
        Ok(())
    }

    #[test]
    fn socket_without_a_device_is_in_a_bad_state() -> Result {
        let (mm, at) = map(1)?;
        let mut user = mm.as_current().ok_or(EINVAL)?;
        let file = Fd::open(c"/dev/net/tun", O_RDWR)?;
        let queue = TapQueue::of(file.file()?)?;
        let segs = [Seg { at, len: 80 }];
        let sent = queue.socket().send(&mut user, &segs, 0, 80, false);
        assert_eq!(sent.err(), Some(errno::ebadfd()));
        Ok(())
    }

    #[test]
    fn segments_shorter_than_the_packet_are_refused() -> Result {
        let (mm, at) = map(1)?;
        let mut user = mm.as_current().ok_or(EINVAL)?;
        let tap = Tap::new()?;
        let fd = tap.packet_socket()?;
        let socket = Socket::packet(fd.file()?).map_err(|_| EINVAL)?;
        let segs = [Seg { at, len: 80 }];
        for (skip, len) in [(0, 81), (1, 80), (81, 0), (usize::MAX, 80), (1, usize::MAX)] {
            let sent = socket.send(&mut user, &segs, skip, len, false);
            assert_eq!(sent, Err(EFAULT));
            let received = socket.receive(&mut user, &segs, skip, len);
            assert_eq!(received, Err(EFAULT));
        }
        assert_eq!(socket.send(&mut user, &[], 0, 1, false), Err(EFAULT));
        Ok(())
    }

    /// Has the TAP bring in a frame of `len` bytes.
    fn bring_in(tap: &Tap, len: usize, fill: u8) -> Result {
        let (mm, at) = map(1)?;
        let mut user = mm.as_current().ok_or(EINVAL)?;
        let queue = TapQueue::of(tap.file()?)?;
        user.write(at.at(10), &FRAME[..14]).map_err(|_| EFAULT)?;
        user.write(at.at(24), &[fill; 100]).map_err(|_| EFAULT)?;
        let segs = [Seg { at, len: 4096 }];
        queue.socket().send(&mut user, &segs, 0, len + 10, false)
    }

    #[test]
    fn packets_are_peeked_at_received_and_discarded_in_order() -> Result {
        let (mm, at) = map(1)?;
        let mut user = mm.as_current().ok_or(EINVAL)?;
        let tap = Tap::new()?;
        let fd = tap.packet_socket()?;
        let socket = Socket::packet(fd.file()?).map_err(|_| EINVAL)?;
        assert!(socket.peek().is_none());
        for (len, fill) in [(60, 1), (70, 2), (80, 3)] {
            bring_in(&tap, len, fill)?;
        }
        assert_eq!(socket.peek(), Some(60));
        assert_eq!(socket.peek(), Some(60));
        let segs = [Seg { at, len: 200 }];
        assert_eq!(socket.receive(&mut user, &segs, 12, 60), Ok(60));
        let mut out = [9; 80];
        assert_eq!(user.read(at, &mut out), Ok(()));
        assert_eq!(out[..12], [0; 12]);
        assert_eq!(out[12..26], FRAME[..14]);
        assert_eq!(out[26..72], [1; 46]);
        assert_eq!(out[72..], [0; 8]);
        assert_eq!(socket.peek(), Some(70));
        socket.discard();
        assert_eq!(socket.peek(), Some(80));
        // With less room than it takes, its length is told all the same.
        assert_eq!(socket.receive(&mut user, &segs, 0, 20), Ok(80));
        assert!(socket.peek().is_none());
        let none = socket.receive(&mut user, &segs, 0, 20);
        assert_eq!(none, Err(EAGAIN));
        socket.discard();
        Ok(())
    }

    #[test]
    fn packet_that_cannot_be_written_is_lost_with_an_error() -> Result {
        let (mm, at) = map(2)?;
        let mut user = mm.as_current().ok_or(EINVAL)?;
        let tap = Tap::new()?;
        let fd = tap.packet_socket()?;
        let socket = Socket::packet(fd.file()?).map_err(|_| EINVAL)?;
        bring_in(&tap, 60, 1)?;
        unmap(at.at(PAGE))?;
        let segs = [Seg {
            at: at.at(PAGE - 30),
            len: 60,
        }];
        let received = socket.receive(&mut user, &segs, 0, 60);
        assert_eq!(received, Err(EFAULT));
        Ok(())
    }

    #[test]
    fn packet_socket_sends_through_its_device() -> Result {
        let (mm, at) = map(1)?;
        let mut user = mm.as_current().ok_or(EINVAL)?;
        let (tap, queue) = Tap::with_queue()?;
        let fd = tap.packet_socket()?;
        let socket = Socket::packet(fd.file()?).map_err(|_| EINVAL)?;
        assert_eq!(user.write(at, &FRAME), Ok(()));
        let segs = [Seg { at, len: 70 }];
        assert_eq!(socket.send(&mut user, &segs, 0, 70, false), Ok(()));
        let mut packets = Packets::new()?;
        assert_eq!(queue.receive(&mut packets), 1);
        packets.describe(Headers {
            tunnel: false,
            blank: false,
            hashed: false,
        });
        let view = packets.get(0).ok_or(ENOENT)?;
        assert!(view.bytes() == Some(&FRAME));
        Ok(())
    }
}
