// Everything that the CUDA sources ask of the device or of the CUDA runtime, in one place. With PAW_EMULATE the same
// names come from tests/kernels/emulator, where threads of the CPU run the kernels as they stand.
#pragma once

#ifdef PAW_EMULATE
#include "emulator.h"
#else

#include <cooperative_groups.h>
#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <math_constants.h>

#include <map>
#include <mutex>
#include <stdexcept>
#include <string>
#include <tuple>

#include "common/dtype.h"

namespace paw {
namespace {

// --- host ---

inline void check_cuda(cudaError_t error, const char* what) {
  if (error != cudaSuccess) throw std::runtime_error(std::string(what) + ": " + cudaGetErrorString(error));
}

inline int runtime_version() {
  return CUDART_VERSION;
}
inline int driver_version() {
  int version = 0;
  return cudaDriverGetVersion(&version) == cudaSuccess ? version : 0;
}

struct Device {
  int processors;
  int64_t shared_block, shared_processor;  // bytes of shared memory a block may ask for, and a multiprocessor has
  bool clusters;
};

inline Device current_device() {
  int ordinal = 0;
  check_cuda(cudaGetDevice(&ordinal), "cudaGetDevice");
  const auto attribute = [&](cudaDeviceAttr name) {
    int value = 0;
    check_cuda(cudaDeviceGetAttribute(&value, name, ordinal), "cudaDeviceGetAttribute");
    return value;
  };
  return Device{attribute(cudaDevAttrMultiProcessorCount), attribute(cudaDevAttrMaxSharedMemoryPerBlockOptin),
                attribute(cudaDevAttrMaxSharedMemoryPerMultiprocessor), attribute(cudaDevAttrClusterLaunch) != 0};
}

template <typename... Params>
void allow_shared_memory(const char* op, void (*kernel)(Params...), int64_t shared_bytes) {
  if (shared_bytes <= (48 << 10)) return;
  const int bytes = static_cast<int>(shared_bytes);
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes), op);
  check_cuda(cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, 100), op);
}

inline cudaLaunchAttribute cluster_attribute(int cluster) {
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim.x = static_cast<unsigned>(cluster);
  attribute.val.clusterDim.y = attribute.val.clusterDim.z = 1;
  return attribute;
}

template <typename... Params>
void launch_with(const cudaLaunchAttribute* attribute, const char* op, void (*kernel)(Params...), int64_t blocks,
                 int threads, int64_t shared_bytes, void* stream, const Params&... params) {
  if (blocks > 2147483647) throw std::invalid_argument(std::string(op) + ": more than 2^31 - 1 blocks");
  allow_shared_memory(op, kernel, shared_bytes);
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(static_cast<unsigned>(blocks));
  config.blockDim = dim3(static_cast<unsigned>(threads));
  config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
  config.stream = static_cast<cudaStream_t>(stream);
  config.attrs = const_cast<cudaLaunchAttribute*>(attribute);
  config.numAttrs = attribute == nullptr ? 0 : 1;
  check_cuda(cudaLaunchKernelEx(&config, kernel, params...), op);
}

// Launches `blocks` blocks of `threads` in clusters of `cluster`, each with `shared_bytes` of dynamic shared memory.
template <typename... Params>
void launch(const char* op, void (*kernel)(Params...), int64_t blocks, int threads, int cluster, int64_t shared_bytes,
            void* stream, const Params&... params) {
  const cudaLaunchAttribute attribute = cluster_attribute(cluster);
  launch_with(cluster > 1 ? &attribute : nullptr, op, kernel, blocks, threads, shared_bytes, stream, params...);
}

