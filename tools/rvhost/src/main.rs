// SPDX-License-Identifier: GPL-2.0

//! Shows and steers the queues of rvhost_net.

mod check;
mod cpus;
mod fdinfo;
mod json;
mod list;
mod metrics;
mod pin;
mod rates;
mod rss;
mod system;
mod top;
mod watch;

use std::io;
use std::io::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::bail;
use anyhow::Context;
use anyhow::Result;
use clap::Args;
use clap::CommandFactory;
use clap::Parser;
use clap::Subcommand;
use clap_complete::Shell;

use cpus::Cpus;
use system::Found;
use system::System;

/// Shows and steers the queues of rvhost_net, a vhost-net in Rust.
///
/// Reads `/proc/<pid>/fdinfo` of the processes that have the device open, which costs the queues
/// nothing. Shows what the user may see: everything to root, one's own processes to others.
#[derive(Debug, Parser)]
#[command(
    name = "rvhost",
    version,
    after_long_help = "Exit status:\n  0  success\n  1  failure: a message tells what failed\n  \
    2  wrong usage\n  3  no device is open, or none that was asked for\n  4  `check` found a problem"
)]
struct Cli {
    /// Look at the files of a machine that are kept here
    #[arg(long, global = true, hide = true, default_value = "/")]
    root: PathBuf,

    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// List virtual machines, devices, backends and threads
    List(Which),
    /// Show all counters, once
    Stats(Which),
    /// Show rates, live
    ///
    /// On a terminal the table is redrawn until `q` is pressed. Elsewhere it is printed again and
    /// again, as text or JSON, one document a line.
    Top {
        #[command(flatten)]
        which: Which,
        /// Refresh interval in seconds
        #[arg(short, long, default_value_t = 2.0, value_parser = seconds)]
        delay: f64,
        /// Stop after so many updates
        #[arg(short = 'n', long)]
        count: Option<u64>,
        /// Sort by
        #[arg(short, long, value_enum, default_value = "name")]
        sort: top::Sort,
    },
    /// Tell of drops and errors as they happen
    Watch {
        #[command(flatten)]
        which: Which,
        /// Refresh interval in seconds
        #[arg(short, long, default_value_t = 1.0, value_parser = seconds)]
        delay: f64,
        /// Stop after so many updates
        #[arg(short = 'n', long)]
        count: Option<u64>,
    },
    /// Pin the threads of queues to CPUs
    ///
    /// Works as taskset does, on the threads of the machines that are named. Give lists for the
    /// receiving and for the sending queues, or CPUs to spread the threads over, or `--auto`: the
    /// CPUs of the NUMA node that has most of the guest's memory, without isolated ones. What the
    /// owner's cpuset does not allow is refused by the kernel.
    Pin {
        #[command(flatten)]
        which: Which,
        /// CPUs for the threads that carry packets to guests
        #[arg(long, value_name = "CPUS")]
        rx: Option<Cpus>,
        /// CPUs for the threads that carry packets from guests
        #[arg(long, value_name = "CPUS")]
        tx: Option<Cpus>,
        /// One of these CPUs for each thread, in turn
        #[arg(long, value_name = "CPUS", conflicts_with_all = ["rx", "tx"])]
        spread: Option<Cpus>,
        /// Choose by NUMA node and housekeeping CPUs
        #[arg(long, conflicts_with_all = ["rx", "tx", "spread"])]
        auto: bool,
        /// Only tell what would be done
        #[arg(long)]
        dry_run: bool,
    },
    /// Show or change who of a guest's queues gets which flow
    ///
    /// For queues on a network device or MacVTap: TAPs steer by themselves, and a MacVTap does until
    /// something is set. Takes the device's file from the process that has it, which is for root.
    #[command(subcommand)]
    Rss(Rss),
    /// Check whether this host is ready, and tell what to do if not
    Check {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
    /// Print all counters as OpenMetrics text
    Metrics {
        /// Write this file, which is always whole (for node-exporter's textfile collector)
        #[arg(short, long, value_name = "FILE")]
        output: Option<PathBuf>,
        /// Answer HTTP requests for /metrics on this loopback address
        #[arg(long, value_name = "ADDRESS:PORT", conflicts_with = "output")]
        listen: Option<SocketAddr>,
    },
    /// Print completions for a shell
    Completions {
        /// The shell
        shell: Shell,
    },
    /// Write man pages to a folder
    Man {
        /// The folder
        folder: PathBuf,
    },
}

#[derive(Debug, Subcommand)]
enum Rss {
    /// Show table, key, and what the entries carried
    Show(Which),
    /// Change the table, the key, or what is hashed, while packets flow
    Set {
        #[command(flatten)]
        which: Which,
        #[command(flatten)]
        change: rss::Change,
    },
    /// Move entries of the table from busy to idle queues, by what they carried lately
    Rebalance {
        #[command(flatten)]
        which: Which,
        /// Move at most so many entries
        #[arg(long, default_value_t = 8)]
        max: u32,
    },
}

#[derive(Args, Clone, Debug)]
struct Which {
    /// Only these: names of virtual machines, or process numbers
    #[arg(value_name = "VM")]
    vms: Vec<String>,
    /// As JSON, in the form of tools/rvhost/schema.json
    #[arg(long)]
    json: bool,
}

impl Which {
    /// What is open of it now; nothing is no error here.
    fn look(&self, system: &System) -> Result<Found> {
        let mut found = system.devices()?;
        if !self.vms.is_empty() {
            found.open.retain(|open| {
                self.vms
                    .iter()
                    .any(|vm| *vm == open.vm || *vm == open.pid.to_string())
            });
        }
        Ok(found)
    }

