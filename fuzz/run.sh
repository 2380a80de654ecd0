#!/usr/bin/env bash
# Fuzzes with the guidance of coverage, and keeps in the corpus what reaches something new.
#
#   fuzz/run.sh TARGET [SECONDS]     one target, 60 s
#   fuzz/run.sh all [SECONDS]        every target, one after the other
#
# Needs a C++ compiler (libFuzzer is built from source); the compiler is the workspace's own, a stable
# one. An input that fails is left in fuzz/found/ and named; with the fix it goes into the corpus, as
# fuzz/corpus/TARGET/found-WHAT, which stays there for good.
set -euo pipefail

cd "$(dirname "$0")/.."
which=${1:?TARGET or all}
seconds=${2:-60}
target=$(realpath -m "${CARGO_TARGET_DIR:-target}")/guided
triple=$(rustc -vV | sed -n 's/^host: //p')

# A target of its own keeps build scripts and macros, which run on the host, without instrumentation.
coverage="-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4"
coverage+=" -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table"
coverage+=" -Cllvm-args=-sanitizer-coverage-trace-compares"
CARGO_TARGET_DIR=$target RUSTFLAGS="$coverage" cargo build --quiet --profile fuzz --target "$triple" \
    -p fuzz --features libfuzzer --bin fuzz-target
guided=$target/$triple/fuzz/fuzz-target
# Knows the targets, without instrumentation.
cargo build --quiet -p fuzz --bin fuzz-input
input=$(realpath -m "${CARGO_TARGET_DIR:-target}")/debug/fuzz-input

fuzz_one() {
    local name=$1 work found=fuzz/found longest
    work=$(mktemp -d)
    trap 'rm -rf "$work"' RETURN
    mkdir -p "fuzz/corpus/$name" "$found" "$work/grown" "$work/kept"
    longest=$("$input" --longest "$name")
    "$input" --seeds "$name" "$work/grown"
    cp "fuzz/corpus/$name"/* "$work/grown/" 2>/dev/null || true
    echo "== $name"
    VMM_FUZZ_TARGET=$name "$guided" "$work/grown" -max_total_time="$seconds" -len_control=0 \
        -max_len="$longest" -timeout=20 -rss_limit_mb=4096 -artifact_prefix="$found/$name-" \
        -print_final_stats=1 -verbosity=1 >"$work/log" 2>&1 || {
        tail -40 "$work/log"
        echo "target $name failed" >&2
        return 1
    }
    grep -E '^(#[0-9]+.*(DONE|INITED)|stat::(number_of|average))' "$work/log" || true
    # The fewest inputs that reach all edges; how often they pass one is not worth megabytes.
    VMM_FUZZ_TARGET=$name "$guided" -set_cover_merge=1 -use_counters=0 -max_len="$longest" \
        "$work/kept" "$work/grown" >"$work/log" 2>&1 || {
        tail -20 "$work/log"
        return 1
    }
    # What once found a defect stays, whether or not it reaches something new.
    find "fuzz/corpus/$name" -type f ! -name 'found-*' -delete
    for input in "$work/kept"/*; do
        cp "$input" "fuzz/corpus/$name/$(basename "$input")"
    done
    echo "$name: $(find "fuzz/corpus/$name" -type f | wc -l) kept inputs"
}

if [ "$which" = all ]; then
    status=0
    for name in $("$input" --list); do
        fuzz_one "$name" || status=1
    done
    exit "$status"
fi
fuzz_one "$which"
