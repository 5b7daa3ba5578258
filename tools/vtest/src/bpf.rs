// SPDX-License-Identifier: GPL-2.0

//! Just enough of bpf(2) for XDP programs that pass frames from one interface
//! to another, and for programs that a TAP asks about packets.

use std::io;
use std::os::fd::AsRawFd;
use std::os::fd::FromRawFd;
use std::os::fd::OwnedFd;
use std::os::fd::RawFd;

use anyhow::Context;
use anyhow::Result;

const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_TYPE_SOCKET_FILTER: u32 = 1;
const BPF_PROG_TYPE_XDP: u32 = 6;
const BPF_LINK_CREATE: libc::c_int = 28;
const BPF_XDP: u32 = 37;
/// `XDP_FLAGS_DRV_MODE`: by the driver, not by the generic hook.
const DRV_MODE: u32 = 1 << 2;

/// One instruction: opcode, registers, offset, immediate.
type Insn = (u8, u8, i16, i32);

const MOV64_IMM: u8 = 0xb7;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;
/// Helper `bpf_redirect(ifindex, flags)`.
const FN_REDIRECT: i32 = 23;

/// What an XDP program does with every frame.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Action {
    /// Lets it pass.
    Pass,
    /// Drops it.
    Drop,
    /// Drops it, as what ended with an error.
    Aborted,
    /// Sends it back where it came from.
    Tx,
    /// Sends it out of the interface with this index.
    Redirect(i32),
}

impl Action {
    fn program(self) -> Vec<Insn> {
        let code = match self {
            Self::Aborted => 0,
            Self::Drop => 1,
            Self::Pass => 2,
            Self::Tx => 3,
            Self::Redirect(index) => {
                return vec![
                    (MOV64_IMM, 1, 0, index),
                    (MOV64_IMM, 2, 0, 0),
                    (CALL, 0, 0, FN_REDIRECT),
                    (EXIT, 0, 0, 0),
                ]
            }
        };
        vec![(MOV64_IMM, 0, 0, code), (EXIT, 0, 0, 0)]
    }
}

/// An XDP program on an interface, taken off when dropped.
pub(crate) struct Xdp {
    _link: OwnedFd,
    _program: OwnedFd,
}

fn bpf(what: &str, command: libc::c_int, attr: &[u8]) -> Result<OwnedFd> {
    // SAFETY: `attr` is valid for its length; pointers in it are the callers'.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, command, attr.as_ptr(), attr.len()) };
    if fd < 0 {
        return Err(io::Error::last_os_error()).with_context(|| what.to_owned());
    }
    // SAFETY: `fd` was just opened and belongs to nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as libc::c_int) })
}

fn load(kind: u32, program: Vec<Insn>) -> Result<OwnedFd> {
    let code: Vec<u8> = program
        .into_iter()
        .flat_map(|(op, dst, off, imm)| {
            let mut bytes = vec![op, dst];
            bytes.extend(off.to_ne_bytes());
            bytes.extend(imm.to_ne_bytes());
            bytes
        })
        .collect();
    let license = c"GPL";
    let mut attr = Vec::new();
    attr.extend(kind.to_ne_bytes());
    attr.extend(((code.len() / 8) as u32).to_ne_bytes());
    attr.extend((code.as_ptr() as u64).to_ne_bytes());
    attr.extend((license.as_ptr() as u64).to_ne_bytes());
    attr.resize(120, 0);
    bpf("loading a program", BPF_PROG_LOAD, &attr)
}

/// A program that says the same of each packet.
pub(crate) struct SocketFilter(OwnedFd);

impl SocketFilter {
    /// Loads one.
    pub(crate) fn returning(value: i32) -> Result<Self> {
        let program = vec![(MOV64_IMM, 0, 0, value), (EXIT, 0, 0, 0)];
        Ok(Self(load(BPF_PROG_TYPE_SOCKET_FILTER, program)?))
    }
}

impl AsRawFd for SocketFilter {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl Xdp {
    /// Puts a program on the interface with index `index`.
    pub(crate) fn attach(index: i32, action: Action) -> Result<Self> {
        let program = load(BPF_PROG_TYPE_XDP, action.program())?;
        let mut attr = Vec::new();
        attr.extend(program.as_raw_fd().to_ne_bytes());
        attr.extend(index.to_ne_bytes());
        attr.extend(BPF_XDP.to_ne_bytes());
        attr.extend(DRV_MODE.to_ne_bytes());
        attr.resize(48, 0);
        let link = bpf("attaching an XDP program", BPF_LINK_CREATE, &attr)?;
        Ok(Self {
            _link: link,
            _program: program,
        })
    }
}
