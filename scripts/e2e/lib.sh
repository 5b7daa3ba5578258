# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
# Used inside the machine: module, libvirt, bridge, guest, and what its rounds share. Source it.

# shellcheck source=scripts/lib.sh
. "${BASH_SOURCE[0]%/*}/../lib.sh"

HOST_IP=10.99.0.1
GUEST_IP=10.99.0.2
# The guest that is spoken to: its console's log and terminal, and its QEMU.
GUEST_LOG=/run/guest.log
GUEST_PIDFILE=/run/libvirt/qemu/guest.pid
EMULATOR=${VM_EMULATOR:-qemu-system-x86_64}

step() { printf '[%3ds] %s\n' "$SECONDS" "$*"; }

# Loads the module under test: ours, or with MODULE=c the kernel's.
load_module() {
    if [ "${MODULE:-rust}" = c ]; then
        modprobe vhost_net
        step "loaded C vhost_net"
    else
        insmod "${VM_MODULE:?no rvhost_net.ko given}" ||
            die "rvhost_net.ko did not load: $(dmesg | tail -n 1)"
        step "loaded rvhost_net"
    fi
    [ -c /dev/vhost-net ] || die "the module made no /dev/vhost-net."
}

load_kvm() {
    if grep -qw svm /proc/cpuinfo; then
        modprobe kvm_amd nested=0
    elif grep -qw vmx /proc/cpuinfo; then
        modprobe kvm_intel nested=0
    fi
    [ -c /dev/kvm ] || die "there is no KVM in this machine: its CPU shows neither svm nor vmx." \
        "Set VM_ACCEL=tcg to have QEMU emulate one."
    step "loaded KVM"
}

# libvirt without systemd, its state in memory.
start_libvirt() {
    local dir
    for dir in /var/lib/libvirt /var/cache/libvirt /var/log/libvirt; do
        mkdir -p "$dir"
        mount -t tmpfs tmpfs "$dir"
    done
    cat >/etc/libvirt/qemu.conf <<'END'
user = "root"
group = "root"
security_driver = "none"
namespaces = []
remember_owner = 0
dynamic_ownership = 0
END
    # There is no polkit here, and virsh's agent for it would say so each time.
    rm -f /usr/bin/pkttyagent
    virtlogd -d
    libvirtd -d
    timeout 60 sh -c 'until virsh -q list >/dev/null 2>&1; do sleep 0.2; done' || die "libvirtd does not answer."
    step "libvirt answers"
}

make_bridge() {
    ip link add br0 type bridge
    ip addr add $HOST_IP/24 dev br0
    ip link set br0 up
}

define_guest() {
    sed -e "s|@KERNEL@|${VM_GUEST_KERNEL:?}|; s|@INITRD@|${VM_INITRD:?}|; s|@LOG@|$GUEST_LOG|" \
        -e "s|@GUEST_IP@|$GUEST_IP|; s|@HOST_IP@|$HOST_IP|; s|@EMULATOR@|$(command -v "$EMULATOR")|" \
        "$ROOT/scripts/e2e/domain.xml" >/run/guest.xml
    virsh -q define /run/guest.xml
    step "guest defined"
}

# await SECONDS COMMAND…: until it succeeds; seconds count more on slow kernels
await() {
    local end=$((SECONDS + $1 * ${SLOW:-1}))
    shift
    until "$@"; do
        [ "$SECONDS" -lt "$end" ] || return 1
        sleep 0.2
    done
}

# How often PATTERN stands in the guest's console so far, and whether it stands there N times
guest_said() { grep -ac "$1" "$GUEST_LOG" || true; }
guest_says() { [ "$(guest_said "$1")" -ge "${2:-1}" ]; }

# boot_guest START STOP: starts the guest. Under emulated SVM about one boot in ten stops before
# user space: such a boot, and only such a one, is tried again.
boot_guest() {
    local try
    for try in 1 2 3; do
        : >"$GUEST_LOG"
        $1
        if await 90 guest_says GUEST-BOOT; then
            await 90 guest_says GUEST-READY && { step "guest is up"; return 0; }
            tail -n 20 "$GUEST_LOG"
            die "the guest booted, but did not get ready (its console is above)."
        fi
        $2 || true
        step "the guest's kernel did not reach user space (try $try); its console: $(tail -c 300 "$GUEST_LOG")"
    done
    die "the guest did not boot in three tries."
}

start_guest() { boot_guest "virsh -q start guest" "virsh -q destroy guest"; }

guest_pid() { cat "$GUEST_PIDFILE"; }

# vhost_threads PID: "name tid" of each vhost thread of that QEMU, kernel thread or its own
vhost_threads() {
    local task name pid=$1
    for task in /proc/[0-9]*/task/[0-9]*; do
        { read -r name <"$task/comm"; } 2>/dev/null || continue
        case $name in "vhost-$pid" | "vhost-$pid-"*) echo "$name ${task##*/}" ;; esac
    done
}

# CPU seconds that a thread has used
cpu_seconds() { awk '{printf "%.1f", $1 / 1e9}' "/proc/$1/schedstat"; }
