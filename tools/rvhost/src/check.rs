// SPDX-License-Identifier: GPL-2.0

//! Whether this host is ready, and what to do if not.

use std::fs::OpenOptions;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::fs::MetadataExt;
use std::process::Command;

use serde_json::json;
use serde_json::Value;

use crate::rates::counted;
use crate::system::System;

/// How bad a finding is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Level {
    Ok,
    /// Worth knowing.
    Note,
    /// Something will not work as well as it could.
    Warning,
    /// Guests cannot use rvhost_net.
    Problem,
}

impl Level {
    fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Note => "note",
            Self::Warning => "warning",
            Self::Problem => "problem",
        }
    }
}

/// What was looked at, and what was found.
#[derive(Clone, Debug)]
pub(crate) struct Finding {
    pub(crate) what: &'static str,
    pub(crate) level: Level,
    pub(crate) text: String,
    /// What to do, if there is something to do.
    pub(crate) remedy: Option<String>,
}

fn finding(what: &'static str, level: Level, text: impl Into<String>, remedy: &str) -> Finding {
    Finding {
        what,
        level,
        text: text.into(),
        remedy: (!remedy.is_empty()).then(|| remedy.to_owned()),
    }
}

/// Looks at everything.
pub(crate) fn all(system: &System) -> Vec<Finding> {
    vec![
        kernel(system),
        config(system),
        module(system),
        node(system),
        permission(system),
        kvm(system),
        tun(system),
        regions(system),
        iommu(system),
        cgroups(system),
        users(system),
    ]
}

fn kernel(system: &System) -> Finding {
    let release = system
        .read("/proc/sys/kernel/osrelease")
        .unwrap_or_default();
    let mut words = release.split(['.', '-']);
    let mut number = || {
        words
            .next()
            .and_then(|word| word.parse::<u32>().ok())
            .unwrap_or(0)
    };
    let version = (number(), number());
    if version >= (7, 2) {
        finding("kernel", Level::Ok, format!("Linux {release}"), "")
    } else {
        finding(
            "kernel",
            Level::Problem,
            format!("Linux {release} is older than 7.2"),
            "boot a kernel of 7.2 or later that has CONFIG_RUST=y",
        )
    }
}

fn config(system: &System) -> Finding {
    let release = system
        .read("/proc/sys/kernel/osrelease")
        .unwrap_or_default();
    let places = [
        format!("/boot/config-{release}"),
        format!("/lib/modules/{release}/config"),
        format!("/lib/modules/{release}/build/.config"),
    ];
    let Some((place, text)) = places
        .into_iter()
        .find_map(|place| Some((place.clone(), system.read(&place)?)))
        .or_else(|| running_config(system))
    else {
        // A module that runs has what it needs.
        let (level, remedy) = if system.exists("/sys/module/rvhost_net") {
            (Level::Note, "")
        } else {
            (Level::Warning, "if the module does not load, look whether the kernel has CONFIG_RUST=y: zgrep RUST= /proc/config.gz")
        };
        return finding(
            "config",
            level,
            "the kernel's configuration is nowhere to be read",
            remedy,
        );
    };
    let has = |name: &str| {
        text.lines().any(|line| {
            line.strip_prefix("CONFIG_")
                .and_then(|line| line.strip_prefix(name))
                .is_some_and(|value| value == "=y" || value == "=m")
        })
    };
    let missing: Vec<_> = ["RUST", "TUN", "TAP"]
        .into_iter()
        .filter(|name| !has(name))
        .collect();
    if missing.is_empty() {
        finding(
            "config",
            Level::Ok,
            format!("{place} has what is needed"),
            "",
        )
    } else {
        finding(
            "config",
            Level::Problem,
            format!("{place} lacks CONFIG_{}", missing.join(", CONFIG_")),
            "build a kernel with these options, or choose one that has them",
        )
    }
}

