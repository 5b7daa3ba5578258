// SPDX-License-Identifier: GPL-2.0

//! The front: files that stand for queues of a network device as a TAP's do.

use std::fs::File;
use std::net::UdpSocket;
use std::time::Duration;

use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;

use super::netdev;
use super::netdev::FAR;
use super::netdev::NEAR;
use super::netdev::V1;
use crate::case::skip;
use crate::case::Ctx;
use crate::case::Module;
use crate::case::Table;
use crate::errno::Errno;
use crate::frame::compare;
use crate::frame::Direction;
use crate::frame::Frames;
use crate::frame::NetHdr;
use crate::frame::GUEST_MAC;
use crate::frame::TCP4_HLEN;
use crate::front;
use crate::front::tun;
use crate::front::MANY;
use crate::front::ONE;
use crate::ioctl::Raw;
use crate::net;
use crate::poll;
use crate::process;
use crate::tap::TUN_F_CSUM;
use crate::tap::TUN_F_TSO4;
use crate::traffic::expect;
use crate::wire::Wire;

pub(super) const EINVAL: Errno = Errno(libc::EINVAL);
pub(super) const EBADFD: Errno = Errno(libc::EBADFD);
pub(super) const EBUSY: Errno = Errno(libc::EBUSY);

pub(super) fn register(table: &mut Table) {
    table.add("front::answers_what_a_tap_answers", answers);
    table.add("front::refuses_what_is_no_place_for_it", refused);
    table.add("front::needs_the_capability", capability);
    table.add_long(
        "front::queues_are_up_to_256",
        Duration::from_secs(120),
        queues,
    );
    table.add("front::packets_are_read_and_written", by_hand);
    table.add("front::big_segments_are_read_and_written", by_hand_gso);
    table.add("front::reader_waits", reader_waits);
    table.add("front::deleted_while_it_is_read", deleted_reader);
}

fn ours(ctx: &Ctx) -> Result<()> {
    if ctx.module == Module::C {
        return skip("C vhost_net has no front");
    }
    Ok(())
}

/// A connected interface, and the far end.
pub(super) fn pair(ctx: &Ctx) -> Result<Wire> {
    ours(ctx)?;
    netdev::pair()?;
    Wire::open(FAR)
}

