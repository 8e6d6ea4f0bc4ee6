# SPDX-License-Identifier: BSD-3-Clause
# MOE8_SANITIZE=address,undefined or thread (the presets asan and tsan): flags for everything that is
# built, and what the tests run with. What is suppressed, and why: tools/suppressions/.
set(MOE8_SANITIZE "" CACHE STRING "Sanitizers to build with: 'address,undefined' or 'thread'")
set(MOE8_TEST_TIMEOUT 300)
# Tests run side by side; spinning threads would starve them.
set(MOE8_TEST_ENVIRONMENT OMP_WAIT_POLICY=passive)
if(NOT MOE8_SANITIZE)
  return()
endif()

# vptr needs type descriptions that LibTorch keeps to itself. Line numbers are enough for reports, and
# full debug information of LibTorch's headers would fill a disk.
set(MOE8_SANITIZE_FLAGS -fsanitize=${MOE8_SANITIZE} -fno-sanitize=vptr)
add_compile_options(${MOE8_SANITIZE_FLAGS} -fno-omit-frame-pointer -O1 -g1)
if(MOE8_FUZZ)
  add_compile_options(-fsanitize=fuzzer-no-link)
endif()
add_compile_definitions(_GLIBCXX_ASSERTIONS)
add_link_options(${MOE8_SANITIZE_FLAGS})

set(MOE8_TEST_TIMEOUT 1800)
set(_suppressions "${PROJECT_SOURCE_DIR}/tools/suppressions")
# What these tests bound is the speed of optimized code; sanitizers build without it (-O1).
set(_speed_tests "*.AreVectorCode:*.CostOfAnUnconvertedCall")
# To standard output: what tests capture of standard error is lost when the process ends there.
list(APPEND MOE8_TEST_ENVIRONMENT
  "GTEST_FILTER=-${_speed_tests}"
  "ASAN_OPTIONS=log_path=stdout:detect_stack_use_after_return=1:strict_string_checks=1:check_initialization_order=1"
  "LSAN_OPTIONS=suppressions=${_suppressions}/lsan.txt:print_suppressions=0"
  "UBSAN_OPTIONS=log_path=stdout:halt_on_error=1:print_stacktrace=1:suppressions=${_suppressions}/ubsan.txt"
  "TSAN_OPTIONS=log_path=stdout:halt_on_error=1:second_deadlock_stack=1:suppressions=${_suppressions}/tsan.txt")
