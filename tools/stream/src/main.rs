// SPDX-License-Identifier: GPL-2.0
//! Sends known packets and bytes to a guest and back, and checks every one of them.
//!
//! `stream serve` runs in the guest; `stream run GUEST [PPS [BYTES]]` runs on the host, and keeps
//! four streams going: UDP to the guest and from it, PPS datagrams a second each (default 200),
//! TCP to the guest and from it, BYTES a second each (default 500000). It obeys stdin, line by
//! line, and answers each line with one line:
//!
//! | line           | what it does                                                              |
//! | -------------- | ------------------------------------------------------------------------- |
//! | `mark NAME`    | tells the counters since the start, and gaps since the last mark          |
//! | `hoard PPS`    | sends datagrams that the guest keeps unread, where the device wrote them  |
//! | `check`        | stops that; the guest reads and checks them now                           |
//! | `end`          | ends the streams and tells the totals; so does the end of input           |
//!
//! Exit status 1: something was corrupted, or TCP lost bytes.

mod client;
mod pattern;
mod server;

use std::process::exit;

/// The guest's TCP port, for requests and TCP streams.
const PORT: u16 = 7000;

fn usage() -> ! {
    eprintln!("usage: stream serve | stream run GUEST [PPS [BYTES]]");
    exit(2);
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let number = |text: &str| text.parse().unwrap_or_else(|_| usage());
    let result = match args[..] {
        ["serve"] => server::serve(),
        ["run", guest] => client::run(guest, 200, 500_000),
        ["run", guest, pps] => client::run(guest, number(pps), 500_000),
        ["run", guest, pps, bytes] => client::run(guest, number(pps), number(bytes)),
        _ => usage(),
    };
    match result {
        Ok(true) => {}
        Ok(false) => exit(1),
        Err(error) => {
            eprintln!("stream: {error}");
            exit(1);
        }
    }
}
