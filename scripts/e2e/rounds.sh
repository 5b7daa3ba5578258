# SPDX-License-Identifier: GPL-2.0
# shellcheck shell=bash
# What the rounds share: checks, the guest's shell, streams, plain QEMU. Source it after lib.sh.

PASSED=0 FAILED=0
TRACING=/sys/kernel/tracing

# check TEXT COMMAND…: one result line; a failed check does not end the round
check() {
    local text=$1
    shift
    if "$@"; then
        PASSED=$((PASSED + 1))
        echo "ok - $ROUND: $text"
    else
        FAILED=$((FAILED + 1))
        echo "not ok - $ROUND: $text"
    fi
}

# times SHORT LONG: how often the round does its thing
times() { if [ -n "${VM_LONG:-}" ]; then echo "$2"; else echo "$1"; fi; }

# The guest's shell, on its console

# console TERMINAL: from now on that one is the guest's. What it says goes to its log anyway. Its
# shell is told to run lines without echo, prompt or editing.
console() {
    local mark=OBEY-${EPOCHREALTIME/./}
    exec 8<>"$1"
    cat <&8 >/dev/null 2>&1 &
    printf 'stty -echo; echo; echo %s; while read -r line; do eval "$line"; done\n' "$mark" >&8
    await 60 grep -qa "^$mark" "$GUEST_LOG" || die "the guest's shell does not obey."
}

# guest COMMAND: runs it in the guest; sets SAID, what it says
guest() {
    local mark=${EPOCHREALTIME/./}
    printf 'echo BEGIN-%s\n%s\necho END-%s-$?\n' "$mark" "$1" "$mark" >&8
    await 180 grep -qa "^END-$mark" "$GUEST_LOG" || die "the guest's shell does not answer: $1"
    # shellcheck disable=SC2034 # for the rounds
    SAID=$(tr -d '\r' <"$GUEST_LOG" | sed -n "/^BEGIN-$mark/,/^END-$mark/p")
    grep -qa "^END-$mark-0" "$GUEST_LOG"
}

# The libvirt guest

HAVE_LIBVIRT=n
# Starts libvirt and the guest, where they are not there yet; in User-Mode Linux the guest alone.
libvirt_guest() {
    if [ -n "${VM_UML:-}" ]; then
        speak_to guest
        [ -e "$GUEST_PIDFILE" ] || boot_guest start_emulated "stop_qemu guest"
        console "$TERMINAL"
        return
    fi
    if [ $HAVE_LIBVIRT = n ]; then
        start_libvirt
        define_guest
        HAVE_LIBVIRT=y
    fi
    GUEST_LOG=/run/guest.log GUEST_PIDFILE=/run/libvirt/qemu/guest.pid
    [ "$(virsh domstate guest)" = running ] || start_guest
    console "$(virsh ttyconsole guest)"
}

start_emulated() { start_qemu guest "" "" ""; }

no_libvirt_guest() { [ $HAVE_LIBVIRT = n ] || virsh -q destroy guest >/dev/null 2>&1 || true; }

state_is() { [ "$(virsh domstate guest)" = "$1" ]; }

# Plain QEMU

MTU=1500
ACCEL=(-accel kvm -cpu host)
[ -z "${VM_UML:-}" ] || ACCEL=(-accel "tcg,thread=multi" -cpu max)
# Sets NAME's log and pid file as those of the guest that is spoken to.
# shellcheck disable=SC2034 # lib.sh uses them
speak_to() { GUEST_LOG=/run/$1.log GUEST_PIDFILE=/run/$1.pid; }

# start_qemu NAME MACHINE NIC KERNEL-WORDS [ARGUMENT…]: a QEMU with the TAP tap-NAME on the
# bridge. MACHINE and NIC: more properties of theirs. Sets TERMINAL.
start_qemu() {
    local name=$1 machine=$2 nic=$3 words=$4 tap=tap-$1
    shift 4
    ip link show "$tap" >/dev/null 2>&1 || ip tuntap add dev "$tap" mode tap multi_queue
    ip link set "$tap" master br0 mtu "$MTU" up
    ip link set br0 mtu "$MTU"
    "$EMULATOR" -name "$name" -nodefaults -no-user-config -display none -daemonize -pidfile "/run/$name.pid" \
        -machine "q35$machine" "${ACCEL[@]}" -smp 2 -m 160 -kernel "$VM_GUEST_KERNEL" -initrd "$VM_INITRD" \
        -append "console=ttyS0 quiet panic=-1 noxsave guest_ip=$GUEST_IP host_ip=$HOST_IP $words" \
        -chardev "pty,id=serial,logfile=/run/$name.log" -serial chardev:serial \
        -qmp "unix:/run/$name.qmp,server=on,wait=off" "$@" \
        -netdev "tap,id=net,ifname=$tap,script=no,downscript=no,queues=2,vhost=on,vhostforce=on" \
        -device "virtio-net-pci,netdev=net,mq=on,vectors=6,mac=52:54:00:76:68:01,host_mtu=$MTU$nic" >"/run/$name.out" 2>&1
    # shellcheck disable=SC2034 # for console
    TERMINAL=$(sed -n 's,.*redirected to \(/dev/pts/[0-9]*\).*,\1,p' "/run/$name.out")
}

