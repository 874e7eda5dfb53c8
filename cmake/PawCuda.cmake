# Decides whether the CUDA kernels are built. Sets PAW_CUDA_READY, PAW_CUDA_REASON (why not), PAW_CUDA_SUMMARY.
# CMAKE_CUDA_ARCHITECTURES must stand before the language is enabled and before any target is created.
include(${CMAKE_CURRENT_LIST_DIR}/CudaArchs.cmake)
set(PAW_CUDA_READY FALSE)
set(PAW_CUDA_FLAGS "")

string(TOLOWER "${PAW_FAST_CUDA}" _paw_cuda_switch)
if(_paw_cuda_switch MATCHES "^(0|off|no|false)$")
  set(PAW_CUDA_REASON "turned off at build time (PAW_FAST_CUDA=${PAW_FAST_CUDA})")
else()
  set(_paw_wanted "${PAW_FAST_CUDA_ARCHS}")
  if(DEFINED ENV{PAW_FAST_CUDA_ARCHS})
    set(_paw_wanted "$ENV{PAW_FAST_CUDA_ARCHS}")
  elseif(NOT _paw_wanted)
    set(_paw_wanted "${CMAKE_CUDA_ARCHITECTURES}")
  endif()
  find_program(PAW_NVIDIA_SMI nvidia-smi)
  if(NOT PAW_NVIDIA_SMI)
    set(PAW_NVIDIA_SMI "")
  endif()
  paw_choose_cuda_archs("${_paw_wanted}" "${PAW_NVIDIA_SMI}" CMAKE_CUDA_ARCHITECTURES _paw_dropped)
  if(_paw_dropped AND CMAKE_CUDA_ARCHITECTURES)
    message(STATUS "paw-fast: not built for all: ${_paw_dropped}")
  endif()
  # In a cache-only sub-project, so that a broken nvcc or a host compiler it rejects is an answer, not an error.
  if(CMAKE_CUDA_ARCHITECTURES)
    include(CheckLanguage)
    check_language(CUDA)
  endif()
  if(NOT CMAKE_CUDA_ARCHITECTURES)
    set(PAW_CUDA_REASON "${_paw_dropped}")
  elseif(NOT CMAKE_CUDA_COMPILER)
    set(PAW_CUDA_REASON "no working nvcc was found when the package was built")
  else()
    # The language test above never includes a CUDA header; a toolkit without them must not break the build either.
    set(_paw_probe ${CMAKE_CURRENT_BINARY_DIR}/paw_cuda_probe)
    file(WRITE ${_paw_probe}/CMakeLists.txt
"cmake_minimum_required(VERSION 3.25)
set(CMAKE_CUDA_COMPILER \"${CMAKE_CUDA_COMPILER}\")
set(CMAKE_CUDA_ARCHITECTURES \"${CMAKE_CUDA_ARCHITECTURES}\")
set(CMAKE_CUDA_STANDARD 17)
project(probe LANGUAGES CXX CUDA)
add_library(probe STATIC probe.cu)
")
    file(WRITE ${_paw_probe}/probe.cu
"#include <cuda_runtime.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
__global__ void probe(float* x) { x[0] = __bfloat162float(__float2bfloat16(x[1])); }
int launch(float* x) { probe<<<1, 1>>>(x); return cudaGetLastError(); }
")
    # A project of its own, since try_compile wants the language enabled already, and then a failure is an error.
    execute_process(COMMAND ${CMAKE_COMMAND} -S ${_paw_probe} -B ${_paw_probe}/build -G ${CMAKE_GENERATOR}
                            -DCMAKE_MAKE_PROGRAM=${CMAKE_MAKE_PROGRAM} -DCMAKE_CXX_COMPILER=${CMAKE_CXX_COMPILER}
                    RESULT_VARIABLE _paw_probe_rc OUTPUT_VARIABLE _paw_probe_log ERROR_VARIABLE _paw_probe_log)
    if(_paw_probe_rc EQUAL 0)
      execute_process(COMMAND ${CMAKE_COMMAND} --build ${_paw_probe}/build
                      RESULT_VARIABLE _paw_probe_rc OUTPUT_VARIABLE _paw_probe_log ERROR_VARIABLE _paw_probe_log)
    endif()
    if(_paw_probe_rc EQUAL 0)
      enable_language(CUDA)
      set(PAW_CUDA_READY TRUE)
    else()
      set(PAW_CUDA_REASON "nvcc was found but could not compile a test kernel when the package was built")
      message(STATUS "paw-fast: the CUDA probe failed:\n${_paw_probe_log}")
    endif()
  endif()
endif()

if(PAW_CUDA_READY)
  set(PAW_CUDA_SUMMARY "yes, for ${CMAKE_CUDA_ARCHITECTURES} (${CMAKE_CUDA_COMPILER_VERSION})")
else()
  set(CMAKE_CUDA_ARCHITECTURES "")
  set(PAW_CUDA_SUMMARY "no: ${PAW_CUDA_REASON}. The CPU kernels are built alone.")
endif()
