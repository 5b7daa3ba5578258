// SPDX-License-Identifier: GPL-2.0

//! Virtqueues on files that stand for queues of a network device.

use std::fs::File;

use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;

use super::front::pair;
use super::front::powerless;
use super::front::wait_read;
use super::front::EBADFD;
use super::front::EBUSY;
use super::front::EINVAL;
use super::netdev;
use super::netdev::FAR;
use super::netdev::NEAR;
use super::netdev::V1;
use crate::case::Ctx;
use crate::case::Table;
use crate::device::feature;
use crate::device::RX;
use crate::device::TX;
use crate::errno::Errno;
use crate::fdinfo::Fdinfo;
use crate::frame::compare;
use crate::frame::NetHdr;
use crate::frame::GUEST_MAC;
use crate::front;
use crate::front::tun;
use crate::front::MANY;
use crate::front::ONE;
use crate::ioctl::Raw;
use crate::ioctl::Rss;
use crate::net;
use crate::poll;
use crate::process;
use crate::tap::TUN_F_CSUM;
use crate::tap::TUN_F_TSO4;
use crate::traffic::expect;
use crate::traffic::Split;
use crate::vmm::Vmm;
use crate::wire::Wire;

pub(super) fn register(table: &mut Table) {
    for (name, bits) in [
        ("legacy", 0),
        ("version_1", V1),
        ("mergeable", V1 | feature::MRG_RXBUF),
        ("event_idx", V1 | feature::EVENT_IDX),
        ("stripped_header", V1 | feature::NET_HDR),
    ] {
        table.add(format!("front::vhost_carries_traffic_{name}"), move |ctx| {
            let (mut vmm, _file) = on_veth(ctx, bits)?;
            netdev::sizes(&mut vmm)
        });
    }
    table.add("front::macvlan_carries_traffic", macvlan);
    table.add("front::vhost_and_reader_take_turns", turns);
    table.add("front::offloads_are_those_of_all_queues", offloads);
    table.add("front::queues_are_detached_and_attached", detached);
    table.add("front::steered_by_any_file", steered);
    table.add("front::backend_is_shown", shown);
    table.add("front::backend_needs_a_device", unbound);
    table.add("front::closed_while_vhost_runs", closed);
    table.add("front::deleted_while_vhost_runs", deleted);
    table.add("front::used_by_who_may_not_bind", passed_on);
}

/// A machine whose queues run on a front file.
fn on_veth(ctx: &Ctx, features: u64) -> Result<(Vmm, File)> {
    let mut vmm = netdev::stopped(ctx, features, "vt0")?;
    netdev::pair()?;
    vmm.wire = Wire::open(FAR)?;
    let file = front::on(NEAR, ONE)?;
    run(&vmm, &file)?;
    Ok((vmm, file))
}

fn run(vmm: &Vmm, file: &File) -> Result<()> {
    vmm.set_backend(RX, Some(file))?;
    vmm.set_backend(TX, Some(file))
}

fn macvlan(ctx: &Ctx) -> Result<()> {
    let mut vmm = netdev::stopped(ctx, V1, "vt0")?;
    netdev::pair()?;
    net::add_macvlan(NEAR, "mv", GUEST_MAC)?;
    net::set_up("mv", true)?;
    vmm.wire = Wire::open(FAR)?;
    let file = front::on("mv", ONE)?;
    run(&vmm, &file)?;
    netdev::sizes(&mut vmm)?;
    // A group that nobody has joined on the host.
    let mut group = vmm.rx_frames.plain(100);
    group[..6].copy_from_slice(&[0x33, 0x33, 0xff, 1, 2, 3]);
    vmm.wire.send(&NetHdr::default(), &group)?;
    vmm.expect_in_guest(&group)?;
    vmm.check_alive()?;
    vmm.check_quiet()
}

fn turns(ctx: &Ctx) -> Result<()> {
    let (mut vmm, file) = on_veth(ctx, V1)?;
    Raw::of(&file)
        .put(tun::SETVNETHDRSZ, &12i32)
        .context("TUNSETVNETHDRSZ")?;
    vmm.post_rx(100, &[2048])?;
    for _ in 0..10 {
        vmm.check_alive()?;
        // Twice the same changes nothing.
        run(&vmm, &file)?;
        vmm.check_alive()?;
        vmm.stop()?;
        let frame = vmm.tx_frames.plain(100);
        let mut bytes = vec![0; 12];
        bytes.extend(&frame);
        expect("written", front::write(&file, &bytes), Ok(112))?;
        compare("written frame", &vmm.wire.recv()?.1, &frame)?;
        let first = vmm.send_rx(100)?;
        let second = vmm.send_rx(200)?;
        compare("frame that is read", &wait_read(&file, 2000)?[12..], &first)?;
        // What is not read waits for vhost.
        run(&vmm, &file)?;
        vmm.expect_in_guest(&second)?;
    }
    vmm.check_quiet()
}

