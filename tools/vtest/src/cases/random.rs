// SPDX-License-Identifier: GPL-2.0

//! Calls at random, by two processes, against the model of the control plane:
//! each must return what the model says, and none may hang.

use std::fmt;
use std::mem::size_of;
use std::time::Duration;

use anyhow::bail;
use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;

use self::calls::Calls;
use self::other::Request;
use self::rig::Rig;
use crate::case::seen;
use crate::case::Ctx;
use crate::case::Table;
use crate::errno::Errno;
use crate::frame::Rng;
use crate::ioctl;
use crate::model::Op;
use crate::process;
use crate::traffic::expect;

mod calls;
mod other;
mod rig;
mod threads;

/// Calls for each of the rounds that were asked for.
const PER_CYCLE: u32 = 100;
/// How many further seeds there are, and how long each may take.
const SEEDS: u64 = 5;
const LIMIT: Duration = Duration::from_secs(60);
const PAGE: usize = 4096;
const MIB: usize = 1 << 20;

pub(super) fn register(table: &mut Table) {
    table.add_long(
        "random::calls_return_what_the_model_says",
        Duration::from_secs(300),
        |ctx| model(ctx, ctx.cycles.saturating_mul(PER_CYCLE)),
    );
    table.add_long(
        "random::shorter_runs_with_other_seeds",
        Duration::from_secs(300),
        other_seeds,
    );
    threads::register(table);
}

/// What is done: a call by one of the processes, or a fresh start.
#[derive(Clone, PartialEq, Eq)]
enum Step {
    Call(usize, Op),
    /// The device is closed and opened again.
    Reopen,
}

impl fmt::Debug for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Reopen => f.write_str("close, open"),
            Self::Call(who, Op::Ioctl(number, arg)) => {
                write!(f, "process {who}: {} ", ioctl::name(*number))?;
                match arg {
                    None => f.write_str("nowhere"),
                    Some(arg) => {
                        let words = arg.bytes.chunks(4).take(20);
                        let words: Vec<String> = words
                            .map(|word| {
                                let byte = |i: usize| word.get(i).copied().unwrap_or(0);
                                let word = [byte(0), byte(1), byte(2), byte(3)];
                                format!("{:x}", u32::from_ne_bytes(word))
                            })
                            .collect();
                        let constant = if arg.writable { "" } else { ", read-only" };
                        write!(
                            f,
                            "[{}] ({} bytes{constant})",
                            words.join(" "),
                            arg.bytes.len()
                        )
                    }
                }
            }
            Self::Call(who, op) => write!(f, "process {who}: {op:x?}"),
        }
    }
}

fn affinity() -> Result<libc::cpu_set_t> {
    // SAFETY: All zeroes are an empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: The set is valid for its size.
    let rc = unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &mut set) };
    ensure!(rc == 0, "sched_getaffinity: {}", Errno::last());
    Ok(set)
}

/// Moves this process and the threads that are made for it from now on.
fn set_affinity(set: &libc::cpu_set_t) -> Result<()> {
    // SAFETY: The set is valid for its size.
    let rc = unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), set) };
    ensure!(rc == 0, "sched_setaffinity: {}", Errno::last());
    Ok(())
}

/// Seeds that nobody chose: those that follow.
fn other_seeds(ctx: &Ctx) -> Result<()> {
    for i in 1..=SEEDS {
        let ctx = Ctx {
            seed: ctx.seed.wrapping_add(i),
            ..ctx.clone()
        };
        // Each in a process of its own, as its other process has its descriptors.
        process::in_child_for(LIMIT, || {
            model(&ctx, ctx.cycles.saturating_mul(PER_CYCLE) / 10)
        })
        .with_context(|| format!("seed {}", ctx.seed))?;
    }
    Ok(())
}

fn model(ctx: &Ctx, calls: u32) -> Result<()> {
    expect("size of a request", size_of::<Request>(), 40)?;
    // On one CPU the device's threads, if they are ours, answer without delay;
    // the last tenth of the calls meets them on all.
    let all = affinity()?;
    // SAFETY: All zeroes are an empty set.
    let mut one: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: The set has room for more CPUs than there are.
    unsafe { libc::CPU_SET(0, &mut one) };
    set_affinity(&one)?;
    let mut rig = Rig::new(ctx)?;
    let (mut done, mut starts, mut errors) = (0, 0, 0);
    let mut rng = Rng::new(ctx.seed);
    while done < calls {
        if done >= calls / 10 * 9 {
            set_affinity(&all)?;
        }
        let life = Calls {
            rng: Rng::new(rng.next()),
            rings: &rig.rings,
            world: &rig.world,
        }
        .life();
        for (i, step) in life.iter().enumerate() {
            match rig.step(step) {
                Ok(Ok(_)) => {
                    let starting = |number: &libc::c_ulong| *number == ioctl::NET_SET_BACKEND();
                    let is_start =
                        matches!(step, Step::Call(_, Op::Ioctl(number, _)) if starting(number));
                    starts += u32::from(is_start);
                }
                Ok(Err(_)) => errors += 1,
                Err(error) => {
                    // The device that it happened to began with the life.
                    let steps = rig.shrink(life[1..=i].to_vec());
                    let steps: Vec<String> = steps.iter().map(|s| format!("  {s:?}")).collect();
                    bail!(
                        "after {done} calls with seed {}: {error:#}\nthese are enough:\n{}",
                        ctx.seed,
                        steps.join("\n")
                    );
                }
            }
            done += 1;
        }
    }
    rig.file = None;
    // What is tried must be worth it.
    ensure!(
        starts > calls / 100 && errors > calls / 10,
        "{starts} starts and stops, {errors} errors in {done} calls"
    );
    seen(format!("{calls} calls"));
    Ok(())
}
