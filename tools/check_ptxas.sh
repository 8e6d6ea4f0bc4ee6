#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
# Runs a CUDA compiler command and fails when ptxas spills registers or serializes wgmma (C7510 and
# its kin) in it. Both compile quietly and cost half the speed of a GEMM. Used as CMake's launcher.
log=$(mktemp) || exit 1
trap 'rm -f "$log"' EXIT
"$@" >"$log" 2>&1
status=$?
grep -v -e 'ptxas info' -e 'bytes stack frame' -e '^$' "$log"
[ $status = 0 ] || exit $status
if grep -n -e 'wgmma.mma_async instructions are serialized' "$log" >&2; then
  echo "check_ptxas: wgmma is serialized" >&2
  exit 1
fi
if grep -e '[1-9][0-9]* bytes spill' "$log" >&2; then
  echo "check_ptxas: registers are spilled" >&2
  exit 1
fi
exit 0
