#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
# Every file that README.md, CONTRIBUTING.md and docs/ point to must exist: targets of relative
# links, and `paths` in backticks that start with a folder of this repository. Every environment
# variable that the product reads must have a row in docs/env.md.
#   paths_test.sh ROOT
set -u
cd "$1" || exit 1
missing=0

complain() {
  echo "$1: '$2' does not exist" >&2
  missing=1
}

for page in README.md CONTRIBUTING.md docs/*.md docs/decisions/*.md; do
  folder=$(dirname "$page")
  for link in $(grep -oE '\]\([^)#:]+[)#]' "$page" | sed -E 's/^\]\(//; s/[)#]$//'); do
    [ -e "$folder/$link" ] || complain "$page" "$link"
  done
  for path in $(grep -oE '`(src|include|tests|apps|bench|cmake|tools|configs|data|docs|examples|python)/[A-Za-z0-9_./-]+`' \
                "$page" | tr -d '`'); do
    [ -e "$path" ] || complain "$page" "$path"
  done
done
for name in $(grep -rhoE 'getenv\("MOE8_[A-Z0-9_]+"' src apps | grep -oE 'MOE8_[A-Z0-9_]+' | sort -u); do
  grep -qF "| \`$name\` |" docs/env.md || { echo "docs/env.md: no row for $name" >&2; missing=1; }
done
exit $missing
