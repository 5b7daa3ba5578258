// SPDX-License-Identifier: GPL-2.0

//! The tables of Documentation/compat.rst that come from the results of runs.

use std::fs;
use std::path::Path;

use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;

use crate::better;
use crate::case::Case;
use crate::cases::features;
use crate::cases::matrix;
use crate::results::Results;

/// Writes the tables into the document at `path`, or, where `check` is set,
/// fails if they are not there already.
pub(crate) fn update(
    path: &Path,
    check: bool,
    cases: &[Case],
    c: &Results,
    rust: &Results,
) -> Result<()> {
    let old = fs::read_to_string(path).with_context(|| path.display().to_string())?;
    let mut new = old.clone();
    for (name, table) in [
        ("states", states()?),
        ("ioctls", ioctls(cases, c, rust)?),
        ("features", feature_bits(c, rust)?),
        ("better", better_rows(cases)?),
    ] {
        new = replace(&new, name, &table)?;
    }
    if new == old {
        return Ok(());
    }
    ensure!(
        !check,
        "{} is not what the run says: 'make abi' writes it anew",
        path.display()
    );
    fs::write(path, new).with_context(|| path.display().to_string())
}

/// Puts `table` between the two marks called `name`.
pub(crate) fn replace(text: &str, name: &str, table: &str) -> Result<String> {
    let mark = |which: &str| format!(".. {which} of table: {name}\n");
    let begin = mark("begin");
    let missing = || format!("no mark '{}'", begin.trim_end());
    let (before, rest) = text.split_once(&begin).with_context(missing)?;
    let (_, after) = rest.split_once(&mark("end")).with_context(missing)?;
    Ok(format!("{before}{begin}\n{table}\n{}{after}", mark("end")))
}

/// A "simple table" of reStructuredText; the first row is its head.
fn simple(rows: &[Vec<String>]) -> String {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |i: usize| rows.iter().map(|row| row[i].len()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let rule: Vec<String> = widths.iter().map(|width| "=".repeat(*width)).collect();
    let rule = rule.join("  ");
    let mut lines = vec![rule.clone()];
    for (i, row) in rows.iter().enumerate() {
        let cells = row.iter().zip(&widths);
        let cells: Vec<String> = cells
            .map(|(cell, width)| format!("{cell:width$}"))
            .collect();
        lines.push(cells.join("  ").trim_end().to_owned());
        if i == 0 {
            lines.push(rule.clone());
        }
    }
    lines.push(rule);
    lines.join("\n") + "\n"
}

fn row(cells: &[&str]) -> Vec<String> {
    cells.iter().map(|cell| (*cell).to_owned()).collect()
}

/// What the columns of the table of ioctls mean.
fn states() -> Result<String> {
    let mut rows = vec![row(&["column", "state of the device"])];
    rows.extend(matrix::STATES.map(|state| row(&[state.name, state.meaning])));
    Ok(simple(&rows))
}

/// Ioctls × states, from what the cases of the matrix noted.
fn ioctls(cases: &[Case], c: &Results, rust: &Results) -> Result<String> {
    let mut head = row(&["call", "argument"]);
    head.extend(matrix::STATES.map(|state| state.name.to_owned()));
    let columns = head.len();
    let mut rows = vec![head];
    for case in cases {
        let Some(call) = case.name.strip_prefix(matrix::PREFIX) else {
            continue;
        };
        let seen = |results: &Results| {
            let entry = results.get(&case.name);
            entry.map(|entry| entry.seen.clone()).unwrap_or_default()
        };
        let (c, rust) = (seen(c), seen(rust));
        ensure!(!c.is_empty() && c == rust, "{} has no result", case.name);
        for line in &c {
            let mut cells = row(&[call]);
            cells.extend(line.split('|').map(str::to_owned));
            ensure!(cells.len() == columns, "{}: odd line {line}", case.name);
            rows.push(cells);
        }
    }
    Ok(simple(&rows))
}

/// The feature bits, who offers them, and what shows that they work.
fn feature_bits(c: &Results, rust: &Results) -> Result<String> {
    let words = |results: &Results| -> Result<Vec<u64>> {
        let entry = results.get(features::OFFER).context("no offer")?;
        let seen = entry.seen.iter();
        seen.map(|word| Ok(u64::from_str_radix(word, 16)?))
            .collect()
    };
    let (c, rust) = (words(c)?, words(rust)?);
    let mut rows = vec![row(&["bit", "feature", "C", "rvhost", "shown by"])];
    for bit in features::BITS {
        let offered = |words: &[u64]| {
            let word = words.get(bit.number / 64).copied().unwrap_or(0);
            let yes = word >> (bit.number % 64) & 1 != 0;
            if yes { "yes" } else { "no" }.to_owned()
        };
        rows.push(vec![
            bit.number.to_string(),
            bit.name.to_owned(),
            offered(&c),
            offered(&rust),
            bit.shown_by.join(", "),
        ]);
    }
    Ok(simple(&rows))
}

/// What is better on purpose, with the cases that show it.
fn better_rows(cases: &[Case]) -> Result<String> {
    let mut text = String::from(
        ".. list-table::\n   :header-rows: 1\n   :widths: 24 24 24 28\n\n   \
         * - when\n     - C vhost_net\n     - rvhost\n     - why no VMM minds, and what shows it\n",
    );
    for better in better::ROWS {
        let shown = cases.iter().filter(|case| case.better == Some(**better));
        let shown: Vec<String> = shown.map(|case| format!("``{}``", case.name)).collect();
        ensure!(!shown.is_empty(), "nothing shows: {}", better.when);
        text.push_str(&format!(
            "   * - {}\n     - {}\n     - {}\n     - {}.\n       {}\n",
            better.when,
            better.c,
            better.rust,
            better.why,
            shown.join(",\n       ")
        ));
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cases;

    #[test]
    fn tables_are_padded() {
        let rows = [row(&["a", "bb"]), row(&["ccc", "d"])];
        assert_eq!(
            simple(&rows),
            "===  ==\na    bb\n===  ==\nccc  d\n===  ==\n"
        );
    }

    #[test]
    fn marks_keep_what_is_around_them() {
        let text = "x\n.. begin of table: t\nold\n.. end of table: t\ny\n";
        let new = replace(text, "t", "new").unwrap();
        assert_eq!(
            new,
            "x\n.. begin of table: t\n\nnew\n.. end of table: t\ny\n"
        );
        assert_eq!(replace(&new, "t", "new").unwrap(), new);
        assert!(replace(text, "u", "new").is_err());
    }

    #[test]
    fn rows_and_cases_belong_together() {
        let cases = cases::all();
        better_rows(&cases).unwrap();
        for case in cases.iter().filter(|case| case.better.is_some()) {
            assert!(
                better::ROWS.iter().any(|row| Some(**row) == case.better),
                "{} has a row of its own",
                case.name
            );
        }
        for bit in features::BITS {
            for name in bit.shown_by {
                assert!(
                    cases.iter().any(|case| case.name == *name),
                    "no case {name}"
                );
            }
        }
    }
}
