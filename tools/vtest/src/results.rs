// SPDX-License-Identifier: GPL-2.0

//! The machine-readable list of a run, and the comparison of two of them.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use anyhow::Context;
use anyhow::Result;

use crate::case::Case;
use crate::case::NO_SUCH_BACKEND;
use crate::cases::is_ours;
use crate::runner::Verdict;

/// What became of a case.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Entry {
    /// `passed`, `skipped` or `failed`.
    pub(crate) verdict: String,
    /// What the case noted, or why it was skipped.
    pub(crate) seen: Vec<String>,
}

impl Entry {
    fn passed(&self) -> bool {
        self.verdict == "passed"
    }

    /// Whether it was left out because C does not have what it is about.
    fn lacks_backend(&self) -> bool {
        self.verdict == "skipped" && self.seen.iter().any(|why| why == NO_SUCH_BACKEND)
    }

    fn failed(&self) -> bool {
        self.verdict == "failed"
    }
}

/// The results of one run by the names of its cases.
pub(crate) type Results = HashMap<String, Entry>;

/// A line of the list: name, verdict and what was seen, with tabs between.
pub(crate) fn line(case: &Case, verdict: &Verdict) -> String {
    let (verdict, text) = match verdict {
        Verdict::Passed(seen) => ("passed", seen.as_str()),
        Verdict::Skipped(reason) => ("skipped", reason.as_str()),
        Verdict::Failed(_) => ("failed", ""),
    };
    let seen: Vec<&str> = text.lines().collect();
    format!("{}\t{verdict}\t{}\n", case.name, seen.join("\t"))
}

/// Reads the list of a run.
pub(crate) fn read(path: &Path) -> Result<Results> {
    let text = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    Ok(parse(&text))
}

fn parse(text: &str) -> Results {
    text.lines()
        .filter_map(|line| {
            let mut fields = line.split('\t');
            let (name, verdict) = (fields.next()?, fields.next()?);
            let seen = fields.filter(|field| !field.is_empty());
            let entry = Entry {
                verdict: verdict.to_owned(),
                seen: seen.map(str::to_owned).collect(),
            };
            Some((name.to_owned(), entry))
        })
        .collect()
}

/// Compares both modules case by case and prints what differs, as TAP; true
/// when nothing does but what is meant to.
pub(crate) fn compare(cases: &[Case], c: &Results, rust: &Results) -> bool {
    let (mut alike, mut better, mut ours, mut differ) = (0, 0, 0, 0);
    for case in cases {
        let name = &case.name;
        let difference = match (c.get(name), rust.get(name)) {
            (None, None) => continue,
            (Some(_), None) => Some("not run on rust".to_owned()),
            (None, Some(_)) => Some("not run on c".to_owned()),
            (Some(c), Some(rust)) => difference(case, c, rust),
        };
        match difference {
            Some(text) => {
                differ += 1;
                println!("not ok - {name} # {text}");
            }
            None if case.better.is_some() => better += 1,
            None if is_ours(name) || c.get(name).is_some_and(Entry::lacks_backend) => ours += 1,
            None => alike += 1,
        }
    }
    println!("# {alike} alike, {better} better on purpose, {ours} not in C, {differ} different");
    println!("{} passed, {differ} failed", alike + better + ours);
    differ == 0
}

fn difference(case: &Case, c: &Entry, rust: &Entry) -> Option<String> {
    if c.failed() || rust.failed() {
        return Some(format!("c {}, rust {}", c.verdict, rust.verdict));
    }
    if case.better.is_some() || is_ours(&case.name) {
        // What C must not be made to do, or does not have, is not run on it.
        return (!rust.passed()).then(|| format!("rust {}", rust.verdict));
    }
    if c.lacks_backend() {
        // Whether rvhost ran it depends on the machine.
        return None;
    }
    if c.verdict != rust.verdict {
        return Some(format!("c {}, rust {}", c.verdict, rust.verdict));
    }
    let pairs = c.seen.iter().zip(&rust.seen);
    let unequal = pairs.clone().find(|(c, rust)| c != rust);
    match unequal {
        Some((c, rust)) => Some(format!("c saw {c}, rust {rust}")),
        None if c.seen.len() != rust.seen.len() => Some(format!(
            "c noted {} lines, rust {}",
            c.seen.len(),
            rust.seen.len()
        )),
        None => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::better;
    use crate::case::Table;

    fn cases() -> Vec<Case> {
        let mut table = Table::default();
        table.add("a::same", |_| Ok(()));
        table.add_better("a::better", better::ZERO_REGION, |_| Ok(()));
        table.add("stats::ours", |_| Ok(()));
        table.into_cases()
    }

    #[test]
    fn written_lists_are_read_back() {
        let cases = cases();
        let text = line(&cases[0], &Verdict::Passed("one\ntwo".to_owned()))
            + &line(&cases[1], &Verdict::Skipped("why".to_owned()));
        let results = parse(&text);
        assert_eq!(results["a::same"].seen, ["one", "two"]);
        assert!(results["a::same"].passed());
        assert_eq!(results["a::better"].verdict, "skipped");
    }

    #[test]
    fn only_what_is_meant_to_may_differ() {
        let cases = cases();
        let both = |same: &str, better: &str| {
            parse(&format!(
                "a::same\tpassed\t{same}\na::better\tpassed\t{better}\n"
            ))
        };
        assert!(compare(&cases, &both("0", "0"), &both("0", "EFAULT")));
        assert!(!compare(&cases, &both("0", "0"), &both("EFAULT", "0")));
        assert!(!compare(&cases, &both("0", "0"), &Results::new()));
        let failed = parse("a::same\tpassed\t0\na::better\tfailed\t\n");
        assert!(!compare(&cases, &both("0", "0"), &failed));
        let ours = |verdict: &str| parse(&format!("stats::ours\t{verdict}\t\n"));
        assert!(compare(&cases, &ours("skipped"), &ours("passed")));
        assert!(!compare(&cases, &ours("skipped"), &ours("skipped")));
    }
}
