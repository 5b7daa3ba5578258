// SPDX-License-Identifier: GPL-2.0

//! Lists of CPUs, and threads on them.

use std::collections::BTreeSet;
use std::fmt;
use std::io;
use std::str::FromStr;

use anyhow::bail;
use anyhow::Context;
use anyhow::Result;

/// CPUs, in the form the kernel has for lists of them: `0-3,8`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Cpus(pub(crate) BTreeSet<usize>);

/// More than any machine has.
const LIMIT: usize = 8192;

impl FromStr for Cpus {
    type Err = anyhow::Error;

    fn from_str(list: &str) -> Result<Self> {
        let mut cpus = BTreeSet::new();
        for part in list.trim().split(',').filter(|part| !part.is_empty()) {
            let (first, last) = part.split_once('-').unwrap_or((part, part));
            let number = |text: &str| {
                text.parse::<usize>()
                    .with_context(|| format!("\"{list}\" is no list of CPUs such as 0-3,8"))
            };
            let (first, last) = (number(first)?, number(last)?);
            if first > last || last >= LIMIT {
                bail!("\"{part}\" in the list of CPUs is no range");
            }
            cpus.extend(first..=last);
        }
        Ok(Self(cpus))
    }
}

impl fmt::Display for Cpus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut left = self.0.iter().copied().peekable();
        let mut comma = "";
        while let Some(first) = left.next() {
            let mut last = first;
            while left.next_if_eq(&(last + 1)).is_some() {
                last += 1;
            }
            if first == last {
                write!(f, "{comma}{first}")?;
            } else {
                write!(f, "{comma}{first}-{last}")?;
            }
            comma = ",";
        }
        Ok(())
    }
}

impl Cpus {
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn and(&self, other: &Self) -> Self {
        Self(self.0.intersection(&other.0).copied().collect())
    }

    pub(crate) fn without(&self, other: &Self) -> Self {
        Self(self.0.difference(&other.0).copied().collect())
    }

    /// The `i`th CPU, beginning again after the last.
    pub(crate) fn pick(&self, i: usize) -> Option<Self> {
        let at = i.checked_rem(self.0.len())?;
        let cpu = self.0.iter().nth(at)?;
        Some(Self(BTreeSet::from([*cpu])))
    }

    /// Lets a thread run on these only.
    pub(crate) fn apply(&self, thread: i32) -> io::Result<()> {
        let mut words = vec![0u64; LIMIT / 64];
        for &cpu in &self.0 {
            words[cpu / 64] |= 1 << (cpu % 64);
        }
        // SAFETY: The mask is valid for its length.
        let rc = unsafe {
            libc::sched_setaffinity(thread, LIMIT / 8, words.as_ptr().cast::<libc::cpu_set_t>())
        };
        if rc != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_read_and_written() {
        for (text, shown) in [
            ("0", "0"),
            ("3,1,2,8", "1-3,8"),
            ("0-1,4-5\n", "0-1,4-5"),
            ("", ""),
        ] {
            assert_eq!(text.parse::<Cpus>().unwrap().to_string(), shown);
        }
        for bad in ["a", "3-1", "1-", "0-99999", "-1"] {
            assert!(bad.parse::<Cpus>().is_err(), "{bad}");
        }
    }

    #[test]
    fn picking_goes_round() {
        let cpus: Cpus = "2,4".parse().unwrap();
        let picked: Vec<_> = (0..3).map(|i| cpus.pick(i).unwrap().to_string()).collect();
        assert_eq!(picked, ["2", "4", "2"]);
        assert_eq!(Cpus::default().pick(0), None);
    }
}
