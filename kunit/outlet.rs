// SPDX-License-Identifier: GPL-2.0
//! `kext::port::outlet`.

#[kernel::macros::kunit_tests(rvhost_kext_outlet)]
mod tests {
    use kernel::{
        prelude::*,
        sync::Arc, //
    };

    use crate::{
        card::Card,
        kext::{
            errno,
            mm::OwnerMm,
            port::outlet::Outlet,
            usermem::UserMem,
            wait::Bell,
            xdp::{
                Source,
                TxBatch, //
            },
        },
        support::{
            map,
            soon,
            PAGE, //
        },
        vcore::addr::{
            Hva,
            Seg, //
        },
    };

    /// What is rung.
    const EVENT: u32 = 1 << 5;
    /// Bytes of the header before each packet.
    const HEADER: usize = 12;
    /// Bytes of a packet with its header.
    const LEN: usize = HEADER + 900;
    /// Bytes of memory that may be in flight.
    const LIMIT: i32 = 100_000;

    /// A device, a queue's way out by it, and the queue's bell.
    struct Way {
        card: Card,
        outlet: Outlet,
        bell: Arc<Bell>,
    }

    impl Way {
        fn new(limit: i32) -> Result<Self> {
            let card = Card::new()?;
            let bell = Arc::new(Bell::new(), GFP_KERNEL)?;
            let outlet = Outlet::new(card.device()?, limit, bell.clone(), EVENT)?;
            Ok(Self { card, outlet, bell })
        }

        /// Sends the packet that is at `at`.
        fn send(&self, user: &mut UserMem<'_>, at: Hva) -> Result {
            let len = LEN as u64;
            self.outlet.send(user, &[Seg { at, len }], 0, LEN, HEADER)
        }

        /// Sends as long as there is room. How many packets that were.
        fn fill(&self, user: &mut UserMem<'_>, at: Hva) -> Result<usize> {
            let mut n = 0;
            while self.outlet.room() > 0 {
                self.send(user, at)?;
                n += 1;
            }
            Ok(n)
        }
    }

    /// A packet whose header says nothing.
    fn packet() -> Result<(OwnerMm, Hva)> {
        map(1)
    }

    /// So many such packets.
    fn batch(user: &mut UserMem<'_>, at: Hva, count: usize) -> Result<TxBatch> {
        let mut batch = TxBatch::new()?;
        let len = LEN as u64;
        let segs = [Seg { at, len }];
        batch.begin(HEADER, false);
        for _ in 0..count {
            let source = Source {
                segs: &segs,
                skip: 0,
                len: LEN,
            };
            batch.add(user, &source).map_err(|_| EINVAL)?;
        }
        let mut faults = 0;
        batch.fill(user, |_, _| true, |_| faults += 1);
        if faults == 0 {
            Ok(batch)
        } else {
            Err(EFAULT)
        }
    }

    #[test]
    fn without_a_limit_there_is_always_room() -> Result {
        let way = Way::new(i32::MAX)?;
        let (mm, at) = packet()?;
        let mut user = mm.as_current().ok_or(EINVAL)?;
        for n in 1..=100 {
            way.send(&mut user, at)?;
            assert_eq!(way.card.sending(), n);
            assert_eq!(way.outlet.room(), usize::MAX);
            assert!(way.outlet.want());
        }
        way.card.sent(100);
        assert_eq!(way.bell.rung(), 0);
        Ok(())
    }

    #[test]
    fn bytes_count_until_they_are_sent() -> Result {
        let way = Way::new(LIMIT)?;
        let (mm, at) = packet()?;
        let mut user = mm.as_current().ok_or(EINVAL)?;
        let all = LIMIT as usize;
        assert_eq!(way.outlet.room(), all);
        way.send(&mut user, at)?;
        let each = all - way.outlet.room();
        // Its bytes, and the memory around them.
        assert!((900..10_000).contains(&each));
        way.send(&mut user, at)?;
        assert_eq!(way.outlet.room(), all - 2 * each);
        way.card.sent(1);
        assert_eq!(way.outlet.room(), all - each);
        way.card.sent(1);
        assert_eq!(way.outlet.room(), all);
        // In batches as well.
        let mut packets = batch(&mut user, at, 8)?;
        assert_eq!(way.outlet.send_batch(&mut packets), Ok(0));
        assert_eq!((packets.len(), way.card.sending()), (0, 8));
        assert!(way.outlet.room() <= all - 8 * 900);
        way.card.sent(8);
        assert_eq!(way.outlet.room(), all);
        // One packet more than there is room for; and no less than none.
        let sent = way.fill(&mut user, at)?;
        assert_eq!(sent, all.div_ceil(each));
        assert_eq!(way.outlet.room(), 0);
        way.send(&mut user, at)?;
        assert_eq!(way.outlet.room(), 0);
        way.card.sent(u32::MAX);
        assert_eq!(way.outlet.room(), all);
        Ok(())
    }

