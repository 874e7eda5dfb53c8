// One row of logits, or a slice of one, in one thread block: its sums, and its gradient. The maths of row_cpu.h, in
// base 2.
//
// With r = softcapped x and scale = log2(e) / temperature, z * log2(e) = r * scale. Each thread keeps the running
// maximum of r and the sums s1 = sum 2^d, s2 = sum 2^d d of d = r * scale - max * scale; a batch of units costs one
// rescale and one ex2 an element.
//
// Element k always belongs to the same thread, whatever the row's address: a row that is not 16-byte aligned is read
// with narrower loads in the same order. And since a thread reads and writes its own elements alone, a gradient may
// replace its logits without a barrier between; the one element that others read is the target's.
#pragma once

#include <type_traits>

#include "common/device.cuh"
#include "common/logit_map.h"
#include "common/row_plan.h"

namespace paw {
namespace {

constexpr float kLn2 = 0.69314718055994531f;
constexpr float kLog2e = 1.4426950408889634f;
constexpr float kFloor = -150.0f;  // 2^-150 is 0 in fp32

// --- units of elements, and where they come from ---

template <typename T>
union Unit {
  uint4 words[kUnit * sizeof(T) / 16];
  T elements[kUnit];
  __device__ Unit() {}
};
template <typename T>
constexpr int kWords = static_cast<int>(kUnit * sizeof(T) / 16);

__device__ __forceinline__ bool is_aligned(const void* p) {
  return (reinterpret_cast<uintptr_t>(p) & 15) == 0;
}

// How many of the elements [start, start + kUnit) lie before n.
__device__ __forceinline__ int left_of(int64_t n, int64_t start) {
  const int64_t left = n - start;
  return left >= kUnit ? kUnit : (left > 0 ? static_cast<int>(left) : 0);
}

// `count` elements; the unit's others are left as they are.
template <typename T>
__device__ __forceinline__ void load_unit(Unit<T>& unit, const T* x, int count, bool aligned) {
  if (aligned && count >= kUnit) {
#pragma unroll
    for (int w = 0; w < kWords<T>; ++w) unit.words[w] = load_16(reinterpret_cast<const char*>(x) + 16 * w);
  } else {
#pragma unroll
    for (int j = 0; j < kUnit; ++j) {
      if (j < count) unit.elements[j] = x[j];
    }
  }
}

template <typename T>
__device__ __forceinline__ void store_unit(T* x, const Unit<T>& unit, int count, bool aligned) {
  if (aligned && count >= kUnit) {
#pragma unroll
    for (int w = 0; w < kWords<T>; ++w) reinterpret_cast<uint4*>(x)[w] = unit.words[w];
  } else {
#pragma unroll
    for (int j = 0; j < kUnit; ++j) {
      if (j < count) x[j] = unit.elements[j];
    }
  }
}

template <typename T>
struct GlobalRow {
  const T* x;
  bool aligned;
  __device__ void load(Unit<T>& unit, int64_t start, int count) const { load_unit(unit, x + start, count, aligned); }
  __device__ void keep(const Unit<T>&, int64_t) const {}
};

template <typename T>
struct SharedRow {  // 16-byte aligned, and readable up to the end of the last unit that has an element
  const T* x;
  __device__ void load(Unit<T>& unit, int64_t start, int count) const {
    if (count <= 0) return;
#pragma unroll
    for (int w = 0; w < kWords<T>; ++w) unit.words[w] = reinterpret_cast<const uint4*>(x + start)[w];
  }
  __device__ void keep(const Unit<T>&, int64_t) const {}
};

// A row in global memory of which each thread keeps, in shared memory, those of its units that lie below num_kept.
template <typename T, bool kSecondSweep>
struct KeptRow {
  GlobalRow<T> row;
  T* kept;
  int64_t num_kept;
  __device__ void load(Unit<T>& unit, int64_t start, int count) const {
    if (kSecondSweep && start < num_kept) {
      SharedRow<T>{kept}.load(unit, start, count);
    } else {
      row.load(unit, start, count);
    }
  }
  __device__ void keep(const Unit<T>& unit, int64_t start) const {
    if (!kSecondSweep && start < num_kept) store_unit(kept + start, unit, kUnit, true);
  }
};

// --- sums ---

struct Sums {
  float top;     // maximum of r, NaN left out; -inf where nothing came
  float s1, s2;  // relative to top * scale
};

__device__ __forceinline__ void rescale(Sums& sums, float top, float scale) {
  // fmaxf drops the NaN of (-inf) - (-inf): the sums there are 0 or NaN, and stay so.
  const float d = fmaxf((sums.top - top) * scale, kFloor), e = exp2_fast(d);
  sums.s2 = e * (sums.s2 + d * sums.s1);
  sums.s1 = e * sums.s1;
  sums.top = top;
}

__device__ __forceinline__ Sums merge(Sums a, Sums b, float scale) {
  const float top = fmaxf(a.top, b.top);
  rescale(a, top, scale);
  rescale(b, top, scale);
  return Sums{top, a.s1 + b.s1, a.s2 + b.s2};
}

// Over groups of kLanes neighbouring lanes; every lane returns its group's sums, to the same bits.
template <int kLanes>
__device__ __forceinline__ Sums group_sums(Sums sums, float scale) {
  float top = sums.top;
#pragma unroll
  for (int lane = kLanes / 2; lane > 0; lane /= 2) top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, lane));
  rescale(sums, top, scale);
#pragma unroll
  for (int lane = kLanes / 2; lane > 0; lane /= 2) {
    sums.s1 += __shfl_xor_sync(0xffffffffu, sums.s1, lane);
    sums.s2 += __shfl_xor_sync(0xffffffffu, sums.s2, lane);
  }
  return sums;
}

