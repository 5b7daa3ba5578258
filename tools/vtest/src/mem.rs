// SPDX-License-Identifier: GPL-2.0

//! Guest memory: two regions, adjacent in guest-physical space but separate
//! mappings in ours, and simple allocators on top.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::Arc;

use anyhow::bail;
use anyhow::Context;
use anyhow::Result;
use vhost::VhostUserMemoryRegionInfo;
use vm_memory::Bytes;
use vm_memory::GuestAddress;
use vm_memory::GuestMemoryBackend;
use vm_memory::GuestMemoryMmap;
use vm_memory::GuestMemoryRegion;

const MIB: u64 = 1 << 20;

/// Guest-physical address where the first region ends and the second begins.
pub(crate) const BOUNDARY: u64 = 16 * MIB;
/// First guest-physical address behind all memory.
pub(crate) const END: u64 = 128 * MIB;
/// Where 256 KiB on both sides of [`BOUNDARY`] are left to cases.
const BOUNDARY_SLACK: u64 = MIB / 4;

const RINGS: Span = Span::new(MIB, BOUNDARY - BOUNDARY_SLACK);
const TX: Span = Span::new(BOUNDARY + BOUNDARY_SLACK, 56 * MIB);
const RX: Span = Span::new(56 * MIB, END - MIB);

/// Page size of the host.
pub(crate) const PAGE: u64 = 4096;

#[derive(Clone, Copy)]
struct Span {
    start: u64,
    end: u64,
}

impl Span {
    const fn new(start: u64, end: u64) -> Self {
        Self { start, end }
    }
}

/// What happens to pages that a case takes away from the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Access {
    /// Mapped but not accessible, as after munmap.
    None,
    /// Readable only.
    ReadOnly,
    /// Back to normal.
    ReadWrite,
}

/// Guest memory, cheap to clone.
#[derive(Clone)]
pub(crate) struct Memory {
    map: Arc<GuestMemoryMmap<()>>,
    rings: Rc<Cell<u64>>,
    tx: Rc<Cell<u64>>,
    rx: Rc<Cell<u64>>,
}

impl Memory {
    /// Maps fresh zeroed guest memory.
    pub(crate) fn new() -> Result<Self> {
        let ranges = [
            (GuestAddress(0), BOUNDARY as usize),
            (GuestAddress(BOUNDARY), (END - BOUNDARY) as usize),
        ];
        let map = GuestMemoryMmap::from_ranges(&ranges).context("mapping guest memory")?;
        Ok(Self {
            map: Arc::new(map),
            rings: Rc::new(Cell::new(RINGS.start)),
            tx: Rc::new(Cell::new(TX.start)),
            rx: Rc::new(Cell::new(RX.start)),
        })
    }

    /// The address space in the form the `vhost` crate takes.
    pub(crate) fn address_space(&self) -> Arc<GuestMemoryMmap<()>> {
        Arc::clone(&self.map)
    }

    /// The memory table for `VHOST_SET_MEM_TABLE`.
    pub(crate) fn regions(&self) -> Result<Vec<VhostUserMemoryRegionInfo>> {
        self.map
            .iter()
            .map(|region| {
                let userspace_addr = self.host(region.start_addr().0)? as u64;
                Ok(VhostUserMemoryRegionInfo {
                    guest_phys_addr: region.start_addr().0,
                    memory_size: region.len(),
                    userspace_addr,
                    mmap_offset: 0,
                    mmap_handle: -1,
                })
            })
            .collect()
    }

    /// The host address of guest-physical `addr`.
    pub(crate) fn host(&self, addr: u64) -> Result<*mut u8> {
        self.map
            .get_host_address(GuestAddress(addr))
            .with_context(|| format!("guest address {addr:#x} is not mapped"))
    }

    /// Takes memory that is never given back, for rings and tables.
    pub(crate) fn alloc(&self, len: u64, align: u64) -> Result<u64> {
        let start = self.rings.get().next_multiple_of(align);
        if start + len > RINGS.end {
            bail!("out of ring memory");
        }
        self.rings.set(start + len);
        Ok(start)
    }

    /// Takes memory for a packet to send; reused after a long while.
    pub(crate) fn tx_buffer(&self, len: u64) -> Result<u64> {
        wrapping(&self.tx, TX, len)
    }

    /// Takes memory for a receive buffer; reused after a long while.
    pub(crate) fn rx_buffer(&self, len: u64) -> Result<u64> {
        wrapping(&self.rx, RX, len)
    }

    /// Writes bytes at a guest-physical address.
    pub(crate) fn write(&self, addr: u64, bytes: &[u8]) -> Result<()> {
        self.map
            .write_slice(bytes, GuestAddress(addr))
            .with_context(|| format!("writing {} bytes at {addr:#x}", bytes.len()))
    }

    /// Reads bytes from a guest-physical address.
    pub(crate) fn read(&self, addr: u64, len: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        self.map
            .read_slice(&mut bytes, GuestAddress(addr))
            .with_context(|| format!("reading {len} bytes at {addr:#x}"))?;
        Ok(bytes)
    }

    /// Changes what the pages from `addr` on allow. The contents are kept.
    pub(crate) fn protect(&self, addr: u64, len: u64, access: Access) -> Result<()> {
        let prot = match access {
            Access::None => libc::PROT_NONE,
            Access::ReadOnly => libc::PROT_READ,
            Access::ReadWrite => libc::PROT_READ | libc::PROT_WRITE,
        };
        let host = self.host(addr)?;
        // SAFETY: The range lies in our own guest memory mapping, which only the
        // accessors of this type touch; whoever takes access away gives it back
        // before reading there.
        let rc = unsafe { libc::mprotect(host.cast(), len as usize, prot) };
        if rc != 0 {
            return Err(std::io::Error::last_os_error()).context("mprotect");
        }
        Ok(())
    }
}

/// Advances `next` through `span`, starting over at its end.
fn wrapping(next: &Cell<u64>, span: Span, len: u64) -> Result<u64> {
    if len > span.end - span.start {
        bail!("a buffer of {len} bytes does not fit guest memory");
    }
    let mut start = next.get();
    if start + len > span.end {
        start = span.start;
    }
    next.set(start + len);
    Ok(start)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_are_adjacent_in_guest_space_and_apart_in_ours() {
        let mem = Memory::new().unwrap();
        let regions = mem.regions().unwrap();
        assert_eq!(regions.len(), 2);
        assert_eq!(
            regions[0].guest_phys_addr + regions[0].memory_size,
            regions[1].guest_phys_addr
        );
        assert_ne!(
            regions[0].userspace_addr + regions[0].memory_size,
            regions[1].userspace_addr
        );
    }

    #[test]
    fn writes_cross_the_region_boundary() {
        let mem = Memory::new().unwrap();
        mem.write(BOUNDARY - 3, b"abcdef").unwrap();
        assert_eq!(mem.read(BOUNDARY - 3, 6).unwrap(), b"abcdef");
    }

    #[test]
    fn arenas_wrap() {
        let mem = Memory::new().unwrap();
        let first = mem.tx_buffer(1000).unwrap();
        for _ in 0..60_000 {
            mem.tx_buffer(1000).unwrap();
        }
        assert!(mem.tx_buffer(1000).unwrap() >= first);
    }
}
