// SPDX-License-Identifier: GPL-2.0

//! Allocations and copies that fail where queues run on network devices. Needs the debug kernel.

use std::fs::OpenOptions;
use std::os::fd::AsRawFd;
use std::time::Duration;

use anyhow::ensure;
use anyhow::Result;

use super::fault::each;
use super::fault::kernel_threads;
use super::fault::packets;
use super::fault::Faults;
use super::netdev;
use super::netdev::FAR;
use super::netdev::NEAR;
use super::netdev::V1;
use super::steering;
use super::steering_macvtap;
use crate::case::skip;
use crate::case::Ctx;
use crate::case::Module;
use crate::case::Table;
use crate::case::NO_SUCH_BACKEND;
use crate::device::RX;
use crate::device::TX;
use crate::errno::Errno;
use crate::front;
use crate::front::tun;
use crate::ioctl;
use crate::ioctl::Netdev;
use crate::ioctl::Outcome;
use crate::ioctl::Raw;
use crate::ioctl::Rss;
use crate::vmm::Vmm;
use crate::wire::Wire;

pub(super) fn register(table: &mut Table) {
    let limit = Duration::from_secs(900);
    table.add_long("fault::while_binding_a_device", limit, binding);
    table.add_long("fault::while_steering_a_macvtap", limit, macvtap);
    table.add_long("fault::while_a_front_is_opened", limit, fronts);
    for (name, index) in [("sending_by", TX), ("receiving_from", RX)] {
        table.add_long(format!("fault::while_{name}_a_device"), limit, move |ctx| {
            running(ctx, index)
        });
    }
}

/// Stops both queues; a fault that is left over comes once.
fn release(raw: Raw) {
    for index in [0, 1] {
        let _ = raw
            .set_backend(index, -1)
            .or_else(|_| raw.set_backend(index, -1));
    }
}

/// Each of the calls about steering that can fail.
fn steer(raw: Raw) -> Outcome {
    raw.put(ioctl::RVHOST_NET_SET_RSS(), &Rss::none())?;
    raw.put(ioctl::RVHOST_NET_REBALANCE(), &8u32)?;
    raw.get(ioctl::RVHOST_NET_GET_RSS(), &mut Rss::none())
}

/// It is bound or not, and can be bound again.
fn binding(ctx: &Ctx) -> Result<()> {
    Faults::here()?;
    let mut vmm = netdev::stopped(ctx, V1, "vt0")?;
    netdev::pair()?;
    vmm.wire = Wire::open(FAR)?;
    let wanted = Netdev {
        sndbuf: 100_000,
        ..netdev::wanted(NEAR)?
    };
    let sites = each("RVHOST_NET_SET_NETDEV", || {
        let outcome = netdev::set(&vmm, &wanted);
        release(vmm.vhost.raw());
        outcome
    })?;
    ensure!(sites > 5, "only {sites} places to fail at");
    println!("# RVHOST_NET_SET_NETDEV: {sites} faults");
    netdev::bind(&vmm, &wanted)?;
    vmm.post_rx(8, &[2048])?;
    let sites = each("steering", || steer(vmm.vhost.raw()))?;
    println!("# steering: {sites} faults");
    vmm.check_alive()
}

/// The device chooses or we do, and packets go on either way.
fn macvtap(ctx: &Ctx) -> Result<()> {
    Faults::here()?;
    let mut port = steering_macvtap::unsteered(ctx, 2, V1)?;
    let flows: Vec<Vec<u8>> = (0..20).map(steering::flow).collect();
    // Beside another queue; then alone, so that the device is hooked anew each time.
    for stopped in [1, 0] {
        port.pairs[stopped].stop()?;
        let second = &port.pairs[1];
        let raw = second.vhost.raw();
        let sites = each("VHOST_NET_SET_BACKEND, steered", || {
            let outcome = raw
                .set_backend(0, second.tap.as_raw_fd())
                .and_then(|_| steer(raw));
            release(raw);
            outcome
        })?;
        ensure!(sites > 5, "only {sites} places to fail at");
        println!("# VHOST_NET_SET_BACKEND, steered: {sites} faults");
    }
    for pair in &port.pairs {
        pair.start()?;
    }
    port.carry(&flows)?;
    Ok(())
}

/// From opening to closing, with the n-th fault somewhere in it.
fn fronts(ctx: &Ctx) -> Result<()> {
    if ctx.module == Module::C {
        return skip(NO_SUCH_BACKEND);
    }
    Faults::here()?;
    netdev::pair()?;
    let sites = each("a life of a file", one_life)?;
    ensure!(sites > 10, "only {sites} places to fail at");
    println!("# a file: {sites} faults");
    drop(front::on(NEAR, front::ONE)?);
    Ok(())
}

fn one_life() -> Outcome {
    let fail = |error: std::io::Error| Errno(error.raw_os_error().unwrap_or(0));
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(front::PATH)
        .map_err(fail)?;
    let raw = Raw::of(&file);
    front::set(&file, NEAR, front::ONE).map_err(|_| Errno(0))??;
    raw.put(tun::SETSNDBUF, &100_000i32)?;
    raw.put(tun::SETVNETHDRSZ, &12i32)?;
    let mut packet = [0; 112];
    packet[12..24].fill(0xff);
    front::write(&file, &packet)?;
    let mut mac = [0u8; 40];
    raw.get(tun::GIFHWADDR, &mut mac)
}

fn running(ctx: &Ctx, index: usize) -> Result<()> {
    if ctx.module == Module::C {
        return skip(NO_SUCH_BACKEND);
    }
    let mut vmm: Vmm = kernel_threads(ctx, |setup| setup.stopped())?;
    netdev::pair()?;
    vmm.wire = Wire::open(FAR)?;
    netdev::bind(&vmm, &netdev::wanted(NEAR)?)?;
    packets(&mut vmm, index, &[60, 1500, 8000])
}
