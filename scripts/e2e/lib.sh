# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
# Used inside the machine: module, libvirt, bridge, guest. Source it.

# shellcheck source=scripts/lib.sh
. "${BASH_SOURCE[0]%/*}/../lib.sh"

HOST_IP=10.99.0.1
GUEST_IP=10.99.0.2
GUEST_LOG=/run/guest.log

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
        -e "s|@GUEST_IP@|$GUEST_IP|; s|@HOST_IP@|$HOST_IP|; s|@EMULATOR@|$(command -v qemu-system-x86_64)|" \
        "$ROOT/scripts/e2e/domain.xml" >/run/guest.xml
    virsh -q define /run/guest.xml
    step "guest defined"
}

# waits SECONDS for PATTERN in the guest's console
await_guest() { timeout "$1" sh -c "until grep -q '$2' $GUEST_LOG; do sleep 0.2; done" 2>/dev/null; }

# Starts the guest. Under emulated SVM about one boot in ten stops before user space:
# such a boot, and only such a one, is tried again.
start_guest() {
    local try patience=$((90 * ${SLOW:-1}))
    for try in 1 2 3; do
        : >$GUEST_LOG
        virsh -q start guest
        if await_guest $patience GUEST-BOOT; then
            await_guest $patience GUEST-READY && { step "guest is up"; return 0; }
            tail -n 20 $GUEST_LOG
            die "the guest booted, but did not get ready (its console is above)."
        fi
        virsh -q destroy guest || true
        step "the guest's kernel did not reach user space (try $try); its console: $(tail -c 300 $GUEST_LOG)"
    done
    die "the guest did not boot in three tries."
}

guest_pid() { cat /run/libvirt/qemu/guest.pid; }

# "name tid" of each vhost thread of the guest, kernel thread or thread of QEMU.
vhost_threads() {
    local task name pid
    pid=$(guest_pid)
    for task in /proc/[0-9]*/task/[0-9]*; do
        { read -r name <"$task/comm"; } 2>/dev/null || continue
        case $name in "vhost-$pid"*) echo "$name ${task##*/}" ;; esac
    done
}

# CPU seconds that a thread has used
cpu_seconds() { awk '{printf "%.1f", $1 / 1e9}' "/proc/$1/schedstat"; }
