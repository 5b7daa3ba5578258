// SPDX-License-Identifier: GPL-2.0
//! The guest's side. A connection to `PORT` starts with a line that says what it is for:
//!
//! | line                    | then                                                             |
//! | ----------------------- | ---------------------------------------------------------------- |
//! | `tcp-up`                | bytes come until the end; the answer tells how many, how many bad |
//! | `tcp-down BYTES`        | bytes go out until the connection ends                           |
//! | `udp-up ID`             | answers a port, and each further line with what came there       |
//! | `udp-down ID PORT PPS`  | datagrams go to that port of the peer; lines are answered        |
//! | `hoard ID`              | as `udp-up`, but nothing is read before it is asked for          |

use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use crate::pattern::{datagram, differing, fill, Seen};
use crate::PORT;

/// Room for datagrams in the receiver's memory, as the kernel counts it.
const ROOM_BYTES: libc::c_int = 64 << 20;

pub(crate) fn serve() -> io::Result<bool> {
    let listener = TcpListener::bind(("0.0.0.0", PORT))?;
    for connection in listener.incoming() {
        let connection = connection?;
        thread::spawn(move || {
            if let Err(error) = answer(connection) {
                eprintln!("stream: {error}");
            }
        });
    }
    Ok(true)
}

fn bad_request() -> io::Error {
    ErrorKind::InvalidInput.into()
}

fn answer(mut connection: TcpStream) -> io::Result<()> {
    connection.set_nodelay(true)?;
    let mut reader = BufReader::new(connection.try_clone()?);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let mut words = line.split_whitespace();
    let what = words.next().unwrap_or_default();
    let numbers: Vec<u64> = words
        .map(str::parse)
        .collect::<Result<_, _>>()
        .map_err(|_| bad_request())?;
    match (what, &numbers[..]) {
        ("tcp-up", []) => {
            let (mut at, mut bad) = (0, 0);
            let mut buffer = vec![0; 1 << 16];
            loop {
                let n = reader.read(&mut buffer)?;
                if n == 0 {
                    break;
                }
                bad += differing(0, at, &buffer[..n]);
                at += n as u64;
            }
            writeln!(connection, "{at} {bad}")
        }
        ("tcp-down", &[bytes]) => {
            send_bytes(&mut connection, bytes, &AtomicBool::new(true), |_| {})
        }
        ("udp-up", &[id]) => {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            make_room(&socket)?;
            socket.set_read_timeout(Some(Duration::from_millis(200)))?;
            writeln!(connection, "{}", socket.local_addr()?.port())?;
            let seen = Arc::new(Mutex::new(Seen::default()));
            let going = Arc::new(AtomicBool::new(true));
            let receiver = thread::spawn({
                let (seen, going) = (seen.clone(), going.clone());
                move || {
                    while going.load(Relaxed) {
                        receive(&socket, id, |take| {
                            take(&mut seen.lock().expect("no panic"))
                        });
                    }
                }
            });
            each_line(reader, &mut connection, || {
                tell(&seen.lock().expect("no panic"))
            })?;
            going.store(false, Relaxed);
            receiver
                .join()
                .map_err(|_| io::Error::other("the receiver panicked"))
        }
        ("hoard", &[id]) => {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            make_room(&socket)?;
            socket.set_read_timeout(Some(Duration::from_millis(200)))?;
            writeln!(connection, "{}", socket.local_addr()?.port())?;
            let mut seen = Seen::default();
            each_line(reader, &mut connection, || {
                while receive(&socket, id, |take| take(&mut seen)) {}
                tell(&seen)
            })
        }
        ("udp-down", &[id, port, pps]) => {
            let socket = UdpSocket::bind("0.0.0.0:0")?;
            let peer = (
                connection.peer_addr()?.ip(),
                u16::try_from(port).map_err(|_| bad_request())?,
            );
            let sent = Arc::new(AtomicU64::new(0));
            let going = Arc::new(AtomicBool::new(true));
            let sender = thread::spawn({
                let (sent, going) = (sent.clone(), going.clone());
                move || {
                    send_datagrams(pps, &sent, &going, |seq| {
                        socket.send_to(&datagram(id, seq), peer)
                    })
                }
            });
            each_line(reader, &mut connection, || sent.load(Relaxed).to_string())?;
            going.store(false, Relaxed);
            sender
                .join()
                .map_err(|_| io::Error::other("the sender panicked"))
        }
        _ => Err(bad_request()),
    }
}

/// Answers each line until the connection ends.
fn each_line(
    reader: impl BufRead,
    out: &mut impl Write,
    mut answer: impl FnMut() -> String,
) -> io::Result<()> {
    for line in reader.lines() {
        line?;
        let answer = answer();
        writeln!(out, "{answer}")?;
    }
    Ok(())
}

fn tell(seen: &Seen) -> String {
    format!("{} {} {} {}", seen.got, seen.lost(), seen.dup, seen.bad)
}

/// Takes one datagram; whether there was one.
pub(crate) fn receive(socket: &UdpSocket, id: u64, with: impl FnOnce(&dyn Fn(&mut Seen))) -> bool {
    let mut buffer = [0; 9000];
    match socket.recv(&mut buffer) {
        Ok(n) => {
            with(&|seen| seen.take(id, &buffer[..n]));
            true
        }
        Err(_) => false,
    }
}

/// Sends datagrams at a rate, 100 times a second. One that the kernel refuses (the link is down)
/// is sent again later.
pub(crate) fn send_datagrams(
    pps: u64,
    sent: &AtomicU64,
    going: &AtomicBool,
    send: impl Fn(u64) -> io::Result<usize>,
) {
    while going.load(Relaxed) {
        for _ in 0..pps.div_ceil(100) {
            if send(sent.load(Relaxed)).is_ok() {
                sent.fetch_add(1, Relaxed);
            }
        }
        thread::sleep(Duration::from_millis(10));
    }
}

/// Sends the pattern at a rate, 100 times a second, until told to stop or the connection ends.
pub(crate) fn send_bytes(
    connection: &mut TcpStream,
    rate: u64,
    going: &AtomicBool,
    mut progress: impl FnMut(u64),
) -> io::Result<()> {
    let mut at = 0;
    let mut buffer = vec![0; usize::try_from(rate / 100).map_err(|_| bad_request())?];
    while going.load(Relaxed) {
        fill(0, at, &mut buffer);
        connection.write_all(&buffer)?;
        at += buffer.len() as u64;
        progress(at);
        thread::sleep(Duration::from_millis(10));
    }
    Ok(())
}

/// Makes a socket hold what comes while nobody reads.
pub(crate) fn make_room(socket: &UdpSocket) -> io::Result<()> {
    set_buffer(socket, libc::SO_RCVBUFFORCE, ROOM_BYTES)
}

/// Sets the size of one of a socket's buffers.
pub(crate) fn set_buffer(
    socket: &impl AsRawFd,
    option: libc::c_int,
    bytes: libc::c_int,
) -> io::Result<()> {
    // SAFETY: the value is an int that lives until the call returns, and its size is given.
    let result = unsafe {
        libc::setsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            option,
            (&raw const bytes).cast(),
            size_of_val(&bytes) as libc::socklen_t,
        )
    };
    if result == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
