// Runs the CUDA kernels on the CPU, as they stand: a thread for each thread of a block or cluster, barriers for their
// barriers. Stands in for csrc/common/device.cuh under PAW_EMULATE. It checks what a GPU would not say: bulk copies
// that are not aligned or leave shared memory, waits for more bytes than come, a cluster's memory used after its
// block has ended; shared memory starts as NaN, and a bulk copy arrives only when it is waited for. It knows nothing
// of warps diverging, of memory order weaker than the CPU's, or of speed.
#pragma once

#include <immintrin.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

#include <algorithm>
#include <atomic>
#include <barrier>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "common/dtype.h"

#define __global__
#define __device__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define CUDART_INF_F std::numeric_limits<float>::infinity()
#define CUDART_NAN_F std::numeric_limits<float>::quiet_NaN()
#define PAW_HAS_CLUSTERS 1

struct uint4 {
  uint32_t x, y, z, w;
};
struct float2 {
  float x, y;
};
struct float4 {
  float x, y, z, w;
};
struct EmulatedIndex {
  unsigned x;
};

namespace paw {
namespace emulator {

[[noreturn]] inline void fail(const char* what) {
  std::fprintf(stderr, "emulator: %s\n", what);
  std::abort();
}

constexpr size_t kMostShared = 227 << 10;

struct Warp {
  std::barrier<> barrier{32};
  float lanes[32];
};

struct Copy {
  void* to;
  const void* from;
  uint32_t bytes;
};

struct Block {
  explicit Block(int threads) : barrier(threads), warps(threads / 32), shared(kMostShared + 128) {}
  char* memory() {
    return reinterpret_cast<char*>((reinterpret_cast<uintptr_t>(shared.data()) + 127) / 128 * 128);
  }
  std::barrier<> barrier;
  std::vector<Warp> warps;
  std::vector<char> shared;
  size_t shared_bytes = 0;
  std::mutex copies_mutex;
  std::vector<std::pair<uint64_t*, Copy>> copies;
  std::atomic<bool> ended{false};
};

struct Cluster {
  Cluster(int count, int threads) : barrier(count * threads) {
    for (int i = 0; i < count; ++i) blocks.push_back(std::make_unique<Block>(threads));
  }
  std::barrier<> barrier;
  std::vector<std::unique_ptr<Block>> blocks;
};

inline thread_local EmulatedIndex thread_index, block_index, grid_size;
inline thread_local Block* block = nullptr;
inline thread_local Cluster* cluster = nullptr;

// Each thread of a cluster runs its part of one cluster after another.
template <typename Kernel>
void run(int64_t blocks, int threads, int cluster_size, size_t shared_bytes, Kernel kernel) {
  if (shared_bytes > kMostShared) fail("a block asks for more than 227 KB of shared memory");
  if (blocks % cluster_size != 0) fail("the grid is not a whole number of clusters");
  Cluster group(cluster_size, threads);
  std::barrier<> everybody(cluster_size * threads);
  const auto body = [&](int rank, int index) {
    thread_index.x = static_cast<unsigned>(index);
    grid_size.x = static_cast<unsigned>(blocks);
    cluster = &group;
    block = group.blocks[static_cast<size_t>(rank)].get();
    for (int64_t first = 0; first < blocks; first += cluster_size) {
      if (index == 0) {
        memset(block->shared.data(), 0xff, block->shared.size());  // NaN in every format
        block->shared_bytes = shared_bytes;
        block->ended = false;
      }
      everybody.arrive_and_wait();
      block_index.x = static_cast<unsigned>(first + rank);
      kernel();
      block->barrier.arrive_and_wait();
      block->ended = true;
      everybody.arrive_and_wait();
      if (index == 0 && !block->copies.empty()) fail("a block ended before its copies had come");
    }
  };
  std::vector<std::thread> all;
  for (int i = 0; i < cluster_size * threads; ++i) all.emplace_back(body, i / threads, i % threads);
  for (std::thread& one : all) one.join();
}

}  // namespace emulator
}  // namespace paw

#define threadIdx paw::emulator::thread_index
#define blockIdx paw::emulator::block_index
#define gridDim paw::emulator::grid_size

inline void __syncthreads() {
  paw::emulator::block->barrier.arrive_and_wait();
}
inline float __shfl_xor_sync(uint32_t, float value, int mask) {
  paw::emulator::Warp& warp = paw::emulator::block->warps[threadIdx.x / 32];
  const unsigned lane = threadIdx.x % 32;
  warp.lanes[lane] = value;
  warp.barrier.arrive_and_wait();
  const float other = warp.lanes[lane ^ static_cast<unsigned>(mask)];
  warp.barrier.arrive_and_wait();
  return other;
}

