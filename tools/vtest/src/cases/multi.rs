// SPDX-License-Identifier: GPL-2.0

//! Several queue pairs on one multiqueue TAP: one device each.

use std::os::fd::AsRawFd;
use std::thread;
use std::time::Duration;

use anyhow::bail;
use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;

use crate::case::Ctx;
use crate::case::Table;
use crate::device::RX;
use crate::frame::compare;
use crate::frame::NetHdr;
use crate::poll;
use crate::process;
use crate::tap::TapOptions;
use crate::traffic::expect;
use crate::traffic::Split;
use crate::vmm::Setup;
use crate::vmm::Vmm;

pub(super) fn register(table: &mut Table) {
    table.add("multi::two_pairs_send", |ctx| send(ctx, 2));
    table.add("multi::eight_pairs_send", |ctx| send(ctx, 8));
    table.add("multi::flows_come_back_on_the_pair_they_left_by", flows);
    table.add("multi::a_flow_that_moves_takes_its_answers_along", moves);
    table.add("multi::every_packet_arrives_on_some_pair", |ctx| {
        receive(ctx, 4)
    });
    table.add("multi::pair_closed_while_others_run", closed);
    table.add_long(
        "multi::pairs_256_of_which_half_are_disabled_and_enabled",
        Duration::from_secs(600),
        most,
    );
    table.add(
        "multi::pair_that_was_disabled_gets_its_answers_again",
        enabled_again,
    );
    table.add("multi::detached_queue_sends_but_receives_nothing", detached);
}

fn pairs(ctx: &Ctx, count: usize) -> Result<Vec<Vmm>> {
    pairs_with(ctx, count, 128)
}

fn pairs_with(ctx: &Ctx, count: usize, buffers: usize) -> Result<Vec<Vmm>> {
    let options = TapOptions {
        multi_queue: true,
        ..TapOptions::default()
    };
    let setup = Setup::new().tap(options);
    let mut all = Vec::new();
    for _ in 0..count {
        let mut vmm = setup.build(ctx)?;
        vmm.post_rx(buffers, &[2048])?;
        all.push(vmm);
    }
    Ok(all)
}

/// Every pair has a socket on the interface; they all see every frame.
fn send(ctx: &Ctx, count: usize) -> Result<()> {
    let mut all = pairs(ctx, count)?;
    for round in 0..5 {
        for i in 0..count {
            let frame = all[i].tx_frames.plain(60 + 100 * round);
            all[i].queue_tx(&NetHdr::default(), &frame, &Split::HeaderAlone)?;
            all[i].tx.flush()?;
            for vmm in &all {
                vmm.expect_on_wire(&frame)
                    .with_context(|| format!("round {round}, from pair {i}"))?;
            }
            all[i].tx.wait_used()?;
        }
    }
    Ok(())
}

/// Takes the next packet that any of the pairs receives.
fn receive_any(all: &mut [Vmm]) -> Result<(usize, Vec<u8>)> {
    poll::wait_for("a packet on any pair", || {
        for (i, vmm) in all.iter_mut().enumerate() {
            if vmm.rx.ring.used_idx() != vmm.rx.used_seen() {
                let received = vmm.recv()?;
                vmm.repost(&received)?;
                return Ok(Some((i, received.frame)));
            }
        }
        Ok(None)
    })
}

/// The TAP learns from what a queue sends where the answers go.
fn flows(ctx: &Ctx) -> Result<()> {
    let mut all = pairs(ctx, 4)?;
    for flow in 0..16u16 {
        let by = usize::from(flow) % all.len();
        let out = all[by].tx_frames.udp4(100, 1000 + flow, 2000);
        all[by].queue_tx(&NetHdr::default(), &out, &Split::Whole)?;
        all[by].tx.flush()?;
        all[by].expect_on_wire(&out)?;
        all[by].tx.wait_used()?;
        for _ in 0..4 {
            let back = all[by].rx_frames.udp4(100, 2000, 1000 + flow);
            all[by].wire.send(&NetHdr::default(), &back)?;
            let (on, frame) = receive_any(&mut all)?;
            compare("answer", &frame, &back)?;
            expect(&format!("pair of the answers to flow {flow}"), on, by)?;
        }
        for vmm in &all {
            while vmm.wire.try_recv()?.is_some() {}
        }
    }
    Ok(())
}

/// Flows are sent in batches, new ones among old ones, and stay in order. One that has not been
/// sent by a pair for over a second may be sent by it anew.
fn moves(ctx: &Ctx) -> Result<()> {
    let mut all = pairs(ctx, 2)?;
    for (round, by) in [0, 1, 0].into_iter().enumerate() {
        for batch in 0..4u16 {
            let mut sent = Vec::new();
            for i in 0..12u16 {
                // The last ones of each batch are of flows that nobody has seen.
                let flow = if i < 8 { i % 4 } else { 100 * batch + i };
                let len = 60 + usize::from(i);
                let frame = all[by].tx_frames.udp4(len, 1000 + flow, 2000);
                all[by].queue_tx(&NetHdr::default(), &frame, &Split::Whole)?;
                sent.push(frame);
            }
            all[by].tx.flush()?;
            for (i, frame) in sent.iter().enumerate() {
                all[by]
                    .expect_on_wire(frame)
                    .with_context(|| format!("round {round}, batch {batch}, packet {i}"))?;
            }
            all[by].tx.wait_used()?;
        }
        for flow in 0..4 {
            let back = all[by].rx_frames.udp4(100, 2000, 1000 + flow);
            all[by].wire.send(&NetHdr::default(), &back)?;
            let (on, frame) = receive_any(&mut all)?;
            compare("answer", &frame, &back)?;
            expect(
                &format!("round {round}: pair of answers to flow {flow}"),
                on,
                by,
            )?;
        }
        for vmm in &all {
            while vmm.wire.try_recv()?.is_some() {}
        }
        thread::sleep(Duration::from_millis(1500));
    }
    Ok(())
}

