#!/usr/bin/env bash
# Tells again, at the end of a run, what its failed tests printed: of each the first lines and the last, where the
# reason is, and of those between what says FAILED, as the nested job does. A run prints far more than a page that
# shows only its end.
#
#   bash tests/failures.sh LOG
#
# LOG is the output of cargo test --show-output.
set -euo pipefail

awk -v first=25 -v last=35 -v width=240 '
    function told(line) { return length(line) > width ? substr(line, 1, width) " [..]" : line }
    function end_block(   i, from) {
        if (!count) return
        from = count - last + 1
        for (i = 1; i <= count; i++) {
            if (i <= first || i >= from || block[i] ~ /FAILED/) print told(block[i])
            else if (i == first + 1) printf "[%d lines are left out]\n", from - first - 1
        }
        count = 0
    }
    # Both kinds of blocks look alike; the headings before them tell which they are.
    $0 == "successes:" { end_block(); failures = 0; next }
    $0 == "failures:" { end_block(); failures = 1; next }
    /^test result:/ { end_block(); failures = 0; next }
    failures && /^---- .* stdout ----$/ { end_block(); block[++count] = $0; next }
    failures && count { block[++count] = $0 }
    END { end_block() }
' "$1"