/// All that a file answers to, without and with a device.
fn answers_of(path: &str, name: &str, log: &mut Vec<String>) -> Result<()> {
    let file = front::open(path, false)?;
    let raw = Raw::of(&file);
    let mut say = |what: &str, answer: String| log.push(format!("{what}: {answer}"));
    let numbers = [
        ("SETNOCSUM", tun::SETNOCSUM),
        ("SETIFF", tun::SETIFF),
        ("SETPERSIST", tun::SETPERSIST),
        ("GETFEATURES", tun::GETFEATURES),
        ("SETOFFLOAD", tun::SETOFFLOAD),
        ("GETIFF", tun::GETIFF),
        ("GETSNDBUF", tun::GETSNDBUF),
        ("SETSNDBUF", tun::SETSNDBUF),
        ("GETVNETHDRSZ", tun::GETVNETHDRSZ),
        ("SETVNETHDRSZ", tun::SETVNETHDRSZ),
        ("SETQUEUE", tun::SETQUEUE),
        ("SETVNETLE", tun::SETVNETLE),
        ("GETVNETLE", tun::GETVNETLE),
        ("SETVNETBE", tun::SETVNETBE),
        ("GETVNETBE", tun::GETVNETBE),
        ("GIFHWADDR", tun::GIFHWADDR),
        ("of nobody", 0x5400_54ff),
        ("nothing", 0),
    ];
    for bound in [false, true] {
        if bound {
            for flags in [0, libc::IFF_NO_PI, libc::IFF_VNET_HDR] {
                let answer = front::set(&file, name, flags)?;
                say(&format!("SETIFF flags {flags:#x}"), format!("{answer:?}"));
            }
            say("SETIFF", format!("{:?}", front::set(&file, name, ONE)?));
            say(
                "SETIFF again",
                format!("{:?}", front::set(&file, name, ONE)?),
            );
            let single = front::open(path, false)?;
            say("second", format!("{:?}", front::set(&single, name, ONE)?));
            say("of many", format!("{:?}", front::set(&single, name, MANY)?));
        }
        for (what, number) in numbers {
            // The value 1 makes it persistent.
            if number != tun::SETPERSIST {
                let answer = raw.call(number, 8);
                say(&format!("{what} at a bad address"), format!("{answer:?}"));
            }
            let mut value = [0u8; 40];
            let answer = raw.get(number, &mut value);
            let known = !matches!(
                number,
                tun::GETFEATURES | tun::GETIFF | tun::GIFHWADDR | tun::SETPERSIST | tun::GETSNDBUF
            );
            if number != tun::SETPERSIST && number != tun::SETOFFLOAD {
                say(
                    what,
                    format!("{answer:?} {:?}", known.then_some(&value[..4])),
                );
            }
        }
        for value in [-1, 0, 1, 9, 10, 11, 12, 24, 70_000] {
            for (what, set, get) in [
                ("VNETHDRSZ", tun::SETVNETHDRSZ, tun::GETVNETHDRSZ),
                ("SNDBUF", tun::SETSNDBUF, tun::GETSNDBUF),
                ("VNETLE", tun::SETVNETLE, tun::GETVNETLE),
            ] {
                let mut now = 0i32;
                let answer = (raw.put(set, &value), raw.get(get, &mut now));
                if what == "SNDBUF" && answer.0.is_err() {
                    now = 0;
                }
                say(&format!("{what} {value}"), format!("{answer:?} {now}"));
            }
        }
        // 7 and 8 are of tunnels, which a TAP takes and we do not.
        for value in (0..128).chain([1 << 9, 1 << 20, (1 << 40) | 1]) {
            let answer = raw.call(tun::SETOFFLOAD, value);
            say(&format!("SETOFFLOAD {value:#x}"), format!("{answer:?}"));
        }
        for attached in [true, false, true] {
            let answer = front::attach(&file, attached)?;
            say(&format!("attached {attached}"), format!("{answer:?}"));
        }
        raw.put(tun::SETVNETHDRSZ, &12i32).ok();
        raw.call(tun::SETOFFLOAD, 0).ok();
        say("ready", format!("{:#x}", front::ready(&file)?));
        say("read", format!("{:?}", front::read(&file, 2000)));
        say("read 0", format!("{:?}", front::read(&file, 0)));
        let good = [0u8; 12 + 60];
        for len in [0, 1, 10, 11, 12, 13, 25, 26, 27, 72] {
            let answer = front::write(&file, &good[..len]);
            say(&format!("write {len}"), format!("{answer:?}"));
        }
        let header = NetHdr::default();
        for (what, header) in [
            (
                "hdr_len 5",
                NetHdr {
                    hdr_len: 5,
                    ..header
                },
            ),
            (
                "hdr_len 61",
                NetHdr {
                    hdr_len: 61,
                    ..header
                },
            ),
            (
                "csum beyond",
                NetHdr {
                    flags: 1,
                    csum_start: 50,
                    csum_offset: 16,
                    ..header
                },
            ),
            (
                "gso_type",
                NetHdr {
                    gso_type: 0x55,
                    ..header
                },
            ),
            (
                "gso_size 0",
                NetHdr {
                    gso_type: 1,
                    ..header
                },
            ),
        ] {
            let mut bytes = good;
            bytes[..12].copy_from_slice(&header.bytes(12));
            let answer = front::write(&file, &bytes);
            say(&format!("write {what}"), format!("{answer:?}"));
        }
        if bound {
            net::set_up(name, false)?;
            say(
                "write when down",
                format!("{:?}", front::write(&file, &good)),
            );
            say("ready when down", format!("{:#x}", front::ready(&file)?));
            net::set_up(name, true)?;
        }
    }
    Ok(())
}

