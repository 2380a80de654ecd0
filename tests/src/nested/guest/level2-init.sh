#!/bin/busybox sh
# First process of level 2's initramfs: loads the drivers and hands over to the root on /dev/vda, where `init=` on the
# kernel's command line says which program is first.

. /drivers.sh
/bin/busybox mount -t ext4 /dev/vda /root || {
    echo "guest: FAILED: /dev/vda does not mount as ext4"
    /bin/busybox poweroff -f
}
init=$(/bin/busybox sed -n 's/.* init=\([^ ]*\).*/\1/p' /proc/cmdline)
/bin/busybox umount /proc /sys
exec /bin/busybox switch_root /root "${init:-/sbin/init}"