// Whether the device can run a cluster of such blocks at all: a slice of one (MIG) may have too few multiprocessors
// next to each other. Asked once for each kernel, device, cluster and size.
template <typename... Params>
bool cluster_fits(const char* op, void (*kernel)(Params...), int threads, int cluster, int64_t shared_bytes) {
  if (cluster == 1) return true;
  using Key = std::tuple<const void*, int, int, int64_t>;
  static std::mutex mutex;
  static std::map<Key, bool> known;
  int ordinal = 0;
  check_cuda(cudaGetDevice(&ordinal), "cudaGetDevice");
  std::lock_guard<std::mutex> lock(mutex);
  const auto [at, fresh] =
      known.try_emplace(Key{reinterpret_cast<const void*>(kernel), ordinal, cluster, shared_bytes}, false);
  if (fresh) {
    allow_shared_memory(op, kernel, shared_bytes);
    cudaLaunchAttribute attribute = cluster_attribute(cluster);
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(static_cast<unsigned>(cluster));
    config.blockDim = dim3(static_cast<unsigned>(threads));
    config.dynamicSmemBytes = static_cast<size_t>(shared_bytes);
    config.attrs = &attribute;
    config.numAttrs = 1;
    int clusters = 0;
    if (cudaOccupancyMaxActiveClusters(&clusters, kernel, &config) != cudaSuccess) {
      cudaGetLastError();  // asking must not be the error: then there is no cluster
    }
    at->second = clusters > 0;
  }
  return at->second;
}

// Launches blocks that may meet at grid_sync(): an error where they cannot all run at once.
template <typename... Params>
void launch_cooperative(const char* op, void (*kernel)(Params...), int64_t blocks, int threads, int64_t shared_bytes,
                        void* stream, const Params&... params) {
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeCooperative;
  attribute.val.cooperative = 1;
  launch_with(&attribute, op, kernel, blocks, threads, shared_bytes, stream, params...);
}

// --- device: arithmetic and memory ---

__device__ __forceinline__ float exp2_fast(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ __forceinline__ float max_keep_nan(float a, float b) {
  float y;
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(y) : "f"(a), "f"(b));
  return y;
}

// 16 bytes that will not be read again soon: not worth a place in the first-level cache.
__device__ __forceinline__ uint4 load_16(const void* p) {
  uint4 v;
  asm volatile("ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p)
               : "memory");
  return v;
}

__device__ __forceinline__ float to_float(float x) {
  return x;
}
__device__ __forceinline__ float to_float(BF16 x) {
  return __uint_as_float(static_cast<uint32_t>(x.bits) << 16);
}
__device__ __forceinline__ float to_float(F16 x) {
  return __half2float(__ushort_as_half(x.bits));
}
__device__ __forceinline__ void from_float(float v, float* out) {
  *out = v;
}
__device__ __forceinline__ void from_float(float v, BF16* out) {
  out->bits = __bfloat16_as_ushort(__float2bfloat16_rn(v));
}
__device__ __forceinline__ void from_float(float v, F16* out) {
  out->bits = __half_as_ushort(__float2half_rn(v));
}

// Two neighbours at once, in one conversion where they are 16 bits wide.
__device__ __forceinline__ void from_floats(float a, float b, float* out) {
  out[0] = a;
  out[1] = b;
}
__device__ __forceinline__ void from_floats(float a, float b, BF16* out) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(a, b);
  memcpy(out, &pair, sizeof pair);
}
__device__ __forceinline__ void from_floats(float a, float b, F16* out) {
  const __half2 pair = __floats2half2_rn(a, b);
  memcpy(out, &pair, sizeof pair);
}

// Two 16-bit neighbours in a word: as floats, and the larger of each half (a NaN loses, as with fmaxf).
__device__ __forceinline__ float2 to_floats(uint32_t pair, BF16) {
  return float2{__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u)};
}
__device__ __forceinline__ float2 to_floats(uint32_t pair, F16) {
  __half2 halves;
  memcpy(&halves, &pair, sizeof pair);
  return __half22float2(halves);
}
__device__ __forceinline__ uint32_t max_halves(uint32_t a, uint32_t b, BF16) {
  asm("max.bf16x2 %0, %0, %1;" : "+r"(a) : "r"(b));
  return a;
}
__device__ __forceinline__ uint32_t max_halves(uint32_t a, uint32_t b, F16) {
  asm("max.f16x2 %0, %0, %1;" : "+r"(a) : "r"(b));
  return a;
}

