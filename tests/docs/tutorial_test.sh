#!/usr/bin/env bash
# SPDX-License-Identifier: BSD-3-Clause
# Runs a page of docs/ as a reader would: every ```sh block in order, in one shell. A ```text block
# after one shows some of its output: each line must occur, in that order, numbers aside.
#   tutorial_test.sh ROOT PAGE MOE8 PROGRAM        PROGRAM: the tutorial's C++ block, built
set -eu
root=$1 page=$2 moe8=$3 program=$4
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
mkdir -p "$work/bin" "$work/clone/mine/build"
ln -s "$moe8" "$work/bin/moe8"
ln -s "$program" "$work/clone/mine/build/net"
ln -s "$root/configs" "$root/data" "$work/clone/"
cd "$work/clone"

# sh-1, text-1, sh-2, ...: the blocks; a text block has the number of the sh block before it.
awk -v folder="$work" '
  /^```sh$/ { file = folder "/sh-" ++n; next }
  /^```text$/ { file = folder "/text-" n; next }
  /^```/ { file = ""; next }
  file { print > file }
' "$root/$page"

# The page's reader has the clone in /home/me/moe8. The sign of a difference is a part of the number:
# which of two close losses is the smaller one depends on the CPU.
masked() {
  sed -E "s|$PWD|/home/me/moe8|g; s/[0-9]+([.,:][0-9]+)*(e[+-]?[0-9]+)?/#/g; s/ [+-]#/ #/g; s/ +/ /g; s/ \$//" "$@"
}

PATH=$work/bin:$PATH
export OMP_NUM_THREADS=1  # so small a model is not faster with two, and tests run side by side
count=0
while [ -e "$work/sh-$((count + 1))" ]; do
  count=$((count + 1))
  out=$work/out-$count
  # shellcheck disable=SC1090
  { . "$work/sh-$count"; } >"$out" 2>&1 </dev/null || {
    echo "block $count failed:"
    cat "$work/sh-$count" "$out"
    exit 1
  }
  [ -e "$work/text-$count" ] || continue
  awk '
    FNR == NR { wanted[++n] = $0; next }
    at < n && $0 == wanted[at + 1] { ++at }
    END { if (at < n) { print "this line of the text is not in the output: " wanted[at + 1]; exit 1 } }
  ' <(masked "$work/text-$count") <(masked "$out") || {
    echo "block $count printed:"
    cat "$out"
    exit 1
  }
done
[ "$count" -ge 6 ] || { echo "expected at least 6 blocks, got $count"; exit 1; }
echo "$count blocks ran"
