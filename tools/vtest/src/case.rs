// SPDX-License-Identifier: GPL-2.0

//! What a test case is, and the table of all of them.

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Result;
use clap::ValueEnum;

/// Which implementation is behind the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Module {
    /// Linux's own vhost_net.
    #[value(alias = "vhost_net")]
    C,
    /// rvhost_net.
    #[value(alias = "rvhost_net")]
    Rust,
}

impl Module {
    /// The module's name in /sys/module.
    pub(crate) fn kernel_name(self) -> &'static str {
        match self {
            Self::C => "vhost_net",
            Self::Rust => "rvhost_net",
        }
    }
}

impl fmt::Display for Module {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::C => "c",
            Self::Rust => "rust",
        })
    }
}

/// What a case gets to know.
#[derive(Clone, Debug)]
pub(crate) struct Ctx {
    /// Node of the device under test.
    pub(crate) device: PathBuf,
    /// Implementation under test.
    pub(crate) module: Module,
    /// Seed of everything random.
    pub(crate) seed: u64,
    /// Rounds of the cases that repeat something many times.
    pub(crate) cycles: u32,
}

/// A reason not to run a case here.
#[derive(Debug)]
pub(crate) struct Skip(pub(crate) String);

impl fmt::Display for Skip {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Skip {}

/// Leaves a case without a verdict.
pub(crate) fn skip<T>(reason: &str) -> Result<T> {
    Err(Skip(reason.to_owned()).into())
}

/// What the C module does and what the replacement does instead, on purpose.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Better {
    /// Behaviour of the C module.
    pub(crate) c: &'static str,
    /// Behaviour of the replacement.
    pub(crate) rust: &'static str,
}

type Body = Box<dyn Fn(&Ctx) -> Result<()>>;

/// One test case.
pub(crate) struct Case {
    /// `group::behaviour_and_outcome`.
    pub(crate) name: String,
    /// Set where both modules differ on purpose.
    pub(crate) better: Option<Better>,
    /// How long it may take.
    pub(crate) limit: Duration,
    body: Body,
}

impl Case {
    /// Runs the case in this process.
    pub(crate) fn run(&self, ctx: &Ctx) -> Result<()> {
        (self.body)(ctx)
    }
}

const LIMIT: Duration = Duration::from_secs(60);

/// All cases, in the order they run.
#[derive(Default)]
pub(crate) struct Table {
    cases: Vec<Case>,
}

impl Table {
    /// Adds a case that both modules pass alike.
    pub(crate) fn add(
        &mut self,
        name: impl Into<String>,
        body: impl Fn(&Ctx) -> Result<()> + 'static,
    ) {
        self.push(name.into(), None, LIMIT, Box::new(body));
    }

    /// Adds a case that takes longer than usual.
    pub(crate) fn add_long(
        &mut self,
        name: impl Into<String>,
        limit: Duration,
        body: impl Fn(&Ctx) -> Result<()> + 'static,
    ) {
        self.push(name.into(), None, limit, Box::new(body));
    }

    /// Adds a case in which the replacement is better on purpose.
    pub(crate) fn add_better(
        &mut self,
        name: impl Into<String>,
        better: Better,
        body: impl Fn(&Ctx) -> Result<()> + 'static,
    ) {
        self.push(name.into(), Some(better), LIMIT, Box::new(body));
    }

    fn push(&mut self, name: String, better: Option<Better>, limit: Duration, body: Body) {
        self.cases.push(Case {
            name,
            better,
            limit,
            body,
        });
    }

    /// The cases, in order.
    pub(crate) fn into_cases(self) -> Vec<Case> {
        self.cases
    }
}
