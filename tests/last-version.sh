#!/usr/bin/env bash
# Builds `vmm` as it was in the version before this one, once, and prints the path of the program.
#
#   bash tests/last-version.sh
#
# tests/last-version holds the commit. Its sources are taken out of this repository, not out of the
# work tree, and built in the profile of the tests, with the dependencies that are built already. The
# program is kept in <target>/last-version/COMMIT; nothing is done when it is there.
set -euo pipefail

cd "$(dirname "$0")/.."
target=${CARGO_TARGET_DIR:-target}
mkdir -p "$target/last-version"
target=$(cd "$target" && pwd)

fail() {
    echo "last version: error: $1" >&2
    echo "last version: to mend it: $2" >&2
    exit 1
}

commit=$(cat tests/last-version)
[[ $commit =~ ^[0-9a-f]{40}$ ]] ||
    fail "tests/last-version holds \"$commit\"" "write the 40 hexadecimal digits of the last version's commit into it"
folder="$target/last-version/$commit"
program="$folder/vmm"

# Two test programs that need it at the same time: one builds.
exec 9>"$target/last-version/lock"
flock 9

if [ ! -x "$program" ]; then
    command -v git >/dev/null ||
        fail "the sources of the last version come out of the repository, and git is not here" "install git"
    said=$(git cat-file -e "$commit^{commit}" 2>&1) ||
        fail "this checkout lacks $commit, the last version, with which guests are exchanged (git: $said)" \
            "git fetch --unshallow, or git fetch origin $commit"
    # Those before it, and what an interrupted run left.
    find "$target/last-version" -mindepth 1 -maxdepth 1 ! -name lock -exec rm -rf {} +
    mkdir -p "$folder/source"
    git archive "$commit" | tar -x -C "$folder/source"
    # Only what is finished goes into a folder of its own: else it would replace the program under test.
    (cd "$folder/source" && CARGO_BUILD_BUILD_DIR="$target" "${CARGO:-cargo}" build --quiet --locked \
        --package vmm --bin vmm --target-dir "$folder/built" 9>&-) >&2
    mv "$folder/built/debug/vmm" "$folder/vmm.whole"
    rm -rf "$folder/source" "$folder/built"
    # Last, so that it is there only when it is whole.
    mv "$folder/vmm.whole" "$program"
fi
echo "$program"