fn answers(ctx: &Ctx) -> Result<()> {
    let _far = pair(ctx)?;
    // A TAP that is there before its file, as the device is.
    let maker = front::open("/dev/net/tun", false)?;
    front::set(&maker, "tap0", ONE)?.context("TUNSETIFF")?;
    Raw::of(&maker)
        .call(tun::SETPERSIST, 1)
        .context("TUNSETPERSIST")?;
    drop(maker);
    net::set_up("tap0", true)?;
    let (mut tap, mut front) = (Vec::new(), Vec::new());
    answers_of("/dev/net/tun", "tap0", &mut tap)?;
    answers_of(front::PATH, NEAR, &mut front)?;
    let differ: Vec<_> = tap
        .iter()
        .zip(&front)
        .filter(|(tap, front)| tap != front)
        .map(|(tap, front)| format!("TAP {tap}; front {front}"))
        .collect();
    ensure!(
        differ.is_empty(),
        "{} differ: {}",
        differ.len(),
        differ.join("\n")
    );
    expect("answers", front.len(), tap.len())?;

    // What must not be alike.
    let file = front::on(NEAR, ONE)?;
    let raw = Raw::of(&file);
    let mut features = 0u32;
    raw.get(tun::GETFEATURES, &mut features)
        .context("TUNGETFEATURES")?;
    expect("features", features, MANY as u32)?;
    let (name, flags) = front::get(&file).context("TUNGETIFF")?;
    expect("name", name.as_str(), NEAR)?;
    expect("flags", flags, ONE | libc::IFF_PERSIST)?;
    let mut address = [0u8; 40];
    raw.get(tun::GIFHWADDR, &mut address)
        .context("SIOCGIFHWADDR")?;
    expect("family", &address[16..18], &1u16.to_ne_bytes()[..])?;
    let mut asked = [0u8; 40];
    asked[..NEAR.len()].copy_from_slice(NEAR.as_bytes());
    Raw::of(&UdpSocket::bind("0.0.0.0:0")?)
        .get(tun::GIFHWADDR, &mut asked)
        .context("SIOCGIFHWADDR of a socket")?;
    expect("address", &address[18..24], &asked[18..24])?;
    expect("persistent", raw.call(tun::SETPERSIST, 1), Ok(0))?;
    expect("not persistent", raw.call(tun::SETPERSIST, 0), Err(EINVAL))
}

fn refused(ctx: &Ctx) -> Result<()> {
    let _far = pair(ctx)?;
    net::set_up("lo", true)?;
    let file = front::open(front::PATH, false)?;
    for (what, name, flags, errno) in [
        ("no device", "nobody", ONE, libc::ENODEV),
        ("no name", "", ONE, libc::ENODEV),
        ("a template", "tap%d", ONE, libc::ENODEV),
        ("loopback", "lo", ONE, libc::EINVAL),
        ("TUN", NEAR, libc::IFF_TUN | libc::IFF_NO_PI, libc::EINVAL),
        ("both", NEAR, ONE | libc::IFF_TUN, libc::EINVAL),
        ("packet information", NEAR, libc::IFF_TAP, libc::EINVAL),
        ("NAPI", NEAR, ONE | libc::IFF_NAPI, libc::EINVAL),
        ("to make it", NEAR, ONE | libc::IFF_TUN_EXCL, libc::EBUSY),
    ] {
        expect(what, front::set(&file, name, flags)?, Err(Errno(errno)))?;
    }
    expect(
        "no argument",
        Raw::of(&file).call(tun::SETIFF, 0),
        Err(Errno(libc::EFAULT)),
    )?;
    net::add_macvlan(NEAR, "mv", GUEST_MAC)?;
    expect("enslaved", front::set(&file, NEAR, ONE)?, Err(EBUSY))?;
    net::delete("mv")?;
    // Another owner's, and the other way round.
    let vmm = netdev::stopped(ctx, V1, "vt0")?;
    netdev::set(&vmm, &netdev::wanted(NEAR)?).context("RVHOST_NET_SET_NETDEV")?;
    expect("somebody else's", front::set(&file, NEAR, ONE)?, Err(EBUSY))?;
    vmm.stop()?;
    front::set(&file, NEAR, ONE)?.context("TUNSETIFF")?;
    expect(
        "the front's",
        netdev::set(&vmm, &netdev::wanted(NEAR)?),
        Err(EBUSY),
    )?;
    ensure!(
        net::add_macvlan(NEAR, "mv", GUEST_MAC).is_err(),
        "a MacVLAN was put on a device that is in use"
    );
    drop(file);
    net::add_macvlan(NEAR, "mv", GUEST_MAC)
}

