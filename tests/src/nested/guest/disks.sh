# A stock kernel whose root is a qcow2 image over a backing file, on storage that only its host reaches: the disk
# travels with it while it commits transactions, becomes a raw image on the other host, and a qcow2 image again on its way
# back, each way in the mode that is asked for. Then its power is cut, and the disk must hold what the guest told as committed. What the test looks at later are
# the lines `disk: NAME JSON`, the report of each move, and `unmarked: IMAGE`, whose staleness was not tried.

disk_a=$work/host-disk-a
disk_b=$work/host-disk-b
store_a=$work/store-a
store_b=$work/store-b
# All that the guest printed, on whatever host.
printed=$work/told
# Slow enough for the guest to write while its disk is copied, wherever this runs.
at_rate=32MiB/s

# make_store FOLDER: a file system of its own, where images can have marks; $marks is empty where none can be made.
make_store() {
    rm -rf "$1" "$1.img"
    mkdir "$1"
    # By path, as ip.
    "$PROGRAMS/mke2fs" -q -F -t ext4 "$1.img" 256M || fail "mke2fs"
    mount -o loop "$1.img" "$1" 2>/dev/null || marks=
}

leave_store() {
    ! grep -q " $1 " /proc/mounts || eventually "$1 to be free" umount "$1"
    rm -rf "$1" "$1.img"
}

# make_root FOLDER: an image of the guest's root, and over it the qcow2 image that the guest is given.
make_root() {
    dd if=/dev/urandom of=root/data/cold bs=1M count="$COLD_MIB" 2>/dev/null || fail "$name: dd"
    (cd root/data && sha256sum cold >cold.sum)
    dd if=/dev/urandom of=root/data/erased bs=16k count=512 2>/dev/null || fail "$name: dd"
    "$PROGRAMS/mke2fs" -q -F -t ext4 -d root "$1/base.raw" 80M || fail "mke2fs"
    rm root/data/cold root/data/cold.sum root/data/erased
    base_sum=$(md5sum <"$1/base.raw")
    on $disk_a disk create "$1/root.qcow2" --size 80MiB --format qcow2 --backing base.raw --backing-format raw ||
        fail "vmm disk create: $(cat $output.errors)"
}

# Number of the last transaction that the guest told on a host.
last_committed() {
    last=$(serial "$1" | sed -n 's/.*guest: committed \([0-9]*\).*/\1/p' | tail -n 1)
    echo "${last:-0}"
}

has_committed() {
    fault=$(serial "$1" | grep -m 1 FAILED) && fail "$name: $fault"
    [ "$(last_committed "$1")" -ge "$2" ]
}

# disk_is_whole HOST: nothing of the guest's disk is missing there.
disk_is_whole() { on "$1" status guest --json && ! grep -q '"missing":' "$output"; }

# nobody_serves HOST: whoever served a disk from there has been told that it is needed no more.
nobody_serves() { on "$1" disk serve --list --json && ! grep -q '"pid":[0-9]' "$output"; }

# travel MODE FROM TO DISK: live migration with the disk; the guest must commit during it, where that takes its time, and after
# it. A disk on demand is whole when this is over.
travel() {
    mode=$1
    shift
    committed=$(last_committed "$1")
    moving="--disks $mode --bandwidth $at_rate"
    hand_over "$1" "$2" --disk "root=$3"
    moving=
    eventually "the source to end" has_ended "$1"
    echo "disk: $name $mode $report"
    say "$name: $(($(last_committed "$1") - committed)) transactions while it moved by $mode"
    [ "$mode" = on-demand ] || [ "$(last_committed "$1")" -gt "$committed" ] ||
        fail "$name: nothing was committed while it moved"
    serial "$1" >>"$printed"
    if [ "$mode" = on-demand ]; then
        eventually "the disk to be whole" disk_is_whole "$2"
        eventually "its server to end" nobody_serves "$1"
    fi
    # The first may have been under way when the guest was stopped.
    eventually "the guest to commit" has_committed "$2" $(($(last_committed "$1") + 3))
    rm -f $work/socket
}

