#!/bin/sh
# conformance_cases_test.sh COMMAND FOLDER: the recorded cases, or "skipped" (77) on a machine without them.
if [ ! -d "$2" ]; then
  echo "skipped: there is no folder $2"
  exit 77
fi
exec "$1" conformance "$2"