/// Gives up all capabilities.
pub(super) fn powerless() -> Result<()> {
    // struct __user_cap_header_struct of version 3, and no capability at all.
    let (header, none) = ([0x2008_0522u32, 0], [0u32; 6]);
    // SAFETY: Both are valid for what the system call reads.
    let rc = unsafe { libc::syscall(libc::SYS_capset, header.as_ptr(), none.as_ptr()) };
    expect("capset", rc, 0)
}

fn capability(ctx: &Ctx) -> Result<()> {
    let _far = pair(ctx)?;
    let file = front::open(front::PATH, false)?;
    powerless()?;
    expect(
        "without it",
        front::set(&file, NEAR, ONE)?,
        Err(Errno(libc::EPERM)),
    )
}

fn queues(ctx: &Ctx) -> Result<()> {
    let far = pair(ctx)?;
    let mut files = Vec::new();
    for i in 0..256 {
        files.push(front::on(NEAR, MANY).with_context(|| format!("queue {i}"))?);
    }
    let more = front::open(front::PATH, false)?;
    expect(
        "one more",
        front::set(&more, NEAR, MANY)?,
        Err(Errno(libc::E2BIG)),
    )?;
    expect("of one", front::set(&more, NEAR, ONE)?, Err(EINVAL))?;
    // A queue that is detached is there nevertheless.
    front::attach(&files[7], false)?.context("TUNSETQUEUE")?;
    expect(
        "one more",
        front::set(&more, NEAR, MANY)?,
        Err(Errno(libc::E2BIG)),
    )?;
    front::attach(&files[7], true)?.context("TUNSETQUEUE")?;
    // What comes is on one of them.
    let mut frames = Frames::new(Direction::Rx, ctx.seed);
    for _ in 0..50 {
        let frame = frames.plain(100);
        far.send(&NetHdr::default(), &frame)?;
        let read = poll::wait_for("a packet on any queue", || {
            Ok(files.iter().find_map(|file| front::read(file, 2000).ok()))
        })?;
        compare("frame", &read[10..], &frame)?;
    }
    files.swap_remove(100);
    front::set(&more, NEAR, MANY)?.context("TUNSETIFF")?;
    drop((files, more));
    front::on(NEAR, ONE)?;
    Ok(())
}

/// Waits for a packet.
pub(super) fn wait_read(file: &File, room: usize) -> Result<Vec<u8>> {
    ensure!(poll::readable(file, poll::PATIENCE)?, "nothing to read");
    front::read(file, room).context("reading")
}

fn by_hand(ctx: &Ctx) -> Result<()> {
    let far = pair(ctx)?;
    let (mut out, mut coming) = (
        Frames::new(Direction::Tx, ctx.seed),
        Frames::new(Direction::Rx, ctx.seed),
    );
    for header in [0, 10, 12, 24, 300] {
        let flags = if header == 0 {
            ONE & !libc::IFF_VNET_HDR
        } else {
            ONE
        };
        let file = front::on(NEAR, flags)?;
        if header != 0 {
            Raw::of(&file)
                .put(tun::SETVNETHDRSZ, &(header as i32))
                .context("TUNSETVNETHDRSZ")?;
        }
        for len in [14, 60, 100, 1514, 4000, 9014] {
            let frame = out.plain(len);
            let mut bytes = vec![0; header];
            bytes.extend(&frame);
            expect("written", front::write(&file, &bytes), Ok(bytes.len()))?;
            compare("frame at the far end", &far.recv()?.1, &frame)?;

            let frame = coming.plain(len);
            far.send(&NetHdr::default(), &frame)?;
            let read = wait_read(&file, 20_000)?;
            expect("header", &read[..header], &vec![0; header][..])?;
            compare("frame that is read", &read[header..], &frame)?;

            // Cut off, and with no room for the header.
            far.send(&NetHdr::default(), &frame)?;
            let read = wait_read(&file, header + 20)?;
            let end = frame.len().min(20);
            compare("start of the frame", &read[header..], &frame[..end])?;
            far.send(&NetHdr::default(), &frame)?;
            if header > 0 {
                ensure!(poll::readable(&file, poll::PATIENCE)?, "nothing to read");
                expect("no room", front::read(&file, header - 1), Err(EINVAL))?;
            } else {
                wait_read(&file, 1)?;
            }
            expect(
                "nothing more",
                front::read(&file, 100),
                Err(Errno(libc::EAGAIN)),
            )?;
        }
        // A tag stays with its frame.
        let mut frame = coming.plain(100);
        frame.splice(12..12, [0x81, 0, 0, 5]);
        far.send(&NetHdr::default(), &frame)?;
        compare("tagged", &wait_read(&file, 2000)?[header..], &frame)?;
        far.send(&NetHdr::default(), &frame)?;
        compare(
            "cut tag",
            &wait_read(&file, header + 14)?[header..],
            &frame[..14],
        )?;
    }
    Ok(())
}

