# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
# What a machine with a guest in it needs, made before it boots. Source it after lib.sh.

# Sets VM_INITRD, VM_GUEST_KERNEL and, unless MODULE=c, VM_MODULE; that with UML=1 for User-Mode
# Linux.
prepare_machine() {
    local host kernel='' where
    build_env
    VM_INITRD=$("$ROOT/scripts/e2e/initrd")
    host=$("$ROOT/scripts/kernel/build" host)
    VM_GUEST_KERNEL=$(eval "$host"; echo "$KOBJ/arch/x86/boot/bzImage")
    export VM_INITRD VM_GUEST_KERNEL
    if [ "${MODULE:-rust}" != c ]; then
        [ -z "${UML:-}" ] || kernel=$("$ROOT/scripts/kernel/build" um)
        where=$(if [ -n "$kernel" ]; then eval "$kernel"; export KDIR=$KOBJ; fi; "$ROOT/scripts/module" where)
        VM_MODULE=$(eval "$where"; echo "$MODULE")
        export VM_MODULE
        unset MODULE
    fi
}
