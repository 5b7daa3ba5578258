# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
# What the recipes share: where ftrace is, and a clean end. Source it.

TRACING=/sys/kernel/tracing
# How long to look.
# shellcheck disable=SC2034 # it is theirs
LOOK=${1:-10}

fail() { printf 'error: %s\n' "$@" >&2; exit 1; }

[ "$(id -u)" -eq 0 ] || fail "tracing is root's: try sudo $0"
mountpoint -q $TRACING || mount -t tracefs tracefs $TRACING || fail "there is no tracefs: the kernel lacks CONFIG_FTRACE"
[ -d $TRACING/events/rvhost ] || fail "rvhost_net is not loaded, or the kernel lacks CONFIG_TRACEPOINTS"

# Triggers and events of ours, taken away again in the end, the last one first.
UNDO=()
undo() {
    local i
    for ((i = ${#UNDO[@]} - 1; i >= 0; i--)); do eval "${UNDO[i]}" || true; done
}
trap undo EXIT
trap 'exit 130' INT TERM

# trigger EVENT TEXT
trigger() {
    echo "$2" >"$TRACING/events/$1/trigger" || fail "$1 takes no trigger '$2': $(cat $TRACING/error_log)"
    UNDO+=("echo '!$2' >$TRACING/events/$1/trigger")
}

# synthetic NAME FIELDS: an event made of others
synthetic() {
    echo "$1 $2" >>$TRACING/synthetic_events || fail "the kernel lacks CONFIG_SYNTH_EVENTS"
    UNDO+=("echo '!$1' >>$TRACING/synthetic_events")
}

# histogram EVENT: its lines without the head
histogram() { grep -E '^\{' "$TRACING/events/$1/hist" || true; }
