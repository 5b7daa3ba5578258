// SPDX-License-Identifier: GPL-2.0

//! Results as TAP (Test Anything Protocol) version 14.

use std::time::Duration;

use crate::case::Case;
use crate::case::Module;
use crate::results;
use crate::runner::Finished;
use crate::runner::Verdict;

/// Counts verdicts and prints them as they come.
#[derive(Default)]
pub(crate) struct Report {
    passed: usize,
    failed: Vec<String>,
    skipped: usize,
    number: usize,
    list: String,
}

impl Report {
    /// Announces how many cases there are.
    pub(crate) fn start(&self, cases: usize) {
        println!("TAP version 14");
        println!("1..{cases}");
    }

    /// Prints one result.
    pub(crate) fn add(&mut self, case: &Case, module: Module, finished: &Finished) {
        self.number += 1;
        self.list += &results::line(case, &finished.verdict);
        let (number, name) = (self.number, &case.name);
        let time = milliseconds(finished.time);
        match &finished.verdict {
            Verdict::Passed(_) => {
                self.passed += 1;
                println!("ok {number} - {name} # {time}");
            }
            Verdict::Skipped(reason) => {
                self.skipped += 1;
                println!("ok {number} - {name} # SKIP {reason}");
            }
            Verdict::Failed(text) => {
                self.failed.push(name.clone());
                println!("not ok {number} - {name} # {time}");
                for line in text.lines() {
                    println!("  # {line}");
                }
                if let Some(better) = case.better {
                    let rule = match module {
                        Module::C => better.c,
                        Module::Rust => better.rust,
                    };
                    println!("  # {}: the {module} module: {rule}", better.when);
                }
            }
        }
    }

    /// The machine-readable list so far.
    pub(crate) fn list(&self) -> &str {
        &self.list
    }

    /// Prints the sums; true when nothing failed.
    pub(crate) fn finish(&self, time: Duration) -> bool {
        println!("# {} skipped, {}", self.skipped, milliseconds(time));
        for name in &self.failed {
            println!("# failed: {name}");
        }
        println!("{} passed, {} failed", self.passed, self.failed.len());
        self.failed.is_empty()
    }
}

fn milliseconds(time: Duration) -> String {
    format!("{} ms", time.as_millis())
}
