// SPDX-License-Identifier: GPL-2.0

//! Where devices are found: every process's open files.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::path::PathBuf;

use anyhow::Context;
use anyhow::Result;

use crate::fdinfo::Device;
use crate::fdinfo::Unknown;

/// The machine, or a copy of its files.
#[derive(Clone, Debug)]
pub(crate) struct System {
    root: PathBuf,
}

/// A device with the process that has it open.
#[derive(Clone, Debug)]
pub(crate) struct Open {
    pub(crate) pid: i32,
    pub(crate) fd: i32,
    /// The virtual machine's name, or the process's if it has none.
    pub(crate) vm: String,
    pub(crate) device: Device,
}

/// What a look at all processes gave.
#[derive(Clone, Debug, Default)]
pub(crate) struct Found {
    pub(crate) open: Vec<Open>,
    /// Processes that may not be looked into.
    pub(crate) hidden: usize,
    /// Devices of this name that are not rvhost_net's.
    pub(crate) foreign: usize,
    /// Versions of the lines that are not known.
    pub(crate) versions: Vec<String>,
}

impl System {
    /// The machine whose files are under `root`.
    pub(crate) fn new(root: &Path) -> Self {
        Self {
            root: root.to_owned(),
        }
    }

    /// A file, by its path in the machine.
    pub(crate) fn path(&self, path: &str) -> PathBuf {
        self.root.join(path.trim_start_matches('/'))
    }

    /// What a small file says, without the end of its line.
    pub(crate) fn read(&self, path: &str) -> Option<String> {
        let text = fs::read_to_string(self.path(path)).ok()?;
        Some(text.trim_end().to_owned())
    }

    pub(crate) fn exists(&self, path: &str) -> bool {
        self.path(path).exists()
    }

    /// The names of what is in a folder.
    pub(crate) fn names(&self, path: &str) -> Vec<String> {
        let entries = fs::read_dir(self.path(path)).into_iter().flatten();
        let mut names: Vec<_> = entries
            .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
            .collect();
        names.sort();
        names
    }

    /// The name of the device node.
    pub(crate) fn node(&self) -> String {
        self.read("/sys/module/rvhost_net/parameters/devname")
            .unwrap_or_else(|| "vhost-net".to_owned())
    }

    /// The minor number that a misc device has.
    pub(crate) fn minor(&self, name: &str) -> Option<u32> {
        self.read("/proc/misc")?.lines().find_map(|line| {
            let mut words = line.split_whitespace();
            let minor = words.next()?.parse().ok()?;
            (words.next()? == name).then_some(minor)
        })
    }

    /// All open devices, in the order of process and descriptor.
    pub(crate) fn devices(&self) -> Result<Found> {
        let node = self.node();
        let minor = self.minor(&node);
        let proc = self.path("/proc");
        fs::metadata(&proc).with_context(|| format!("{} is not there", proc.display()))?;
        let mut pids: Vec<i32> = self
            .names("/proc")
            .iter()
            .filter_map(|name| name.parse().ok())
            .collect();
        pids.sort_unstable();
        let mut found = Found::default();
        // A device may be open in several processes: its owner names its threads.
        let mut seen: BTreeMap<u64, usize> = BTreeMap::new();
        for pid in pids {
            let Ok(entries) = fs::read_dir(self.path(&format!("/proc/{pid}/fd"))) else {
                // Or it has just ended.
                found.hidden += usize::from(self.exists(&format!("/proc/{pid}/fd")));
                continue;
            };
            let mut fds: Vec<i32> = entries
                .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
                .collect();
            fds.sort_unstable();
            for fd in fds {
                if !self.is_device(pid, fd, &node, minor) {
                    continue;
                }
                let Some(text) = self.read(&format!("/proc/{pid}/fdinfo/{fd}")) else {
                    continue;
                };
                let device = match Device::parse(&text) {
                    Ok(device) => device,
                    Err(Unknown::Foreign) => {
                        found.foreign += 1;
                        continue;
                    }
                    Err(Unknown::Version(version)) => {
                        found.versions.push(version);
                        continue;
                    }
                };
                let number = device.number;
                let open = Open {
                    pid,
                    fd,
                    vm: self.vm(pid),
                    device,
                };
                match seen.get(&number) {
                    Some(&at) if self.owns(&open) => found.open[at] = open,
                    Some(_) => {}
                    None => {
                        seen.insert(number, found.open.len());
                        found.open.push(open);
                    }
                }
            }
        }
        Ok(found)
    }

    fn is_device(&self, pid: i32, fd: i32, node: &str, minor: Option<u32>) -> bool {
        let link = self.path(&format!("/proc/{pid}/fd/{fd}"));
        match (fs::metadata(&link), minor) {
            (Ok(file), Some(minor)) if file.file_type().is_char_device() => {
                (libc::major(file.rdev()), libc::minor(file.rdev())) == (10, minor)
            }
            // In a copy of a machine's files there are no devices.
            _ => {
                fs::read_link(&link).is_ok_and(|to| to.to_string_lossy() == format!("/dev/{node}"))
            }
        }
    }

