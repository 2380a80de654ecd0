#!/usr/bin/env bash
# Compares this engine with QEMU and with the plain copy on this machine, and records the figures in
# docs/benchmarks.md.
#
#   bash tests/benchmark.sh [ARGUMENTS OF vmm bench]
#
# Sets up the QEMUs (tests/setup.sh), builds for release and runs `vmm bench`. With nothing else to do,
# a machine needs about three quarters of an hour for all of it. Run it on a quiet machine, as root for the slow link.
# Arguments go to vmm bench: `bash tests/benchmark.sh --scenario idle --runs 9`. A short trial that
# records nothing: `bash tests/benchmark.sh --quick --page /tmp/trial.md`.
set -euo pipefail

cd "$(dirname "$0")/.."
target=${CARGO_TARGET_DIR:-target}
mkdir -p "$target"
target=$(cd "$target" && pwd)

bash tests/setup.sh
cargo build --release --package vmm --package bench
page=(--page docs/benchmarks.md)
case " $* " in *" --page"*) page=() ;; esac
exec "$target/release/vmm" bench "${page[@]}" "$@"
