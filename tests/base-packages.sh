#!/usr/bin/env bash
# Names of the packages that every Debian system has: those of priority `required`, and what they depend on.
#
#   bash tests/base-packages.sh
set -euo pipefail

required=$(dpkg-query -W -f '${Package} ${Priority} ${Essential}\n' | awk '$2 == "required" || $3 == "yes" { print $1 }')
# Alternatives of dependencies are among them, also those that are not installed.
# shellcheck disable=SC2086 # a list of package names
names=$(apt-cache depends --recurse --installed --no-recommends --no-suggests --no-conflicts --no-breaks \
    --no-replaces --no-enhances $required | sed -nE 's/^([a-z0-9][^ :]*).*/\1/p')
# shellcheck disable=SC2086
dpkg-query -W -f '${db:Status-Status} ${Package}\n' $names 2>/dev/null | sed -n 's/^installed //p' | sort -u