/// Several machines on queues of one device.
fn several(ctx: &Ctx, count: usize) -> Result<(Vec<Vmm>, Vec<File>, Wire)> {
    let (mut vmms, mut files) = (Vec::new(), Vec::new());
    for i in 0..count {
        let mut vmm = netdev::stopped(ctx, V1 | feature::MRG_RXBUF, &format!("vt{i}"))?;
        if i == 0 {
            netdev::pair()?;
        }
        vmm.post_rx(250, &[2048])?;
        let file = front::on(NEAR, MANY)?;
        run(&vmm, &file)?;
        vmms.push(vmm);
        files.push(file);
    }
    Ok((vmms, files, Wire::open(FAR)?))
}

/// How many of `count` flows arrive on each queue.
fn spread(vmms: &mut [Vmm], far: &Wire, count: u16) -> Result<Vec<usize>> {
    let mut arrived = vec![0; vmms.len()];
    for i in 0..count {
        let frame = vmms[0].rx_frames.udp4(100, 1000 + i, 7);
        far.send(&NetHdr::default(), &frame)?;
        let queue = poll::wait_for("a packet on any queue", || {
            for (queue, vmm) in vmms.iter_mut().enumerate() {
                if vmm.rx.ring.used_idx() != vmm.rx.used_seen() {
                    let received = vmm.recv()?;
                    compare("frame", &received.frame, &frame)?;
                    vmm.repost(&received)?;
                    return Ok(Some(queue));
                }
            }
            Ok(None)
        })?;
        arrived[queue] += 1;
    }
    Ok(arrived)
}

fn offloads(ctx: &Ctx) -> Result<()> {
    let (mut vmms, files, far) = several(ctx, 3)?;
    // QEMU tells the first queue only.
    Raw::of(&files[0])
        .call(tun::SETOFFLOAD, (TUN_F_CSUM | TUN_F_TSO4) as usize)
        .context("TUNSETOFFLOAD")?;
    for (queue, vmm) in vmms.iter_mut().enumerate() {
        for (other, file) in files.iter().enumerate() {
            if front::get(file)?.1 & libc::IFF_DETACH_QUEUE == 0 && other != queue {
                front::attach(file, false)?.context("TUNSETQUEUE")?;
            }
        }
        if front::get(&files[queue])?.1 & libc::IFF_DETACH_QUEUE != 0 {
            front::attach(&files[queue], true)?.context("TUNSETQUEUE")?;
        }
        let (hdr, frame) = vmm.rx_frames.tcp4(20_000, 1448);
        far.send(&hdr, &frame)?;
        let received = vmm.recv().with_context(|| format!("queue {queue}"))?;
        compare("frame to the guest", &received.frame, &frame)?;
        expect("gso_size", received.hdr.gso_size, 1448)?;
    }
    Ok(())
}

fn detached(ctx: &Ctx) -> Result<()> {
    let (mut vmms, files, far) = several(ctx, 4)?;
    let all = spread(&mut vmms, &far, 200)?;
    ensure!(all.iter().all(|&n| n > 0), "not on all queues: {all:?}");
    for out in [1, 3, 0] {
        front::attach(&files[out], false)?.context("TUNSETQUEUE")?;
        expect("twice", front::attach(&files[out], false)?, Err(EINVAL))?;
        let flags = front::get(&files[out]).context("TUNGETIFF")?.1;
        expect(
            "flags",
            flags,
            MANY | libc::IFF_PERSIST | libc::IFF_DETACH_QUEUE,
        )?;
        let rest = spread(&mut vmms, &far, 200)?;
        expect("on the queue that is out", rest[out], 0)?;
        // It sends as ever.
        let frame = vmms[out].tx_frames.plain(100);
        vmms[out].queue_tx(&NetHdr::default(), &frame, &Split::Whole)?;
        vmms[out].tx.flush()?;
        compare("sent", &far.recv()?.1, &frame)?;
        vmms[out].tx.wait_used()?;
        // Stopped and started meanwhile, as when the guest resets.
        vmms[out].stop()?;
        run(&vmms[out], &files[out])?;
    }
    expect("all on the last", spread(&mut vmms, &far, 50)?[2], 50)?;
    front::attach(&files[2], false)?.context("TUNSETQUEUE")?;
    far.send(&NetHdr::default(), &vmms[0].rx_frames.plain(100))?;
    for file in &files {
        expect("attached", front::attach(file, true)?, Ok(0))?;
        expect("twice", front::attach(file, true)?, Err(EINVAL))?;
    }
    let all = spread(&mut vmms, &far, 200)?;
    ensure!(all.iter().all(|&n| n > 0), "not on all queues: {all:?}");
    Ok(())
}

fn steered(ctx: &Ctx) -> Result<()> {
    let (mut vmms, files, far) = several(ctx, 3)?;
    let mut rss = Rss::none();
    // The table alone, all of it the last queue.
    rss.flags = 1 << 4;
    rss.table_len = 1;
    rss.table[0] = 2;
    Raw::of(&files[0])
        .put(crate::ioctl::RVHOST_NET_SET_RSS(), &rss)
        .context("RVHOST_NET_SET_RSS")?;
    expect("queues", spread(&mut vmms, &far, 50)?, vec![0, 0, 50])?;
    rss.table[0] = 1;
    vmms[2]
        .vhost
        .raw()
        .put(crate::ioctl::RVHOST_NET_SET_RSS(), &rss)
        .context("RVHOST_NET_SET_RSS")?;
    expect("queues", spread(&mut vmms, &far, 50)?, vec![0, 50, 0])?;
    let none = front::open(front::PATH, false)?;
    let answer = Raw::of(&none).put(crate::ioctl::RVHOST_NET_SET_RSS(), &rss);
    expect("without a device", answer, Err(EBADFD))
}

