#!/bin/busybox sh
# First process of level 1, the emulated machine with SVM: makes it a small KVM host, runs the payload
# and ends the emulator with the payload's exit code.

/bin/busybox --install -s /bin
export PATH=/bin:/usr/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/shm /tmp /mnt
mount -t tmpfs tmp /tmp
mount -t tmpfs shm /dev/shm
ip link set lo up

for module in $(cat /modules/order); do
    insmod "/modules/$module.ko" || echo "level1: module $module was not loaded"
done
echo "level1: up, $(uname -r), $(nproc) CPUs, $(($(sed -n 's/MemAvailable: *\([0-9]*\).*/\1/p' /proc/meminfo) / 1024)) MiB free"

cd /payload
export PROGRAMS=/usr/bin
sh ./run.sh
code=$?
echo "level1: payload ended with $code after $(cut -d. -f1 /proc/uptime) s"
exec exit-emulator "$code"
