#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
# conformance_cases_test.sh COMMAND FOLDER [--device cuda]: the recorded cases, or "skipped" (77) on
# a machine without them, or without the GPU that was asked for.
command=$1
folder=$2
shift 2
if [ ! -d "$folder" ]; then
  echo "skipped: there is no folder $folder"
  exit 77
fi
case "$*" in
  *cuda*)
    if [ ! -e /dev/nvidia0 ]; then
      echo "skipped: there is no GPU"
      exit 77
    fi
    ;;
esac
exec "$command" conformance "$folder" "$@"
