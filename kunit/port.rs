// SPDX-License-Identifier: GPL-2.0
//! `kext::port`: ports on network devices, and how they choose a queue.

#[kernel::macros::kunit_tests(rvhost_kext_port)]
mod tests {
    use kernel::{
        prelude::*,
        sync::Arc, //
    };

    use crate::{
        card::Card,
        kext::{
            netdev::{
                NetDev,
                Which, //
            },
            packets::Packets,
            port::{
                Port,
                PortQueue,
                Wanted,
                MAX_QUEUES, //
            },
            wait::Bell, //
        },
        vcore::rss::{
            types,
            Key,
            Table, //
        },
    };

    /// Whose the ports are.
    const OWNER: usize = 1;
    /// What is rung.
    const EVENT: u32 = 1 << 3;

    const WANTED: Wanted = Wanted {
        queue: None,
        promiscuous: false,
        all_groups: false,
        alone: false,
        offloads: 0,
        ring: 64,
        sndbuf: i32::MAX,
    };

    fn bell() -> Result<Arc<Bell>> {
        Ok(Arc::new(Bell::new(), GFP_KERNEL)?)
    }

    fn bind(card: &Card, wanted: &Wanted) -> Result<PortQueue> {
        Port::bind(card.device()?, wanted, OWNER, bell()?, EVENT)
    }

    fn numbered(card: &Card, number: usize) -> Result<PortQueue> {
        let wanted = Wanted {
            queue: Some(number),
            ..WANTED
        };
        bind(card, &wanted)
    }

    /// UDP over IPv4, of the flow with this number.
    fn frame(flow: u8) -> [u8; 60] {
        let mut frame = [0; 60];
        frame[..6].copy_from_slice(&[0xff; 6]);
        frame[6..16].copy_from_slice(&[2, 0, 0, 0, 0, 9, 8, 0, 0x45, 0]);
        frame[17] = 46;
        frame[22..24].copy_from_slice(&[64, 17]);
        frame[26..34].copy_from_slice(&[10, 0, 0, flow, 192, 0, 2, 1]);
        frame[34..40].copy_from_slice(&[8, flow, 1, 187, 0, 26]);
        frame
    }

    /// Takes what waits in a queue. How many that were.
    fn taken(queue: &PortQueue) -> usize {
        let mut n = 0;
        while queue.take().is_some() {
            n += 1;
        }
        n
    }

    /// Whether the table has these queues in turn.
    fn is_even(port: &Port, queues: &[u16]) -> bool {
        let rss = port.rss();
        let mut expected = queues.iter().cycle();
        rss.even
            && rss
                .table
                .entries()
                .iter()
                .all(|queue| expected.next() == Some(queue))
    }

    /// From now on this is the table.
    fn set_table(port: &Port, entries: &[u16]) -> Result {
        let table = Table::new(entries).ok_or(EINVAL)?;
        port.change_rss(|rss| {
            rss.table = table;
            rss.even = false;
            Ok(())
        })
    }

    #[test]
    fn device_is_found_by_index_and_name_or_refused() -> Result {
        let card = Card::new()?;
        assert!(card.device()?.named().name() == Some("rvkcard"));
        let mut name = [0; 16];
        name[..7].copy_from_slice(b"rvkcard");
        assert!(NetDev::get(&Which::Name(name)).is_ok());
        let refused = |which| NetDev::get(&which).err();
        assert_eq!(refused(Which::Name([b'x'; 16])), Some(ENODEV));
        assert_eq!(refused(Which::Name([0; 16])), Some(ENODEV));
        assert_eq!(refused(Which::Index(0)), Some(ENODEV));
        assert_eq!(refused(Which::Index(-1)), Some(ENODEV));
        // The loopback device.
        assert_eq!(refused(Which::Index(1)), Some(EINVAL));
        Ok(())
    }