# check_stale HOST DISK: the image of a disk that has left is no more for use.
check_stale() {
    [ -n "$marks" ] || { echo "unmarked: $2" && return; }
    on "$1" run stale --kernel "$kernel.vmlinuz" --disk "$2" --detach && fail "$name: $2 is used, and the guest has left it"
    grep -q "the guest went to" $output.errors || fail "$name: not said that the guest has left: $(cat $output.errors)"
}

check_qcow2() {
    on $disk_a disk check "$1" || fail "$name: vmm disk check: $(cat $output $output.errors)"
    qemu-img check -f qcow2 "$1" >$work/output/qemu-img 2>&1 || fail "$name: qemu-img check: $(cat $work/output/qemu-img)"
}

# check_root IMAGE: what the guest told as committed is there, after the file system's journal was replayed.
check_root() {
    qemu-img convert -f qcow2 -O raw "$1" $work/root.raw || fail "$name: qemu-img convert"
    e2fsck -p $work/root.raw >$work/output/e2fsck 2>&1
    e2fsck -f -n $work/root.raw >>$work/output/e2fsck 2>&1 || fail "$name: e2fsck: $(cat $work/output/e2fsck)"
    rm -rf $work/read
    mkdir $work/read
    debugfs -R "rdump /data $work/read" $work/root.raw >>$work/output/debugfs 2>&1
    (. ./transactions.sh && faults $work/read/data) >$work/output/faults
    [ ! -s $work/output/faults ] || fail "$name: $(cat $work/output/faults)"
    # Without a gap, so the last is enough.
    last=$(sed -n 's/.*guest: committed \([0-9]*\).*/\1/p' "$printed" | tail -n 1)
    there=$(wc -l <$work/read/data/log)
    [ "$last" -gt 0 ] && [ "$there" -ge "$last" ] || fail "$name: $last transactions were committed, and $there are there"
    say "$name: $last transactions were committed, $there are there, e2fsck is clean"
    rm -rf $work/read $work/root.raw
}

verified() { has_committed "$1" 0 && serial "$1" | grep -q "guest: verified"; }

# local_disk NAME KERNEL CPUS BACK THERE HOME: the disk goes by mode THERE and comes back by mode HOME, to the image that it was
# before, over its backing file, where BACK is `existing`, and to a new one where it is `create`.
local_disk() {
    name=$1
    kernel=$2
    began=$(cut -d. -f1 /proc/uptime)
    marks=yes
    mkdir -p $disk_a $disk_b $work/output
    make_store $store_a
    make_store $store_b
    make_root $store_a
    : >$printed
    on $disk_a run guest --kernel "$kernel.vmlinuz" --initrd "$kernel.cpio" --cmdline "$CMDLINE init=/sbin/transactions" \
        --cpus "$3" --memory 192MiB --disk $store_a/root.qcow2,format=qcow2,id=root --detach || fail "$name: vmm run: $(cat $output.errors)"
    eventually "the guest to commit" has_committed $disk_a 3

    travel "$5" $disk_a $disk_b $store_b/root.raw,create
    check_qcow2 $store_a/root.qcow2
    check_stale $disk_a $store_a/root.qcow2,format=qcow2
    back=$store_a/root.qcow2
    [ "$4" = existing ] || back=$store_a/back.qcow2
    travel "$6" $disk_b $disk_a "$back,$4,format=qcow2"
    check_stale $disk_b $store_b/root.raw

    tell $disk_a verify
    eventually "the guest to verify" verified $disk_a
    on $disk_a stop guest --force || fail "$name: vmm stop: $(cat $output.errors)"
    told_all
    serial $disk_a >>$printed
    check_qcow2 "$back"
    check_root "$back"
    [ "$(md5sum <$store_a/base.raw)" = "$base_sum" ] || fail "$name: the backing file was written to"
    leave_store $store_a
    leave_store $store_b
    say "disk $name: $(($(cut -d. -f1 /proc/uptime) - began)) s"
}
