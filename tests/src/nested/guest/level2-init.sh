#!/bin/busybox sh
# First process of level 2's initramfs: loads the drivers and hands over to the root on /dev/vda.

/bin/busybox mkdir -p /proc /sys /dev /root
/bin/busybox mount -t proc proc /proc
/bin/busybox mount -t sysfs sys /sys
/bin/busybox mount -t devtmpfs dev /dev
for module in $(/bin/busybox cat /modules/order); do
    /bin/busybox insmod "/modules/$module.ko" || echo "guest: module $module was not loaded"
done
tries=0
while [ ! -b /dev/vda ]; do
    tries=$((tries + 1))
    if [ $tries -gt 300 ]; then
        echo "guest: FAILED: no /dev/vda"
        /bin/busybox poweroff -f
    fi
    /bin/busybox sleep 0.1
done
/bin/busybox mount -t ext4 /dev/vda /root || {
    echo "guest: FAILED: /dev/vda does not mount as ext4"
    /bin/busybox poweroff -f
}
/bin/busybox umount /proc /sys
exec /bin/busybox switch_root /root /sbin/init
