#!/usr/bin/env bash
# Prepares what the tests need, once; a second run finds it done and returns at once.
#
#   bash tests/setup.sh
#
# As root it installs the few Debian packages that are missing. It downloads, without installing, QEMU 10
# and three Debian kernels (the release's cloud kernel, that of its backports, and the release's full one) into
# <target>/rig, for the nested job (docs/testing.md), and QEMU 7.2 for the benchmark. What cannot be had is
# said, the reason is left in <target>/rig/missing or missing-NAME, and the tests that need it print
# `skipped: reason`; the script itself fails only when the workspace cannot be built at all.
set -euo pipefail

cd "$(dirname "$0")/.."
target=${CARGO_TARGET_DIR:-target}
mkdir -p "$target/rig"
rig=$(cd "$target/rig" && pwd)

say() { echo "setup: $*"; }

# What cannot run on this machine, and the file that tells the tests why.
missing_part="the nested job"
missing_file="$rig/missing"

# That part cannot run on this machine: say so once, here and to the tests.
unavailable() {
    say "$missing_part will be skipped: $*"
    echo "$*" >"$missing_file"
    exit 0
}

# --- build tools --------------------------------------------------------------------------------

check_build_tools() {
    local tool
    for tool in cargo cc; do
        if ! command -v "$tool" >/dev/null; then
            say "error: $tool is needed to build the workspace" >&2
            exit 1
        fi
    done
    # Run inside the workspace, this also makes rustup fetch the pinned toolchain where it is missing.
    say "toolchain: $(rustc --version)"
}

# --- Debian packages ----------------------------------------------------------------------------

# command:package pairs; commands also looked for where Debian keeps them for root.
nested_needs=(busybox:busybox-static mke2fs:e2fsprogs e2fsck:e2fsprogs debugfs:e2fsprogs xz:xz-utils iasl:acpica-tools)
images_needs=(qemu-img:qemu-utils qemu-io:qemu-utils)
copy_needs=(nbdcopy:libnbd-bin nbdkit:nbdkit)
network_needs=(ip:iproute2 tc:iproute2 bridge:iproute2 nsenter:util-linux unshare:util-linux)

missing_packages() {
    local need
    for need in "$@"; do
        PATH="$PATH:/usr/sbin:/sbin" command -v "${need%%:*}" >/dev/null || echo "${need##*:}"
    done | sort -u
}

# Installs what is missing of the command:package pairs; says why not on standard output.
install_missing() {
    local missing
    missing=$(missing_packages "$@")
    [ -n "$missing" ] || return 0
    missing=$(tr '\n' ' ' <<<"$missing")
    command -v apt-get >/dev/null || { echo "missing: $missing(and this is not a Debian system)"; return 1; }
    [ "$(id -u)" = 0 ] || { echo "missing packages: $missing(run this script as root, or install them)"; return 1; }
    say "installing $missing" >&2
    # shellcheck disable=SC2086 # a list of package names
    DEBIAN_FRONTEND=noninteractive apt-get install -qq -y --no-install-recommends $missing >/dev/null 2>&1 ||
        { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -qq -y \
            --no-install-recommends $missing; } >/dev/null ||
        { echo "apt-get could not install $missing"; return 1; }
}

# --- packages unpacked beside the build output ---------------------------------------------------

# apt with its own lists, cache and copy of the sources. It believes that this system has nothing but the base
# packages, so that what is unpacked brings all other libraries along: whatever else is installed here by chance is
# not on the next machine. Nothing of the system's is written.
private_apt_ready=
prepare_private_apt() {
    [ -z "$private_apt_ready" ] || return 0
    command -v apt-get >/dev/null || unavailable "QEMU 10 and Debian kernels are fetched with apt-get, which is not here"
    local apt="$rig/apt"
    mkdir -p "$apt/lists/partial" "$apt/cache/archives/partial" "$apt/sources"
    find "$apt/sources" -type f -delete
    find /etc/apt/sources.list /etc/apt/sources.list.d -maxdepth 1 -type f \
        \( -name '*.list' -o -name '*.sources' \) -exec cp {} "$apt/sources/" \; 2>/dev/null || true
    cat >"$apt/apt.conf" <<CONF
#clear APT::Update::Post-Invoke;
#clear APT::Update::Post-Invoke-Success;
#clear DPkg::Pre-Install-Pkgs;
#clear DPkg::Post-Invoke;
Dir::Etc::sourcelist "/dev/null";
Dir::Etc::sourceparts "$apt/sources";
Dir::State::lists "$apt/lists";
Dir::State::status "$apt/status";
Dir::Cache "$apt/cache";
Dir::Cache::archives "$apt/cache/archives";
APT::Sandbox::User "";
APT::Get::List-Cleanup "false";
Acquire::Languages "none";
Acquire::IndexTargets::deb::DEP-11::DefaultEnabled "false";
Acquire::Retries "3";
Acquire::http::Timeout "30";
Acquire::https::Timeout "30";
Debug::NoLocking "true";
CONF
    # shellcheck disable=SC2046 # a list of package names
    dpkg-query -s $(bash tests/base-packages.sh) >"$apt/status"
    say "reading package lists"
    private_update
    private_apt_ready=yes
}

