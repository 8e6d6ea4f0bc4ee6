# SPDX-License-Identifier: BSD-3-Clause
# run(COMMAND...): prints the command and what it said, which is also in run_output; fails as it fails.
function(run)
  execute_process(COMMAND ${ARGV} RESULT_VARIABLE status OUTPUT_VARIABLE text ERROR_VARIABLE text)
  list(JOIN ARGV " " command)
  message("${command}\n${text}")
  set(run_output "${text}" PARENT_SCOPE)
  if(NOT status EQUAL 0)
    message(FATAL_ERROR "${command}: ${status}")
  endif()
endfunction()
