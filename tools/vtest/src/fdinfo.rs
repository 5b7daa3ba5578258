// SPDX-License-Identifier: GPL-2.0

//! What `/proc/self/fdinfo` tells of a device.

use std::collections::BTreeMap;
use std::fs;
use std::os::fd::AsRawFd;

use anyhow::ensure;
use anyhow::Context;
use anyhow::Result;

/// The lines of one look, by name.
#[derive(Clone, Debug)]
pub(crate) struct Fdinfo(BTreeMap<String, String>);

impl Fdinfo {
    /// Looks now.
    pub(crate) fn of(file: &impl AsRawFd) -> Result<Self> {
        let path = format!("/proc/self/fdinfo/{}", file.as_raw_fd());
        let text = fs::read_to_string(&path).with_context(|| path.clone())?;
        let mut lines = BTreeMap::new();
        for line in text.lines() {
            let (name, value) = line
                .split_once(":\t")
                .with_context(|| format!("{path}: no name in {line:?}"))?;
            let before = lines.insert(name.to_owned(), value.to_owned());
            ensure!(before.is_none(), "{path}: {name} is there twice");
        }
        Ok(Self(lines))
    }

    /// A value as it is; `None` if there is no such line.
    pub(crate) fn text(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// A number, without its unit. Reasons that never occurred have no line: they count as 0.
    pub(crate) fn number(&self, name: &str) -> Result<u64> {
        let Some(value) = self.text(name) else {
            let by_reason = name.contains("-drops-") || name.contains("-errors-");
            ensure!(by_reason, "there is no line {name}");
            return Ok(0);
        };
        let number = value.split(' ').next().unwrap_or(value);
        number
            .parse()
            .with_context(|| format!("{name} is {value:?}, which is no number"))
    }

    /// All lines whose name starts like this, as numbers.
    pub(crate) fn numbers(&self, prefix: &str) -> Result<Vec<(String, u64)>> {
        self.0
            .keys()
            .filter(|name| name.starts_with(prefix))
            .map(|name| Ok((name.clone(), self.number(name)?)))
            .collect()
    }

    /// The names of all lines.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.keys().map(String::as_str)
    }
}
