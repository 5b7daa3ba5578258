# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
# What the parts of the benchmark share, outside and inside of the machine. Source it.

# shellcheck source=scripts/lib.sh
. "${BASH_SOURCE[0]%/*}/../lib.sh"

# prepare host|um: builds client, kernel and module; sets MODULE, KSRC and KOBJ.
prepare() {
    local vars
    "$ROOT/scripts/setup"
    build_env
    cargo build --quiet --release --locked --manifest-path "$ROOT/tools/vtest/Cargo.toml" >&2 ||
        die "tools/vtest did not build: see above."
    vars=$("$ROOT/scripts/kernel/build" "$1")
    eval "$vars"
    vars=$(if [ "$1" != host ]; then export KDIR=$KOBJ; fi; "$ROOT/scripts/module" where)
    eval "$vars"
    mkdir -p "$BUILD/bench" "$LOGS"
    if [ "$1" = host ]; then cp "$KOBJ/include/config/kernel.release" "$BUILD/bench/kernel"; fi
}

# run_in_vm PART OPTION… [-- ARGUMENT…]: runs scripts/bench/PART-inside in a machine; what it measures
# is in $OUT/runs there, build/bench/PART.runs here.
run_in_vm() {
    local part=$1 options=()
    shift
    while [ $# -gt 0 ] && [ "$1" != -- ]; do
        options+=("$1")
        shift
    done
    [ $# -eq 0 ] || shift
    "$ROOT/scripts/vm" --name "bench-$part" "${options[@]}" -- "$ROOT/scripts/bench/$part-inside" "$MODULE" "$@" || return
    cp "$BUILD/vm/bench-$part/runs" "$BUILD/bench/$part.runs"
}

# Inside: both modules side by side, and the client in memory.
load_both() { # MODULE-FILE
    modprobe vhost max_mem_regions=509
    modprobe vhost_net
    insmod "$1" devname=vhost-rnet max_mem_regions=509
    cp "$ROOT/tools/vtest/target/release/vtest" /dev/shm/vtest
}

# Inside: measure c|rust CASE ARGUMENT…: one run, its result into $OUT/runs
measure() {
    local device=/dev/vhost-net
    [ "$1" = c ] || device=/dev/vhost-rnet
    # A run that stops half-way is told, and done again: C vhost_net may do so time and again where
    # indices are read in halves (Documentation/performance-notes.rst).
    local try
    for try in 1 2 3 4 5 6; do
        ! /dev/shm/vtest bench --module "$1" --device $device --json "$2" "${@:3}" >>"$OUT/runs" || return 0
        echo "note: $1 stopped in '$2' (try $try)"
    done
    return 1
}

# Inside: pairs CASE ARGUMENT…: runs of both modules in turns
pairs() { versus "$1" tap tap "${@:2}"; }

# Inside: versus CASE PATH-OF-C PATH-OF-RVHOST ARGUMENT…: the same, on different ways to the network
versus() {
    local pair
    echo "case $1"
    for ((pair = 0; pair < PAIRS; pair++)); do
        measure c "$1" --path "$2" "${@:4}"
        measure rust "$1" --path "$3" "${@:4}"
    done
}

# Inside: every_path WAY ARGUMENT…: C vhost_net as it forwards today against rvhost's ways
every_path() {
    local c rust
    for c in bridge macvtap; do
        for rust in $c macvlan netdev; do
            versus "$1 64, $c and $rust" "$c" "$rust" --direction "$1" --size 64 "${@:2}"
        done
    done
}