/// What the running kernel tells of its configuration itself, if gzip is there to read it.
fn running_config(system: &System) -> Option<(String, String)> {
    let place = "/proc/config.gz";
    let file = std::fs::File::open(system.path(place)).ok()?;
    let gzip = Command::new("gzip").arg("-dc").stdin(file).output().ok()?;
    let text = String::from_utf8(gzip.stdout).ok()?;
    gzip.status.success().then(|| (place.to_owned(), text))
}

fn module(system: &System) -> Finding {
    let node = system.node();
    if system.exists("/sys/module/rvhost_net") {
        let text = format!("rvhost_net is loaded, as /dev/{node}");
        if node != "vhost-net" {
            return finding(
                "module",
                Level::Warning,
                text,
                "guests use it only if their XML says <backend vhost='/dev/NAME'/>",
            );
        }
        return finding("module", Level::Ok, text, "");
    }
    if system.exists("/sys/module/vhost_net") {
        return finding(
            "module",
            Level::Problem,
            "C vhost_net has the name /dev/vhost-net",
            "stop the guests, modprobe -r vhost_net, modprobe rvhost_net; or load it beside: modprobe rvhost_net devname=vhost-rnet",
        );
    }
    finding(
        "module",
        Level::Problem,
        "rvhost_net is not loaded",
        "modprobe rvhost_net (make install puts it where modprobe finds it)",
    )
}

fn node(system: &System) -> Finding {
    let name = system.node();
    let path = format!("/dev/{name}");
    let Ok(file) = std::fs::metadata(system.path(&path)) else {
        return finding(
            "node",
            Level::Problem,
            format!("{path} is not there"),
            "load the module; where no udev or devtmpfs makes nodes: mknod it as /proc/misc tells",
        );
    };
    let minor = system.minor(&name);
    let (major, its) = (libc::major(file.rdev()), libc::minor(file.rdev()));
    match minor {
        Some(minor) if file.file_type().is_char_device() && (major, its) == (10, minor) => finding(
            "node",
            Level::Ok,
            format!("{path} is misc device {minor}"),
            "",
        ),
        Some(minor) => finding(
            "node",
            Level::Problem,
            format!("{path} is not the misc device {minor} that /proc/misc tells of"),
            "rm it, and mknod it as a character device 10 with that minor number",
        ),
        None => finding(
            "node",
            Level::Problem,
            format!("no loaded module has the device {path}: it is a left-over"),
            "load the module",
        ),
    }
}

fn permission(system: &System) -> Finding {
    let path = format!("/dev/{}", system.node());
    let opened = OpenOptions::new()
        .read(true)
        .write(true)
        .open(system.path(&path));
    let mode = std::fs::metadata(system.path(&path)).map_or(0, |file| file.mode() & 0o777);
    match opened {
        Ok(_) => finding("permission", Level::Ok, format!("{path} can be opened (mode {mode:o})"), ""),
        Err(e) => finding(
            "permission",
            Level::Warning,
            format!("{path}: {e}"),
            "libvirt opens it as root and needs nothing; for others a udev rule: KERNEL==\"vhost-net\", GROUP=\"kvm\", MODE=\"0660\"",
        ),
    }
}

fn kvm(system: &System) -> Finding {
    if system.exists("/dev/kvm") {
        finding("kvm", Level::Ok, "/dev/kvm is there", "")
    } else {
        finding(
            "kvm",
            Level::Warning,
            "there is no /dev/kvm: guests are emulated, and slow",
            "switch virtualisation on in the firmware, and modprobe kvm_intel or kvm_amd",
        )
    }
}

fn tun(system: &System) -> Finding {
    if system.exists("/dev/net/tun") {
        finding("tun", Level::Ok, "/dev/net/tun is there", "")
    } else {
        finding(
            "tun",
            Level::Problem,
            "there is no /dev/net/tun: no TAP can be made",
            "modprobe tun",
        )
    }
}