namespace paw {
namespace {

inline int runtime_version() {
  return 13000;
}
inline int driver_version() {
  return 13000;
}

// As on a slice of a device that has too few multiprocessors side by side, where PAW_EMULATE_NO_CLUSTERS is set.
template <typename... Params>
bool cluster_fits(const char*, void (*)(Params...), int, int cluster, int64_t) {
  return cluster == 1 || getenv("PAW_EMULATE_NO_CLUSTERS") == nullptr;
}

struct Device {
  int processors;
  int64_t shared_block, shared_processor;
  bool clusters;
};

// A Hopper with few multiprocessors, so that few rows reach both paths of token_logprobs.
inline Device current_device() {
  return Device{2, static_cast<int64_t>(emulator::kMostShared), 228 << 10, true};
}

template <typename... Params>
void launch(const char*, void (*kernel)(Params...), int64_t blocks, int threads, int cluster, int64_t shared_bytes,
            void*, const Params&... params) {
  emulator::run(blocks, threads, cluster, static_cast<size_t>(shared_bytes), [&] { kernel(params...); });
}

template <typename... Params>
void launch_cooperative(const char*, void (*kernel)(Params...), int64_t blocks, int threads, int64_t shared_bytes,
                        void*, const Params&... params) {
  // The whole grid as one cluster: its blocks run at once, as the barrier needs.
  emulator::run(blocks, threads, static_cast<int>(blocks), static_cast<size_t>(shared_bytes), [&] { kernel(params...); });
}

inline void atomic_add(uint32_t* sum, uint32_t value) {
  std::atomic_ref<uint32_t>(*sum).fetch_add(value, std::memory_order_relaxed);
}
inline void atomic_add(uint64_t* sum, uint64_t value) {
  std::atomic_ref<uint64_t>(*sum).fetch_add(value, std::memory_order_relaxed);
}
inline void grid_sync() {
  emulator::cluster->barrier.arrive_and_wait();
}

inline float exp2_fast(float x) {
  const float y = exp2f(x);
  return fabsf(y) < 1.17549435e-38f ? 0.0f : y;
}
inline float max_keep_nan(float a, float b) {
  return isnan(a) || isnan(b) ? CUDART_NAN_F : (a > b ? a : b);
}
inline uint4 load_16(const void* p) {
  if (reinterpret_cast<uintptr_t>(p) % 16 != 0) emulator::fail("a 16-byte load from an address that is not aligned");
  uint4 v;
  memcpy(&v, p, 16);
  return v;
}

inline float to_float(float x) {
  return x;
}
inline float to_float(BF16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float v;
  memcpy(&v, &bits, 4);
  return v;
}
inline float to_float(F16 x) {
  return _cvtsh_ss(x.bits);
}
inline void from_float(float v, float* out) {
  *out = v;
}
inline void from_float(float v, BF16* out) {
  uint32_t bits;
  memcpy(&bits, &v, 4);
  out->bits = static_cast<uint16_t>(isnan(v) ? 0x7fff : (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}
inline void from_float(float v, F16* out) {
  out->bits = static_cast<uint16_t>(_cvtss_sh(v, _MM_FROUND_TO_NEAREST_INT));
}

template <typename T>
inline void from_floats(float a, float b, T* out) {
  from_float(a, &out[0]);
  from_float(b, &out[1]);
}

template <typename T>
inline float2 to_floats(uint32_t pair, T) {
  return float2{to_float(T{static_cast<uint16_t>(pair)}), to_float(T{static_cast<uint16_t>(pair >> 16)})};
}
template <typename T>
inline uint32_t max_halves(uint32_t a, uint32_t b, T) {
  const float2 x = to_floats(a, T{}), y = to_floats(b, T{});
  const uint32_t low = isnan(x.x) || y.x > x.x ? b : a, high = isnan(x.y) || y.y > x.y ? b : a;
  return (low & 0xffffu) | (high & 0xffff0000u);
}

inline char* shared_memory() {
  return emulator::block->memory();
}

using Barrier = uint64_t;  // 1: initialised; 2: its arrival came; then the copies are found in the block's list

inline void init_barriers(Barrier* barriers, int count) {
  for (int i = 0; i < count; ++i) std::atomic_ref<uint64_t>(barriers[i]).store(1);
}

inline void bulk_load(void* to, const void* from, uint32_t bytes, Barrier* barrier) {
  emulator::Block& block = *emulator::block;
  const auto aligned = [](const void* p) { return reinterpret_cast<uintptr_t>(p) % 16 == 0; };
  const char* low = static_cast<const char*>(to);
  if (!aligned(to) || !aligned(from) || bytes % 16 != 0 || bytes == 0) emulator::fail("a bulk copy is not aligned");
  if (low < block.memory() || low + bytes > block.memory() + block.shared_bytes) emulator::fail("a copy goes outside");
  if (std::atomic_ref<uint64_t>(*barrier).exchange(2) != 1) emulator::fail("a barrier is not fresh");
  std::lock_guard<std::mutex> lock(block.copies_mutex);
  block.copies.emplace_back(barrier, emulator::Copy{to, from, bytes});
}

inline void wait_for(Barrier* barrier) {
  emulator::Block& block = *emulator::block;
  if (std::atomic_ref<uint64_t>(*barrier).load() == 1) emulator::fail("a wait for a barrier that nothing arrives at");
  std::lock_guard<std::mutex> lock(block.copies_mutex);
  const auto mine = std::find_if(block.copies.begin(), block.copies.end(), [&](auto& c) { return c.first == barrier; });
  if (mine == block.copies.end()) return;
  memcpy(mine->second.to, mine->second.from, mine->second.bytes);
  block.copies.erase(mine);
}

inline thread_local std::unique_ptr<std::barrier<>::arrival_token> t_arrival;
inline void cluster_arrive() {
  if (t_arrival) emulator::fail("a second arrival at the cluster's barrier without a wait");
  t_arrival = std::make_unique<std::barrier<>::arrival_token>(emulator::cluster->barrier.arrive());
}
inline void cluster_arrive_relaxed() {
  cluster_arrive();
}
inline void cluster_wait() {
  if (!t_arrival) emulator::fail("a wait at the cluster's barrier without an arrival");
  emulator::cluster->barrier.wait(std::move(*t_arrival));
  t_arrival.reset();
}

inline void remote_store(float4* local, int rank, float4 v) {
  emulator::Block& other = *emulator::cluster->blocks[static_cast<size_t>(rank)];
  if (other.ended) emulator::fail("a store to the shared memory of a block that has ended");
  const auto offset = reinterpret_cast<char*>(local) - emulator::block->memory();
  memcpy(other.memory() + offset, &v, sizeof v);
}

}  // namespace
}  // namespace paw
