// SPDX-License-Identifier: GPL-2.0
//! Host build of the virtqueue core: the very files the module compiles, at the same module
//! path, under plain cargo.
#![cfg_attr(not(test), no_std)]

#[path = "mod.rs"]
pub mod vcore;
