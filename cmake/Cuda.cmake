# SPDX-License-Identifier: BSD-3-Clause
# What the CUDA kernels need: nvcc 13.0 for sm_90a, and CUTLASS's headers for their PTX wrappers.
enable_language(CUDA)
if(NOT CMAKE_CUDA20_STANDARD_COMPILE_OPTION)  # CMake 3.25 knows nvcc only to C++17
  set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION "-std=c++20")
  set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION "-std=c++20")
endif()
if(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 13.0)
  message(FATAL_ERROR "nvcc ${CMAKE_CUDA_COMPILER_VERSION} was found; moe8's kernels need 13.0 or later.")
endif()
find_package(CUDAToolkit 13.0 REQUIRED)

# The wheel nvidia-cutlass==4.2.0.0 (./dev setup installs it for the preset cuda) or a checkout.
set(CUTLASS_INCLUDE "$ENV{CUTLASS_INCLUDE}" CACHE PATH "CUTLASS's folder include/")
if(NOT CUTLASS_INCLUDE)
  file(GLOB _cutlass "${PROJECT_SOURCE_DIR}/.venv*/lib/python3*/site-packages/cutlass_library/source/include")
  if(_cutlass)
    list(GET _cutlass 0 _cutlass)
    set(CUTLASS_INCLUDE "${_cutlass}" CACHE PATH "" FORCE)
  endif()
endif()
if(NOT EXISTS "${CUTLASS_INCLUDE}/cute/arch/mma_sm90_gmma.hpp")
  message(FATAL_ERROR "CUTLASS's headers were not found ('${CUTLASS_INCLUDE}'). Run MOE8_PRESET=cuda "
                      "./dev setup, or pass -DCUTLASS_INCLUDE=DIR, the folder include/ of CUTLASS 4.2.")
endif()

# For sources in CUDA C++ without Torch. Which CUDA runtime is linked is left to what they end up in:
# LibTorch's shared one, or the static one in programs that must run alone.
add_library(moe8_cuda_options INTERFACE)
target_include_directories(moe8_cuda_options SYSTEM INTERFACE
  "${CUTLASS_INCLUDE}" ${CUDAToolkit_INCLUDE_DIRS})
# NDEBUG: CUTLASS's asserts call functions, and around calls ptxas serializes wgmma (C7510).
target_compile_definitions(moe8_cuda_options INTERFACE $<$<COMPILE_LANGUAGE:CUDA>:NDEBUG>)
target_compile_options(moe8_cuda_options INTERFACE
  "$<$<COMPILE_LANGUAGE:CUDA>:-Xcompiler=-fPIC;--expt-relaxed-constexpr;-gencode=arch=compute_90a,code=sm_90a>")

# moe8_cuda_kernels(ROOM [CHECKED] [BLACKWELL] SOURCES file...): the object library moe8_cuda_ROOM.
#   CHECKED    its kernels must neither spill registers nor serialize wgmma
#   BLACKWELL  also for sm_100, whose products are LibTorch's (src/gemm/block_scaled_gemm.h), all else moe8's
function(moe8_cuda_kernels room)
  cmake_parse_arguments(PARSE_ARGV 1 kernels "CHECKED;BLACKWELL" "" "SOURCES")
  set(target moe8_cuda_${room})
  add_library(${target} OBJECT ${kernels_SOURCES})
  target_include_directories(${target} PUBLIC "${PROJECT_SOURCE_DIR}/include" "${PROJECT_SOURCE_DIR}/src")
  target_link_libraries(${target} PRIVATE moe8_warnings PUBLIC moe8_cuda_options)
  set_target_properties(${target} PROPERTIES CUDA_ARCHITECTURES OFF)
  if(kernels_CHECKED)
    target_compile_options(${target} PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:SHELL:-Xptxas=-v>)
    set_target_properties(${target} PROPERTIES
      CUDA_COMPILER_LAUNCHER "${PROJECT_SOURCE_DIR}/tools/check_ptxas.sh")
  endif()
  if(kernels_BLACKWELL)
    target_compile_options(${target} PRIVATE
      $<$<COMPILE_LANGUAGE:CUDA>:-gencode=arch=compute_100,code=sm_100>)
  endif()
endfunction()