// A warp's sums go to its place in `warps`; after a __syncthreads block_sums gives all threads the block's.
template <int kThreads>
__device__ __forceinline__ void store_warp_sums(Sums* warps, Sums sums, float scale) {
  sums = group_sums<32>(sums, scale);
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = sums;
}
template <int kThreads>
__device__ __forceinline__ Sums block_sums(const Sums* warps, float scale) {
  return group_sums<kThreads / 32>(warps[threadIdx.x % (kThreads / 32)], scale);
}

template <bool kSoftcap>
__device__ __forceinline__ float cap(float x, const LogitMap& map) {
  return kSoftcap ? map.softcap * tanhf(x / map.softcap) : x;
}

// Adds kUnits units to the sums: their maximum first, at most one rescale, then one ex2 an element. With kTail, units
// may be short or empty.
template <bool kSoftcap, int kUnits, bool kTail, typename T, typename Source>
__device__ __forceinline__ void add_units(Sums& sums, const Source& source, int64_t start, int64_t stride, int64_t end,
                                          float scale, const LogitMap& map) {
  Unit<T> units[kUnits];
  float capped[kSoftcap ? kUnits * kUnit : 1];
#pragma unroll
  for (int b = 0; b < kUnits; ++b) {
    source.load(units[b], start + b * stride, kTail ? left_of(end, start + b * stride) : kUnit);
  }
#pragma unroll
  for (int b = 0; b < kUnits; ++b) source.keep(units[b], start + b * stride);  // after all loads have been issued
  float top = sums.top;
#pragma unroll
  for (int b = 0; b < kUnits; ++b) {
    const int count = kTail ? left_of(end, start + b * stride) : kUnit;
#pragma unroll
    for (int j = 0; j < kUnit; ++j) {
      if (kTail && j >= count) continue;
      const float r = cap<kSoftcap>(to_float(units[b].elements[j]), map);
      if (kSoftcap) capped[b * kUnit + j] = r;
      top = fmaxf(top, r);
    }
  }
  if (top > sums.top) rescale(sums, top, scale);
  const float offset = top > -CUDART_INF_F ? top * scale : 0.0f;
#pragma unroll
  for (int b = 0; b < kUnits; ++b) {
    const int count = kTail ? left_of(end, start + b * stride) : kUnit;
#pragma unroll
    for (int j = 0; j < kUnit; ++j) {
      if (kTail && j >= count) continue;
      const float r = kSoftcap ? capped[b * kUnit + j] : to_float(units[b].elements[j]);
      const float d = max_keep_nan(fmaf(r, scale, -offset), kFloor);
      const float e = exp2_fast(d);
      sums.s1 += e;
      sums.s2 = fmaf(e, d, sums.s2);
    }
  }
}

template <typename T, bool kSoftcap>
constexpr int kBatch = kSoftcap ? 1 : 64 / (kUnit * static_cast<int>(sizeof(T)));  // 64 bytes in flight a thread

// Adds this thread's elements of [begin, end).
template <bool kSoftcap, int kThreads, typename T, typename Source>
__device__ __forceinline__ void add_range(Sums& sums, const Source& source, int64_t begin, int64_t end, float scale,
                                          const LogitMap& map) {
  constexpr int kUnits = kBatch<T, kSoftcap>;
  constexpr int64_t kStride = static_cast<int64_t>(kThreads) * kUnit;
  int64_t start = begin + static_cast<int64_t>(threadIdx.x) * kUnit;
  for (; start + (kUnits - 1) * kStride + kUnit <= end; start += kUnits * kStride) {
    add_units<kSoftcap, kUnits, false, T>(sums, source, start, kStride, end, scale, map);
  }
  for (; start < end; start += kStride) {
    add_units<kSoftcap, 1, true, T>(sums, source, start, kStride, end, scale, map);
  }
}

__device__ __forceinline__ Sums no_sums() {
  return Sums{-CUDART_INF_F, 0.0f, 0.0f};
}

__device__ __forceinline__ float scale_of(const LogitMap& map) {
  return map.inv_temperature * kLog2e;
}

struct RowStats {
  float offset;  // base-2 exponent of p_k is r_k * scale - offset - log2_s1
  float log2_s1;
  float lse, entropy;
};

