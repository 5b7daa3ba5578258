// SPDX-License-Identifier: GPL-2.0

//! vtest: plays VMM and guest driver against a vhost-net device.
//!
//! The device sends to and receives from a TAP interface in a network
//! namespace of the test's own; a packet socket is the far end. Everything the
//! device does to rings, buffers and eventfds is compared with what
//! Linux's vhost-net does.

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
use crate::case::Case;
use crate::case::Ctx;
use crate::case::Module;
use crate::report::Report;

mod bench;
mod bpf;
mod case;
mod cases;
mod device;
mod errno;
mod frame;
mod ioctl;
mod mem;
mod net;
mod poll;
mod process;
mod report;
mod ring;
mod runner;
mod tap;
mod traffic;
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
        /// Only cases whose name contains this; `*` matches anything.
        #[arg(long)]
        filter: Option<String>,
    },
    /// Run the cases.
    Run(RunArgs),
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
    /// Only cases whose name contains this; `*` matches anything.
    #[arg(long)]
    filter: Option<String>,
    /// Seed of packet contents and shapes.
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Rounds of the cases that start and stop the device many times.
    #[arg(long, default_value_t = 1000)]
    cycles: u32,
}

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::List { filter } => {
            list(filter.as_deref());
            Ok(true)
        }
        Command::Run(args) => run(&args),
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

fn selected(filter: Option<&str>) -> Vec<Case> {
    let mut cases = cases::all();
    if let Some(filter) = filter {
        cases.retain(|case| matches(filter, &case.name));
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

fn list(filter: Option<&str>) {
    for case in selected(filter) {
        println!("{}", case.name);
        if let Some(better) = case.better {
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
    };
    device::open(&ctx.device).context("is the module loaded?")?;
    let cases = selected(args.filter.as_deref());
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
    for case in &cases {
        let finished = runner::run(case, &ctx)?;
        report.add(case, ctx.module, &finished);
    }
    Ok(report.finish(start.elapsed()))
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