fn receive(ctx: &Ctx, count: usize) -> Result<()> {
    let mut all = pairs(ctx, count)?;
    let mut waiting = Vec::new();
    for i in 0..200u16 {
        let frame = all[0].rx_frames.udp4(200, 5000 + i, 6000);
        all[0].wire.send(&NetHdr::default(), &frame)?;
        waiting.push(frame);
    }
    let mut hits = vec![0; count];
    while !waiting.is_empty() {
        let (on, frame) = receive_any(&mut all)?;
        hits[on] += 1;
        let Some(at) = waiting.iter().position(|sent| *sent == frame) else {
            bail!("pair {on} received a frame that was not sent or came twice");
        };
        waiting.remove(at);
    }
    ensure!(
        hits.iter().filter(|hits| **hits > 0).count() > 1,
        "all packets came by one pair: {hits:?}"
    );
    Ok(())
}

fn closed(ctx: &Ctx) -> Result<()> {
    let mut all = pairs(ctx, 3)?;
    for _ in 0..2 {
        drop(all.remove(0));
        for i in 0..30u16 {
            let frame = all[0].rx_frames.udp4(200, 5000 + i, 6000);
            all[0].wire.send(&NetHdr::default(), &frame)?;
            let (_, seen) = receive_any(&mut all)?;
            compare("frame", &seen, &frame)?;
        }
        let frame = all[0].tx_frames.plain(60);
        all[0].queue_tx(&NetHdr::default(), &frame, &Split::Whole)?;
        all[0].tx.flush()?;
        all[0].expect_on_wire(&frame)?;
        all[0].tx.wait_used()?;
    }
    Ok(())
}

/// A packet that leaves by a pair has its answer come on it. The first pair's wire sees them.
fn answered(all: &mut [Vmm], by: usize, ports: (u16, u16)) -> Result<()> {
    let out = all[by].tx_frames.udp4(100, ports.0, ports.1);
    all[by].queue_tx(&NetHdr::default(), &out, &Split::Whole)?;
    all[by].tx.flush()?;
    all[0].expect_on_wire(&out)?;
    all[by].tx.wait_used()?;
    let back = all[by].rx_frames.udp4(100, ports.1, ports.0);
    all[0].wire.send(&NetHdr::default(), &back)?;
    let (on, frame) = receive_any(all)?;
    compare("answer", &frame, &back)?;
    expect("pair of the answer", on, by)
}

/// The TAP forgets the last queue's flows when those before it are detached too.
fn enabled_again(ctx: &Ctx) -> Result<()> {
    let mut all = pairs(ctx, 3)?;
    for _ in 0..2 {
        for flow in 0..8 {
            answered(&mut all, 2, (1000 + flow, 2000))?;
        }
        for i in [2, 1] {
            all[i].stop()?;
            all[i].tap.attach(false)?;
        }
        for i in [1, 2] {
            all[i].tap.attach(true)?;
            all[i].start()?;
        }
    }
    Ok(())
}

/// As many pairs as a TAP has queues. The guest changes how many of them it uses: the others are stopped,
/// and their TAP queues detached.
fn most(ctx: &Ctx) -> Result<()> {
    const MOST: usize = 256;
    process::raise_file_limit(16 * MOST as u64)?;
    let mut all = pairs_with(ctx, MOST, 4)?;
    for used in [MOST, MOST / 2, MOST] {
        for vmm in &all[used..] {
            vmm.stop()?;
            vmm.tap.attach(false)?;
        }
        for by in (0..used).step_by(17) {
            answered(&mut all, by, (1000 + by as u16, 2000 + used as u16))?;
        }
        for vmm in &all[used..] {
            vmm.tap.attach(true)?;
            vmm.start()?;
        }
    }
    Ok(())
}

/// QEMU leaves the device bound to queues that the guest has disabled.
fn detached(ctx: &Ctx) -> Result<()> {
    let mut all = pairs(ctx, 2)?;
    all[1].tap.attach(false)?;
    for i in 0..30u16 {
        let frame = all[0].rx_frames.udp4(200, 5000 + i, 6000);
        all[0].wire.send(&NetHdr::default(), &frame)?;
        let (on, _) = receive_any(&mut all)?;
        expect("pair", on, 0)?;
    }
    let frame = all[1].tx_frames.plain(60);
    all[1].queue_tx(&NetHdr::default(), &frame, &Split::Whole)?;
    all[1].tx.flush_and_kick()?;
    all[1].tx.wait_used().context("on the detached queue")?;
    all[1].stop()?;
    all[1].tap.attach(true)?;
    all[1].start()?;
    expect(
        "open descriptor",
        all[1].tap.as_raw_fd() >= 0 && all[1].base(RX)? == 0,
        true,
    )?;
    let mut hits = [0; 2];
    for i in 0..60u16 {
        let frame = all[0].rx_frames.udp4(200, 7000 + i, 6000);
        all[0].wire.send(&NetHdr::default(), &frame)?;
        hits[receive_any(&mut all)?.0] += 1;
    }
    ensure!(hits[1] > 0, "the attached queue receives nothing again");
    Ok(())
}
