# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
# What a machine with a guest in it needs, made before it boots. Source it after lib.sh.

# Sets VM_INITRD, VM_GUEST_KERNEL and, unless MODULE=c, VM_MODULE.
prepare_machine() {
    local host where
    build_env
    VM_INITRD=$("$ROOT/scripts/e2e/initrd")
    host=$("$ROOT/scripts/kernel/build" host)
    VM_GUEST_KERNEL=$(eval "$host"; echo "$KOBJ/arch/x86/boot/bzImage")
    export VM_INITRD VM_GUEST_KERNEL
    if [ "${MODULE:-rust}" != c ]; then
        where=$("$ROOT/scripts/module" where)
        VM_MODULE=$(eval "$where"; echo "$MODULE")
        export VM_MODULE
        unset MODULE
    fi
}