    /// Whether the device's threads are named after the process.
    fn owns(&self, open: &Open) -> bool {
        let threads = open.device.queues.iter().filter_map(|queue| queue.thread);
        let wanted = format!("vhost-{}-", open.pid);
        threads
            .filter_map(|id| self.read(&format!("/proc/{id}/comm")))
            .any(|name| name.starts_with(&wanted))
    }

    /// The name of the virtual machine that a process runs, as QEMU's command line tells it.
    fn vm(&self, pid: i32) -> String {
        let line = self
            .read(&format!("/proc/{pid}/cmdline"))
            .unwrap_or_default();
        vm_name(&line)
            .or_else(|| self.read(&format!("/proc/{pid}/comm")))
            .unwrap_or_else(|| "?".to_owned())
    }

    /// The CPUs that a thread may run on.
    pub(crate) fn cpus_of(&self, thread: i32) -> Option<String> {
        let status = self.read(&format!("/proc/{thread}/status"))?;
        status
            .lines()
            .find_map(|line| line.strip_prefix("Cpus_allowed_list:\t"))
            .map(str::to_owned)
    }
}

/// The name in QEMU's `-name guest=NAME,…` or `-name NAME`.
fn vm_name(cmdline: &str) -> Option<String> {
    let mut words = cmdline.split('\0');
    words.find(|word| *word == "-name")?;
    let first = words.next()?.split(',').next()?;
    let name = first.strip_prefix("guest=").unwrap_or(first);
    (!name.is_empty()).then(|| name.to_owned())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use std::os::unix::fs::symlink;

    /// A machine of a few files, removed when it is dropped.
    pub(crate) struct Fake(pub(crate) PathBuf);

    impl Fake {
        pub(crate) fn new(name: &str) -> Self {
            let root = std::env::temp_dir().join(format!("rvhost-{name}-{}", std::process::id()));
            fs::create_dir_all(&root).unwrap();
            Self(root)
        }

        pub(crate) fn file(&self, path: &str, text: &str) -> &Self {
            let path = self.0.join(path.trim_start_matches('/'));
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
            self
        }

        pub(crate) fn open(&self, pid: i32, fd: i32, to: &str, fdinfo: &str) -> &Self {
            self.file(&format!("/proc/{pid}/fdinfo/{fd}"), fdinfo);
            let folder = self.0.join(format!("proc/{pid}/fd"));
            fs::create_dir_all(&folder).unwrap();
            symlink(to, folder.join(fd.to_string())).unwrap();
            self
        }

        pub(crate) fn system(&self) -> System {
            System::new(&self.0)
        }
    }

    impl Drop for Fake {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    const BUSY: &str = include_str!("../testdata/busy.fdinfo");

    #[test]
    fn devices_are_found_once_with_their_machines() {
        let fake = Fake::new("found");
        fake.file("/proc/misc", "238 vhost-net\n200 tun\n")
            .file(
                "/proc/12/cmdline",
                "qemu\0-name\0guest=web,debug-threads=on\0-m\0x1",
            )
            .open(12, 30, "/dev/vhost-net", BUSY)
            .open(12, 31, "/dev/net/tun", "iff:\ttap0\n")
            .open(12, 32, "/dev/vhost-net", "rvhost:\t1\ndevice:\t99999\n")
            .file("/proc/7/comm", "libvirtd\n")
            .open(7, 30, "/dev/vhost-net", BUSY)
            .open(13, 3, "/dev/vhost-net", "pos:\t0\n");
        let thread = Device::parse(BUSY).unwrap().queues[0].thread.unwrap();
        fake.file(&format!("/proc/{thread}/comm"), "vhost-12-rx\n");
        let found = fake.system().devices().unwrap();
        let open: Vec<_> = found
            .open
            .iter()
            .map(|o| (o.pid, o.fd, o.vm.as_str()))
            .collect();
        assert_eq!(open, [(12, 30, "web"), (12, 32, "web")]);
        assert_eq!((found.foreign, found.hidden), (1, 0));
    }

    #[test]
    fn names_of_machines_are_those_of_the_command_line() {
        assert_eq!(
            vm_name("qemu\0-name\0guest=a b,x=y\0"),
            Some("a b".to_owned())
        );
        assert_eq!(
            vm_name("qemu\0-name\0plain\0-m\0x"),
            Some("plain".to_owned())
        );
        assert_eq!(vm_name("qemu\0-m\0x"), None);
        assert_eq!(vm_name("qemu\0-name"), None);
    }
}
