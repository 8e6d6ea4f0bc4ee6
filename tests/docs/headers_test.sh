#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
# Every function, type and alias that a public header declares must have a /// comment above it, or
# stand directly below a declaration that has one (overloads that share it). moe8.h includes every
# header but those that need LibTorch's modules (torch/...).
#   headers_test.sh ROOT
set -u
cd "$1/include/moe8" || exit 1
awk '
  FNR == 1 { documented = 0; open = 0; if ($0 !~ /^\/\/ SPDX/) complain("no licence line") }
  FNR == 2 && $0 !~ /^\/\/ / { complain("no comment that says what lives here") }
  function complain(text) { printf "%s:%d: %s: %s\n", FILENAME, FNR, text, $0; bad = 1 }
  open { if (/[;{}]/) open = 0; next }                      # the rest of a declaration
  /^ *\/\/\// { documented = 1; next }
  /^ *$/ { documented = 0; next }
  /^(}|#|\/\/|namespace|TORCH_MODULE| )/ { next }           # members are documented in place
  /^template/ { next }                                      # the declaration follows
  /^class [A-Za-z:]+;$/ { next }                            # forward
  {
    if (!documented) complain("expected a /// comment above")
    if ($0 !~ /[;{}]/) open = 1
  }
  END { exit bad }
' *.h || exit 1
for header in $(grep -LE '#include (<torch/|"moe8/transformer.h")' *.h); do
  [ "$header" = moe8.h ] || grep -qx "#include \"moe8/$header\"" moe8.h ||
    { echo "moe8.h: expected to include $header"; exit 1; }
done