__device__ __forceinline__ RowStats finish(const Sums& sums, const LogitMap& map) {
  const float log2_s1 = log2f(sums.s1);
  const float offset = sums.top * scale_of(map);  // as in add_units, to the bit
  return RowStats{offset, log2_s1, sums.top * map.inv_temperature + kLn2 * log2_s1,
                  kLn2 * (log2_s1 - sums.s2 / sums.s1)};
}

template <bool kSoftcap>
__device__ __forceinline__ float logp_of(float logit, const LogitMap& map, const RowStats& stats) {
  return kLn2 * (fmaf(cap<kSoftcap>(logit, map), scale_of(map), -stats.offset) - stats.log2_s1);
}

// --- gradient ---

struct RowGrad {
  float from_p, from_entropy, from_target;
  __device__ bool is_zero() const { return from_p == 0.0f && from_entropy == 0.0f && from_target == 0.0f; }
};

template <bool kSoftcap>
__device__ __forceinline__ float target_gradient(const RowGrad& grad, float logit, float logp, const LogitMap& map,
                                                 const RowStats& stats) {
  float slope = map.inv_temperature;
  if (kSoftcap) {
    const float t = tanhf(logit / map.softcap);
    slope *= 1.0f - t * t;
  }
  const float p = expf(logp);
  float g = (grad.from_p + grad.from_target) * p - grad.from_target * expm1f(logp);
  if (grad.from_entropy != 0.0f && p != 0.0f) g += grad.from_entropy * p * (logp + stats.entropy);
  return g * slope;
}

template <int kThreads, typename T>
__device__ __forceinline__ void write_zeros(T* out, int64_t count) {
  const bool aligned = is_aligned(out);
  Unit<T> zeros;
#pragma unroll
  for (int w = 0; w < kWords<T>; ++w) zeros.words[w] = uint4{0, 0, 0, 0};
  for (int64_t start = static_cast<int64_t>(threadIdx.x) * kUnit; start < count; start += kThreads * kUnit) {
    store_unit(out + start, zeros, left_of(count, start), aligned);
  }
}

// Writes the gradient of n elements and zeros up to `width`; where 0 <= target < n, that element is `at_target`. Walks
// backwards, so that what was read last is still in the cache. `out` may be where the source reads.
template <bool kSoftcap, int kThreads, typename T, typename Source>
__device__ __forceinline__ void write_gradient(const Source& source, T* out, int64_t n, int64_t width, int64_t target,
                                               float at_target, const LogitMap& map, const RowStats& stats,
                                               const RowGrad& grad) {
  constexpr int kUnits = kSoftcap || sizeof(T) == 4 ? 1 : 2;  // 32 bytes in flight a thread; more would spill
  constexpr int64_t kStride = static_cast<int64_t>(kThreads) * kUnit;
  const bool aligned = is_aligned(out);
  const float scale = scale_of(map);
  const float from_d = grad.from_entropy * map.inv_temperature * kLn2;
  const float constant = (grad.from_p + grad.from_entropy * stats.entropy) * map.inv_temperature;
  const int64_t last = (width - 1) / kStride * kStride + static_cast<int64_t>(threadIdx.x) * kUnit;
  for (int64_t high = last; high >= 0; high -= kUnits * kStride) {
    Unit<T> units[kUnits];
#pragma unroll
    for (int b = 0; b < kUnits; ++b) {
      const int64_t start = high - b * kStride;
      if (start >= 0) source.load(units[b], start, left_of(n, start));
    }
#pragma unroll
    for (int b = 0; b < kUnits; ++b) {
      const int64_t start = high - b * kStride;
      const int valid = left_of(n, start);
#pragma unroll
      for (int j = 0; j < kUnit; ++j) {
        const float value = to_float(units[b].elements[j]);
        float r = value, curve = 1.0f;
        if (kSoftcap) {
          const float t = tanhf(value / map.softcap);
          r = map.softcap * t;
          curve = 1.0f - t * t;
        }
        const float d = max_keep_nan(fmaf(r, scale, -stats.offset) - stats.log2_s1, kFloor);
        float g = exp2_fast(d) * fmaf(from_d, d, constant);
        if (kSoftcap) g *= curve;
        from_float(j < valid ? g : 0.0f, &units[b].elements[j]);
      }
      if (start >= 0) store_unit(out + start, units[b], left_of(width, start), aligned);
    }
  }
  __syncthreads();  // the target's element has been written once already, by another thread
  if (threadIdx.x == 0 && target >= 0 && target < n) from_float(at_target, &out[target]);
}

// Calls f(std::integral_constant<bool, softcap>, T{}) for `dtype`.
template <typename F>
void with_types(DType dtype, bool softcap, F f) {
  const auto typed = [&](auto element) {
    if (softcap) {
      f(std::true_type{}, element);
    } else {
      f(std::false_type{}, element);
    }
  };
  switch (dtype) {
    case DType::kF32:
      return typed(float{});
    case DType::kBF16:
      return typed(BF16{});
    case DType::kF16:
      return typed(F16{});
  }
}

}  // namespace
}  // namespace paw
