# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
# What the scripts share: messages, paths, progress, tool look-up. Source it.

# shellcheck source=scripts/pins.sh
. "${BASH_SOURCE[0]%/*}/pins.sh"

ROOT=$(cd "${BASH_SOURCE[0]%/*}/.." && pwd -P)
CACHE=${RVHOST_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/rvhost}
BUILD=$ROOT/build
LOGS=$BUILD/logs
export ROOT CACHE BUILD LOGS

# Messages go to stderr: stdout belongs to what a script was asked for.
say() { printf '%s\n' "$*" >&2; }
die() { printf 'error: %s\n' "$1" >&2; shift; [ $# -eq 0 ] || printf '       %s\n' "$@" >&2; exit 1; }

clock() { printf '%dm%02ds' $(($1 / 60)) $(($1 % 60)); }

# with_lock NAME COMMAND…: one at a time per cache; waits, and says that it does.
with_lock() {
    local name=$1 fd
    shift
    mkdir -p "$CACHE/locks"
    exec {fd}>"$CACHE/locks/$name"
    if ! flock -n "$fd"; then
        say "waiting for another run of '$name' to finish"
        flock "$fd"
    fi
    # No '|| …' here: it would switch errexit off inside COMMAND.
    "$@"
    exec {fd}>&-
}

# progress TITLE LOG PATTERN TOTAL COMMAND…: runs COMMAND with its output in LOG, and
# tells every few seconds how many lines of LOG match PATTERN (of about TOTAL).
# On failure shows the end of LOG. COMMAND does not inherit our locks.
progress() {
    local title=$1 log=$2 pattern=$3 total=$4 start=$SECONDS rc=0 pid count end pause=10
    shift 4
    mkdir -p "${log%/*}"
    end=$'\n'
    if [ -t 2 ]; then end=$'\r' pause=2; fi
    "$@" >"$log" 2>&1 </dev/null &
    pid=$!
    local next=$((SECONDS + pause))
    while kill -0 "$pid" 2>/dev/null; do
        if [ "$SECONDS" -ge "$next" ]; then
            count=$(grep -cE "$pattern" "$log" || true)
            printf '  %s: %s%s, %s %s' "$title" "$count" "${total:+ of about $total}" \
                "$(clock $((SECONDS - start)))" "$end" >&2
            next=$((SECONDS + pause))
        fi
        sleep 0.2
    done
    wait "$pid" || rc=$?
    if [ "$rc" -ne 0 ]; then
        say "  $title: failed after $(clock $((SECONDS - start))); the end of $log:"
        grep -nE '(^|[^a-z_])([Ee]rror|undefined reference|\*\*\*)' "$log" | tail -n 20 >&2 || true
        tail -n 15 "$log" >&2
        return "$rc"
    fi
    say "  $title: done, $(clock $((SECONDS - start)))"
}

# patiently NAME COMMAND…: emulated SVM loses guests, and now and then the outer kernel, with C
# vhost_net as with rvhost, and on busy machines guests in User-Mode Linux stand still
# (Documentation/findings.rst). COMMAND, whose machine is called NAME, has three tries, and each
# that fails is told.
patiently() {
    local vm=$BUILD/vm/$1 try
    for try in 1 2; do
        "${@:2}" && return
        rm -rf "$vm.try-$try"
        cp -r "$vm" "$vm.try-$try"
        cp "$LOGS/$1.kernel.log" "$vm.try-$try/kernel.log"
        say "once more: consoles and logs of try $try are in $vm.try-$try"
    done
    "${@:2}"
}

# as_root COMMAND…: through sudo unless we are root.
as_root() {
    if [ "$(id -u)" -eq 0 ]; then
        "$@"
    elif command -v sudo >/dev/null; then
        sudo -- "$@"
    else
        die "root is needed for: $*" "There is no sudo here: run that line as root, then start again."
    fi
}

# version_ge A B: is version A at least B?
version_ge() { [ "$(printf '%s\n%s\n' "$1" "$2" | sort -V | head -n 1)" = "$2" ]; }

# Where the source of Rust's core library is.
rust_lib_src() { echo "${RUST_LIB_SRC:-$(rustc --print sysroot)/lib/rustlib/src/rust/library}"; }

rustc_version() { rustc --version 2>/dev/null | sed -n 's/^rustc \([0-9.]*\).*/\1/p'; }

# A tool of our own, pinned, in the cache.
BINDGEN_DIR=$CACHE/tools/bindgen-$PIN_BINDGEN

# Environment of every kernel and module build.
build_env() {
    PATH=$BINDGEN_DIR/bin:$PATH
    # Cargo's folder is not on every login's path.
    if ! command -v rustc >/dev/null && [ -x "$HOME/.cargo/bin/rustc" ]; then
        PATH=$PATH:$HOME/.cargo/bin
    fi
    export PATH
    local llvm=/usr/lib/llvm-$PIN_LLVM
    if [ -z "${LIBCLANG_PATH:-}" ] && [ -d "$llvm/lib" ]; then
        export LIBCLANG_PATH=$llvm/lib
    fi
    export LC_ALL=C
    unset MAKEFLAGS MFLAGS MAKELEVEL KDIR
}
