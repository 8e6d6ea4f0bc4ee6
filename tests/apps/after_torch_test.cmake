# SPDX-License-Identifier: BSD-3-Clause
# Builds the consumer as a project that finds Torch before moe8 and says nothing of LIBTORCH_PREFIX, with
# a LibTorch in the layout of its archives. The TorchConfig.cmake here is a stand-in that sets what the
# real one sets: the wheel's insists on nvcc, and on CUDA wheels that a CPU does without.
include("${CMAKE_CURRENT_LIST_DIR}/run.cmake")

file(REMOVE_RECURSE "${WORK}")
set(PREFIX "${WORK}/prefix")
run("${CMAKE_COMMAND}" --install "${BUILD}" --prefix "${PREFIX}")

set(archive "${WORK}/libtorch")
file(MAKE_DIRECTORY "${archive}/share/cmake/Torch")
foreach(folder include lib)
  file(CREATE_LINK "${LIBTORCH_PREFIX}/${folder}" "${archive}/${folder}" SYMBOLIC)
endforeach()
file(WRITE "${archive}/share/cmake/Torch/TorchConfig.cmake" [[
get_filename_component(TORCH_INSTALL_PREFIX "${CMAKE_CURRENT_LIST_DIR}/../../../" ABSOLUTE)
add_library(torch INTERFACE)
target_link_libraries(torch INTERFACE "${TORCH_INSTALL_PREFIX}/lib/libtorch_cpu.so"
                                      "${TORCH_INSTALL_PREFIX}/lib/libc10.so")
set(TORCH_LIBRARIES torch)
set(TORCH_FOUND TRUE)
]])

list(JOIN FLAGS " " FLAGS)
run("${CMAKE_COMMAND}" -E env --unset=LIBTORCH_PREFIX
    "${CMAKE_COMMAND}" -S "${SOURCE}" -B "${WORK}/build" -G "${GENERATOR}" -DAFTER_TORCH=ON
    "-DCMAKE_CXX_COMPILER=${COMPILER}" "-DCMAKE_CXX_FLAGS=${FLAGS}"
    "-DCMAKE_PREFIX_PATH=${PREFIX}\;${archive}")
load_cache("${WORK}/build" READ_WITH_PREFIX consumer_ LIBTORCH_PREFIX)
if(NOT consumer_LIBTORCH_PREFIX STREQUAL archive)
  message(FATAL_ERROR "expected the LibTorch of find_package(Torch), ${archive}, got ${consumer_LIBTORCH_PREFIX}")
endif()
run("${CMAKE_COMMAND}" --build "${WORK}/build")
run("${WORK}/build/consumer")
