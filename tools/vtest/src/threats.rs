// SPDX-License-Identifier: GPL-2.0

//! The catalogue of what may be tried against the module, and which case shows
//! that it holds. `threats.txt` is the table, Documentation/threats.rst is
//! written from it.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::bail;
use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;

use crate::case::Case;
use crate::document;
use crate::matches;
use crate::runner::Verdict;

const TABLE: &str = include_str!("threats.txt");

/// A test that is not a case of ours: a file, and a word that stands in it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Elsewhere {
    file: String,
    word: String,
}

/// One thing that may be tried.
#[derive(Debug, Default)]
pub(crate) struct Threat {
    section: String,
    /// Letter and number.
    pub(crate) number: String,
    what: String,
    outcome: String,
    patterns: Vec<String>,
    elsewhere: Vec<Elsewhere>,
    /// Why nothing shows it.
    untested: Option<String>,
}

impl Threat {
    fn shows(&self, case: &Case) -> bool {
        self.patterns
            .iter()
            .any(|pattern| matches_all(pattern, &case.name))
    }
}

/// As [`matches()`], but for the whole name.
fn matches_all(pattern: &str, name: &str) -> bool {
    let first = pattern.split('*').next().unwrap_or("");
    let last = pattern.rsplit('*').next().unwrap_or("");
    let exact = pattern.contains('*') || pattern == name;
    exact && name.starts_with(first) && name.ends_with(last) && matches(pattern, name)
}

/// Reads the table and checks that all that it names exists.
pub(crate) fn all(cases: &[Case]) -> Result<Vec<Threat>> {
    let threats = parse(TABLE)?;
    for threat in &threats {
        let number = &threat.number;
        for pattern in &threat.patterns {
            ensure!(
                cases.iter().any(|case| matches_all(pattern, &case.name)),
                "{number}: there is no case {pattern}"
            );
        }
        let tests = threat.patterns.len() + threat.elsewhere.len();
        ensure!(
            (tests == 0) == threat.untested.is_some(),
            "{number}: name a test, or say why there is none"
        );
    }
    Ok(threats)
}

fn parse(text: &str) -> Result<Vec<Threat>> {
    let mut threats: Vec<Threat> = Vec::new();
    let mut section = String::new();
    let lines = text.lines().map(str::trim);
    for line in lines.filter(|line| !line.is_empty() && !line.starts_with('#')) {
        if let Some(title) = line.strip_prefix("= ") {
            title.clone_into(&mut section);
            continue;
        }
        if let Some((number, what)) = head(line) {
            ensure!(
                threats.iter().all(|threat| threat.number != number),
                "{number} is there twice"
            );
            threats.push(Threat {
                section: section.clone(),
                number: number.to_owned(),
                what: what.to_owned(),
                ..Threat::default()
            });
            continue;
        }
        let threat = threats.last_mut().context("a line before the first")?;
        if let Some(outcome) = line.strip_prefix("-> ") {
            outcome.clone_into(&mut threat.outcome);
        } else if let Some(reason) = line.strip_prefix("! ") {
            threat.untested = Some(reason.to_owned());
        } else {
            for test in line.split(',').map(str::trim) {
                match test.strip_prefix('@') {
                    None => threat.patterns.push(test.to_owned()),
                    Some(test) => {
                        let (file, word) = test.split_once(' ').context("@FILE WORD")?;
                        threat.elsewhere.push(Elsewhere {
                            file: file.to_owned(),
                            word: word.to_owned(),
                        });
                    }
                }
            }
        }
    }
    for threat in &threats {
        ensure!(!threat.outcome.is_empty(), "{}: no outcome", threat.number);
    }
    Ok(threats)
}

/// `A12 what happens`, taken apart.
fn head(line: &str) -> Option<(&str, &str)> {
    let (number, what) = line.split_once(' ')?;
    let (letter, digits) = number.split_at_checked(1)?;
    let is_number = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    (letter.bytes().all(|byte| byte.is_ascii_uppercase()) && is_number).then_some((number, what))
}

/// The cases that show the threats of these numbers; `all` stands for each, a
/// letter for its section.
pub(crate) fn select(numbers: &[String], threats: &[Threat], cases: &mut Vec<Case>) -> Result<()> {
    let chosen = |threat: &Threat| {
        numbers.iter().any(|number| {
            number == "all" || *number == threat.number || threat.number[..1] == **number
        })
    };
    ensure!(
        threats.iter().any(chosen),
        "there is no threat {}",
        numbers.join(", ")
    );
    cases.retain(|case| {
        threats
            .iter()
            .any(|threat| chosen(threat) && threat.shows(case))
    });
    Ok(())
}

