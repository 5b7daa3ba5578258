// SPDX-License-Identifier: GPL-2.0
//! Raw bindings that the `kernel` crate does not have. Only `kext` uses them.
#![allow(
    clippy::all,
    clippy::as_underscore,
    clippy::cast_lossless,
    clippy::ptr_as_ptr,
    clippy::ref_as_ptr,
    clippy::undocumented_unsafe_blocks,
    dead_code,
    missing_docs,
    non_camel_case_types,
    non_upper_case_globals,
    non_snake_case,
    improper_ctypes,
    unreachable_pub,
    unused_imports,
    unnecessary_transmutes,
    unsafe_op_in_unsafe_fn
)]
pub(crate) use kernel::bindings::*;
use pin_init::MaybeZeroable;

include!(concat!(
    env!("RVHOST_OBJ"),
    "/rust/kext/bindings/bindings_generated.rs"
));