fn shown(ctx: &Ctx) -> Result<()> {
    let (vmm, file) = on_veth(ctx, V1)?;
    let vhost = Fdinfo::of(vmm.vhost.file())?;
    for queue in ["rx", "tx"] {
        expect(
            "backend",
            vhost.text(&format!("{queue}-backend")),
            Some("netdev"),
        )?;
        expect("device", vhost.text(&format!("{queue}-netdev")), Some(NEAR))?;
    }
    let front = Fdinfo::of(&file)?;
    expect("iff", front.text("iff"), Some(NEAR))?;
    expect("queue", front.text("queue"), Some("0"))
}

fn unbound(ctx: &Ctx) -> Result<()> {
    let mut vmm = netdev::stopped(ctx, V1, "vt0")?;
    netdev::pair()?;
    vmm.post_rx(8, &[2048])?;
    vmm.start()?;
    let file = front::open(front::PATH, false)?;
    for index in [RX, TX] {
        ensure!(
            vmm.set_backend(index, Some(&file)).is_err(),
            "queue {index} runs on a file without a device"
        );
    }
    // What ran before runs on.
    vmm.check_alive()?;
    front::set(&file, NEAR, ONE)?.context("TUNSETIFF")?;
    run(&vmm, &file)?;
    vmm.wire = Wire::open(FAR)?;
    vmm.check_alive()?;
    net::delete(NEAR)?;
    vmm.stop()?;
    ensure!(
        vmm.set_backend(RX, Some(&file)).is_err(),
        "RX runs on a device that is gone"
    );
    vmm.start()?;
    vmm.wire = Wire::open("vt0")?;
    vmm.check_alive()
}

fn closed(ctx: &Ctx) -> Result<()> {
    let (mut vmm, file) = on_veth(ctx, V1)?;
    vmm.post_rx(16, &[2048])?;
    drop(file);
    vmm.check_alive()?;
    let other = front::open(front::PATH, false)?;
    expect("in use", front::set(&other, NEAR, ONE)?, Err(EBUSY))?;
    vmm.stop_queue(TX)?;
    expect("in use", front::set(&other, NEAR, ONE)?, Err(EBUSY))?;
    vmm.stop_queue(RX)?;
    // The last reference to a file goes by the way.
    poll::wait_for("the device to be free", || {
        Ok(front::set(&other, NEAR, ONE)?.ok())
    })?;
    run(&vmm, &other)?;
    vmm.check_alive()?;
    vmm.check_quiet()
}

fn deleted(ctx: &Ctx) -> Result<()> {
    let (mut vmm, file) = on_veth(ctx, V1)?;
    vmm.post_rx(250, &[2048])?;
    for _ in 0..ctx.rounds(1, 5) {
        netdev::load(&mut vmm)?;
        net::delete(NEAR)?;
        netdev::load(&mut vmm)?;
        expect("TUNGETIFF", front::get(&file), Err(EBADFD))?;
        expect("TUNSETQUEUE", front::attach(&file, false)?, Err(EINVAL))?;
        expect("ready", front::ready(&file)?, libc::POLLERR)?;
        expect("read", front::read(&file, 2000), Err(EBADFD))?;
        expect("write", front::write(&file, &[0; 80]), Err(EBADFD))?;
        expect(
            "TUNSETIFF",
            front::set(&file, NEAR, ONE)?,
            Err(Errno(libc::ENODEV)),
        )?;
        netdev::gone(&mut vmm)?;
        netdev::pair()?;
        front::set(&file, NEAR, ONE)?.context("TUNSETIFF")?;
        run(&vmm, &file)?;
        vmm.wire = Wire::open(FAR)?;
        vmm.check_alive()?;
    }
    vmm.check_quiet()
}

fn passed_on(ctx: &Ctx) -> Result<()> {
    let far = pair(ctx)?;
    let file = front::on(NEAR, MANY)?;
    process::in_child(|| {
        let mut vmm = netdev::stopped(ctx, V1, "vt0")?;
        vmm.wire = far;
        vmm.post_rx(8, &[2048])?;
        powerless()?;
        run(&vmm, &file)?;
        vmm.check_alive()?;
        front::attach(&file, false)?.context("TUNSETQUEUE")?;
        front::attach(&file, true)?.context("TUNSETQUEUE")?;
        vmm.check_alive()?;
        let other = front::open(front::PATH, false);
        if let Ok(other) = other {
            expect(
                "another",
                front::set(&other, NEAR, MANY)?,
                Err(Errno(libc::EPERM)),
            )?;
        }
        Ok(())
    })
}
