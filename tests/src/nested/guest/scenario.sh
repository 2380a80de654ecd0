#!/bin/sh
# Runs in level 1, the machine with kvm_amd: a stock kernel on an ext4 root is started by `vmm run` on
# one host, moves to another and back while it writes and fsyncs files, and powers off; then the disk is
# checked. Two run-time directories are two hosts. Once for each kernel, number of vCPUs and, where given,
# model of their CPU in the settings. What the test looks at later are the lines `report: SCENARIO JSON` and `seen: SCENARIO
# STAGE SECONDS JSON`, the latter with the time of level 1 and what the witness in the guest told then,
# `lateness: SCENARIO MS`, how late a process of level 1 ran at worst, `network: SCENARIO QUEUES FEATURES` of
# the guest's driver, and `session: SCENARIO JSON` for each stage.

a=/tmp/host-a
b=/tmp/host-b
disk=/tmp/disk.img
# Emulation twice over is slow; these limits only end what hangs.
long=300
move="--downtime-limit 20s --timeout 200s --on-timeout stop"

# Both hosts' taps are on one bridge, whose own end is level 1's.
here=10.9.0.1
there=10.9.0.2
mac=52:54:00:09:00:02
tap_a=tap-a
tap_b=tap-b

say() { echo "scenario: $*"; }

fail() {
    say "FAILED: $*"
    # Why a VM failed is in its status; asked first, because its process may be about to end.
    for host in $a $b; do
        say "$host: $(VMM_RUNTIME_DIR=$host timeout 10 vmm status guest --json 2>&1)"
    done
    show_logs
    dmesg | tail -n 30
    exit 1
}

show_logs() {
    find $a $b /tmp/output -type f 2>/dev/null | while read -r file; do
        echo "--- $file"
        tail -n 40 "$file"
    done
}

# on HOST ARGS...: a vmm command on a host; its output goes to /tmp/output/N.
on() {
    host=$1
    shift
    commands=$((${commands:-0} + 1))
    output=/tmp/output/$commands
    echo "vmm $* on $host" >$output.command
    VMM_RUNTIME_DIR=$host timeout $long vmm "$@" >$output 2>$output.errors
}

# eventually WHAT COMMAND...: tries the command until it succeeds.
eventually() {
    what=$1
    shift
    tries=0
    until "$@"; do
        tries=$((tries + 1))
        [ $tries -le $((long * 2)) ] || fail "waited too long for $what"
        sleep 0.5
    done
}

serial() { cat "$1/guest/serial.log" 2>/dev/null; }

# Number of the last file that the guest's first writer reported on a host.
last_file() {
    last=$(serial "$1" | sed -n 's/.*wrote 1-\([0-9]*\) .*/\1/p' | tail -n 1)
    echo "${last:-0}"
}

has_written() {
    ! serial "$1" | grep FAILED || fail "the guest found a fault"
    [ "$(last_file "$1")" -ge "$2" ]
}

is_gone() { ! on "$1" status guest; }

# By path: the shell prefers its own program of that name, which makes no taps.
ip() { /usr/bin/ip "$@" || fail "ip $*"; }

make_bridge() {
    ip link add bridge type bridge forward_delay 0
    ip address add $here/24 dev bridge
    ip link set bridge up
}

make_taps() {
    for tap in $tap_a $tap_b; do
        ip tuntap add $tap mode tap multi_queue vnet_hdr
        ip link set $tap master bridge up
    done
}

remove_taps() { for tap in $tap_a $tap_b; do ip link delete $tap; done; }

is_heard() { [ "$(cat /tmp/stage.heard 2>/dev/null)" = "$(cat /tmp/stage)" ]; }

# The sessions tell what they saw since they were last told a stage; nothing where there was no answer in it,
# so that is waited for.
stage() {
    [ ! -e /tmp/stage ] || eventually "an answer of the guest" is_heard
    echo "$1" >/tmp/stage.next
    mv /tmp/stage.next /tmp/stage
}

start_sessions() {
    rm -f /tmp/stage /tmp/stage.heard
    stage before
    witness sessions $there:7000 /tmp/stage $tap_a $tap_b >/tmp/output/sessions &
    sessions=$!
}

end_sessions() {
    stage end
    wait $sessions || fail "a session: $(cat /tmp/output/sessions)"
    sed -n "s/^session: {/session: $name {/p" /tmp/output/sessions
}

# move FROM TO TAP: live migration; the guest must go on writing at the destination.
move() {
    written=$(last_file "$1")
    on "$2" receive --listen "unix:/tmp/socket" --name guest --net net0="$3" --detach || fail "vmm receive: $(cat $output.errors)"
    on "$1" migrate guest --to "unix:/tmp/socket" $move --json || fail "vmm migrate ended with $?: $(cat $output $output.errors)"
    report=$(tail -n 1 $output)
    echo "report: $name $report"
    eventually "the source to end" is_gone "$1"
    [ ! -e "$1/guest" ] || say "left at the source: $(ls -a "$1/guest")"
    # Files that were not reported before it left the source: those 8 may have been on their way.
    eventually "the guest to write on" has_written "$2" $((written + 8))
    rm -f /tmp/socket
}