// Of integers alone: sums of floats would depend on the order.
__device__ __forceinline__ void atomic_add(uint32_t* sum, uint32_t value) {
  atomicAdd(sum, value);
}
__device__ __forceinline__ void atomic_add(uint64_t* sum, uint64_t value) {
  atomicAdd(reinterpret_cast<unsigned long long*>(sum), static_cast<unsigned long long>(value));
}

// All threads of all blocks, in a cooperative launch; what was written before is visible after.
__device__ __forceinline__ void grid_sync() {
  cooperative_groups::this_grid().sync();
}

__device__ __forceinline__ char* shared_memory() {
  extern __shared__ __align__(128) char memory[];
  return memory;
}

__device__ __forceinline__ uint32_t shared_address(const void* p) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(p));
}

// --- device: bulk copies and clusters (sm_90) ---

using Barrier = uint64_t;  // an mbarrier; every one is used for a single phase, so the parity waited for is always 0

// By one thread: barriers for one arrival each. The first fence makes them visible to the cluster's other threads once
// those have synchronised with this one, the second to the copy engine.
__device__ __forceinline__ void init_barriers(Barrier* barriers, int count) {
  for (int i = 0; i < count; ++i) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(&barriers[i])) : "memory");
  }
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}

// By one thread: the barrier's only arrival, and the bytes it still has to wait for; then the copy that brings them.
// `to` in this block's shared memory, `from` in global memory, `bytes`: multiples of 16.
__device__ __forceinline__ void bulk_load(void* to, const void* from, uint32_t bytes, Barrier* barrier) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)), "r"(bytes)
               : "memory");
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                   shared_address(to)),
               "l"(__cvta_generic_to_global(from)), "r"(bytes), "r"(shared_address(barrier))
               : "memory");
}

__device__ __forceinline__ void wait_for(Barrier* barrier) {
  uint32_t done = 0;
  while (done == 0) {
    asm volatile(
        "{\n"
        ".reg .pred p;\n"
        "mbarrier.try_wait.parity.shared::cta.b64 p, [%1], 0;\n"
        "selp.u32 %0, 1, 0, p;\n"
        "}"
        : "=r"(done)
        : "r"(shared_address(barrier))
        : "memory");
  }
}

// All threads of the cluster; what was written before the arrival is visible after the wait, unless it is relaxed: that
// one only tells that this block runs, and costs no fence.
__device__ __forceinline__ void cluster_arrive_relaxed() {
  asm volatile("barrier.cluster.arrive.relaxed.aligned;" ::: "memory");
}
__device__ __forceinline__ void cluster_arrive() {
  asm volatile("barrier.cluster.arrive.release.aligned;" ::: "memory");
}
__device__ __forceinline__ void cluster_wait() {
  asm volatile("barrier.cluster.wait.acquire.aligned;" ::: "memory");
}

// Stores to where `local` would be in the shared memory of another block of the cluster.
__device__ __forceinline__ void remote_store(float4* local, int rank, float4 v) {
  asm volatile(
      "{\n"
      ".reg .b32 remote;\n"
      "mapa.shared::cluster.u32 remote, %0, %1;\n"
      "st.shared::cluster.v4.f32 [remote], {%2, %3, %4, %5};\n"
      "}" ::"r"(shared_address(local)),
      "r"(rank), "f"(v.x), "f"(v.y), "f"(v.z), "f"(v.w)
      : "memory");
}

}  // namespace
}  // namespace paw

// Kernels that need clusters have no body before sm_90, where nothing launches them.
#if !defined(__CUDA_ARCH__) || __CUDA_ARCH__ >= 900
#define PAW_HAS_CLUSTERS 1
#endif

#endif  // PAW_EMULATE