stop_qemu() {
    local pid
    pid=$(cat "/run/$1.pid")
    kill "$pid"
    await 20 gone "$pid"
}

gone() { [ ! -e "/proc/$1" ]; }

# Streams: tools/stream between host and guest

# start_streams [ADDRESS]
start_streams() {
    local line
    rm -f /run/stream.{in,out}
    mkfifo /run/stream.{in,out}
    "$VM_STREAM" run "${1:-$GUEST_IP}" </run/stream.in >/run/stream.out &
    STREAM_PID=$!
    exec 6>/run/stream.in 7</run/stream.out
    read -r -t 30 line <&7 && [ "$line" = started ] || die "the streams did not start."
}

declare -A STREAM
# Tells the streams to do something: their answer's values go to STREAM.
stream() {
    local line word
    echo "$*" >&6
    read -r -t 90 line <&7 || die "the streams stopped."
    for word in $line; do [[ $word != *=* ]] || STREAM[${word%%=*}]=${word#*=}; done
}

# Whether all four streams have moved since the mark whose values stand in BEFORE. What TCP sent
# must be more than its buffers hold.
moved() {
    local key
    local -A least=([up_got]=2 [down_got]=2 [tcp_up]=200000 [tcp_down]=2)
    stream mark now
    for key in "${!least[@]}"; do
        [ "${STREAM[$key]}" -gt $((BEFORE[$key] + least[$key])) ] || return 1
    done
}

# check_flow TEXT: traffic goes on in all directions. TCP may wait for as long as its
# retransmission timer has grown to.
check_flow() {
    local -A BEFORE
    local key
    stream mark before
    for key in "${!STREAM[@]}"; do BEFORE[$key]=${STREAM[$key]}; done
    check "$1" await 30 moved
}

# Ends the streams: nothing may have been corrupted, and TCP must have delivered every byte.
stop_streams() {
    local line word total=
    echo end >&6
    while read -r -t 90 line <&7; do total+=" $line"; done
    exec 6>&- 7<&-
    check "TCP is byte-exact, no datagram is corrupted" wait "$STREAM_PID"
    for word in $total; do [[ $word != *=* ]] || STREAM[${word%%=*}]=${word#*=}; done
    step "datagrams to the guest: ${STREAM[up_got]} came, ${STREAM[up_lost]} lost, ${STREAM[up_dup]} twice, \
${STREAM[up_bad]} bad; from it: ${STREAM[down_got]} came, ${STREAM[down_lost]} lost, ${STREAM[down_dup]} twice, \
${STREAM[down_bad]} bad; TCP: ${STREAM[tcp_up]} and ${STREAM[tcp_down]} bytes"
}

# Ends the streams when their guest is gone.
drop_streams() {
    kill "$STREAM_PID" 2>/dev/null || true
    wait "$STREAM_PID" 2>/dev/null || true
    exec 6>&- 7<&-
}

# pings ARGUMENT…: whether each ping is answered, and within a second
pings() {
    local said
    said=$(ping -q -W 2 "$@") || true
    tail -n 2 <<<"$said"
    grep -q ' 0% packet loss' <<<"$said" && awk -F/ '/^rtt/ {exit !($6 < 1000)}' <<<"$said"
}

# Who carries the packets

# CPU time of the vhost threads of QEMU PID, in ns
vhost_time() {
    local name tid sum=0 used
    while read -r name tid; do
        read -r used _ <"/proc/$tid/schedstat" && sum=$((sum + used))
    done < <(vhost_threads "$1")
    echo "$sum"
}

# Whether the vhost threads of QEMU PID work
vhost_works() {
    local before after
    before=$(vhost_time "$1")
    sleep 0.5
    after=$(vhost_time "$1")
    [ "$before" -gt 0 ] && [ "$after" -gt "$before" ]
}

has_threads() { [ "$(vhost_threads "$(guest_pid)" | wc -l)" -eq "$1" ]; }
no_threads_of() { [ -z "$(vhost_threads "$1")" ]; }

# Threads of a guest with N queue pairs: C has one per pair
threads() { if [ "${MODULE:-rust}" = c ]; then echo "$1"; else echo $((2 * $1)); fi; }

# probe NAME SYSTEM-CALL FIELDS FILTER: counts its calls, whichever module answers them; hits
# NAME tells the count. User-Mode Linux has no tracing: nothing is counted. %di points at the caller's registers.
# shellcheck disable=SC2034 # the rounds use them
IOCTL='cmd=+104(%di):x32 bits=+u0(+96(%di)):x64' WRITE='count=+96(%di):u64 type=+u0(+104(%di)):u32 kind=+u33(+104(%di)):u8'
probe() {
    [ -d $TRACING/events ] || return 0
    echo "p:vhost/$1 __x64_sys_$2 $3" >>$TRACING/kprobe_events
    echo "hist:keys=common_pid if $4" >"$TRACING/events/vhost/$1/trigger"
}
hits() { [ ! -d $TRACING/events ] || sed -n 's/^ *Hits: //p' "$TRACING/events/vhost/$1/hist"; }