    #[test]
    fn bell_is_rung_when_half_is_free_if_that_is_wanted() -> Result {
        let way = Way::new(LIMIT)?;
        let (mm, at) = packet()?;
        let mut user = mm.as_current().ok_or(EINVAL)?;
        let all = way.fill(&mut user, at)?;
        assert!(all > 6);
        assert!(!way.outlet.want());
        let mut left = all;
        while !way.outlet.want() {
            assert_eq!(way.bell.rung(), 0);
            way.card.sent(1);
            left -= 1;
            if way.bell.rung() != 0 {
                break;
            }
        }
        assert_eq!(way.bell.answer(EVENT), EVENT);
        assert!(left > all / 3 && left <= all / 2 + 1);
        // It was wanted once.
        way.card.sent(u32::MAX);
        assert_eq!(way.bell.rung(), 0);
        way.fill(&mut user, at)?;
        assert!(!way.outlet.want());
        way.outlet.want_none();
        way.card.sent(u32::MAX);
        assert_eq!(way.bell.rung(), 0);
        Ok(())
    }

    #[test]
    fn limit_may_change_while_packets_are_in_flight() -> Result {
        let way = Way::new(LIMIT)?;
        let (mm, at) = packet()?;
        let mut user = mm.as_current().ok_or(EINVAL)?;
        let before = way.fill(&mut user, at)?;
        assert!(!way.outlet.want());
        way.outlet.set_limit(i32::MAX);
        assert_eq!(way.bell.answer(EVENT), EVENT);
        assert_eq!(way.outlet.room(), usize::MAX);
        // These count no more than those of any queue without a limit.
        way.send(&mut user, at)?;
        way.outlet.set_limit(LIMIT);
        assert_eq!(way.outlet.room(), 0);
        way.card.sent(before as u32);
        assert_eq!(way.outlet.room(), LIMIT as usize);
        way.card.sent(1);
        // A limit below what sockets have at least.
        way.outlet.set_limit(1);
        assert!((1000..10_000).contains(&way.outlet.room()));
        Ok(())
    }

    #[test]
    fn packets_outlive_who_sent_them() -> Result {
        let Way { card, outlet, bell } = Way::new(LIMIT)?;
        let (mm, at) = packet()?;
        let mut user = mm.as_current().ok_or(EINVAL)?;
        for _ in 0..10 {
            let len = LEN as u64;
            outlet.send(&mut user, &[Seg { at, len }], 0, LEN, HEADER)?;
        }
        assert!(!outlet.want());
        drop(outlet);
        assert_eq!(card.sending(), 10);
        card.sent(10);
        assert_eq!(bell.rung(), 0);
        Ok(())
    }

    #[test]
    fn what_cannot_be_sent_is_refused() -> Result {
        let way = Way::new(LIMIT)?;
        let (mm, at) = packet()?;
        let mut user = mm.as_current().ok_or(EINVAL)?;
        let len = 17 * PAGE;
        let long = [Seg { at, len }];
        let mut send = |len, header| way.outlet.send(&mut user, &long, 0, len, header);
        assert_eq!(send(HEADER - 1, HEADER), Err(EMSGSIZE));
        assert_eq!(send((1 << 16) + 65, HEADER), Err(EMSGSIZE));
        assert_eq!(send(18 * PAGE as usize, HEADER), Err(EFAULT));
        // More than is mapped, and more than the device's MTU.
        assert_eq!(send(2 * PAGE as usize, HEADER), Err(EFAULT));
        assert_eq!(send(HEADER + 1100, HEADER), Err(EINVAL));
        // A kind of segments that there is not.
        assert_eq!(user.write(at, &[0, 0x55]), Ok(()));
        assert_eq!(way.send(&mut user, at), Err(EINVAL));
        assert_eq!(way.card.sending(), 0);
        assert_eq!(way.outlet.room(), LIMIT as usize);
        assert_eq!(way.card.state()?.tx_dropped, 2);
        Ok(())
    }

    #[test]
    fn device_that_goes_takes_no_more_and_is_let_go() -> Result {
        let way = Way::new(LIMIT)?;
        let (mm, at) = packet()?;
        let mut user = mm.as_current().ok_or(EINVAL)?;
        let mut packets = batch(&mut user, at, 8)?;
        assert!(way.outlet.device().named().name() == Some("rvkcard"));
        // Waits until nobody has a reference.
        way.card.remove();
        assert!(way.outlet.device().is_gone());
        assert_eq!(way.send(&mut user, at), Err(errno::ebadfd()));
        let refused = way.outlet.send_batch(&mut packets);
        assert_eq!(refused, Err(errno::ebadfd()));
        assert_eq!(packets.len(), 0);
        assert_eq!(way.card.sending(), 0);
        assert!(soon(|| way.outlet.room() == LIMIT as usize));
        Ok(())
    }
}