    #[test]
    fn queues_have_the_lowest_free_number_or_their_own() -> Result {
        let card = Card::new()?;
        let (zero, one) = (bind(&card, &WANTED)?, bind(&card, &WANTED)?);
        let last = numbered(&card, MAX_QUEUES - 1)?;
        let numbers = [&zero, &one, &last].map(PortQueue::number);
        assert_eq!(numbers, [0, 1, MAX_QUEUES - 1]);
        assert!(zero.port() == last.port());
        assert_eq!(numbered(&card, 1).err(), Some(EBUSY));
        assert_eq!(numbered(&card, MAX_QUEUES).err(), Some(EINVAL));
        assert_eq!(numbered(&card, usize::MAX).err(), Some(EINVAL));
        drop(zero);
        assert_eq!(bind(&card, &WANTED)?.number(), 0);
        Ok(())
    }

    #[test]
    fn more_queues_than_there_are_numbers_are_refused() -> Result {
        let card = Card::new()?;
        let mut all = KVec::new();
        for number in 0..MAX_QUEUES {
            let queue = bind(&card, &WANTED)?;
            assert_eq!(queue.number(), number);
            all.push(queue, GFP_KERNEL)?;
        }
        assert_eq!(bind(&card, &WANTED).err(), Some(E2BIG));
        drop(all);
        assert!(!card.state()?.handled);
        Ok(())
    }

    #[test]
    fn table_follows_the_queues_until_it_is_set() -> Result {
        let card = Card::new()?;
        let zero = bind(&card, &WANTED)?;
        let port = zero.port();
        assert!(is_even(port, &[0]));
        let one = bind(&card, &WANTED)?;
        let five = numbered(&card, 5)?;
        assert!(is_even(port, &[0, 1, 5]));
        assert_eq!(one.set_open(false), Ok(()));
        assert!(is_even(port, &[0, 5]));
        assert_eq!(one.set_open(false), Err(EINVAL));
        assert_eq!(one.set_open(true), Ok(()));
        assert!(is_even(port, &[0, 1, 5]));
        drop(one);
        assert!(is_even(port, &[0, 5]));
        set_table(port, &[5, 5, 0, 7])?;
        drop(five);
        let rss = port.rss();
        assert!(!rss.even && rss.table.entries() == [5, 5, 0, 7]);
        // A change that is refused changes nothing.
        let refused = port.change_rss(|rss| {
            rss.types = 0;
            Err(EDOM)
        });
        assert_eq!(refused, Err(EDOM));
        assert_eq!(port.rss().types, types::ALL);
        assert_eq!(
            port.change_rss(|rss| {
                rss.even = true;
                Ok(())
            }),
            Ok(())
        );
        assert!(is_even(port, &[0]));
        Ok(())
    }

    #[test]
    fn packets_go_to_the_queue_of_their_entry() -> Result {
        let card = Card::new()?;
        let queues = [
            bind(&card, &WANTED)?,
            bind(&card, &WANTED)?,
            bind(&card, &WANTED)?,
        ];
        let port = queues[0].port();
        let at = |frame: &[u8]| -> Result<[usize; 3]> {
            card.receive(frame)?;
            Ok(queues.each_ref().map(taken))
        };
        set_table(port, &[1])?;
        assert_eq!(at(&frame(1))?, [0, 1, 0]);
        set_table(port, &[2, 2])?;
        assert_eq!(at(&frame(1))?, [0, 0, 1]);
        // One that is not there: the lowest that is.
        set_table(port, &[200])?;
        assert_eq!(at(&frame(1))?, [1, 0, 0]);
        assert_eq!(port.carried().sum::<u64>(), 3);
        // What has no flow is not of the table.
        let unclassified = |queue| {
            port.change_rss(|rss| {
                rss.unclassified = queue;
                Ok(())
            })
        };
        unclassified(1)?;
        assert_eq!(at(&[0xff; 60])?, [0, 1, 0]);
        unclassified(99)?;
        assert_eq!(at(&[0xff; 14])?, [1, 0, 0]);
        assert_eq!(port.carried().sum::<u64>(), 3);
        // A queue that is closed leaves its packets to others, and loses those that it had.
        set_table(port, &[2])?;
        card.receive(&frame(1))?;
        assert_eq!(queues[2].set_open(false), Ok(()));
        assert_eq!(taken(&queues[2]), 0);
        assert_eq!(at(&frame(1))?, [1, 0, 0]);
        Ok(())
    }