witness_lines() { serial "$1" | grep -c '^witness: '; }
has_seen() { has_written "$1" 0 && [ "$(witness_lines "$1")" -ge "$2" ]; }

# see HOST STAGE: what the witness tells now. The last line may still be on its way.
see() {
    eventually "the guest's witness" has_seen "$1" $(($(witness_lines "$1") + 2))
    told=$(serial "$1" | sed -n 's/^witness: //p' | tail -n 2 | head -n 1)
    echo "seen: $name $2 $(date +%s) $told"
}

# What the guest reported as verified must be what is on the disk, seen by another kernel.
check_disk() {
    e2fsck -f -n $disk >/tmp/output/e2fsck 2>&1 || fail "e2fsck: $(cat /tmp/output/e2fsck)"
    mount -t ext4 -o ro,loop $disk /mnt || fail "the disk does not mount"
    result=$(cat /mnt/result)
    files=$(cat /mnt/data/sums-* | wc -l)
    [ "$result" = "verified $files" ] || fail "the guest's result is '$result', and $files files were logged"
    (cd /mnt/data && cat sums-* | sha256sum -c) >/tmp/output/check 2>&1 || fail "$(grep -v ': OK' /tmp/output/check | head)"
    umount /mnt
    say "$files files are right, e2fsck is clean"
}

# offers HOST MODEL: the most of its CPU that a host offers to guests; without a model, all of it.
offers() {
    rm -f "$1/host-cpu.toml"
    [ -z "$2" ] || echo "base = \"$2\"" >"$1/host-cpu.toml"
}

# A guest with all that this CPU has is refused, with what is missing, by a host that is limited to a level.
check_refusal() {
    offers $b x86-64-v2
    on $b receive --listen unix:/tmp/socket --name guest --net net0=$tap_b --detach || fail "vmm receive: $(cat $output.errors)"
    on $a migrate guest --to unix:/tmp/socket --plan && fail "a host of x86-64-v2 takes the guest: $(cat $output)"
    grep -q "avx (cpuid 0x1:0 ecx bit 28)" $output.errors || fail "not said what is missing: $(cat $output.errors)"
    on $b stop guest --force
    eventually "the receiver to end" is_gone $b
    rm -f /tmp/socket
    offers $b
}

# scenario NAME KERNEL CPUS MODEL
scenario() {
    name=$1
    kernel=$2
    cpus=$3
    model=$4
    started=$(cut -d. -f1 /proc/uptime)
    say "$name begins"
    mkdir -p $a $b /tmp/output /mnt
    rm -f $disk
    make_taps
    # By path, as ip.
    /usr/bin/mke2fs -q -F -t ext4 -d root $disk "$DISK_SIZE" || fail "mke2fs"

    rm -f /tmp/stop-lateness
    witness lateness /tmp/stop-lateness >/tmp/lateness &
    lateness=$!

    # Above the level of the guest, the hosts differ.
    offers $b "$model"
    on $a run guest --kernel "$kernel.vmlinuz" --initrd "$kernel.cpio" --cmdline "$CMDLINE network=$there/24" \
        --cpus "$cpus" --cpu "${model:-host}" --memory 256MiB --disk $disk --net tap=$tap_a,mac=$mac,queues="$cpus" --detach || fail "vmm run: $(cat $output.errors)"
    eventually "the guest to write" has_written $a 5
    serial $a | grep "guest: up, .* $cpus CPUs" || fail "not all CPUs are up"
    serial $a | sed -n "s/^guest: network /network: $name /p"
    [ -n "$model" ] || check_refusal
    start_sessions
    see $a before
    stage moving
    move $a $b $tap_b
    stage moved
    see $b moved
    stage moving-back
    move $b $a $tap_a
    stage back
    see $a back
    end_sessions
    : >/tmp/stop-lateness
    wait $lateness || fail "a sleep in level 1 ended early"
    echo "lateness: $name $(cat /tmp/lateness)"

    # The power button, and the end of the VM with the guest's.
    on $a stop guest || fail "vmm stop: $(cat $output.errors)"
    eventually "the VM to end" is_gone $a
    check_disk
    remove_taps
    say "$name passed, $(($(cut -d. -f1 /proc/uptime) - started)) s"
}

. ./settings
make_bridge
for each in $SCENARIOS; do
    rest=${each#*-}
    cpus=${rest%%-*}
    model=${rest#"$cpus"}
    scenario "$each" "${each%%-*}" "$cpus" "${model#-}"
done
