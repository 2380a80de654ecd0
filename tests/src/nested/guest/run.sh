#!/bin/sh
# Runs the scenarios, resets, caches and disks of ./settings on a host with hardware virtualization, be that level 1 of the
# rig or the machine that the tests run on, by the tools of busybox and the programs in $PROGRAMS. It does so in
# namespaces of its own: networks, mounts, files and processes go with them, also when it is killed.

if [ "$1" != inside ]; then
    exec unshare -m -n -p -f --mount-proc --propagation private sh ./run.sh inside
fi

# What is in the folder of networks is that of the network namespace that mounts it.
mount -t sysfs sys /sys
mount -t tmpfs work /mnt
ip link set lo up

. ./settings
export VMM_SANDBOX="$SANDBOX"
. ./host.sh
. ./scenario.sh
. ./reset.sh
. ./cache.sh
. ./disks.sh
say "on $(ls -d /sys/module/kvm_* | tr '\n' ' ')of Linux $(uname -r), $(nproc) CPUs"
make_bridge
for each in $SCENARIOS; do
    what=${each#*:}
    rest=${what#*-}
    cpus=${rest%%-*}
    model=${rest#"$cpus"}
    scenario "$each" "${what%%-*}" "$cpus" "${model#-}"
done
for each in $RESETS; do
    rest=${each#*-}
    reset_by "$each" "${each%%-*}" "${rest%-*}" "${rest##*-}"
done
for each in $CACHES; do cache "$each"; done
for each in $DISKS; do
    what=${each%%:*}
    modes=${each#"$what"}
    modes=${modes#:}
    there=${modes%%:*}
    home=${modes#*:}
    rest=${what#*-}
    local_disk "$each" "${what%%-*}" "${rest%-*}" "${rest##*-}" "${there:-precopy}" "${home:-precopy}"
done
