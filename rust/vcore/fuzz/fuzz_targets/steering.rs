// SPDX-License-Identifier: GPL-2.0
//! libFuzzer's entry.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| vcore_fuzz::steering(data));
