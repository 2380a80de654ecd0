# Loads the drivers and waits for the disk: the beginning of every first process in level 2's initramfs.

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
