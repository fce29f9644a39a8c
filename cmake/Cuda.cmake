# SPDX-License-Identifier: Apache-2.0
# TQ_CUDA=AUTO|ON|OFF: is the CUDA half built? Sets TQ_HAS_CUDA, and then enables the language and adds the object library
# turboquant_cuda, which holds src/kernels/cuda/ and brings the static runtime along.
#
# Architectures: CMAKE_CUDA_ARCHITECTURES, else those of the GPUs of this machine, else 90a. All that are supported (minutes more):
#   -DCMAKE_CUDA_ARCHITECTURES="80-real;86-real;89-real;90a-real;100-real;120"
set(TQ_CUDA AUTO CACHE STRING "The CUDA half: ON, OFF, or AUTO (where nvcc is found)")
set_property(CACHE TQ_CUDA PROPERTY STRINGS AUTO ON OFF)
option(TQ_CUDA_QUICK "Compile the kernels in a quarter of the time, without optimisation: to see that they compile, not for use" OFF)
set(TQ_HAS_CUDA OFF)

if(NOT TQ_CUDA STREQUAL "OFF" AND NOT CMAKE_CUDA_COMPILER)
  find_program(TQ_NVCC NAMES $ENV{CUDACXX} nvcc HINTS ENV CUDA_HOME ENV CUDA_PATH PATH_SUFFIXES bin PATHS /usr/local/cuda)
  mark_as_advanced(TQ_NVCC)
  if(TQ_NVCC)
    set(CMAKE_CUDA_COMPILER ${TQ_NVCC})
  endif()
endif()
if(NOT TQ_CUDA STREQUAL "OFF" AND CMAKE_CUDA_COMPILER)
  set(TQ_HAS_CUDA ON)
elseif(TQ_CUDA STREQUAL "AUTO")
  message(STATUS "CUDA: no nvcc found, the library gets no CUDA kernels")
elseif(TQ_CUDA)
  message(FATAL_ERROR "TQ_CUDA=${TQ_CUDA} but there is no nvcc on PATH or in /usr/local/cuda/bin; set CMAKE_CUDA_COMPILER, or TQ_CUDA=OFF")
endif()
if(NOT TQ_HAS_CUDA)
  return()
endif()

# Not `native`: that gives 90 where the kernels want what only 90a has.
if(NOT CMAKE_CUDA_ARCHITECTURES AND NOT DEFINED ENV{CUDAARCHS})
  execute_process(COMMAND nvidia-smi --query-gpu=compute_cap --format=csv,noheader
    OUTPUT_VARIABLE capabilities ERROR_QUIET OUTPUT_STRIP_TRAILING_WHITESPACE RESULT_VARIABLE no_gpu)
  string(REGEX MATCHALL "[0-9]+\\.[0-9]" capabilities "${capabilities}")
  list(FILTER capabilities EXCLUDE REGEX "^[1-7]\\.")  # older than any kernel of ours runs on
  if(no_gpu OR NOT capabilities)
    set(capabilities 9.0)
  endif()
  list(REMOVE_DUPLICATES capabilities)
  list(TRANSFORM capabilities REPLACE "\\." "")
  list(TRANSFORM capabilities REPLACE "^90$" "90a")
  list(TRANSFORM capabilities APPEND "-real")
  set(CMAKE_CUDA_ARCHITECTURES ${capabilities} CACHE STRING "CUDA architectures")
endif()
enable_language(CUDA)
find_package(CUDAToolkit REQUIRED)
if(CMAKE_CUDA_COMPILER_VERSION VERSION_LESS 13)
  set(TQ_CUDA_QUICK OFF)
endif()
message(STATUS "CUDA: ${CMAKE_CUDA_COMPILER} ${CMAKE_CUDA_COMPILER_VERSION}, architectures ${CMAKE_CUDA_ARCHITECTURES}")
# CMake 3.25 does not know that nvcc has C++20.
if(NOT DEFINED CMAKE_CUDA20_STANDARD_COMPILE_OPTION)
  set(CMAKE_CUDA20_STANDARD_COMPILE_OPTION -std=c++20)
  set(CMAKE_CUDA20_EXTENSION_COMPILE_OPTION -std=c++20)
endif()
set(CMAKE_CUDA_STANDARD 20)
set(CMAKE_CUDA_STANDARD_REQUIRED ON)
set(CMAKE_CUDA_EXTENSIONS OFF)

file(GLOB_RECURSE TQ_CUDA_SOURCES CONFIGURE_DEPENDS src/kernels/cuda/*.cc src/kernels/cuda/*.cu)
add_library(turboquant_cuda OBJECT ${TQ_CUDA_SOURCES})
target_include_directories(turboquant_cuda PRIVATE include src)
target_link_libraries(turboquant_cuda PRIVATE turboquant_flags CUDA::cudart_static)
# Of the host half: not -Wpedantic and -Wconversion, which nvcc's own generated code does not meet.
target_compile_options(turboquant_cuda PRIVATE $<$<COMPILE_LANGUAGE:CUDA>:--expt-relaxed-constexpr
  -Xcompiler=-Wall,-Wextra,-Wshadow,-ffp-contract=off $<$<BOOL:${TQ_WERROR}>:--Werror=all-warnings>
  $<$<BOOL:${TQ_CUDA_QUICK}>:--Ofast-compile=max>>)
# These decide codes: no fused multiply-add, as on the CPU (docs/adr/0002).
file(GLOB TQ_CODE_SOURCES CONFIGURE_DEPENDS src/kernels/cuda/rotate*.cu src/kernels/cuda/balance/*.cu src/kernels/cuda/key_metric/*.cu src/kernels/cuda/encode*.cu src/kernels/cuda/encode/*.cu)
set_source_files_properties(${TQ_CODE_SOURCES} PROPERTIES COMPILE_OPTIONS -fmad=false)
