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
#include "common/units.cuh"

namespace paw {
namespace {

constexpr float kLn2 = 0.69314718055994531f;
constexpr float kLog2e = 1.4426950408889634f;
constexpr float kFloor = -150.0f;  // 2^-150 is 0 in fp32

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
// may be short or empty; what a short one lacks becomes -inf, which adds nothing.
template <bool kSoftcap, int kUnits, int kStride, bool kTail, typename T, typename Source>
__device__ __forceinline__ void add_units(Sums& sums, const Source& source, int start, int end, float scale,
                                          const LogitMap& map) {
  const int left = end - start;
  Unit<T> units[kUnits];
  float capped[kSoftcap ? kUnits * kUnit : 1];
#pragma unroll
  for (int b = 0; b < kUnits; ++b) {
    if (kTail) {
      source.load(units[b], start + b * kStride, left - b * kStride);
    } else {
      source.whole(units[b], start + b * kStride);
    }
  }
#pragma unroll
  for (int b = 0; b < kUnits; ++b) {  // after all loads have been issued
    const int count = left - b * kStride;
    if (!kTail || count > 0) source.keep(units[b], start + b * kStride);
    if (kTail && count > 0 && count < kUnit) {
#pragma unroll
      for (int j = 0; j < kUnit; ++j) {
        if (j >= count) from_float(-CUDART_INF_F, &units[b].elements[j]);
      }
    }
  }
  float top = sums.top;
#pragma unroll
  for (int b = 0; b < kUnits; ++b) {
    const int count = left - b * kStride;
    if (kTail && count <= 0) continue;
    if (!kSoftcap) top = fmaxf(top, largest(units[b]));
#pragma unroll
    for (int j = 0; kSoftcap && j < kUnit; ++j) {
      const float r = kTail && j >= count ? -CUDART_INF_F : cap<kSoftcap>(to_float(units[b].elements[j]), map);
      capped[b * kUnit + j] = r;
      top = fmaxf(top, r);
    }
  }
  if (top > sums.top) rescale(sums, top, scale);
  const float offset = top > -CUDART_INF_F ? top * scale : 0.0f;
#pragma unroll
  for (int b = 0; b < kUnits; ++b) {
    if (kTail && left <= b * kStride) continue;
#pragma unroll
    for (int j = 0; j < kUnit; ++j) {
      const float2 pair = pair_of(units[b], j & ~1);
      const float r = kSoftcap ? capped[b * kUnit + j] : j % 2 ? pair.y : pair.x;
      const float d = max_keep_nan(fmaf(r, scale, -offset), kFloor);
      const float e = exp2_fast(d);
      sums.s1 += e;
      sums.s2 = fmaf(e, d, sums.s2);
    }
  }
}

template <typename T, bool kSoftcap>
constexpr int kBatch = kSoftcap ? 1 : 64 / (kUnit * static_cast<int>(sizeof(T)));  // 64 bytes in flight a thread

// Adds this thread's elements of [begin, end): whole batches, and one that may lack some.
template <bool kSoftcap, int kThreads, typename T, typename Source>
__device__ __forceinline__ void add_range(Sums& sums, const Source& source, int begin, int end, float scale,
                                          const LogitMap& map) {
  constexpr int kUnits = kBatch<T, kSoftcap>;
  constexpr int kStride = kThreads * kUnit;
  int start = begin + static_cast<int>(threadIdx.x) * kUnit;
  for (; start + (kUnits - 1) * kStride + kUnit <= end; start += kUnits * kStride) {
    add_units<kSoftcap, kUnits, kStride, false, T>(sums, source, start, end, scale, map);
  }
  if (start < end) add_units<kSoftcap, kUnits, kStride, true, T>(sums, source, start, end, scale, map);
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
__device__ __forceinline__ void write_zeros(T* out, int count) {
  Unit<T> zeros;
#pragma unroll
  for (int w = 0; w < kWords<T>; ++w) zeros.words[w] = uint4{0, 0, 0, 0};
  const auto write = [&](auto align) {
    for (int start = static_cast<int>(threadIdx.x) * kUnit; start < count; start += kThreads * kUnit) {
      store_unit<decltype(align)::value>(out + start, zeros, left_of(count, start));
    }
  };
  with_alignment<T>(write, out);
}

// The gradient of a row as a function of its logits alone, but for the target's element.
struct Slope {
  float scale, offset, log2_s1, from_d, constant;
};

__device__ __forceinline__ Slope slope_of(const LogitMap& map, const RowStats& stats, const RowGrad& grad) {
  return Slope{scale_of(map), stats.offset, stats.log2_s1, grad.from_entropy * map.inv_temperature * kLn2,
               (grad.from_p + grad.from_entropy * stats.entropy) * map.inv_temperature};
}

template <bool kSoftcap>
__device__ __forceinline__ float gradient_at(float value, const Slope& slope, const LogitMap& map) {
  float r = value, curve = 1.0f;
  if (kSoftcap) {
    const float t = tanhf(value / map.softcap);
    r = map.softcap * t;
    curve = 1.0f - t * t;
  }
  const float d = max_keep_nan(fmaf(r, slope.scale, -slope.offset) - slope.log2_s1, kFloor);
  const float g = exp2_fast(d) * fmaf(slope.from_d, d, slope.constant);
  return kSoftcap ? g * curve : g;
}

// A unit of logits becomes their gradient.
template <bool kSoftcap, typename T>
__device__ __forceinline__ void to_gradient(Unit<T>& unit, const Slope& slope, const LogitMap& map) {
#pragma unroll
  for (int j = 0; j < kUnit; j += 2) {
    const float2 pair = pair_of(unit, j);
    from_floats(gradient_at<kSoftcap>(pair.x, slope, map), gradient_at<kSoftcap>(pair.y, slope, map),
                &unit.elements[j]);
  }
}

// Writes the gradient of n elements and zeros up to `width`. Walks backwards, so that what was read last is still in
// the cache. `out`, aligned or not, may be where the source reads.
template <bool kSoftcap, int kThreads, int kAlign, typename T, typename Source>
__device__ __forceinline__ void write_units(const Source& source, T* out, int n, int width, const Slope& slope,
                                            const LogitMap& map) {
  constexpr int kUnits = kSoftcap || sizeof(T) == 4 ? 1 : 2;  // 32 bytes in flight a thread; more would spill
  constexpr int kStride = kThreads * kUnit;
  int start = (width - 1) / kStride * kStride + static_cast<int>(threadIdx.x) * kUnit;
  for (; start >= 0 && start + kUnit > n; start -= kStride) {  // one that is cut off, and the padding
    const int valid = left_of(n, start), count = left_of(width, start);
    if (count <= 0) continue;
    Unit<T> unit;
    source.load(unit, start, valid);
    to_gradient<kSoftcap>(unit, slope, map);
#pragma unroll
    for (int j = 0; j < kUnit; ++j) {
      if (j >= valid) from_float(0.0f, &unit.elements[j]);
    }
    store_unit<kAlign>(out + start, unit, count);
  }
  for (; start >= (kUnits - 1) * kStride; start -= kUnits * kStride) {
    Unit<T> units[kUnits];
#pragma unroll
    for (int b = 0; b < kUnits; ++b) source.whole(units[b], start - b * kStride);
#pragma unroll
    for (int b = 0; b < kUnits; ++b) {
      to_gradient<kSoftcap>(units[b], slope, map);
      store_whole<kAlign>(out + (start - b * kStride), units[b]);
    }
  }
  for (; kUnits > 1 && start >= 0; start -= kStride) {
    Unit<T> unit;
    source.whole(unit, start);
    to_gradient<kSoftcap>(unit, slope, map);
    store_whole<kAlign>(out + start, unit);
  }
}

// By one thread, once all have written: the target's element has been written already, by another thread.
template <typename T>
__device__ __forceinline__ void write_target(T* out, int n, int target, float at_target) {
  __syncthreads();
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
