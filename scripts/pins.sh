# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash disable=SC2034
# Versions that this repository is built and tested with. To move one, change it
# here and run .ci/run.

# Kernel source: a Debian source package, fetched and signature-checked by apt.
# Old versions leave the archive; scripts/kernel/fetch then takes the newest of
# PIN_KERNEL_SERIES, in this order, and says so.
PIN_KERNEL_SUITE=trixie-backports
PIN_KERNEL_SERIES="7.2 7.3"
PIN_KERNEL_VERSION=7.2.12-1~bpo13+1
PIN_KERNEL_SHA256=73ca6c22599ba411ab3179642d33501ca2c90174e13c3c8d86e996ea1cbf2a8f

# Oldest Rust that this kernel takes, and the bindgen and LLVM that we use.
PIN_RUST_MIN=1.85.0
PIN_BINDGEN=0.73.2
PIN_LLVM=19

# Room that the cache needs when it is empty: source, two kernels, tools.
PIN_DISK_GB=8
