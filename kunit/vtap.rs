// SPDX-License-Identifier: GPL-2.0
//! `kext::port::vtap`.

#[kernel::macros::kunit_tests(rvhost_kext_vtap)]
mod tests {
    use kernel::prelude::*;

    use crate::{
        card::MacVtap,
        kext::{
            errno,
            port::{
                rss::Rss,
                vtap::VtapQueue, //
            },
            tun::TapQueue,
        },
        support::{
            settle,
            Fd,
            Tap, //
        },
        vcore::rss::types,
    };

    /// Another queue of a MacVTap, as rvhost receives from it.
    fn join(device: &MacVtap, hashes: bool) -> Result<(Fd, TapQueue, VtapQueue)> {
        let file = device.queue()?;
        let tap = TapQueue::of(file.file()?)?;
        let queue = VtapQueue::join(&tap, hashes)?.ok_or(ENODEV)?;
        Ok((file, tap, queue))
    }

    fn no_change(_: &mut Rss) -> Result {
        Ok(())
    }

    #[test]
    fn tap_has_no_such_port() -> Result {
        let (_tap, queue) = Tap::with_queue()?;
        assert!(VtapQueue::join(&queue, true)?.is_none());
        Ok(())
    }

    #[test]
    fn device_distributes_until_it_is_said_how() -> Result {
        let device = MacVtap::new()?;
        let before = device.state()?;
        let (file, tap, queue) = join(&device, false)?;
        let port = queue.port().clone();
        assert!(!device.state()?.hooked);
        assert_eq!(port.rss().err(), Some(errno::enotconn()));
        assert_eq!(port.rebalance(1).err(), Some(errno::enotconn()));
        let refused = port.change_rss(|_| Err(EDOM));
        assert_eq!(refused, Err(EDOM));
        assert!(!device.state()?.hooked);
        assert_eq!(port.change_rss(no_change), Ok(()));
        assert!(device.state()?.hooked);
        let rss = port.rss()?;
        assert!(rss.even && rss.types == types::ALL);
        assert_eq!(port.rebalance(1), Ok(0));
        // It ends with the last queue, whoever has the port.
        drop(queue);
        assert!(!device.state()?.hooked);
        assert_eq!(port.rss().err(), Some(errno::enotconn()));
        drop((port, tap, file));
        settle();
        assert_eq!(device.state()?.refs, before.refs);
        Ok(())
    }

    #[test]
    fn hashes_are_had_from_the_start() -> Result {
        let device = MacVtap::new()?;
        let before = device.state()?;
        for _ in 0..3 {
            let first = join(&device, false)?;
            assert!(!device.state()?.hooked);
            let second = join(&device, true)?;
            assert!(device.state()?.hooked);
            let table = first.2.port().rss()?.table;
            assert!(table
                .entries()
                .iter()
                .zip([0, 1].iter().cycle())
                .all(|(a, b)| a == b));
            drop(second);
            // It stays so for the rest.
            assert!(device.state()?.hooked);
            assert!(first
                .2
                .port()
                .rss()?
                .table
                .entries()
                .iter()
                .all(|&queue| queue == 0));
            drop(first);
            assert!(!device.state()?.hooked);
            settle();
            assert_eq!(device.state()?.refs, before.refs);
        }
        Ok(())
    }

    #[test]
    fn device_that_goes_is_let_go() -> Result {
        for hashes in [false, true] {
            let device = MacVtap::new()?;
            let (_file, tap, queue) = join(&device, hashes)?;
            // Waits until nobody has a reference.
            assert!(device.remove());
            assert!(device.state().is_err());
            let port = queue.port();
            let changed = port.change_rss(no_change);
            assert_eq!(changed, Err(errno::ebadfd()));
            assert!(VtapQueue::join(&tap, hashes)?.is_none());
            // The device below has lost who takes what it receives.
            assert!(!device.card().state()?.handled);
        }
        Ok(())
    }
}