    /// What is open of it, if anything is.
    fn some(&self, system: &System) -> Result<Result<Found, ExitCode>> {
        let found = self.look(system)?;
        if !found.open.is_empty() {
            return Ok(Ok(found));
        }
        if self.json {
            println!("{}", json::document(system, &found, None));
        }
        let mut message = match self.vms.as_slice() {
            [] => "no device of rvhost_net is open".to_owned(),
            vms => format!("no device of rvhost_net is open in {}", vms.join(", ")),
        };
        if found.hidden > 0 {
            message += &format!(
                " (no permission to look into {} processes: try as root)",
                found.hidden
            );
        }
        if found.foreign > 0 {
            message += &format!(
                " (open with C vhost_net, which counts nothing: {})",
                found.foreign
            );
        }
        if !found.versions.is_empty() {
            bail!(
                "the module's counters are of version {}, this program knows {}: use the rvhost that came with the module",
                found.versions.join(", "),
                fdinfo::VERSION
            );
        }
        eprintln!("rvhost: {message}");
        Ok(Err(ExitCode::from(3)))
    }
}

fn seconds(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(value) if (0.05..=86400.0).contains(&value) => Ok(value),
        _ => Err("from 0.05 to 86400".to_owned()),
    }
}

fn main() -> ExitCode {
    // A reader that goes away ends this, as it does other tools.
    // SAFETY: Sets a signal's action to what it is by default.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    match run(&Cli::parse()) {
        Ok(code) => code,
        Err(e) => {
            eprintln!("rvhost: {e:#}");
            ExitCode::FAILURE
        }
    }
}

/// Returns early with the exit status where nothing was found.
macro_rules! some {
    ($which:expr, $system:expr) => {
        match $which.some($system)? {
            Ok(found) => found,
            Err(code) => return Ok(code),
        }
    };
}

