#!/usr/bin/env bash
# Runs a command on a network of its own, which has nothing but a loopback interface of limited bandwidth.
#
#   bash tests/narrow.sh BYTES_PER_SECOND COMMAND [ARGUMENTS...]
#
# For example `bash tests/narrow.sh 125000000 vmm demo`: both hosts of a demo or a benchmark are on loopback,
# so a gigabit lies between them. The network goes with the command. Needs root, iproute2 and util-linux.
set -euo pipefail

[ $# -ge 2 ] || { echo "usage: bash tests/narrow.sh BYTES_PER_SECOND COMMAND [ARGUMENTS...]" >&2; exit 2; }
case $1 in
'' | *[!0-9]* | 0*) echo "narrow: $1 is no number of bytes a second" >&2; exit 2 ;;
esac
rate=$1
shift

# Inside, the first argument is the rate. A burst of a quarter megabyte, for loopback's segments are large;
# a queue of 50 ms, as a switch may have.
# shellcheck disable=SC2016 # expanded by the inner shell
exec unshare --net bash -c '
    set -e
    ip link set lo up
    tc qdisc add dev lo root tbf rate "$(($1 * 8))bit" burst 256kb latency 50ms
    shift
    exec "$@"
' narrow "$rate" "$@"