    #[test]
    fn only_queue_takes_all_and_hashes_if_that_is_wanted() -> Result {
        let card = Card::new()?;
        let one = bind(&card, &WANTED)?;
        let port = one.port();
        let count = || -> Result<u64> {
            card.receive(&frame(1))?;
            assert_eq!(taken(&one), 1);
            Ok(port.carried().sum())
        };
        assert_eq!(count()?, 0);
        one.want_hashes();
        assert_eq!(count()?, 1);
        // A second one needs the table, and when it is gone, who wants hashes still has them.
        let two = bind(&card, &WANTED)?;
        set_table(port, &[0])?;
        assert_eq!(count()?, 2);
        port.change_rss(|rss| {
            rss.even = true;
            Ok(())
        })?;
        drop(two);
        assert_eq!(count()?, 3);
        Ok(())
    }

    #[test]
    fn only_queue_is_known_by_any_number() -> Result {
        let card = Card::new()?;
        let five = numbered(&card, 5)?;
        card.receive(&frame(1))?;
        assert_eq!(taken(&five), 1);
        assert_eq!(five.port().carried().sum::<u64>(), 0);
        let one = bind(&card, &WANTED)?;
        for flow in 0..16 {
            card.receive(&frame(flow))?;
        }
        assert_eq!(taken(&one) + taken(&five), 16);
        assert_eq!(one.port().carried().sum::<u64>(), 16);
        Ok(())
    }

    #[test]
    fn flows_are_spread_by_the_hash_of_their_key() -> Result {
        let card = Card::new()?;
        let queues = [bind(&card, &WANTED)?, bind(&card, &WANTED)?];
        let port = queues[0].port();
        // Under a key of zeroes all flows are one.
        let with_key = |key| {
            port.change_rss(|rss| {
                rss.key = key;
                Ok(())
            })
        };
        with_key(Key([0; 40]))?;
        for flow in 0..32 {
            card.receive(&frame(flow))?;
        }
        assert_eq!(queues.each_ref().map(taken), [32, 0]);
        let mut key = [0; 40];
        for (byte, value) in key.iter_mut().zip(1u8..) {
            *byte = value.wrapping_mul(167);
        }
        with_key(Key(key))?;
        for flow in 0..64 {
            card.receive(&frame(flow))?;
        }
        let [zero, one] = queues.each_ref().map(taken);
        assert_eq!(zero + one, 64);
        assert!(zero > 8 && one > 8);
        Ok(())
    }

    #[test]
    fn busy_entries_move_to_idle_queues() -> Result {
        let card = Card::new()?;
        let zero = bind(&card, &WANTED)?;
        let one = bind(&card, &WANTED)?;
        let port = zero.port();
        set_table(port, &[0; 128])?;
        assert_eq!(port.rebalance(0), Ok(0));
        for flow in 0..60 {
            card.receive(&frame(flow))?;
        }
        assert_eq!((taken(&zero), taken(&one)), (60, 0));
        assert_eq!(port.rebalance(1), Ok(1));
        let moved = |port: &Port| {
            let table = port.rss().table;
            table.entries().iter().filter(|&&queue| queue == 1).count()
        };
        assert_eq!(moved(port), 1);
        // They have carried nothing since.
        assert_eq!(port.rebalance(usize::MAX), Ok(0));
        for flow in 0..60 {
            card.receive(&frame(flow))?;
        }
        let more = port.rebalance(usize::MAX)?;
        assert!(more > 0);
        assert_eq!(moved(port), 1 + more);
        assert!(!port.rss().even);
        Ok(())
    }

    #[test]
    fn full_ring_drops_and_counts() -> Result {
        let card = Card::new()?;
        let short = Wanted { ring: 2, ..WANTED };
        let queue = bind(&card, &short)?;
        for _ in 0..5 {
            card.receive(&frame(1))?;
        }
        assert_eq!(card.state()?.rx_dropped, 3);
        let mut packets = Packets::new()?;
        assert_eq!(queue.receive(&mut packets), 2);
        assert!(queue.is_empty());
        // What was not passed on goes back to the front.
        queue.put_back(&mut packets);
        assert_eq!(taken(&queue), 2);
        Ok(())
    }