private_apt() { apt-get -c "$rig/apt/apt.conf" "$@"; }

private_update() {
    private_apt update -qq >"$rig/apt/update.log" 2>&1 ||
        unavailable "package lists could not be read (no network?): $(tail -n 1 "$rig/apt/update.log")"
}

# Versions of a package that the private sources offer, the newest last.
versions() {
    apt-cache -c "$rig/apt/apt.conf" madison "$1" 2>/dev/null |
        awk -F'|' '{ gsub(/ /, "", $2); print $2 }' | sort -V
}

newest_version() { versions "$1" | tail -n 1; }

qemu_major() { sed -E 's/^[0-9]+://; s/\..*//' <<<"${1:-0}"; }

# Adds the backports suite of the configured release, from the same mirror and with the same key.
# apt itself is asked for the mirror, so both formats of its sources are understood.
add_backports() {
    [ ! -e "$rig/apt/sources/backports.list" ] || return 0
    local uri release component entry file key=
    # The release proper, not its -updates or -security companions.
    read -r uri release component entry < <(private_apt indextargets \
        --format '$(REPO_URI) $(RELEASE) $(COMPONENT) $(SOURCESENTRY)' 'Created-By: Packages' 'Origin: Debian' |
        awk '$2 !~ /[-\/]/ && $3 == "main" { print; exit }') ||
        unavailable "part of it comes from Debian's backports, and apt is configured with no Debian release"
    file=${entry%:*}
    key=$(sed -nE 's/^Signed-By:[[:space:]]*(\/[^[:space:]]+).*/\1/p; s/.*signed-by=([^] ,]+).*/\1/p' "$file" | head -n 1)
    say "adding $release-backports to the private package lists"
    echo "deb ${key:+[signed-by=$key] }$uri $release-backports $component" >"$rig/apt/sources/backports.list"
    private_update
}

# Name of the suite that add_backports added.
backports_suite() { sed -E 's/.* ([^ ]+-backports) .*/\1/' "$rig/apt/sources/backports.list"; }

# Unpacks the .deb files of a folder into $rig/NAME, with a list of them in its file `packages`; the folder
# appears only when it is whole.
unpack_as() {
    local name=$1 debs=$2 deb
    rm -rf "$rig/$name" "$rig/$name.partial"
    mkdir -p "$rig/$name.partial"
    for deb in "$debs"/*.deb; do
        dpkg -x "$deb" "$rig/$name.partial"
        basename "$deb" >>"$rig/$name.partial/packages"
    done
    mv "$rig/$name.partial" "$rig/$name"
    rm -rf "$debs"
}

# Version of the QEMU that is unpacked as $rig/NAME; nothing where it does not start, or where it was unpacked by
# an older version of this script, which left out what this machine had.
unpacked_qemu() {
    local root="$rig/$1"
    [ -e "$root/packages" ] || return 0
    LD_LIBRARY_PATH="$root/usr/lib/x86_64-linux-gnu:$root/lib/x86_64-linux-gnu" \
        "$root/usr/bin/qemu-system-x86_64" --version 2>/dev/null | sed -nE '1s/.*version ([0-9.]+).*/\1/p'
}

qemu_works() { [ "$(qemu_major "$(unpacked_qemu qemu)")" -ge 10 ]; }

