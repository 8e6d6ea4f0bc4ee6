# SPDX-License-Identifier: BSD-3-Clause
# moe8_test(SOURCE [LABELS l...]): one executable and one ctest entry for a test file; the name is the
# path below tests/, so tests/quantize/mx_test.cpp is `ctest -R quantize/mx`.
function(moe8_test source)
  cmake_parse_arguments(ARG "" "" "LABELS;LIBRARIES" ${ARGN})
  file(RELATIVE_PATH folder "${PROJECT_SOURCE_DIR}/tests" "${CMAKE_CURRENT_SOURCE_DIR}")
  get_filename_component(stem "${source}" NAME_WE)
  string(REPLACE "/" "_" target "test_${folder}_${stem}")
  add_executable(${target} ${source})
  target_link_libraries(${target} PRIVATE moe8_testing ${ARG_LIBRARIES})
  file(STRINGS "${source}" modules REGEX "^#include <torch/")
  if(modules)
    target_precompile_headers(${target} REUSE_FROM moe8_testing_torch)
  else()
    target_precompile_headers(${target} REUSE_FROM moe8_testing)
  endif()
  if(folder MATCHES "^(autograd|convert|ops|weights)$")
    add_dependencies(moe8_libtorch_tests ${target})
  endif()
  string(REGEX REPLACE "_test$" "" short "${stem}")
  add_test(NAME "${folder}/${short}" COMMAND ${target} --gtest_brief=1)
  set_tests_properties("${folder}/${short}" PROPERTIES
    TIMEOUT ${MOE8_TEST_TIMEOUT} LABELS "${ARG_LABELS}" ENVIRONMENT "${MOE8_TEST_ENVIRONMENT}")
endfunction()
