#!/bin/sh
# SPDX-License-Identifier: BSD-3-Clause
# Runs a program as a launcher would: N processes of it on this machine. Fails when one of them does.
#   ranks.sh N PROGRAM [ARGUMENT...]
set -u
world=$1
shift
port=$((20000 + $$ % 10000))
pids=
rank=0
while [ "$rank" -lt "$world" ]; do
  RANK=$rank LOCAL_RANK=$rank WORLD_SIZE=$world LOCAL_WORLD_SIZE=$world OMP_NUM_THREADS=1 \
    MASTER_ADDR=127.0.0.1 MASTER_PORT=$port "$@" &
  pids="$pids $!"
  rank=$((rank + 1))
done
status=0
for pid in $pids; do wait "$pid" || status=1; done
exit $status