fetch_qemu() {
    qemu_works && [ -x "$rig/qemu/usr/bin/qemu-img" ] && return 0
    prepare_private_apt
    local version suite=()
    [ "$(qemu_major "$(newest_version qemu-system-x86)")" -ge 10 ] || add_backports
    [ ! -e "$rig/apt/sources/backports.list" ] ||
        suite=(-t "$(backports_suite)")
    version=$(newest_version qemu-system-x86)
    [ "$(qemu_major "$version")" -ge 10 ] || unavailable "apt's mirror offers QEMU ${version:-not at all}, and 10 is needed"
    local debs="$rig/apt/cache/archives"
    find "$debs" -name '*.deb' -delete
    say "downloading QEMU $version"
    private_apt install -qq -y --no-install-recommends --download-only \
        "${suite[@]}" qemu-system-x86 qemu-system-common qemu-system-data seabios qemu-utils \
        >"$rig/apt/qemu.log" 2>&1 || unavailable "QEMU could not be downloaded: $(tail -n 1 "$rig/apt/qemu.log")"
    mkdir -p "$rig/qemu.debs"
    mv "$debs"/*.deb "$rig/qemu.debs/"
    unpack_as qemu "$rig/qemu.debs"
    qemu_works || unavailable "the unpacked QEMU $version does not start here"
}

# The release's own QEMU, of which the backports are newer: a peer of the benchmark. Tests do without
# it: whatever is missing for it is only said.
release_qemu_works() { [[ $(unpacked_qemu qemu-7.2) == 7.2* ]]; }

fetch_release_qemu() (
    release_qemu_works && return 0
    without() {
        say "the benchmark will be without QEMU 7.2: $*"
        exit 0
    }
    unavailable() { without "$*"; }
    prepare_private_apt
    local package version packages=()
    for package in qemu-system-x86 qemu-system-common qemu-system-data; do
        version=$(versions "$package" | grep -E '^([0-9]+:)?7\.2' | tail -n 1 || true)
        [ -n "$version" ] || without "apt's mirror does not offer its $package"
        packages+=("$package=$version")
    done
    local debs="$rig/apt/cache/archives"
    find "$debs" -name '*.deb' -delete
    say "downloading QEMU ${version##*:}"
    private_apt install -qq -y --no-install-recommends --download-only "${packages[@]}" seabios \
        >"$rig/apt/qemu-7.2.log" 2>&1 || without "it could not be downloaded: $(tail -n 1 "$rig/apt/qemu-7.2.log")"
    rm -rf "$rig/qemu-7.2.debs"
    mkdir -p "$rig/qemu-7.2.debs"
    mv "$debs"/*.deb "$rig/qemu-7.2.debs/"
    unpack_as qemu-7.2 "$rig/qemu-7.2.debs"
    release_qemu_works || without "the unpacked one does not start here"
)

# kernel_works NAME MODULE: whether $rig/NAME holds a kernel with its modules.
kernel_works() {
    # Both, because the modules must be of the very kernel that boots.
    local image
    image=$(find "$rig/$1/boot" -name 'vmlinuz-*' 2>/dev/null | head -n 1)
    [ -n "$image" ] && [ -n "$(find "$rig/$1" -name "$2.ko*" 2>/dev/null | head -n 1)" ]
}

# unpack_kernel NAME MODULE METAPACKAGE VERSION: the kernel that this version of Debian's metapackage stands for;
# MODULE is one that it must have.
unpack_kernel() {
    local name=$1 module=$2 metapackage=$3 version=$4 package
    package=$(apt-cache -c "$rig/apt/apt.conf" show "$metapackage=$version" 2>/dev/null |
        sed -nE 's/^Depends:.*(linux-image-[0-9][^ ,]*).*/\1/p' | sort -V | tail -n 1) || true
    [ -n "$package" ] || unavailable "apt's mirror offers no $metapackage"
    say "downloading $package"
    rm -rf "$rig/$name.debs"
    mkdir -p "$rig/$name.debs"
    (cd "$rig/$name.debs" && private_apt download -qq "$package") >"$rig/apt/$name.log" 2>&1 ||
        unavailable "$package could not be downloaded: $(tail -n 1 "$rig/apt/$name.log")"
    unpack_as "$name" "$rig/$name.debs"
    kernel_works "$name" "$module" || unavailable "$package holds no vmlinuz or no module $module"
}

# The version that apt would install: packages of backports are none, unless they are asked for.
candidate() {
    apt-cache -c "$rig/apt/apt.conf" policy "$1" | sed -nE 's/^ *Candidate: (.*)/\1/p'
}

fetch_kernel() {
    kernel_works kernel kvm-amd && return 0
    prepare_private_apt
    unpack_kernel kernel kvm-amd linux-image-cloud-amd64 "$(candidate linux-image-cloud-amd64)"
}

# Further kernels for the guest. Without them the nested job still runs with the first.

fetch_backports_kernel() {
    local missing_part="the backports kernel in the nested job" missing_file="$rig/missing-kernel-backports"
    rm -f "$missing_file"
    kernel_works kernel-backports kvm-amd && return 0
    prepare_private_apt
    add_backports
    local version
    version=$(apt-cache -c "$rig/apt/apt.conf" madison linux-image-cloud-amd64 2>/dev/null |
        awk -F'|' -v suite="$(backports_suite)/" 'index($3, suite) { gsub(/ /, "", $2); print $2 }' |
        sort -V | tail -n 1) || true
    unpack_kernel kernel-backports kvm-amd linux-image-cloud-amd64 "$version"
}

# The kernel for any machine, which has as modules what the cloud kernel has built in, file systems above all.
fetch_full_kernel() {
    local missing_part="the full kernel in the nested job" missing_file="$rig/missing-kernel-full"
    rm -f "$missing_file"
    kernel_works kernel-full ext4 && return 0
    prepare_private_apt
    unpack_kernel kernel-full ext4 linux-image-amd64 "$(candidate linux-image-amd64)"
}

check_build_tools
why=$(install_missing "${images_needs[@]}") || say "QEMU's tools will not judge images: $why"
why=$(install_missing "${copy_needs[@]}") || say "the benchmark will be without nbdcopy: $why"
why=$(install_missing "${network_needs[@]}") || say "tests on networks of their own will be skipped: $why"
rm -f "$rig/missing"
[ "$(uname -m)" = x86_64 ] || unavailable "the nested job is for x86-64 hosts"
why=$(install_missing "${nested_needs[@]}") || unavailable "$why"
fetch_qemu
fetch_kernel
# In shells of their own, because what cannot be had ends them.
(fetch_backports_kernel)
(fetch_full_kernel)
fetch_release_qemu || true
say "ready: QEMU and kernels in $rig"
