// SPDX-License-Identifier: GPL-2.0

//! Feature ioctls: values, order of checks, who may call them.

use anyhow::Result;

use crate::better;
use crate::case;
use crate::case::skip;
use crate::case::Ctx;
use crate::case::Module;
use crate::case::Table;
use crate::device;
use crate::device::feature;
use crate::errno::Errno;
use crate::ioctl;
use crate::ioctl::Raw;
use crate::process::Child;
use crate::traffic::expect;
use crate::traffic::Split;
use crate::vmm::Setup;

/// An address in the first page, where nothing is mapped.
const BAD_POINTER: usize = 8;

/// The case that notes what is offered.
pub(crate) const OFFER: &str = "features::offered_bits_are_known";

/// A feature bit and what shows that it works.
pub(crate) struct Bit {
    pub(crate) number: usize,
    pub(crate) name: &'static str,
    pub(crate) shown_by: &'static [&'static str],
}

const fn bit(number: usize, name: &'static str, shown_by: &'static [&'static str]) -> Bit {
    Bit {
        number,
        name,
        shown_by,
    }
}

/// The bits that are offered, and others that an operator may look for.
pub(crate) const BITS: &[Bit] = &[
    bit(
        15,
        "VIRTIO_NET_F_MRG_RXBUF",
        &["shapes::rx_packet_of_64k_in_1024_buffers"],
    ),
    bit(
        24,
        "VIRTIO_F_NOTIFY_ON_EMPTY",
        &["notify::on_empty_overrides_suppression_event_idx"],
    ),
    bit(
        26,
        "VHOST_F_LOG_ALL",
        &["log::both_on_and_off_while_running"],
    ),
    bit(
        27,
        "VHOST_NET_F_VIRTIO_NET_HDR",
        &["backend::tap_without_header_version_1"],
    ),
    bit(
        28,
        "VIRTIO_F_INDIRECT_DESC",
        &["in_order::indirect_table_out_of_sequence"],
    ),
    bit(
        29,
        "VIRTIO_F_EVENT_IDX",
        &["notify::call_comes_when_used_event_is_crossed"],
    ),
    bit(
        32,
        "VIRTIO_F_VERSION_1",
        &["features::acked_late_apply_to_running_rings"],
    ),
    bit(
        33,
        "VIRTIO_F_ACCESS_PLATFORM",
        &["iotlb::mapped_memory_carries_traffic"],
    ),
    bit(34, "VIRTIO_F_RING_PACKED", &[]),
    bit(
        35,
        "VIRTIO_F_IN_ORDER",
        &["in_order::traffic_both_ways_over_the_ring_end"],
    ),
    bit(
        40,
        "VIRTIO_F_RING_RESET",
        &["backend::ring_reset_while_the_other_runs"],
    ),
    bit(
        57,
        "VIRTIO_NET_F_HASH_REPORT",
        &["steering::hash_is_reported_with_each_packet"],
    ),
    bit(
        65,
        "VIRTIO_NET_F_GUEST_UDP_TUNNEL_GSO",
        &["backend::tunnel_bit_of_the_guest_makes_headers_24_bytes"],
    ),
    bit(
        67,
        "VIRTIO_NET_F_HOST_UDP_TUNNEL_GSO",
        &["backend::tunnel_bit_of_the_host_makes_headers_24_bytes"],
    ),
];

pub(super) fn register(table: &mut Table) {
    table.add_better(OFFER, better::HASH_REPORT, get);
    table.add("features::set_without_owner_succeeds", set);
    table.add("features::set_unoffered_bit_is_eopnotsupp", set_unoffered);
    table.add("features::bad_pointer_is_efault", bad_pointer);
    table.add(
        "features::array_get_writes_count_words_and_no_more",
        array_get,
    );
    table.add(
        "features::array_get_of_absurd_count_is_efault",
        array_absurd,
    );
    table.add("features::array_set_checks_every_word", array_set);
    table.add(
        "features::array_set_of_nothing_acks_nothing",
        array_set_nothing,
    );
    table.add(
        "features::backend_features_are_iotlb_msg_v2",
        backend_features,
    );
    table.add(
        "features::array_set_of_a_million_words_is_read_to_the_end",
        array_long,
    );
    table.add_better(
        "features::array_set_without_end",
        better::ARRAY_ENDLESS,
        array_endless,
    );
    table.add("features::survive_set_owner", survive_owner);
    table.add("features::acked_late_apply_to_running_rings", late);
}

fn get(ctx: &Ctx) -> Result<()> {
    let offered = feature::offered(ctx.module);
    let file = device::open(&ctx.device)?;
    expect("GET_FEATURES", Raw::of(&file).features(), Ok(offered[0]))?;
    let mut array = [2, 0, 0];
    let seen = Raw::of(&file).get(ioctl::GET_FEATURES_ARRAY(), &mut array);
    expect("GET_FEATURES_ARRAY", seen, Ok(0))?;
    for word in &array[1..] {
        case::seen(format!("{word:x}"));
    }
    expect("words", &array[1..], &offered)
}

fn set(ctx: &Ctx) -> Result<()> {
    let offered = feature::offered(ctx.module);
    let file = device::open(&ctx.device)?;
    for bits in [0, feature::VERSION_1, offered[0]] {
        expect("SET_FEATURES", Raw::of(&file).set_features(bits), Ok(0))?;
    }
    Ok(())
}

fn set_unoffered(ctx: &Ctx) -> Result<()> {
    let offered = feature::offered(ctx.module);
    let file = device::open(&ctx.device)?;
    for bit in (0..64).filter(|bit| offered[0] & (1 << bit) == 0) {
        expect(
            &format!("SET_FEATURES bit {bit}"),
            Raw::of(&file).set_features(1 << bit),
            Err(Errno(libc::EOPNOTSUPP)),
        )?;
    }
    Ok(())
}

fn bad_pointer(ctx: &Ctx) -> Result<()> {
    let file = device::open(&ctx.device)?;
    for (name, number) in [
        ("GET_FEATURES", ioctl::GET_FEATURES()),
        ("SET_FEATURES", ioctl::SET_FEATURES()),
        ("GET_FEATURES_ARRAY", ioctl::GET_FEATURES_ARRAY()),
        ("SET_FEATURES_ARRAY", ioctl::SET_FEATURES_ARRAY()),
        ("GET_BACKEND_FEATURES", ioctl::GET_BACKEND_FEATURES()),
        ("SET_BACKEND_FEATURES", ioctl::SET_BACKEND_FEATURES()),
    ] {
        expect(
            name,
            Raw::of(&file).call(number, BAD_POINTER),
            Err(Errno(libc::EFAULT)),
        )?;
    }
    Ok(())
}

fn array_get(ctx: &Ctx) -> Result<()> {
    let offered = feature::offered(ctx.module);
    const CANARY: u64 = 0x5a5a_5a5a_5a5a_5a5a;
    let file = device::open(&ctx.device)?;
    for count in 0..=4u64 {
        let mut buffer = [CANARY; 6];
        buffer[0] = count;
        let rc = Raw::of(&file).get(ioctl::GET_FEATURES_ARRAY(), &mut buffer);
        expect(&format!("count {count}"), rc, Ok(0))?;
        let mut wanted = [CANARY; 6];
        wanted[0] = count;
        for (i, word) in wanted[1..=count as usize].iter_mut().enumerate() {
            *word = offered.get(i).copied().unwrap_or(0);
        }
        expect(&format!("buffer for count {count}"), buffer, wanted)?;
    }
    Ok(())
}

fn array_absurd(ctx: &Ctx) -> Result<()> {
    let file = device::open(&ctx.device)?;
    for count in [1u64 << 61, u64::MAX] {
        let mut buffer = [count, 0, 0, 0];
        expect(
            &format!("count {count:#x}"),
            Raw::of(&file).get(ioctl::GET_FEATURES_ARRAY(), &mut buffer),
            Err(Errno(libc::EFAULT)),
        )?;
    }
    Ok(())
}

fn array_set(ctx: &Ctx) -> Result<()> {
    let offered = feature::offered(ctx.module);
    let file = device::open(&ctx.device)?;
    let raw = Raw::of(&file);
    let unsupported = Err(Errno(libc::EOPNOTSUPP));
    for (array, wanted) in [
        ([1u64, feature::VERSION_1, 0, 0], Ok(0)),
        ([2, offered[0], offered[1], 0], Ok(0)),
        ([3, offered[0], offered[1], 0], Ok(0)),
        ([2, 0, 1 << 2, 0], unsupported),
        ([1, 1, 0, 0], unsupported),
        ([3, 0, 0, 1], unsupported),
    ] {
        expect(
            &format!("SET_FEATURES_ARRAY {array:x?}"),
            raw.put(ioctl::SET_FEATURES_ARRAY(), &array),
            wanted,
        )?;
    }
    Ok(())
}

fn array_set_nothing(ctx: &Ctx) -> Result<()> {
    let file = device::open(&ctx.device)?;
    expect(
        "SET_FEATURES_ARRAY count 0",
        Raw::of(&file).put(ioctl::SET_FEATURES_ARRAY(), &[0u64; 2]),
        Ok(0),
    )
}

fn array_long(ctx: &Ctx) -> Result<()> {
    const COUNT: usize = 1 << 20;
    let file = device::open(&ctx.device)?;
    let raw = Raw::of(&file);
    let mut array = vec![0u64; COUNT + 1];
    (array[0], array[1]) = (COUNT as u64, feature::VERSION_1);
    let mut set = |last| {
        array[COUNT] = last;
        raw.call(ioctl::SET_FEATURES_ARRAY(), array.as_ptr() as usize)
    };
    expect("zeroes", set(0), Ok(0))?;
    expect(
        "a bit in the last word",
        set(1),
        Err(Errno(libc::EOPNOTSUPP)),
    )
}

fn array_endless(ctx: &Ctx) -> Result<()> {
    const COUNT: usize = 1 << 31;
    if ctx.module == Module::C {
        return skip(better::ARRAY_ENDLESS.c);
    }
    let file = device::open(&ctx.device)?;
    let child = Child::spawn(|inside| {
        // SAFETY: Reserves address space at an address of the kernel's choice.
        let area = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                8 * (COUNT + 1),
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        anyhow::ensure!(area != libc::MAP_FAILED, "mmap failed");
        // SAFETY: The first word of what was just mapped.
        unsafe { *area.cast::<u64>() = COUNT as u64 };
        inside.ready()?;
        let raw = Raw::of(&file);
        let seen = raw.call(ioctl::SET_FEATURES_ARRAY(), area as usize);
        anyhow::bail!("it returned {seen:?}")
    })?;
    child.wait_ready()?;
    std::thread::sleep(std::time::Duration::from_millis(200));
    child.wait_state('R')?;
    child.kill()
}

fn backend_features(ctx: &Ctx) -> Result<()> {
    let file = device::open(&ctx.device)?;
    let raw = Raw::of(&file);
    let mut bits = 0u64;
    expect(
        "GET_BACKEND_FEATURES",
        raw.get(ioctl::GET_BACKEND_FEATURES(), &mut bits),
        Ok(0),
    )?;
    expect("backend features", bits, 2)?;
    for (bits, wanted) in [
        (0u64, Ok(0)),
        (2, Ok(0)),
        (1, Err(Errno(libc::EOPNOTSUPP))),
        (6, Err(Errno(libc::EOPNOTSUPP))),
    ] {
        expect(
            &format!("SET_BACKEND_FEATURES {bits:#x}"),
            raw.put(ioctl::SET_BACKEND_FEATURES(), &bits),
            wanted,
        )?;
    }
    Ok(())
}

/// The header length set before SET_OWNER is still in force afterwards.
fn survive_owner(ctx: &Ctx) -> Result<()> {
    let mem = crate::mem::Memory::new()?;
    let vhost = device::VhostNet::open(&ctx.device, &mem)?;
    let raw = vhost.raw();
    expect("SET_FEATURES", raw.set_features(feature::VERSION_1), Ok(0))?;
    expect("SET_OWNER", raw.set_owner(), Ok(0))?;
    let mut vmm = Setup::new().stopped().keep_features().on(vhost, mem, ctx)?;
    vmm.start()?;
    vmm.post_rx(4, &[2048])?;
    vmm.check_alive()
}

/// The order of kvmtool: backends first, header size and features later.
fn late(ctx: &Ctx) -> Result<()> {
    let mut vmm = Setup::new().features(feature::VERSION_1).build(ctx)?;
    let raw = vmm.vhost.raw();
    vmm.tap.set_header(10)?;
    expect("SET_FEATURES", raw.set_features(0), Ok(0))?;
    vmm.hdr_len = 10;
    vmm.post_rx(4, &[2048])?;
    vmm.check_alive()?;
    vmm.tap.set_header(12)?;
    expect("SET_FEATURES", raw.set_features(feature::VERSION_1), Ok(0))?;
    vmm.hdr_len = 12;
    vmm.check_tx(1000, &Split::HeaderAlone)?;
    vmm.check_alive()
}
