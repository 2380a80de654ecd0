#!/bin/busybox sh
# First process on the ext4 root of level 2: one writer per CPU writes files, fsyncs each and logs its
# checksum, and the witness watches registers, timers and clocks, until the power button is pressed; then
# all of it is verified and the guest powers off.

/bin/busybox --install -s /bin
export PATH=/bin:/usr/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev 2>/dev/null
mount -t tmpfs tmp /tmp
most_files=700

fail() {
    echo "guest: FAILED: $*"
    # Read from the disk too: the serial log goes with a VM that ends.
    echo "$*" >>/tmp/failed
}

# The power button is an input device; any event of it asks for the end. Its driver is a module, whose device may come later.
looks=0
until ls /dev/input/event* >/dev/null 2>&1; do
    looks=$((looks + 1))
    if [ $looks -gt 300 ]; then
        fail "there is no power button"
        break
    fi
    sleep 0.1
done
for event in /dev/input/event*; do
    { head -c 24 "$event" >/dev/null && : >/tmp/stop; } &
done

# Fails when the clock went backwards since the last call by the same writer.
check_clock() {
    read -r now _ </proc/uptime
    now=${now%.*}${now#*.}
    [ "$now" -ge "${before:-0}" ] || fail "the clock went back from $before to $now hundredths of a second"
    before=$now
}

write_file() {
    name=$1-$2
    # Between 16 and 80 KiB, the same for the same name wherever it is written.
    yes "line of file $name" | head -c $((16384 + ($1 * 104729 + $2 * 7919) % 65536)) >"/tmp/$1"
    sum=$(sha256sum <"/tmp/$1")
    dd if="/tmp/$1" of="/data/$name" bs=16k conv=fsync 2>/dev/null || fail "$name was not written"
    echo "${sum%% *}  $name" >>"/data/sums-$1"
    echo "guest: wrote $name ${sum%% *}"
}

writer() {
    n=0
    while [ ! -e /tmp/stop ] && [ ! -e /tmp/failed ]; do
        check_clock
        if [ $n -ge $most_files ]; then
            sleep 0.2
            continue
        fi
        n=$((n + 1))
        write_file "$1" $n
        # An emulated CPU is to have time for the others too.
        sleep 0.1
    done
}

verify() {
    echo 3 >/proc/sys/vm/drop_caches
    cd /data || fail "/data is gone"
    for sums in sums-*; do
        sha256sum -c "$sums" >/tmp/check 2>&1 || fail "$sums: $(grep -v ': OK' /tmp/check | head -n 3)"
    done
    cd /
    # What a broken disk, clock or CPU state makes the kernel say; that it skips a test for skew because the emulator
    # is slow is no complaint.
    for complaint in 'BUG:' 'WARNING: CPU' 'Oops' 'general protection' 'I/O error' 'EXT4-fs error' \
        'JBD2: .*error' 'soft lockup' 'blocked for more than' 'rcu.*stall' 'rcu.*kthread starved' \
        'clocksource.*(unstable|skew is|too long|pushed)' 'clock.*backwards' 'NETDEV WATCHDOG'; do
        dmesg | grep -E "$complaint"
    done >/tmp/complaints
    while read -r line; do fail "kernel: $line"; done </tmp/complaints
}

# Takes the address on the kernel's command line, where there is one; the witness then serves sessions.
set_up_network() {
    address=$(sed -n 's/.*network=\([^ ]*\).*/\1/p' /proc/cmdline)
    [ -n "$address" ] || return 0
    ip link set lo up
    ip link set eth0 up && ip address add "$address" dev eth0 || fail "no network on eth0"
    port=7000
    # The driver's side of what was negotiated: one digit for each feature bit, from bit 0 on.
    echo "guest: network $(ls -d /sys/class/net/eth0/queues/rx-* | wc -l) $(cat /sys/class/net/eth0/device/features)"
}

mkdir -p /data
port=
set_up_network
echo "guest: up, $(uname -r), $(nproc) CPUs"
witness guest /tmp/stop $port &
witness=$!
writers=
for cpu in $(seq "$(nproc)"); do
    writer "$cpu" &
    writers="$writers $!"
done
wait $writers
wait $witness || fail "the witness found a fault"
echo "guest: verifying"
verify
files=$(cat /data/sums-* | wc -l)
if [ -e /tmp/failed ]; then
    { echo "failed:" && cat /tmp/failed && dmesg | tail -n 100; } >/result
else
    echo "verified $files" >/result
    echo "guest: verified $files files"
fi
sync
mount -o remount,ro / || echo "guest: the root could not be made read-only"
poweroff -f