fn run(cli: &Cli) -> Result<ExitCode> {
    let system = &System::new(&cli.root);
    match &cli.command {
        Command::List(which) => {
            let found = some!(which, system);
            show(which, system, &found, list::list)?;
        }
        Command::Stats(which) => {
            let found = some!(which, system);
            show(which, system, &found, |_, found| list::stats(found))?;
        }
        Command::Top {
            which,
            delay,
            count,
            sort,
        } => {
            some!(which, system);
            let options = top::Options {
                delay: Duration::from_secs_f64(*delay),
                count: *count,
                json: which.json,
                sort: *sort,
            };
            top::run(|| which.look(system), system, options)?;
        }
        Command::Watch {
            which,
            delay,
            count,
        } => {
            some!(which, system);
            let delay = Duration::from_secs_f64(*delay);
            watch::run(|| which.look(system), delay, *count, which.json)?;
        }
        Command::Pin {
            which,
            rx,
            tx,
            spread,
            auto,
            dry_run,
        } => {
            let wish = match (rx, tx, spread, auto) {
                (_, _, Some(cpus), _) => pin::Wish::Spread(cpus.clone()),
                (_, _, _, true) => pin::Wish::Auto,
                (None, None, _, _) => bail!("say where: --rx, --tx, --spread or --auto"),
                (rx, tx, _, _) => pin::Wish::Lists {
                    rx: rx.clone(),
                    tx: tx.clone(),
                },
            };
            let found = some!(which, system);
            for placement in pin::plan(system, &found.open, &wish)? {
                let pin::Placement {
                    thread,
                    name,
                    cpus,
                    reason,
                } = &placement;
                if !dry_run {
                    cpus.apply(*thread).with_context(|| {
                        format!("thread {thread} of {name} cannot run on {cpus} (is that in its cpuset, and online?)")
                    })?;
                }
                let reason = if reason.is_empty() {
                    String::new()
                } else {
                    format!("  ({reason})")
                };
                println!("{name}: thread {thread} on CPUs {cpus}{reason}");
            }
        }
        Command::Rss(command) => {
            let (Rss::Show(which) | Rss::Set { which, .. } | Rss::Rebalance { which, .. }) =
                command;
            let ports = rss::ports(&some!(which, system))?;
            for port in &ports {
                match command {
                    Rss::Set { change, .. } => port.set(change)?,
                    Rss::Rebalance { max, .. } => {
                        let moved = port.rebalance(*max)?;
                        if !which.json {
                            println!("{moved}");
                        }
                    }
                    Rss::Show(_) => {}
                }
                if !which.json && !matches!(command, Rss::Rebalance { .. }) {
                    print!("{}", port.text()?);
                }
            }
            if which.json {
                let all = ports.iter().filter_map(|port| port.json().transpose());
                let all = all.collect::<Result<Vec<_>>>()?;
                println!("{:#}", serde_json::json!({ "version": 1, "ports": all }));
            }
        }
        Command::Check { json } => {
            let findings = check::all(system);
            if *json {
                println!("{}", check::json(&findings));
            } else {
                print!("{}", check::text(&findings));
            }
            if findings
                .iter()
                .any(|finding| finding.level == check::Level::Problem)
            {
                return Ok(ExitCode::from(4));
            }
        }
        Command::Metrics { output, listen } => match (output, listen) {
            (_, Some(address)) => metrics::serve(system, *address)?,
            (Some(path), _) => metrics::write(path, &metrics::text(&system.devices()?))?,
            _ => print!("{}", metrics::text(&system.devices()?)),
        },
        Command::Completions { shell } => {
            clap_complete::generate(*shell, &mut Cli::command(), "rvhost", &mut io::stdout());
        }
        Command::Man { folder } => man(folder)?,
    }
    Ok(ExitCode::SUCCESS)
}

fn show(
    which: &Which,
    system: &System,
    found: &Found,
    text: impl Fn(&System, &Found) -> String,
) -> Result<()> {
    let mut out = if which.json {
        format!("{:#}\n", json::document(system, found, None))
    } else {
        text(system, found)
    };
    if !which.json && found.hidden > 0 {
        out += &format!("(no permission to look into {} processes)\n", found.hidden);
    }
    io::stdout().write_all(out.as_bytes())?;
    Ok(())
}

/// Writes rvhost.1 and a page for each command.
fn man(folder: &Path) -> Result<()> {
    std::fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
    clap_mangen::generate_to(Cli::command(), folder).with_context(|| folder.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn command_line_is_sound() {
        Cli::command().debug_assert();
    }
}