/// Prints what became of each threat of which a case was run, and which have none.
pub(crate) fn print(threats: &[Threat], verdicts: &[(Case, Verdict)]) {
    let mut held = 0;
    let mut sums = BTreeMap::new();
    for threat in threats {
        let shown: Vec<_> = verdicts
            .iter()
            .filter(|(case, _)| threat.shows(case))
            .collect();
        if shown.is_empty() {
            continue;
        }
        let count = |of: fn(&Verdict) -> bool| shown.iter().filter(|(_, v)| of(v)).count();
        let passed = count(|v| matches!(v, Verdict::Passed(_)));
        let failed = count(|v| matches!(v, Verdict::Failed(_)));
        let skipped = shown.len() - passed - failed;
        let verdict = match (failed, passed) {
            (0, 0) => "not run",
            (0, _) => "holds",
            _ => "FAILS",
        };
        held += usize::from(verdict == "holds");
        *sums.entry(verdict).or_insert(0) += 1;
        println!(
            "# {:4} {verdict:8} {passed:3} passed, {failed} failed, {skipped} skipped: {}",
            threat.number, threat.what
        );
    }
    for threat in threats.iter().filter(|threat| threat.patterns.is_empty()) {
        let why = match (&threat.untested, threat.elsewhere.first()) {
            (Some(reason), _) => format!("no test: {reason}"),
            (None, Some(test)) => format!("shown by {}: {}", test.file, test.word),
            (None, None) => continue,
        };
        println!("# {:4} {why}", threat.number);
    }
    println!(
        "# {held} threats hold of {} in the catalogue",
        threats.len()
    );
}

/// Writes the catalogue into the document at `path`, or, where `check` is set,
/// fails if it is not there already.
pub(crate) fn update(path: &Path, check: bool, threats: &[Threat], cases: &[Case]) -> Result<()> {
    let old = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let new = document::replace(&old, "threats", &table(threats, cases))?;
    if new == old {
        return Ok(());
    }
    if check {
        bail!(
            "{} is not what threats.txt says: 'vtest threats --document' writes it anew",
            path.display()
        );
    }
    fs::write(path, new).with_context(|| path.display().to_string())
}

fn table(threats: &[Threat], cases: &[Case]) -> String {
    let mut text = String::new();
    let mut section = "";
    for threat in threats {
        if threat.section != section {
            section = &threat.section;
            let (letter, title) = section.split_once(' ').unwrap_or(("", section));
            let title = format!("{letter}. {title}");
            let rule = "-".repeat(title.len());
            text.push_str(&format!(
                "{}{title}\n{rule}\n\n.. list-table::\n   :header-rows: 1\n   \
                 :widths: 6 32 28 34\n\n   * - \n     - what happens\n     - what comes of it\n     \
                 - shown by\n",
                if text.is_empty() { "" } else { "\n" },
            ));
        }
        let mut shown: Vec<String> = Vec::new();
        for pattern in &threat.patterns {
            let count = cases
                .iter()
                .filter(|case| matches_all(pattern, &case.name))
                .count();
            shown.push(match count {
                1 => format!("``{pattern}``"),
                _ => format!("``{pattern}`` ({count})"),
            });
        }
        for test in &threat.elsewhere {
            shown.push(format!("{}: ``{}``", test.file, test.word));
        }
        if let Some(reason) = &threat.untested {
            shown.push(format!("nothing: {reason}"));
        }
        text.push_str(&format!(
            "   * - {}\n     - {}\n     - {}\n     - {}\n",
            threat.number,
            threat.what,
            threat.outcome,
            shown.join(",\n       ")
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cases;

    #[test]
    fn what_the_table_names_exists() {
        let cases = cases::all();
        let threats = all(&cases).unwrap();
        assert!(threats.len() > 150, "{}", threats.len());
        let top = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        for test in threats.iter().flat_map(|threat| &threat.elsewhere) {
            let text = fs::read_to_string(top.join(&test.file)).unwrap_or_default();
            assert!(text.contains(&test.word), "{test:?}");
        }
    }

    #[test]
    fn patterns_match_whole_names() {
        assert!(matches_all("a::b", "a::b"));
        assert!(!matches_all("a::b", "a::bc"));
        assert!(matches_all("a::*c", "a::bc"));
        assert!(!matches_all("b*c", "a::bc"));
        assert!(matches_all("a::*", "a::bc"));
    }

    #[test]
    fn gaps_are_told() {
        assert!(parse("A1 x").is_err());
        assert!(parse("A1 x\n-> y\n\nA1 x\n-> y").is_err());
        let threats = parse("= A T\nA1 x\n-> y\nc::d, @f w\n! no").unwrap();
        assert_eq!(threats[0].patterns, ["c::d"]);
        assert_eq!(threats[0].elsewhere[0].file, "f");
        assert_eq!(threats[0].untested.as_deref(), Some("no"));
    }
}
