#!/bin/busybox sh
# First process on an ext4 root that travels with its guest: commits transactions and tells each on the serial port,
# until it is told to verify them, by a line. It then waits for its end, which is to be a power cut.

/bin/busybox --install -s /bin
export PATH=/bin:/usr/bin
mount -t proc proc /proc
mount -t devtmpfs dev /dev 2>/dev/null
mount -t tmpfs tmp /tmp
. /transactions.sh

{ read -r _ && : >/tmp/verify; } </dev/console &
echo "guest: up, $(uname -r)"
n=0
while [ ! -e /tmp/verify ]; do
    n=$((n + 1))
    commit /data $n || {
        echo "guest: FAILED: transaction $n could not be written"
        break
    }
    echo "guest: committed $n"
done

echo 3 >/proc/sys/vm/drop_caches
{
    faults /data
    dmesg | grep -E 'BUG:|Oops|I/O error|EXT4-fs error|JBD2: .*error'
} >/tmp/faults
while read -r line; do echo "guest: FAILED: $line"; done </tmp/faults
[ -s /tmp/faults ] || echo "guest: verified $n transactions"
while :; do sleep 1000; done
