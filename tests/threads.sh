#!/usr/bin/env bash
# Runs a test program of this workspace; cargo calls it for each (tests/run.sh).
#
# Those that run guests wait more than they compute, so more of them run beside each other than there are CPUs; how
# many have guests at a time, they settle among themselves (`guest_lock`). All others are as many as there are CPUs: some
# have deadlines of half a second.
set -euo pipefail

case "${CARGO_MANIFEST_DIR:-}" in
*/tests) export RUST_TEST_THREADS="${RUST_TEST_THREADS:-$((2 * $(nproc)))}" ;;
esac
exec "$@"
