# SPDX-License-Identifier: BSD-3-Clause
# `cpack` (./dev package): the installed files as moe8-VERSION-Linux-ARCH.tar.gz and .deb.
# LibTorch is in neither: no Debian package has the version that moe8 is built for, and the wheel is
# 1.5 GB. docs/decisions/014-packages.md says how it is found.
set(CPACK_PACKAGE_NAME moe8)
set(CPACK_PACKAGE_VENDOR "moe8")
set(CPACK_PACKAGE_CONTACT "the maintainers of moe8 <moe8@localhost>")
set(CPACK_PACKAGE_DESCRIPTION_SUMMARY "${PROJECT_DESCRIPTION}")
set(CPACK_PACKAGE_DESCRIPTION
"Library, headers and the command moe8.
 LibTorch ${LIBTORCH_VERSION} is needed and not included: the torch wheel of that version, found at
 /opt/libtorch (the wheel's folder 'torch' or a link to it) or by LD_LIBRARY_PATH.")
set(CPACK_RESOURCE_FILE_LICENSE "${PROJECT_SOURCE_DIR}/LICENSE")
set(CPACK_PACKAGE_DIRECTORY "${PROJECT_SOURCE_DIR}/dist")
set(CPACK_PACKAGE_FILE_NAME "moe8-${PROJECT_VERSION}-Linux-${CMAKE_SYSTEM_PROCESSOR}")
set(CPACK_STRIP_FILES ON)

# dpkg-shlibdeps writes the dependencies from what the binaries need; libraries of LibTorch's folder,
# which no package owns, it leaves out.
find_program(MOE8_SHLIBDEPS dpkg-shlibdeps)
set(CPACK_GENERATOR TGZ)
if(MOE8_SHLIBDEPS)
  list(APPEND CPACK_GENERATOR DEB)
endif()
set(CPACK_DEBIAN_PACKAGE_SHLIBDEPS ON)
set(CPACK_DEBIAN_PACKAGE_SHLIBDEPS_PRIVATE_DIRS "${LIBTORCH_PREFIX}/lib")
set(CPACK_DEBIAN_PACKAGE_SECTION libdevel)
set(CPACK_DEBIAN_PACKAGE_SUGGESTS "g++, cmake (>= 3.25)")
include(CPack)