    #[test]
    fn bell_is_rung_for_a_packet_that_is_wanted() -> Result {
        let card = Card::new()?;
        let bell = bell()?;
        let queue = Port::bind(card.device()?, &WANTED, OWNER, bell.clone(), EVENT)?;
        card.receive(&frame(1))?;
        assert_eq!(bell.rung(), 0);
        // It is there already.
        assert!(queue.want());
        assert_eq!(taken(&queue), 1);
        assert!(!queue.want());
        card.receive(&frame(1))?;
        assert_eq!(bell.answer(EVENT), EVENT);
        // Once.
        card.receive(&frame(1))?;
        assert_eq!(bell.rung(), 0);
        assert_eq!(taken(&queue), 2);
        assert!(!queue.want());
        queue.want_none();
        card.receive(&frame(1))?;
        assert_eq!(bell.rung(), 0);
        Ok(())
    }

    #[test]
    fn what_cannot_be_is_refused_and_leaves_nothing() -> Result {
        let card = Card::new()?;
        let before = card.state()?;
        for bad in [
            Wanted { ring: 0, ..WANTED },
            Wanted {
                ring: 65_537,
                ..WANTED
            },
            Wanted {
                offloads: 1 << 7,
                ..WANTED
            },
            Wanted {
                queue: Some(MAX_QUEUES),
                ..WANTED
            },
        ] {
            assert_eq!(bind(&card, &bad).err(), Some(EINVAL));
        }
        let after = card.state()?;
        assert!(!after.handled && after.refs == before.refs);
        let queue = bind(&card, &WANTED)?;
        let other = Port::bind(card.device()?, &WANTED, OWNER + 1, bell()?, EVENT);
        assert_eq!(other.err(), Some(EBUSY));
        let alone = Wanted {
            alone: true,
            ..WANTED
        };
        assert_eq!(bind(&card, &alone).err(), Some(EINVAL));
        drop(queue);
        let queue = bind(&card, &alone)?;
        assert_eq!(bind(&card, &WANTED).err(), Some(EINVAL));
        assert_eq!(bind(&card, &alone).err(), Some(EBUSY));
        drop(queue);
        assert_eq!(card.state()?.refs, before.refs);
        Ok(())
    }

    #[test]
    fn handler_and_filters_go_with_the_last_queue() -> Result {
        let card = Card::new()?;
        let before = card.state()?;
        let open = Wanted {
            promiscuous: true,
            all_groups: true,
            ..WANTED
        };
        for _ in 0..3 {
            let queues = [bind(&card, &open)?, bind(&card, &open)?];
            let now = card.state()?;
            assert!(now.handled && now.refs > before.refs);
            assert_eq!((now.promiscuity, now.allmulti), (1, 1));
            let [zero, one] = queues;
            drop(zero);
            assert!(card.state()?.handled);
            card.receive(&frame(1))?;
            assert_eq!(taken(&one), 1);
            drop(one);
            let after = card.state()?;
            assert!(!after.handled);
            assert_eq!(after.refs, before.refs);
            assert_eq!((after.promiscuity, after.allmulti), (0, 0));
        }
        Ok(())
    }

    #[test]
    fn device_that_goes_is_let_go_and_told_of() -> Result {
        let card = Card::new()?;
        let bell = bell()?;
        let dev = card.device()?;
        let queue = Port::bind(dev.clone(), &WANTED, OWNER, bell.clone(), EVENT)?;
        card.receive(&frame(1))?;
        // Waits until nobody has a reference.
        card.remove();
        assert_eq!(bell.rung(), EVENT);
        assert!(dev.is_gone() && queue.port().is_gone());
        assert!(dev.named().name().is_none());
        // What was there can be taken still, and the rest is refused.
        assert_eq!(taken(&queue), 1);
        assert!(queue.set_open(false).is_err());
        assert!(queue.port().mac().is_none() && !queue.port().is_up());
        let again = Port::bind(dev, &WANTED, OWNER, bell, EVENT);
        assert_eq!(again.err(), Some(ENODEV));
        Ok(())
    }
}
