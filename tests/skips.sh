#!/usr/bin/env bash
# Tells what a run of the tests skipped and why. Under CI=true it fails for each test that this machine need not
# skip: what is missing there is a fault of the set-up, and would go unnoticed.
#
#   bash tests/skips.sh LOG [ROOT]
#
# LOG is the output of cargo test --show-output. What the machine is like is read below ROOT, / unless given.
set -euo pipefail

log=$1
root=${2:-}

# Whether guests run by software virtualization, which runs no stock kernel and offers fewer CPU features.
is_pvm() { [ -d "$root/sys/module/kvm_pvm" ]; }

# Whether the machine's CPU has all of these features.
has() {
    local flags flag
    flags=" $(sed -n 's/^flags[[:space:]]*: //p' "$root/proc/cpuinfo" | head -n 1) "
    for flag in "$@"; do
        [[ $flags == *" $flag "* ]] || return 1
    done
}

# Whether the machine's CPU is of this level of x86-64 (System V ABI for AMD64, 3.1.1).
is_level() {
    case $1 in
        v2) has cx16 lahf_lm popcnt sse4_1 sse4_2 ssse3 ;;
        v3) is_level v2 && has abm avx avx2 bmi1 bmi2 f16c fma movbe xsave ;;
        v4) is_level v3 && has avx512bw avx512cd avx512dq avx512f avx512vl ;;
    esac
}

# The skips that are no fault: a reason, and when it is one.
is_expected() {
    case $1 in
        "KVM on this machine does not offer x86-64-"v[234]) is_pvm || ! is_level "${1##*-}" ;;
        "this CPU has no AVX") ! has avx ;;
        "this host's KVM runs stock kernels" | "this host's KVM runs every instruction") ! is_pvm ;;
        *) return 1 ;;
    esac
}

status=0
while IFS=$'\t' read -r count reason test; do
    echo "skipped $count times: $reason"
    if [ "${CI:-}" = true ] && ! is_expected "$reason"; then
        echo "error: $test must not be skipped here: $reason" >&2
        status=1
    fi
done < <(awk '
    /^---- .* stdout ----$/ { test = $2 }
    sub(/^skipped: /, "") { count[$0]++; first[$0] = test }
    END { for (reason in count) printf "%d\t%s\t%s\n", count[reason], reason, first[reason] }
' "$log" | sort -t $'\t' -k 2)
exit $status
