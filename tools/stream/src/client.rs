// SPDX-License-Identifier: GPL-2.0
//! The host's side: keeps the streams going and tells what became of them.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpStream, ToSocketAddrs, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use crate::pattern::{datagram, datagram_of, differing, Seen};
use crate::server::{make_room, receive, send_bytes, send_datagrams, set_buffer};
use crate::PORT;

/// How long the guest may take to answer: longer than any pause that a round makes.
const PATIENCE: Duration = Duration::from_secs(60);
/// Length of hoarded datagrams, which need jumbo frames: but for their ends they lie in pages that
/// only the device wrote.
const HOARD_LENGTH: usize = 8000;

/// A connection that answers each line with numbers.
struct Control {
    reader: BufReader<TcpStream>,
    writer: TcpStream,
}

impl Control {
    fn open(guest: &str, request: &str) -> io::Result<Self> {
        let address = (guest, PORT)
            .to_socket_addrs()?
            .next()
            .ok_or(io::ErrorKind::AddrNotAvailable)?;
        let mut writer = TcpStream::connect_timeout(&address, Duration::from_secs(10))?;
        writer.set_nodelay(true)?;
        writer.set_read_timeout(Some(PATIENCE))?;
        writeln!(writer, "{request}")?;
        Ok(Self {
            reader: BufReader::new(writer.try_clone()?),
            writer,
        })
    }

    fn read(&mut self) -> io::Result<Vec<u64>> {
        let mut line = String::new();
        self.reader.read_line(&mut line)?;
        let numbers: Result<Vec<u64>, _> = line.split_whitespace().map(str::parse).collect();
        numbers
            .ok()
            .filter(|n| !n.is_empty())
            .ok_or_else(|| io::Error::other("the guest's answer is cut off"))
    }

    fn ask(&mut self) -> io::Result<Vec<u64>> {
        writeln!(self.writer, "report")?;
        self.read()
    }

    fn ask_seen(&mut self) -> io::Result<[u64; 4]> {
        self.ask()?
            .try_into()
            .map_err(|_| io::Error::other("the guest's answer is not four numbers"))
    }
}

/// When something last came, and the longest pause so far.
struct Gap {
    last: Instant,
    longest: Duration,
}

impl Gap {
    fn new() -> Self {
        Self {
            last: Instant::now(),
            longest: Duration::ZERO,
        }
    }

    fn note(&mut self) {
        self.longest = self.longest.max(self.last.elapsed());
        self.last = Instant::now();
    }

    /// The longest pause since this was last asked, the present one included.
    fn reset(&mut self) -> u128 {
        let longest = self.longest.max(self.last.elapsed());
        self.longest = Duration::ZERO;
        longest.as_millis()
    }
}

/// What a receiving thread and the main thread share.
struct Shared<T> {
    state: Mutex<(T, Gap)>,
}

impl<T: Default> Shared<T> {
    fn new() -> Arc<Self> {
        Arc::new(Self {
            state: Mutex::new((T::default(), Gap::new())),
        })
    }

    fn with<R>(&self, f: impl FnOnce(&mut T, &mut Gap) -> R) -> R {
        let mut state = self.state.lock().expect("no thread panics");
        let (value, gap) = &mut *state;
        f(value, gap)
    }
}

/// A datagram stream to the guest.
struct Up {
    control: Control,
    sent: Arc<AtomicU64>,
    going: Arc<AtomicBool>,
    sender: JoinHandle<()>,
}

impl Up {
    fn start(
        guest: &str,
        what: &str,
        id: u64,
        pps: u64,
        make: fn(u64, u64) -> Vec<u8>,
    ) -> io::Result<Self> {
        let mut control = Control::open(guest, &format!("{what} {id}"))?;
        let port = u16::try_from(control.read()?[0]).map_err(io::Error::other)?;
        let socket = UdpSocket::bind("0.0.0.0:0")?;
        socket.connect((guest, port))?;
        let sent = Arc::new(AtomicU64::new(0));
        let going = Arc::new(AtomicBool::new(true));
        let sender = thread::spawn({
            let (sent, going) = (sent.clone(), going.clone());
            move || send_datagrams(pps, &sent, &going, |seq| socket.send(&make(id, seq)))
        });
        Ok(Self {
            control,
            sent,
            going,
            sender,
        })
    }

    /// Stops sending; how many were sent.
    fn stop(self) -> io::Result<(Control, u64)> {
        self.going.store(false, Relaxed);
        self.sender
            .join()
            .map_err(|_| io::Error::other("the sender panicked"))?;
        Ok((self.control, self.sent.load(Relaxed)))
    }
}

/// Bytes that came over TCP, and how many of them were wrong.
#[derive(Default)]
struct Bytes {
    got: u64,
    bad: u64,
}