fn regions(system: &System) -> Finding {
    let ours = system.read("/sys/module/rvhost_net/parameters/max_mem_regions");
    let theirs = system.read("/sys/module/vhost/parameters/max_mem_regions");
    match (ours, theirs) {
        (None, _) => finding("memory", Level::Note, "the module is not loaded: nothing to compare", ""),
        (Some(ours), Some(theirs)) if ours == theirs => {
            finding("memory", Level::Ok, format!("VMMs know of all {ours} memory regions"), "")
        }
        (Some(ours), theirs) => finding(
            "memory",
            Level::Warning,
            format!(
                "VMMs that hot-plug memory take the limit to be {}, not {ours} regions",
                theirs.as_deref().unwrap_or("64")
            ),
            "stop the guests; modprobe -r vhost_net vhost; modprobe vhost max_mem_regions=N (make install writes a modprobe.d file for that)",
        ),
    }
}

fn iommu(system: &System) -> Finding {
    let groups = system.names("/sys/kernel/iommu_groups").len();
    let text = match groups {
        0 => "no IOMMU is in use".to_owned(),
        n => format!("an IOMMU is in use, {n} groups"),
    };
    finding(
        "iommu",
        Level::Note,
        format!("{text}; rvhost_net needs none, nor do guests' vIOMMUs"),
        "",
    )
}

fn cgroups(system: &System) -> Finding {
    if system.exists("/sys/fs/cgroup/cgroup.controllers") {
        let controllers = system
            .read("/sys/fs/cgroup/cgroup.controllers")
            .unwrap_or_default();
        if controllers.split(' ').any(|name| name == "cpuset") {
            return finding(
                "cgroups",
                Level::Ok,
                "version 2, with cpusets: threads are in their owner's",
                "",
            );
        }
        return finding(
            "cgroups",
            Level::Note,
            "version 2 without cpusets",
            "for threads to keep to their owner's CPUs: CONFIG_CPUSETS=y, or rvhost pin",
        );
    }
    finding(
        "cgroups",
        Level::Note,
        "version 2 is not mounted: threads inherit what version 1 has",
        "for version 2: boot with systemd.unified_cgroup_hierarchy=1, or mount -t cgroup2 cgroup2 /sys/fs/cgroup",
    )
}

fn users(system: &System) -> Finding {
    match system.devices() {
        Ok(found) if !found.versions.is_empty() => finding(
            "guests",
            Level::Problem,
            format!(
                "the module's counters are of version {}",
                found.versions.join(", ")
            ),
            "use the rvhost that came with the module",
        ),
        Ok(found) if found.foreign > 0 => finding(
            "guests",
            Level::Warning,
            format!("{} open devices are C vhost_net's", found.foreign),
            "restart these guests once rvhost_net has the name",
        ),
        Ok(found) => {
            let hidden = match found.hidden {
                0 => String::new(),
                n => format!("; no permission to look into {n} processes"),
            };
            finding(
                "guests",
                Level::Ok,
                format!(
                    "open: {}{hidden}",
                    counted(found.open.len() as u64, "device")
                ),
                "",
            )
        }
        Err(e) => finding(
            "guests",
            Level::Problem,
            format!("{e:#}"),
            "mount -t proc proc /proc",
        ),
    }
}

/// The findings as lines for people.
pub(crate) fn text(findings: &[Finding]) -> String {
    let mut out = String::new();
    for finding in findings {
        out.push_str(&format!(
            "{:<8} {:<11} {}\n",
            finding.level.name(),
            finding.what,
            finding.text
        ));
        if let Some(remedy) = &finding.remedy {
            out.push_str(&format!("{:<21}-> {remedy}\n", ""));
        }
    }
    out
}

