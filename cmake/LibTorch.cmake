# SPDX-License-Identifier: BSD-3-Clause
# Finds the LibTorch of a torch wheel (or an unpacked LibTorch) and defines imported targets
#   moe8::c10  moe8::torch_cpu  and, with MOE8_CUDA, moe8::c10_cuda
# libtorch_cuda is loaded at run time, where there is a GPU (src/device/cuda_backend.h).
# Why not the wheel's TorchConfig.cmake: it insists on nvcc even for CPU programs and rewrites flags.
#
# Looked for, in this order: -DLIBTORCH_PREFIX=, $LIBTORCH_PREFIX, what find_package(Torch) found before,
# the torch of the active Python. Its folder is that of a wheel (site-packages/torch) or of a LibTorch
# archive (libtorch): both have include/ and lib/.

set(LIBTORCH_PREFIX "$ENV{LIBTORCH_PREFIX}" CACHE PATH "Folder with include/ and lib/ of LibTorch")

# TorchConfig.cmake sets it. A program links one LibTorch: the one that its project chose.
if(NOT LIBTORCH_PREFIX AND TORCH_INSTALL_PREFIX)
  set(LIBTORCH_PREFIX "${TORCH_INSTALL_PREFIX}" CACHE PATH "" FORCE)
endif()
if(NOT LIBTORCH_PREFIX)
  find_program(MOE8_PYTHON NAMES python3 python)
  if(MOE8_PYTHON)
    execute_process(
      COMMAND ${MOE8_PYTHON} -c
              "import importlib.util as u, os; print(os.path.dirname(u.find_spec('torch').origin))"
      OUTPUT_VARIABLE _torch_dir OUTPUT_STRIP_TRAILING_WHITESPACE ERROR_QUIET)
    if(_torch_dir)
      set(LIBTORCH_PREFIX "${_torch_dir}" CACHE PATH "" FORCE)
    endif()
  endif()
endif()

if(NOT EXISTS "${LIBTORCH_PREFIX}/include/torch/csrc/api/include/torch/torch.h")
  message(FATAL_ERROR "LibTorch was not found ('${LIBTORCH_PREFIX}'). Pass -DLIBTORCH_PREFIX=DIR, "
                      "the folder 'torch' of an installed torch wheel or an unpacked LibTorch, or activate its Python.")
endif()

file(READ "${LIBTORCH_PREFIX}/include/torch/headeronly/version.h" _torch_version_h)
string(REGEX MATCH "TORCH_VERSION_MAJOR ([0-9]+)" _ "${_torch_version_h}")
set(_major ${CMAKE_MATCH_1})
string(REGEX MATCH "TORCH_VERSION_MINOR ([0-9]+)" _ "${_torch_version_h}")
set(LIBTORCH_VERSION "${_major}.${CMAKE_MATCH_1}")
if(LIBTORCH_VERSION VERSION_LESS 2.11 OR LIBTORCH_VERSION VERSION_GREATER 2.15)
  message(WARNING
    "moe8 is meant for LibTorch 2.11 to 2.15; ${LIBTORCH_PREFIX} holds ${LIBTORCH_VERSION}. moe8 hooks "
    "into LibTorch's dispatcher, whose inside changes: before you trust a result, run\n"
    "  ./dev test -R 'convert/|ops/|autograd/|weights/'\n"
    "in a checkout of moe8 that is configured with this LibTorch. The first conversion of a process "
    "also tests the hooks and refuses to go on where they do not work.")
endif()

function(_moe8_import_torch name)
  if(TARGET moe8::${name})
    return()
  endif()
  set(_library "${LIBTORCH_PREFIX}/lib/lib${name}.so")
  if(NOT EXISTS "${_library}")
    message(FATAL_ERROR "${_library} is missing: is this a complete LibTorch?")
  endif()
  add_library(moe8::${name} SHARED IMPORTED)
  set_target_properties(moe8::${name} PROPERTIES
    IMPORTED_LOCATION "${_library}"
    INTERFACE_INCLUDE_DIRECTORIES
      "${LIBTORCH_PREFIX}/include;${LIBTORCH_PREFIX}/include/torch/csrc/api/include")
endfunction()

_moe8_import_torch(c10)
_moe8_import_torch(torch_cpu)
set_property(TARGET moe8::torch_cpu PROPERTY INTERFACE_LINK_LIBRARIES moe8::c10)

if(MOE8_CUDA)
  _moe8_import_torch(c10_cuda)
  set_property(TARGET moe8::c10_cuda PROPERTY INTERFACE_LINK_LIBRARIES moe8::c10)
  set_property(TARGET moe8::c10_cuda APPEND PROPERTY
    INTERFACE_INCLUDE_DIRECTORIES ${CUDAToolkit_INCLUDE_DIRS})
endif()
