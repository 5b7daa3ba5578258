// SPDX-License-Identifier: GPL-2.0
//! The packet header, `struct virtio_net_hdr` (virtio 1.3, 5.1.6).

use core::ops::Range;

/// Bytes of the header every version starts with.
pub const BASE_BYTES: usize = 10;
/// Where the little-endian `num_buffers` field is.
pub const NUM_BUFFERS: Range<usize> = 10..12;
/// The longest header the kernel knows: hash report and tunnel fields included.
pub const MAX_BYTES: usize = 24;

const F_NEEDS_CSUM: u8 = 1;
const HDR_LEN_AT: usize = 2;

/// The header asks for a checksum beyond the end of its packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadHeader;

#[inline]
fn field(header: &[u8; BASE_BYTES], at: usize) -> u16 {
    u16::from_le_bytes([
        header.get(at).copied().unwrap_or(0),
        header.get(at + 1).copied().unwrap_or(0),
    ])
}

/// How many bytes of headers the packet says it starts with.
#[inline]
pub fn hdr_len(header: &[u8; BASE_BYTES]) -> u16 {
    field(header, HDR_LEN_AT)
}

/// Makes `hdr_len` cover the checksum field, as the stack expects of a header it is handed.
///
/// `total` is the length of header and packet together in bytes.
#[inline]
pub fn cover_csum(header: &mut [u8; BASE_BYTES], total: usize) -> Result<(), BadHeader> {
    if header[0] & F_NEEDS_CSUM == 0 {
        return Ok(());
    }
    // The 16-bit arithmetic wraps as that of C vhost-net does: such a header is the backend's
    // to refuse.
    let csum_end = u32::from(field(header, 6)) + u32::from(field(header, 8)) + 2;
    if csum_end > u32::from(field(header, HDR_LEN_AT)) {
        // CAST: wraps on purpose, see above.
        let hdr_len = csum_end as u16;
        if usize::from(hdr_len) > total {
            return Err(BadHeader);
        }
        let [low, high] = hdr_len.to_le_bytes();
        header[HDR_LEN_AT] = low;
        header[HDR_LEN_AT + 1] = high;
    }
    Ok(())
}

#[cfg_attr(rv_kunit, ::kernel::macros::kunit_tests(rvhost_vcore_hdr))]
#[cfg(any(test, rv_kunit))]
mod tests {
    use super::*;

    fn header(flags: u8, hdr_len: u8, start: u16, offset: u16) -> [u8; BASE_BYTES] {
        let [s0, s1] = start.to_le_bytes();
        let [o0, o1] = offset.to_le_bytes();
        [flags, 0, hdr_len, 0, 0, 0, s0, s1, o0, o1]
    }

    #[test]
    fn header_without_checksum_request_is_left_alone() {
        let mut h = header(0, 0, 0xffff, 0xffff);
        assert_eq!(cover_csum(&mut h, 12), Ok(()));
        assert_eq!(h, header(0, 0, 0xffff, 0xffff));
    }

    #[test]
    fn hdr_len_grows_to_the_end_of_the_checksum_field() {
        let mut h = header(1, 14, 34, 16);
        assert_eq!(cover_csum(&mut h, 72), Ok(()));
        assert_eq!(hdr_len(&h), 52);
        let mut h = header(1, 60, 34, 16);
        assert_eq!(cover_csum(&mut h, 72), Ok(()));
        assert_eq!(h[2], 60);
    }

    #[test]
    fn checksum_beyond_the_packet_is_refused() {
        assert_eq!(cover_csum(&mut header(1, 0, 50, 60), 72), Err(BadHeader));
    }

    #[test]
    fn sum_that_wraps_16_bits_is_passed_on() {
        assert_eq!(cover_csum(&mut header(1, 0, 0xffff, 2), 72), Ok(()));
    }
}
