#!/bin/busybox sh
# First process of level 2's initramfs: loads the drivers and hands over to the root on /dev/vda.

. /drivers.sh
/bin/busybox mount -t ext4 /dev/vda /root || {
    echo "guest: FAILED: /dev/vda does not mount as ext4"
    /bin/busybox poweroff -f
}
/bin/busybox umount /proc /sys
exec /bin/busybox switch_root /root /sbin/init
