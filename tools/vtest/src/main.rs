// SPDX-License-Identifier: GPL-2.0

//! vtest: plays VMM and guest driver against a vhost-net device.
//!
//! The device sends to and receives from a TAP interface in a network
//! namespace of the test's own; a packet socket is the far end. Everything the
//! device does to rings, buffers and eventfds is compared with what
//! Linux's vhost-net does.

use std::fs;
use std::path::Path;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Context;
use anyhow::Result;
use clap::Args;
use clap::Parser;
use clap::Subcommand;

use crate::bench::BenchArgs;
use crate::case::Card;
use crate::case::Case;
use crate::case::Ctx;
use crate::case::Module;
use crate::report::Report;

mod bench;
mod better;
mod bpf;
mod case;
mod cases;
mod device;
mod document;
mod errno;
mod fdinfo;
mod frame;
mod front;
mod ioctl;
mod late;
mod mem;
mod model;
mod net;
mod nft;
mod poll;
mod process;
mod report;
mod results;
mod ring;
mod runner;
mod tap;
mod threats;
mod traffic;
mod uring;
mod virtqueue;
mod vmm;
mod wire;

#[derive(Parser)]
#[command(version, about)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Print the names of all cases, and what differs on purpose.
    List {
        /// Only cases whose name contains one of these; `*` matches anything.
        #[arg(long)]
        filter: Vec<String>,
        /// Only the groups that pin down the interface.
        #[arg(long)]
        abi: bool,
    },
    /// Run the cases.
    Run(RunArgs),
    /// Print the catalogue of threats, or write it into the documentation.
    Threats(ThreatArgs),
    /// Compare the results of two runs.
    Compare(CompareArgs),
    /// Measure packets per second.
    Bench(BenchArgs),
}

#[derive(Args)]
struct RunArgs {
    /// Device under test.
    #[arg(long, default_value = "/dev/vhost-net")]
    device: PathBuf,
    /// Which implementation it is; found out from /sys/module by default.
    #[arg(long, alias = "module-name", value_enum)]
    module: Option<Module>,
    /// Only cases whose name contains one of these; `*` matches anything.
    #[arg(long)]
    filter: Vec<String>,
    /// None whose name contains one of these.
    #[arg(long)]
    skip: Vec<String>,
    /// Only the groups that pin down the interface.
    #[arg(long)]
    abi: bool,
    /// Only cases that show that these threats come to nothing (A12, a letter,
    /// or all), and say in the end which do.
    #[arg(long)]
    threats: Vec<String>,
    /// Write what became of each case, and what it saw, to this file.
    #[arg(long)]
    results: Option<PathBuf>,
    /// Seed of packet contents and shapes.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Rounds of the cases that start and stop the device many times, and
    /// hundreds of calls of those that call at random.
    #[arg(long, default_value_t = 1000)]
    cycles: u32,
    /// PCI address of a network card with virtual functions, which cases make, use and remove.
    #[arg(long, requires = "peer")]
    card: Option<String>,
    /// The interface that its port is connected to; nobody else may use either.
    #[arg(long, requires = "card")]
    peer: Option<String>,
}

#[derive(Args)]
struct CompareArgs {
    /// Results of C vhost_net.
    c: PathBuf,
    /// Results of rvhost_net.
    rust: PathBuf,
    /// Write the tables into this document.
    #[arg(long)]
    document: Option<PathBuf>,
    /// Only see whether they are there.
    #[arg(long, requires = "document")]
    check: bool,
}

#[derive(Args)]
struct ThreatArgs {
    /// Write the catalogue into this document.
    #[arg(long)]
    document: Option<PathBuf>,
    /// Only see whether it is there.
    #[arg(long, requires = "document")]
    check: bool,
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::List { filter, abi } => {
            list(&filter, abi);
            Ok(true)
        }
        Command::Run(args) => run(&args),
        Command::Threats(args) => show_threats(&args),
        Command::Compare(args) => compare(&args),
        Command::Bench(args) => {
            bench::check(&args).and_then(|()| bench::run(&args, loaded_module()))
        }
    };
    match result {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("vtest: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn selected(filters: &[String], abi: bool) -> Vec<Case> {
    let mut cases = cases::all();
    cases.retain(|case| !abi || cases::is_abi(case));
    if !filters.is_empty() {
        cases.retain(|case| filters.iter().any(|filter| matches(filter, &case.name)));
    }
    cases
}

/// Whether `name` contains the parts between the stars of `filter` in order.
fn matches(filter: &str, name: &str) -> bool {
    let mut rest = name;
    for part in filter.split('*') {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    true
}

fn list(filters: &[String], abi: bool) {
    for case in selected(filters, abi) {
        println!("{}", case.name);
        if let Some(better) = case.better {
            println!("    when: {}", better.when);
            println!("    c:    {}", better.c);
            println!("    rust: {}", better.rust);
        }
    }
}

fn loaded_module() -> Module {
    if Path::new("/sys/module/rvhost_net").exists() {
        Module::Rust
    } else {
        Module::C
    }
}

fn run(args: &RunArgs) -> Result<bool> {
    let ctx = Ctx {
        device: args.device.clone(),
        module: args.module.unwrap_or_else(loaded_module),
        seed: args.seed,
        cycles: args.cycles,
        card: args
            .card
            .clone()
            .zip(args.peer.clone())
            .map(|(address, peer)| Card { address, peer }),
    };
    device::open(&ctx.device).context("is the module loaded?")?;
    let threats = threats::all(&cases::all())?;
    let mut cases = selected(&args.filter, args.abi);
    cases.retain(|case| !args.skip.iter().any(|skip| matches(skip, &case.name)));
    if !args.threats.is_empty() {
        threats::select(&args.threats, &threats, &mut cases)?;
    }
    anyhow::ensure!(!cases.is_empty(), "no case matches");
    let mut report = Report::default();
    let start = Instant::now();
    report.start(cases.len());
    println!(
        "# module {}, device {}, seed {}",
        ctx.module,
        ctx.device.display(),
        ctx.seed
    );
    let mut verdicts = Vec::new();
    for case in cases {
        let finished = runner::run(&case, &ctx)?;
        report.add(&case, ctx.module, &finished);
        verdicts.push((case, finished.verdict));
    }
    if !args.threats.is_empty() {
        threats::print(&threats, &verdicts);
    }
    if let Some(path) = &args.results {
        fs::write(path, report.list()).with_context(|| path.display().to_string())?;
    }
    Ok(report.finish(start.elapsed()))
}

fn show_threats(args: &ThreatArgs) -> Result<bool> {
    let cases = cases::all();
    let threats = threats::all(&cases)?;
    match &args.document {
        Some(document) => threats::update(document, args.check, &threats, &cases)?,
        None => threats::print(&threats, &[]),
    }
    Ok(true)
}

fn compare(args: &CompareArgs) -> Result<bool> {
    let cases = cases::all();
    let (c, rust) = (results::read(&args.c)?, results::read(&args.rust)?);
    let alike = results::compare(&cases, &c, &rust);
    if let (true, Some(document)) = (alike, &args.document) {
        document::update(document, args.check, &cases, &c, &rust)?;
    }
    Ok(alike)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_match_parts_in_order() {
        assert!(matches("tx", "data::tx_direct"));
        assert!(matches("data::*direct", "data::tx_direct"));
        assert!(!matches("direct*tx", "data::tx_direct"));
    }

    #[test]
    fn case_names_are_unique() {
        let mut names: Vec<String> = cases::all().into_iter().map(|case| case.name).collect();
        let count = names.len();
        names.sort();
        names.dedup();
        assert_eq!(names.len(), count);
    }
}