/// The findings as JSON.
pub(crate) fn json(findings: &[Finding]) -> Value {
    let findings: Vec<Value> = findings
        .iter()
        .map(|finding| {
            json!({
                "what": finding.what,
                "level": finding.level.name(),
                "text": finding.text,
                "remedy": finding.remedy,
            })
        })
        .collect();
    json!({ "version": 1, "findings": findings })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::system::tests::Fake;

    /// A machine on which all is well, but for its device node, which only root can make.
    fn good(name: &str) -> Fake {
        let fake = Fake::new(name);
        fake.file("/proc/sys/kernel/osrelease", "7.2.12-test\n")
            .file(
                "/boot/config-7.2.12-test",
                "CONFIG_RUST=y\nCONFIG_TUN=m\nCONFIG_TAP=m\n",
            )
            .file("/sys/module/rvhost_net/parameters/devname", "vhost-net\n")
            .file("/sys/module/rvhost_net/parameters/max_mem_regions", "509\n")
            .file("/sys/module/vhost/parameters/max_mem_regions", "509\n")
            .file("/proc/misc", "238 vhost-net\n")
            .file("/dev/vhost-net", "")
            .file("/dev/kvm", "")
            .file("/dev/net/tun", "")
            .file("/sys/fs/cgroup/cgroup.controllers", "cpuset cpu io\n");
        fake
    }

    fn level(fake: &Fake, what: &str) -> (Level, bool) {
        let findings = all(&fake.system());
        let found = findings
            .iter()
            .find(|finding| finding.what == what)
            .unwrap();
        (found.level, found.remedy.is_some())
    }

    #[test]
    fn good_machine_lacks_nothing_but_the_node() {
        let fake = good("good");
        for finding in all(&fake.system()) {
            let worst = if finding.what == "node" {
                Level::Problem
            } else {
                Level::Note
            };
            assert!(finding.level <= worst, "{finding:?}");
        }
    }

    #[test]
    fn each_thing_that_lacks_is_found_with_a_remedy() {
        let remove = |fake: &Fake, path: &str| {
            let path = fake.0.join(path.trim_start_matches('/'));
            if path.is_dir() {
                std::fs::remove_dir_all(path).unwrap();
            } else {
                std::fs::remove_file(path).unwrap();
            }
        };
        for (i, (what, path, wanted)) in [
            ("module", "/sys/module/rvhost_net", Level::Problem),
            ("node", "/dev/vhost-net", Level::Problem),
            ("permission", "/dev/vhost-net", Level::Warning),
            ("kvm", "/dev/kvm", Level::Warning),
            ("tun", "/dev/net/tun", Level::Problem),
            ("memory", "/sys/module/vhost", Level::Warning),
            ("cgroups", "/sys/fs/cgroup/cgroup.controllers", Level::Note),
        ]
        .into_iter()
        .enumerate()
        {
            let fake = good(&format!("lacks{i}"));
            remove(&fake, path);
            assert_eq!(level(&fake, what), (wanted, true), "{what}");
        }
        for (i, (what, path, text, wanted)) in [
            (
                "kernel",
                "/proc/sys/kernel/osrelease",
                "6.1.0-18-amd64\n",
                Level::Problem,
            ),
            (
                "config",
                "/boot/config-7.2.12-test",
                "# CONFIG_RUST is not set\nCONFIG_TUN=y\n",
                Level::Problem,
            ),
            (
                "memory",
                "/sys/module/vhost/parameters/max_mem_regions",
                "64\n",
                Level::Warning,
            ),
            (
                "cgroups",
                "/sys/fs/cgroup/cgroup.controllers",
                "cpu io\n",
                Level::Note,
            ),
        ]
        .into_iter()
        .enumerate()
        {
            let fake = good(&format!("other{i}"));
            fake.file(path, text);
            assert_eq!(level(&fake, what), (wanted, true), "{what}");
        }
    }

    #[test]
    fn module_with_the_name_taken_says_so() {
        let fake = good("taken");
        std::fs::remove_dir_all(fake.0.join("sys/module/rvhost_net")).unwrap();
        fake.file("/sys/module/vhost_net/initstate", "live\n").open(
            9,
            3,
            "/dev/vhost-net",
            "pos:\t0\n",
        );
        assert_eq!(level(&fake, "module"), (Level::Problem, true));
        assert_eq!(level(&fake, "guests"), (Level::Warning, true));
        let fake = good("beside");
        fake.file("/sys/module/rvhost_net/parameters/devname", "vhost-rnet\n");
        assert_eq!(level(&fake, "module"), (Level::Warning, true));
    }
}
