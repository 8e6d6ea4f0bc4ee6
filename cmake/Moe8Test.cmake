# SPDX-License-Identifier: BSD-3-Clause
# moe8_test(SOURCE [LOCALES] [LABELS l...]): one executable and one ctest entry for a test file; the
# name is the path below tests/, so tests/quantize/mx_test.cpp is `ctest -R quantize/mx`. With LOCALES
# there is a second entry, NAME_in_another_locale, for files whose text other programs read.
function(moe8_test source)
  cmake_parse_arguments(ARG "LOCALES" "" "LABELS;LIBRARIES" ${ARGN})
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
  if(folder MATCHES "^(autograd|convert|ops|weights)(/|$)")
    add_dependencies(moe8_libtorch_tests ${target})
  endif()
  string(REGEX REPLACE "_test$" "" short "${stem}")
  add_test(NAME "${folder}/${short}" COMMAND ${target} --gtest_brief=1)
  set_tests_properties("${folder}/${short}" PROPERTIES
    TIMEOUT ${MOE8_TEST_TIMEOUT} LABELS "${ARG_LABELS}" ENVIRONMENT "${MOE8_TEST_ENVIRONMENT}")
  if(ARG_LOCALES)
    add_test(NAME "${folder}/${short}_in_another_locale" COMMAND ${target} --gtest_brief=1)
    set_tests_properties("${folder}/${short}_in_another_locale" PROPERTIES
      TIMEOUT ${MOE8_TEST_TIMEOUT} LABELS "${ARG_LABELS}"
      ENVIRONMENT "${MOE8_TEST_ENVIRONMENT};${MOE8_TEST_LOCALE_ENVIRONMENT}")
  endif()
endfunction()

# German: 4.000 and 0,5, in streams and in printf. Made here where the system has its description
# (Debian's package locales); elsewhere only streams are German.
set(_locales "${PROJECT_BINARY_DIR}/locales")
if(NOT IS_DIRECTORY "${_locales}/de_DE.UTF-8")
  file(MAKE_DIRECTORY "${_locales}")
  execute_process(COMMAND localedef -c -i de_DE -f UTF-8 "${_locales}/de_DE.UTF-8"
                  OUTPUT_QUIET ERROR_QUIET)
endif()
if(IS_DIRECTORY "${_locales}/de_DE.UTF-8")
  set(MOE8_TEST_LOCALE_ENVIRONMENT "LOCPATH=${_locales};MOE8_TEST_LOCALE=de_DE.UTF-8")
else()
  set(MOE8_TEST_LOCALE_ENVIRONMENT "MOE8_TEST_LOCALE=streams")
endif()
