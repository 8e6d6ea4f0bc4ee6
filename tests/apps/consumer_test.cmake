# SPDX-License-Identifier: BSD-3-Clause
# Installs moe8 into an empty prefix and builds the consumer against that alone.
# cmake -DBUILD=... -DSOURCE=... -DWORK=... -DLIBTORCH_PREFIX=... -DGENERATOR=... -DCOMPILER=...
# -DFLAGS=... -P consumer_test.cmake
include("${CMAKE_CURRENT_LIST_DIR}/run.cmake")

file(REMOVE_RECURSE "${WORK}")
set(PREFIX "${WORK}/prefix")
run("${CMAKE_COMMAND}" --install "${BUILD}" --prefix "${PREFIX}")
include("${CMAKE_CURRENT_LIST_DIR}/use_prefix.cmake")
