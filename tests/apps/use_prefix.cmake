# SPDX-License-Identifier: BSD-3-Clause
# Builds the consumer against the moe8 in PREFIX alone, and runs it and the installed command.
list(JOIN FLAGS " " FLAGS)  # a sanitizer of the library must be the program's as well
foreach(file bin/moe8 include/moe8/mx.h share/doc/moe8/LICENSE
        share/bash-completion/completions/moe8 share/zsh/site-functions/_moe8
        share/fish/vendor_completions.d/moe8.fish)
  if(NOT EXISTS "${PREFIX}/${file}")
    message(FATAL_ERROR "${file} is not installed")
  endif()
endforeach()
run("${CMAKE_COMMAND}" -S "${SOURCE}" -B "${WORK}/build" -G "${GENERATOR}"
    "-DCMAKE_CXX_COMPILER=${COMPILER}" "-DCMAKE_CXX_FLAGS=${FLAGS}" "-DCMAKE_PREFIX_PATH=${PREFIX}"
    "-DLIBTORCH_PREFIX=${LIBTORCH_PREFIX}")
run("${CMAKE_COMMAND}" --build "${WORK}/build")
run("${WORK}/build/consumer")
# A package may be made for a machine that has LibTorch elsewhere.
run("${CMAKE_COMMAND}" -E env "LD_LIBRARY_PATH=${LIBTORCH_PREFIX}/lib" "${PREFIX}/bin/moe8" --version)
