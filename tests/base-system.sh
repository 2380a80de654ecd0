#!/usr/bin/env bash
# Runs a command where nothing is installed but what every Debian system has, so that what it needs beside
# that is missed.
#
#   bash tests/base-system.sh FOLDER COMMAND...
#
# FOLDER is there at its own path. Needs root: the command runs in a mount namespace, with a root of copies.
set -euo pipefail

folder=$(cd "$1" && pwd)
shift
# shellcheck disable=SC2046 # a list of package names
files=$(dpkg -L $(bash "$(dirname "$0")/base-packages.sh") | grep -v '^/usr/share/' | sort -u)
root=$(mktemp -d)
trap 'rmdir "$root"' EXIT
export folder root files
# The mounts go with the namespace.
unshare --mount --propagation private bash -euc '
    mount -t tmpfs base "$root"
    # Where these are links into /usr, packages still name files by them.
    for link in /bin /sbin /lib*; do
        [ ! -L "$link" ] || { mkdir -p "$root/$(readlink "$link")" && cp -P "$link" "$root/"; }
    done
    tar -c --no-recursion --ignore-failed-read -T - 2>/dev/null <<<"$files" |
        tar -x --keep-directory-symlink -C "$root"
    for shared in "$folder" /dev /proc; do
        mkdir -p "$root$shared"
        mount --rbind "$shared" "$root$shared"
    done
    exec chroot "$root" "$@"
' bash "$@"