pub(crate) fn run(guest: &str, pps: u64, rate: u64) -> io::Result<bool> {
    // Tells this run's datagrams from those of an earlier one.
    let id = u64::from(std::process::id()) << 8;
    let going = Arc::new(AtomicBool::new(true));

    let mut up = Up::start(guest, "udp-up", id, pps, datagram)?;

    let socket = UdpSocket::bind("0.0.0.0:0")?;
    make_room(&socket)?;
    socket.set_read_timeout(Some(Duration::from_millis(200)))?;
    let port = socket.local_addr()?.port();
    let mut down = Control::open(guest, &format!("udp-down {id} {port} {pps}"))?;
    let datagrams = Shared::<Seen>::new();
    thread::spawn({
        let datagrams = datagrams.clone();
        move || loop {
            receive(&socket, id, |take| {
                datagrams.with(|seen, gap| {
                    take(seen);
                    gap.note();
                })
            });
        }
    });

    let mut tcp_up = Control::open(guest, "tcp-up")?;
    // What the kernel takes has then mostly arrived.
    set_buffer(&tcp_up.writer, libc::SO_SNDBUF, 32 << 10)?;
    let written = Shared::<u64>::new();
    let writer = thread::spawn({
        let (mut connection, written, going) =
            (tcp_up.writer.try_clone()?, written.clone(), going.clone());
        move || {
            let result = send_bytes(&mut connection, rate, &going, |at| {
                written.with(|value, gap| {
                    *value = at;
                    gap.note();
                })
            });
            connection.shutdown(Shutdown::Write)?;
            result
        }
    });

    let mut tcp_down = Control::open(guest, &format!("tcp-down {rate}"))?;
    let bytes = Shared::<Bytes>::new();
    thread::spawn({
        let bytes = bytes.clone();
        move || {
            let mut buffer = vec![0; 1 << 16];
            while let Ok(n @ 1..) = tcp_down.reader.read(&mut buffer) {
                bytes.with(|state, gap| {
                    state.bad += differing(0, state.got, &buffer[..n]);
                    state.got += n as u64;
                    gap.note();
                });
            }
        }
    });

    let mut mark = |name: &str, up: &mut Up| -> io::Result<bool> {
        let [got, lost, dup, bad] = up.control.ask_seen()?;
        let up_sent = up.sent.load(Relaxed);
        let down_sent = down.ask()?[0];
        let (mut good, text) = datagrams.with(|seen, gap| {
            (
                seen.bad == 0,
                format!(
                    "down_sent={down_sent} down_got={} down_lost={} down_dup={} down_bad={} down_gap={}",
                    seen.got,
                    seen.lost(),
                    seen.dup,
                    seen.bad,
                    gap.reset()
                ),
            )
        });
        good &= bad == 0;
        let (sent, tcp_up_gap) = written.with(|value, gap| (*value, gap.reset()));
        let (tcp_got, tcp_bad, tcp_down_gap) =
            bytes.with(|state, gap| (state.got, state.bad, gap.reset()));
        good &= tcp_bad == 0;
        println!(
            "{name} up_sent={up_sent} up_got={got} up_lost={lost} up_dup={dup} up_bad={bad} {text} \
             tcp_up={sent} tcp_up_gap={tcp_up_gap} tcp_down={tcp_got} tcp_down_bad={tcp_bad} \
             tcp_down_gap={tcp_down_gap}"
        );
        Ok(good)
    };

    println!("started");
    let mut hoard = None;
    let mut hoards = 0;
    for line in io::stdin().lines() {
        let line = line?;
        match line.split_whitespace().collect::<Vec<_>>()[..] {
            ["mark", name] => {
                mark(name, &mut up)?;
            }
            ["hoard", pps] => {
                hoards += 1;
                let pps = pps.parse().map_err(io::Error::other)?;
                let make = |id, seq| datagram_of(id, seq, HOARD_LENGTH);
                hoard = Some(Up::start(guest, "hoard", id + hoards, pps, make)?);
                println!("hoard started");
            }
            ["check"] => {
                let stopped = hoard.take().ok_or(io::Error::other("there is no hoard"))?;
                let (mut control, sent) = stopped.stop()?;
                let [got, lost, dup, bad] = control.ask_seen()?;
                println!("hoard hoard_sent={sent} hoard_got={got} hoard_lost={lost} hoard_dup={dup} hoard_bad={bad}");
            }
            ["end"] => break,
            _ => println!("not understood"),
        }
    }

    going.store(false, Relaxed);
    writer
        .join()
        .map_err(|_| io::Error::other("the writer panicked"))??;
    let [arrived, wrong] = tcp_up.read()?[..] else {
        return Err(io::Error::other("the guest's answer is not two numbers"));
    };
    let good = mark("total", &mut up)?;
    let sent = written.with(|value, _| *value);
    println!("tcp_up_arrived={arrived} tcp_up_bad={wrong}");
    Ok(good && arrived == sent && wrong == 0)
}
