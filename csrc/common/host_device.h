// Marks functions that the CPU and the CUDA sources share.
#pragma once

#ifdef __CUDACC__
#define PAW_HOST_DEVICE __host__ __device__ __forceinline__
#define PAW_HOST_DEVICE_MEMBER __host__ __device__ __forceinline__
#else
#define PAW_HOST_DEVICE static inline
#define PAW_HOST_DEVICE_MEMBER inline __attribute__((always_inline))
#endif
