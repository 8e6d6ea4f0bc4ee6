# SPDX-License-Identifier: BSD-3-Clause
# What `cmake --install` puts where, and the package that find_package(moe8) finds.
include(GNUInstallDirs)
include(CMakePackageConfigHelpers)

set(MOE8_INSTALL_CMAKE "${CMAKE_INSTALL_LIBDIR}/cmake/moe8")

install(DIRECTORY "${PROJECT_SOURCE_DIR}/include/moe8" DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}"
        FILES_MATCHING PATTERN "*.h")

# LibTorch stays where it is: the installed files remember that place. Said outright, because
# INSTALL_RPATH_USE_LINK_PATH leaves out folders inside the source tree, where .venv is. Packages for
# other machines say a place that these agree on.
set(MOE8_LIBTORCH_RUNPATH "${LIBTORCH_PREFIX}/lib" CACHE STRING
    "Where installed files look for LibTorch, folders separated by semicolons")
set(_torch_lib "${MOE8_LIBTORCH_RUNPATH}")
set_target_properties(moe8 PROPERTIES INSTALL_RPATH "$ORIGIN;${_torch_lib}")
install(TARGETS moe8 EXPORT moe8Targets
        LIBRARY DESTINATION "${CMAKE_INSTALL_LIBDIR}")
if(TARGET moe8_nccl)  # found beside libmoe8.so
  set_target_properties(moe8_nccl PROPERTIES INSTALL_RPATH "$ORIGIN;${_torch_lib}")
  install(TARGETS moe8_nccl LIBRARY DESTINATION "${CMAKE_INSTALL_LIBDIR}")
endif()
if(MOE8_APPS)
  file(RELATIVE_PATH _lib_from_bin "/${CMAKE_INSTALL_BINDIR}" "/${CMAKE_INSTALL_LIBDIR}")
  set_target_properties(moe8_app PROPERTIES INSTALL_RPATH "$ORIGIN/${_lib_from_bin};${_torch_lib}")
  install(TARGETS moe8_app RUNTIME DESTINATION "${CMAKE_INSTALL_BINDIR}")
  set(_completions "${PROJECT_BINARY_DIR}/apps/moe8/completions")
  install(FILES "${_completions}/bash" RENAME moe8
          DESTINATION "${CMAKE_INSTALL_DATADIR}/bash-completion/completions")
  install(FILES "${_completions}/zsh" RENAME _moe8
          DESTINATION "${CMAKE_INSTALL_DATADIR}/zsh/site-functions")
  install(FILES "${_completions}/fish" RENAME moe8.fish
          DESTINATION "${CMAKE_INSTALL_DATADIR}/fish/vendor_completions.d")
endif()

install(EXPORT moe8Targets NAMESPACE moe8:: DESTINATION "${MOE8_INSTALL_CMAKE}")
configure_package_config_file(
  "${CMAKE_CURRENT_LIST_DIR}/moe8Config.cmake.in" "${PROJECT_BINARY_DIR}/moe8Config.cmake"
  INSTALL_DESTINATION "${MOE8_INSTALL_CMAKE}")
write_basic_package_version_file("${PROJECT_BINARY_DIR}/moe8ConfigVersion.cmake"
                                 COMPATIBILITY SameMinorVersion)
install(FILES "${PROJECT_BINARY_DIR}/moe8Config.cmake" "${PROJECT_BINARY_DIR}/moe8ConfigVersion.cmake"
              "${CMAKE_CURRENT_LIST_DIR}/LibTorch.cmake"
        DESTINATION "${MOE8_INSTALL_CMAKE}")

# Our licence, and those of the header-only libraries that are compiled in.
install(FILES "${PROJECT_SOURCE_DIR}/LICENSE" DESTINATION "${CMAKE_INSTALL_DOCDIR}")
foreach(package libcli11-dev libtomlplusplus-dev nlohmann-json3-dev libspdlog-dev libfmt-dev)
  install(FILES "/usr/share/doc/${package}/copyright"
          DESTINATION "${CMAKE_INSTALL_DOCDIR}/licences" RENAME "${package}" OPTIONAL)
endforeach()
