# A stock kernel on an ext4 root is started by `vmm run` on one host, moves to another and back while it writes and
# fsyncs files, and powers off; then the disk is checked. Two run-time directories are two hosts. Once for each kernel,
# number of vCPUs and, where given, model of their CPU in the settings. What the test looks at later are the lines
# `report: SCENARIO JSON` and `seen: SCENARIO STAGE SECONDS SECONDS JSON`, the latter with the times of this host and what the
# witness in the guest told then, `lateness: SCENARIO MS`, how late a process of this host ran at worst,
# `boot: SCENARIO MS` from the guest's start until it wrote its first files,
# `network: SCENARIO QUEUES FEATURES` of the guest's driver, and `session: SCENARIO JSON` for each stage.

a=$work/host-a
b=$work/host-b
disk=$work/disk.img

# Both hosts' taps are on one bridge, whose own end is this host's.
here=10.9.0.1
there=10.9.0.2
mac=52:54:00:09:00:02
tap_a=tap-a
tap_b=tap-b

# Number of the last file that the guest's first writer reported on a host.
last_file() {
    last=$(serial "$1" | sed -n 's/.*wrote 1-\([0-9]*\) .*/\1/p' | tail -n 1)
    echo "${last:-0}"
}

has_written() {
    ! serial "$1" | grep FAILED || fail "the guest found a fault"
    [ "$(last_file "$1")" -ge "$2" ]
}

# By path: the shell prefers its own program of that name, which makes no taps.
ip() { "$PROGRAMS/ip" "$@" || fail "ip $*"; }

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

is_heard() { [ "$(cat $work/stage.heard 2>/dev/null)" = "$(cat $work/stage)" ]; }

# The sessions tell what they saw since they were last told a stage; nothing where one of them did not go on in it,
# so that is waited for.
stage() {
    [ ! -e $work/stage ] || eventually "an answer of the guest" is_heard
    echo "$1" >$work/stage.next
    mv $work/stage.next $work/stage
}

start_sessions() {
    rm -f $work/stage $work/stage.heard
    stage before
    witness sessions $there:7000 $work/stage $tap_a $tap_b >$work/output/sessions &
    sessions=$!
}

end_sessions() {
    stage end
    wait $sessions || fail "a session: $(cat $work/output/sessions)"
    sed -n "s/^session: {/session: $name {/p" $work/output/sessions
}

# move FROM TO TAP: live migration; the guest must go on writing at the destination.
move() {
    written=$(last_file "$1")
    hand_over "$1" "$2" --net net0="$3"
    echo "report: $name $report"
    eventually "the source to end" has_ended "$1"
    # Files that were not reported before it left the source: those 8 may have been on their way.
    eventually "the guest to write on" has_written "$2" $((written + 8))
    rm -f $work/socket
}

witness_lines() { serial "$1" | grep -c '^witness: '; }
has_seen() { has_written "$1" 0 && [ "$(witness_lines "$1")" -ge "$2" ]; }

# see HOST STAGE: what the witness tells now, which it told between the two times of this host. The last line may still
# be on its way.
see() {
    asked=$(date +%s)
    eventually "the guest's witness" has_seen "$1" $(($(witness_lines "$1") + 2))
    told=$(serial "$1" | sed -n 's/^witness: //p' | tail -n 2 | head -n 1)
    echo "seen: $name $2 $asked $(date +%s) $told"
}

# What the guest reported as verified must be what is on the disk, read by other code than that of its kernel.
check_disk() {
    e2fsck -f -n $disk >$work/output/e2fsck 2>&1 || fail "e2fsck: $(cat $work/output/e2fsck)"
    rm -rf $work/read
    mkdir $work/read
    for what in /result /data; do
        debugfs -R "rdump $what $work/read" $disk >>$work/output/debugfs 2>&1
    done
    result=$(cat $work/read/result)
    files=$(cat $work/read/data/sums-* | wc -l)
    [ "$result" = "verified $files" ] || fail "the guest's result is '$result', and $files files were logged"
    (cd $work/read/data && cat sums-* | sha256sum -c) >$work/output/check 2>&1 ||
        fail "$(grep -v ': OK' $work/output/check | head)"
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
    on $b receive --listen unix:$work/socket --name guest --net net0=$tap_b --detach || fail "vmm receive: $(cat $output.errors)"
    on $a migrate guest --to unix:$work/socket --plan && fail "a host of x86-64-v2 takes the guest: $(cat $output)"
    grep -q "avx (cpuid 0x1:0 ecx bit 28)" $output.errors || fail "not said what is missing: $(cat $output.errors)"
    on $b stop guest --force
    eventually "the receiver to end" has_ended $b
    rm -f $work/socket
    offers $b
}

# Since this host was started.
milliseconds() {
    read -r up _ </proc/uptime
    echo "${up%.*}${up#*.}0"
}

# scenario NAME KERNEL CPUS MODEL
scenario() {
    name=$1
    kernel=$2
    cpus=$3
    model=$4
    started=$(cut -d. -f1 /proc/uptime)
    say "$name begins"
    mkdir -p $a $b $work/output
    rm -f $disk
    make_taps
    # By path, as ip.
    "$PROGRAMS/mke2fs" -q -F -t ext4 -d root $disk "$DISK_SIZE" || fail "mke2fs"

    rm -f $work/stop-lateness
    witness lateness $work/stop-lateness >$work/lateness &
    lateness=$!

    # Above the level of the guest, the hosts differ.
    offers $b "$model"
    on $a run guest --kernel "$kernel.vmlinuz" --initrd "$kernel.cpio" --cmdline "$CMDLINE network=$there/24" \
        --cpus "$cpus" --cpu "${model:-host}" --memory 256MiB --disk $disk --net tap=$tap_a,mac=$mac,queues="$cpus" --detach || fail "vmm run: $(cat $output.errors)"
    begun=$(milliseconds)
    eventually "the guest to write" has_written $a 5
    echo "boot: $name $(($(milliseconds) - begun))"
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
    : >$work/stop-lateness
    wait $lateness || fail "a sleep in level 1 ended early"
    echo "lateness: $name $(cat $work/lateness)"

    # The power button, and the end of the VM with the guest's.
    on $a stop guest || fail "vmm stop: $(cat $output.errors)"
    eventually "the VM to end" has_ended $a
    check_disk
    remove_taps
    say "$name passed, $(($(cut -d. -f1 /proc/uptime) - started)) s"
}
