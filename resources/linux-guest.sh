#!/usr/bin/env bash
# Makes a small Linux guest from Debian's stock cloud kernel: everything that `vmm run` needs to boot it.
#
#   bash resources/linux-guest.sh FOLDER
#
# FOLDER gets vmlinuz (the package's, unchanged), initrd.img (busybox and the drivers that the kernel has
# as modules) and root.ext4 (a root file system with busybox and a log of once-a-second writes). It needs
# a Debian host with busybox-static, cpio, e2fsprogs and kmod, and installs nothing; root is not needed.
set -euo pipefail
export PATH="$PATH:/usr/sbin:/sbin"

[ $# = 1 ] || { echo "usage: bash $0 FOLDER" >&2; exit 2; }
for tool in apt-get dpkg busybox cpio mke2fs depmod modprobe; do
    command -v "$tool" >/dev/null ||
        { echo "$tool is missing: apt-get install busybox-static cpio e2fsprogs kmod" >&2; exit 1; }
done
for file in vmlinuz initrd.img root.ext4; do
    # It may be the disk of a guest.
    [ ! -e "$1/$file" ] || { echo "$1/$file is there already: remove it, or name another folder" >&2; exit 1; }
done
mkdir -p "$1"
cd "$1"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# The kernel package that linux-image-cloud-amd64 stands for, unpacked and not installed.
package=$(apt-cache show --no-all-versions linux-image-cloud-amd64 |
    sed -nE 's/^Depends:.*(linux-image-[0-9][^ ,]*).*/\1/p' | head -n 1)
[ -n "$package" ] || { echo "apt knows no linux-image-cloud-amd64: run apt-get update" >&2; exit 1; }
(mkdir "$work/deb" && cd "$work/deb" && apt-get -o APT::Sandbox::User=root download -qq "$package")
dpkg -x "$work"/deb/*.deb "$work/kernel"
cp "$work"/kernel/boot/vmlinuz-* vmlinuz

# modprobe looks for modules in lib/modules; newer packages have them in usr/lib/modules.
[ -e "$work/kernel/lib/modules" ] || { mkdir -p "$work/kernel/lib"; ln -s ../usr/lib/modules "$work/kernel/lib/modules"; }
version=$(ls "$work/kernel/lib/modules")
depmod -b "$work/kernel" "$version"

# Drivers: the transport, the disk, its file system, and the power button as an input device.
initrd="$work/initrd"
mkdir -p "$initrd"/{bin,dev,modules,root}
cp "$(command -v busybox)" "$initrd/bin/busybox"
for module in virtio_mmio virtio_blk ext4 button evdev; do
    # Lines are `insmod FILE` in the order of need, or `builtin NAME`.
    modprobe -d "$work/kernel" -S "$version" --show-depends "$module"
done | sed -n 's/^insmod //p' | awk '!seen[$1]++ { print $1 }' | while read -r file; do
    name=$(basename "$file")
    case $file in
        *.xz) name=${name%.xz}; xz -dc "$file" >"$initrd/modules/$name" ;;
        *) cp "$file" "$initrd/modules/$name" ;;
    esac
    echo "$name" >>"$initrd/modules/order"
done
cat >"$initrd/init" <<'INIT'
#!/bin/busybox sh
/bin/busybox mount -t devtmpfs dev /dev
for module in $(/bin/busybox cat /modules/order); do /bin/busybox insmod "/modules/$module"; done
while [ ! -b /dev/vda ]; do /bin/busybox sleep 0.1; done
/bin/busybox mount -t ext4 /dev/vda /root
exec /bin/busybox switch_root /root /sbin/init
INIT
chmod 755 "$initrd/init"
(cd "$initrd" && find . | cpio --quiet -o -H newc) | gzip >initrd.img

# The root file system, made from a folder without mounting anything.
root="$work/root"
mkdir -p "$root"/{bin,dev,proc,sys,tmp,sbin}
cp "$(command -v busybox)" "$root/bin/busybox"
cat >"$root/sbin/init" <<'INIT'
#!/bin/busybox sh
/bin/busybox --install -s /bin
export PATH=/bin
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev 2>/dev/null
mount -t tmpfs tmp /tmp

# Any event of the power button ends the guest in order.
for event in /dev/input/event*; do
    { head -c 24 "$event" >/dev/null; sync; mount -o remount,ro /; poweroff -f; } &
done

# A line a second, on the disk before the next one.
while sleep 1; do
    echo "$(cut -d' ' -f1 /proc/uptime) written" >>/log
    sync
done &

echo "guest: up, Linux $(uname -r), $(nproc) CPUs"
while :; do setsid cttyhack sh; done
INIT
chmod 755 "$root/sbin/init"
mke2fs -q -t ext4 -E root_owner=0:0 -d "$root" root.ext4 64M

echo "made $PWD/vmlinuz ($package), initrd.img and root.ext4"
