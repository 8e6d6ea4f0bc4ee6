# SPDX-License-Identifier: BSD-3-Clause
# The first C++ block of a page must be the marked part of an example that is built and run.
#   cmake -DPAGE=README.md -DEXAMPLE=examples/02_readme.cpp -DMARK=readme -P snippet.cmake

# The text of `file` between the lines `first` and `last`.
function(text_between file first last result)
  file(READ "${file}" text)
  string(FIND "${text}" "${first}\n" begin)
  if(begin EQUAL -1)
    message(FATAL_ERROR "${file}: expected a line '${first}', found none")
  endif()
  string(LENGTH "${first}\n" skipped)
  math(EXPR begin "${begin} + ${skipped}")
  string(SUBSTRING "${text}" ${begin} -1 text)
  string(FIND "${text}" "${last}\n" end)
  if(end LESS 1)
    message(FATAL_ERROR "${file}: expected text and a line '${last}' after '${first}', found none")
  endif()
  string(SUBSTRING "${text}" 0 ${end} text)
  set(${result} "${text}" PARENT_SCOPE)
endfunction()

text_between("${PAGE}" "```cpp" "```" shown)
text_between("${EXAMPLE}" "// [${MARK}]" "// [/${MARK}]" built)
if(NOT shown STREQUAL built)
  message(FATAL_ERROR "The C++ block of ${PAGE} differs from the part of ${EXAMPLE} between "
                      "// [${MARK}] and // [/${MARK}]. Make them equal.\n"
                      "page:\n${shown}\nexample:\n${built}")
endif()
