// SPDX-License-Identifier: GPL-2.0

//! What a test case is, and the table of all of them.

use std::fmt;
use std::fs;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::Duration;

use anyhow::Context;
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
    /// The value of a module parameter.
    pub(crate) fn parameter(self, name: &str) -> Result<String> {
        // Those of C are the shared core's.
        let module = match self {
            Self::C => "vhost",
            Self::Rust => "rvhost_net",
        };
        let path = format!("/sys/module/{module}/parameters/{name}");
        let value = fs::read_to_string(&path).context(path)?;
        Ok(value.trim().to_owned())
    }

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
    /// A network card whose functions cases may take.
    pub(crate) card: Option<Card>,
}

impl Ctx {
    /// Rounds of a case that has `most` of them by default, and `least` if there are to be few.
    pub(crate) fn rounds(&self, least: u32, most: u32) -> u32 {
        (self.cycles.saturating_mul(most) / 1000).clamp(least, most)
    }
}

/// A network card with virtual functions, and what it is connected to.
#[derive(Clone, Debug)]
pub(crate) struct Card {
    /// Its address on the PCI bus.
    pub(crate) address: String,
    /// The interface at the other end of its cable.
    pub(crate) peer: String,
}

/// What the running case has noted. Each case runs in a process of its own.
static SEEN: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Notes something that was seen and that must be the same on both modules,
/// for the list of results.
pub(crate) fn seen(text: impl Into<String>) {
    if let Ok(mut seen) = SEEN.lock() {
        seen.push(text.into());
    }
}

/// Takes what was noted, one line each.
pub(crate) fn take_seen() -> String {
    SEEN.lock()
        .map(|mut seen| std::mem::take(&mut *seen).join("\n"))
        .unwrap_or_default()
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

/// Why a case of a backend of rvhost's own is left out on C.
pub(crate) const NO_SUCH_BACKEND: &str = "C vhost_net has no such backend";

/// Leaves a case without a verdict.
pub(crate) fn skip<T>(reason: &str) -> Result<T> {
    Err(Skip(reason.to_owned()).into())
}

/// A row of Documentation/compat.rst: what the C module does and what the
/// replacement does instead, on purpose. Several cases may show one row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Better {
    /// In which situation.
    pub(crate) when: &'static str,
    /// Behaviour of the C module.
    pub(crate) c: &'static str,
    /// Behaviour of the replacement.
    pub(crate) rust: &'static str,
    /// Why no VMM depends on what the C module does.
    pub(crate) why: &'static str,
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
