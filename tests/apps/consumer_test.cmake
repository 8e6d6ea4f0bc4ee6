# Installs moe8 into an empty prefix, builds the consumer against that prefix alone and runs it and the
# installed command. cmake -DBUILD=... -DSOURCE=... -DWORK=... -DLIBTORCH_PREFIX=... -DGENERATOR=...
# -DCOMPILER=... -DFLAGS=... -P consumer_test.cmake
function(run)
  execute_process(COMMAND ${ARGV} RESULT_VARIABLE status OUTPUT_VARIABLE text ERROR_VARIABLE text)
  list(JOIN ARGV " " command)
  message("${command}\n${text}")
  if(NOT status EQUAL 0)
    message(FATAL_ERROR "${command}: ${status}")
  endif()
endfunction()

list(JOIN FLAGS " " FLAGS)  # a sanitizer of the library must be the program's, too
file(REMOVE_RECURSE "${WORK}")
run("${CMAKE_COMMAND}" --install "${BUILD}" --prefix "${WORK}/prefix")
foreach(file bin/moe8 include/moe8/mx.h share/doc/moe8/LICENSE
        share/bash-completion/completions/moe8 share/zsh/site-functions/_moe8
        share/fish/vendor_completions.d/moe8.fish)
  if(NOT EXISTS "${WORK}/prefix/${file}")
    message(FATAL_ERROR "${file} is not installed")
  endif()
endforeach()
run("${CMAKE_COMMAND}" -S "${SOURCE}" -B "${WORK}/build" -G "${GENERATOR}"
    "-DCMAKE_CXX_COMPILER=${COMPILER}" "-DCMAKE_CXX_FLAGS=${FLAGS}" "-DCMAKE_PREFIX_PATH=${WORK}/prefix"
    "-DLIBTORCH_PREFIX=${LIBTORCH_PREFIX}")
run("${CMAKE_COMMAND}" --build "${WORK}/build")
run("${WORK}/build/consumer")
run("${WORK}/prefix/bin/moe8" --version)
