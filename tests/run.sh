#!/usr/bin/env bash
# Sets up what the tests need, checks format and lints, and runs every test of the workspace.
#
#   bash tests/run.sh [ARGUMENTS OF cargo test]
#
# Tests that this machine cannot run print `skipped: reason`; they are listed and counted at the end. Under CI=true
# only those may be skipped that tests/skips.sh expects of such a machine.
# Arguments go to cargo test, to run a part: `bash tests/run.sh -p migration`.
set -euo pipefail

cd "$(dirname "$0")/.."
target=${CARGO_TARGET_DIR:-target}
mkdir -p "$target"
target=$(cd "$target" && pwd)
log="$target/test.log"
[ $# -gt 0 ] || set -- --workspace

step() { echo "== $* (${SECONDS} s)"; }

step "set-up"
bash tests/setup.sh

step "format"
cargo fmt --all --check

step "lints"
cargo clippy --quiet --workspace --all-targets -- -D warnings

step "build"
# Everything at once, so that the binary under test and the tests share what they depend on.
cargo build --quiet --workspace --all-targets
export VMM_TEST_BINARY="$target/debug/vmm"
# A system call that is not listed ends the VM, and so fails the test that made it.
export VMM_SANDBOX="${VMM_SANDBOX:-strict}"
# Relative: what has spaces in it would be taken for arguments.
export CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER=tests/threads.sh

# Here, where its dependencies are built, and before any test waits for it.
case " $* " in
*" --workspace "* | *" tests "*)
    step "last version"
    bash tests/last-version.sh
    ;;
esac

step "tests"
# Shown output carries the `skipped:` lines of tests that pass otherwise.
status=0
cargo test --no-fail-fast "$@" -- --show-output 2>&1 | tee "$log" || status=$?

step "done"
bash tests/failures.sh "$log"
bash tests/skips.sh "$log" || status=1
# A skipped test counts as passed for cargo, and a test that cargo ignores as skipped for us.
awk -v skipped="$(grep -c '^skipped: ' "$log" || true)" '
    /^test result:/ { passed += $4; failed += $6; ignored += $8 }
    END { printf "%d passed, %d failed, %d skipped\n", passed - skipped, failed, skipped + ignored }
' "$log"
exit "$status"