fn by_hand_gso(ctx: &Ctx) -> Result<()> {
    let far = pair(ctx)?;
    let file = front::on(NEAR, ONE)?;
    let mut frames = Frames::new(Direction::Tx, ctx.seed);
    for (len, gso_size) in [(2000, 1448), (20_000, 1448), (65_000, 8948)] {
        let (hdr, frame) = frames.tcp4(len, gso_size);
        let mut bytes = hdr.bytes(10);
        bytes.extend(&frame);
        expect("written", front::write(&file, &bytes), Ok(bytes.len()))?;
        let (seen, packet) = far.recv()?;
        compare("frame at the far end", &packet, &frame)?;
        expect("gso_size", seen.gso_size, gso_size)?;
    }
    // Cut for who does not take it, and whole for who does.
    let (hdr, frame) = frames.tcp4(TCP4_HLEN + 4 * 1000, 1000);
    far.send(&hdr, &frame)?;
    for segment in 0..4 {
        let read = wait_read(&file, 70_000).with_context(|| format!("segment {segment}"))?;
        expect("length", read.len(), 10 + TCP4_HLEN + 1000)?;
        expect("gso_type", read[1], 0)?;
    }
    Raw::of(&file)
        .call(tun::SETOFFLOAD, (TUN_F_CSUM | TUN_F_TSO4) as usize)
        .context("TUNSETOFFLOAD")?;
    far.send(&hdr, &frame)?;
    let read = wait_read(&file, 70_000)?;
    compare("whole", &read[10..], &frame)?;
    let seen = NetHdr::parse(&read[..10]);
    expect(
        "gso_size",
        (seen.gso_type, seen.gso_size),
        (hdr.gso_type, 1000),
    )
}

fn reader_waits(ctx: &Ctx) -> Result<()> {
    let far = pair(ctx)?;
    let file = front::open(front::PATH, true)?;
    front::set(&file, NEAR, ONE)?.context("TUNSETIFF")?;
    let frame = Frames::new(Direction::Rx, ctx.seed).plain(100);
    for _ in 0..20 {
        let child = process::Child::spawn(|inside| {
            inside.ready()?;
            compare("frame", &front::read(&file, 2000)?[10..], &frame)
        })?;
        child.wait_ready()?;
        child.wait_state('S')?;
        far.send(&NetHdr::default(), &frame)?;
        child.finish()?;
    }
    // Whoever waits can be killed, and the device goes meanwhile.
    let child = process::Child::spawn(|inside| {
        inside.ready()?;
        front::read(&file, 2000)?;
        Ok(())
    })?;
    child.wait_ready()?;
    child.wait_state('S')?;
    child.kill()?;
    let child = process::Child::spawn(|inside| {
        inside.ready()?;
        expect("device gone", front::read(&file, 2000), Err(EBADFD))
    })?;
    child.wait_ready()?;
    child.wait_state('S')?;
    net::delete(NEAR)?;
    child.finish()
}

fn deleted_reader(ctx: &Ctx) -> Result<()> {
    let _far = pair(ctx)?;
    let files = [front::on(NEAR, MANY)?, front::on(NEAR, MANY)?];
    front::attach(&files[1], false)?.context("TUNSETQUEUE")?;
    for file in &files {
        expect("ready", front::ready(file)?, libc::POLLOUT)?;
    }
    let child = process::Child::spawn(|inside| {
        inside.ready()?;
        for file in &files {
            ensure!(poll::readable(file, poll::PATIENCE)?, "nobody told");
        }
        Ok(())
    })?;
    child.wait_ready()?;
    child.wait_state('S')?;
    net::delete(NEAR)?;
    child.finish()?;
    for file in &files {
        expect("ready", front::ready(file)?, libc::POLLERR)?;
        expect("read", front::read(file, 2000), Err(EBADFD))?;
    }
    Ok(())
}
