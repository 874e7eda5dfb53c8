// One row of logits in one thread block: its reductions, and its gradient. The maths of row_cpu.h, in base 2.
//
// With r = softcapped x and scale = log2(e) / temperature, z * log2(e) = r * scale. Each thread keeps the running
// maximum of r and the sums s1 = sum 2^d, s2 = sum 2^d d of d = r * scale - max * scale; a batch of units costs one
// rescale and one ex2 an element.
//
// Element k of a row always belongs to the same thread, whatever the row's address: a row that is not 16-byte aligned
// is read with narrower loads in the same order. So the same row gives the same bits wherever it lies.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>
#include <math_constants.h>

#include <stdexcept>
#include <string>

#include "common/dtype.h"
#include "common/logit_map.h"

namespace paw {
namespace {

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / 32;
constexpr int kUnit = 8;  // elements a thread reads at once: 16 bytes of 16-bit logits, 32 of fp32
constexpr float kLn2 = 0.69314718055994531f;
constexpr float kLog2e = 1.4426950408889634f;
constexpr float kFloor = -150.0f;  // 2^-150 is 0 in fp32

inline void check_launch(const char* op) {
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess) throw std::runtime_error(std::string(op) + ": " + cudaGetErrorString(error));
}

inline void check_rows(int64_t rows) {
  if (rows > 2147483647) throw std::invalid_argument("more than 2^31 - 1 rows: " + std::to_string(rows));
}

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

template <typename T>
union Unit {
  uint4 words[kUnit * sizeof(T) / 16];
  T elements[kUnit];
  __device__ Unit() {}
};

// `count` elements from x; those beyond count are left as they are.
template <typename T>
__device__ __forceinline__ void load_unit(Unit<T>& unit, const T* x, int count, bool aligned) {
  if (aligned && count >= kUnit) {
#pragma unroll
    for (int w = 0; w < static_cast<int>(kUnit * sizeof(T) / 16); ++w) {
      unit.words[w] = load_16(reinterpret_cast<const char*>(x) + 16 * w);
    }
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
    for (int w = 0; w < static_cast<int>(kUnit * sizeof(T) / 16); ++w) {
      reinterpret_cast<uint4*>(x)[w] = unit.words[w];
    }
  } else {
#pragma unroll
    for (int j = 0; j < kUnit; ++j) {
      if (j < count) x[j] = unit.elements[j];
    }
  }
}

__device__ __forceinline__ bool is_aligned(const void* p) {
  return (reinterpret_cast<uintptr_t>(p) & 15) == 0;
}

__device__ __forceinline__ int left_of(int64_t n, int64_t start) {
  const int64_t left = n - start;
  return left >= kUnit ? kUnit : (left > 0 ? static_cast<int>(left) : 0);
}

struct Sums {
  float top;     // maximum of r, NaN left out; -inf where nothing came
  float s1, s2;  // relative to top * scale
};

__device__ __forceinline__ Sums merge(Sums a, Sums b, float scale) {
  Sums out;
  out.top = fmaxf(a.top, b.top);
  // fmaxf drops the NaN of (-inf) - (-inf): the sums there are 0 or NaN, and stay so.
  const float da = fmaxf((a.top - out.top) * scale, kFloor), db = fmaxf((b.top - out.top) * scale, kFloor);
  const float ea = exp2_fast(da), eb = exp2_fast(db);
  out.s1 = ea * a.s1 + eb * b.s1;
  out.s2 = ea * (a.s2 + da * a.s1) + eb * (b.s2 + db * b.s1);
  return out;
}

template <bool kSoftcap>
__device__ __forceinline__ float cap(float x, const LogitMap& map) {
  return kSoftcap ? map.softcap * tanhf(x / map.softcap) : x;
}

// Adds kUnits units to the sums: their maximum first, at most one rescale, then one ex2 an element. With kTail, units
// may be short or empty.
template <bool kSoftcap, int kUnits, bool kTail, typename T>
__device__ __forceinline__ void add_units(Sums& sums, const T* x, int64_t start, int64_t stride, int64_t n,
                                          bool aligned, float scale, const LogitMap& map) {
  Unit<T> units[kUnits];
  float capped[kSoftcap ? kUnits * kUnit : 1];
#pragma unroll
  for (int b = 0; b < kUnits; ++b) {
    load_unit(units[b], x + start + b * stride, kTail ? left_of(n, start + b * stride) : kUnit, aligned);
  }
  float top = sums.top;
#pragma unroll
  for (int b = 0; b < kUnits; ++b) {
    const int count = kTail ? left_of(n, start + b * stride) : kUnit;
#pragma unroll
    for (int j = 0; j < kUnit; ++j) {
      if (kTail && j >= count) continue;
      const float r = cap<kSoftcap>(to_float(units[b].elements[j]), map);
      if (kSoftcap) capped[b * kUnit + j] = r;
      top = fmaxf(top, r);
    }
  }
  if (top > sums.top) {
    const float d = fmaxf((sums.top - top) * scale, kFloor);
    const float e = exp2_fast(d);
    sums.s2 = e * (sums.s2 + d * sums.s1);
    sums.s1 = e * sums.s1;
    sums.top = top;
  }
  const float offset = top > -CUDART_INF_F ? top * scale : 0.0f;
#pragma unroll
  for (int b = 0; b < kUnits; ++b) {
    const int count = kTail ? left_of(n, start + b * stride) : kUnit;
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

// All threads of the block return the same row sums.
template <bool kSoftcap, typename T>
__device__ __forceinline__ Sums row_sums(const T* x, const LogitMap& map) {
  __shared__ Sums partial[kWarps];
  constexpr int kBatch = kSoftcap ? 1 : (sizeof(T) == 4 ? 2 : 4);  // 64 bytes in flight a thread
  constexpr int64_t kStride = static_cast<int64_t>(kThreads) * kUnit;
  const int64_t n = map.valid_vocab;
  const float scale = map.inv_temperature * kLog2e;
  const bool aligned = is_aligned(x);
  Sums sums{-CUDART_INF_F, 0.0f, 0.0f};
  int64_t start = static_cast<int64_t>(threadIdx.x) * kUnit;
  for (; start + (kBatch - 1) * kStride + kUnit <= n; start += kBatch * kStride) {
    add_units<kSoftcap, kBatch, false>(sums, x, start, kStride, n, aligned, scale, map);
  }
  for (; start < n; start += kStride) {
    add_units<kSoftcap, 1, true>(sums, x, start, kStride, n, aligned, scale, map);
  }
#pragma unroll
  for (int lane = 16; lane > 0; lane >>= 1) {
    Sums other;
    other.top = __shfl_down_sync(0xffffffffu, sums.top, lane);
    other.s1 = __shfl_down_sync(0xffffffffu, sums.s1, lane);
    other.s2 = __shfl_down_sync(0xffffffffu, sums.s2, lane);
    sums = merge(sums, other, scale);
  }
  if ((threadIdx.x & 31) == 0) partial[threadIdx.x >> 5] = sums;
  __syncthreads();
  sums = partial[0];
#pragma unroll
  for (int w = 1; w < kWarps; ++w) sums = merge(sums, partial[w], scale);
  return sums;
}

struct RowStats {
  float offset;  // base-2 exponent of p_k is r_k * scale - offset - log2_s1
  float log2_s1;
  float lse, entropy;
};

__device__ __forceinline__ RowStats finish(const Sums& sums, const LogitMap& map) {
  const float log2_s1 = log2f(sums.s1);
  const float offset = sums.top * (map.inv_temperature * kLog2e);  // as in row_sums, to the bit
  return RowStats{offset, log2_s1, sums.top * map.inv_temperature + kLn2 * log2_s1,
                  kLn2 * (log2_s1 - sums.s2 / sums.s1)};
}

template <bool kSoftcap, typename T>
__device__ __forceinline__ float target_logp(const T* x, int64_t target, const LogitMap& map, const RowStats& stats) {
  const float r = cap<kSoftcap>(to_float(x[target]), map);
  return kLn2 * (fmaf(r, map.inv_temperature * kLog2e, -stats.offset) - stats.log2_s1);
}

struct RowGrad {
  float from_p, from_entropy, from_target;
};

template <typename T>
__device__ __forceinline__ void zero_row(T* out, int64_t vocab) {
  const bool aligned = is_aligned(out);
  Unit<T> zeros;
#pragma unroll
  for (int j = 0; j < kUnit; ++j) from_float(0.0f, &zeros.elements[j]);
  for (int64_t start = static_cast<int64_t>(threadIdx.x) * kUnit; start < vocab; start += kThreads * kUnit) {
    store_unit(out + start, zeros, left_of(vocab, start), aligned);
  }
}

// Writes the row's gradient; `out` may be `x`: every element is read and written by one thread. Walks the row
// backwards, so that what the reductions read last is still in the cache. No thread may still be reading x[target] from
// elsewhere.
template <bool kSoftcap, typename T>
__device__ __forceinline__ void row_grad(const T* x, T* out, int64_t vocab, int64_t target, float logp,
                                         const LogitMap& map, const RowStats& stats, RowGrad grad) {
  if (grad.from_p == 0.0f && grad.from_entropy == 0.0f && grad.from_target == 0.0f) {
    zero_row(out, vocab);
    return;
  }
  const int64_t n = map.valid_vocab;
  const bool aligned = is_aligned(x) && is_aligned(out);
  const float scale = map.inv_temperature * kLog2e;
  float slope = map.inv_temperature;
  if (kSoftcap) {
    const float t = tanhf(to_float(x[target]) / map.softcap);
    slope *= 1.0f - t * t;
  }
  const float p_target = expf(logp);
  float at_target = (grad.from_p + grad.from_target) * p_target - grad.from_target * expm1f(logp);
  if (grad.from_entropy != 0.0f && p_target != 0.0f) at_target += grad.from_entropy * p_target * (logp + stats.entropy);
  at_target *= slope;
  __syncthreads();  // everybody has read x[target]

  const float from_p = grad.from_p * map.inv_temperature;
  const float from_d = grad.from_entropy * map.inv_temperature * kLn2;
  const float constant = from_p + grad.from_entropy * map.inv_temperature * stats.entropy;
  constexpr int64_t kStride = static_cast<int64_t>(kThreads) * kUnit;
  for (int64_t start = (vocab - 1) / kStride * kStride + static_cast<int64_t>(threadIdx.x) * kUnit; start >= 0;
       start -= kStride) {
    const int count = left_of(vocab, start), valid = left_of(n, start);
    Unit<T> unit;
    load_unit(unit, x + start, count, aligned);
#pragma unroll
    for (int j = 0; j < kUnit; ++j) {
      if (j < count) {
        const float value = to_float(unit.elements[j]);
        float r = value, curve = 1.0f;
        if (kSoftcap) {
          const float t = tanhf(value / map.softcap);
          r = map.softcap * t;
          curve = 1.0f - t * t;
        }
        const float d = max_keep_nan(fmaf(r, scale, -stats.offset) - stats.log2_s1, kFloor);
        float g = exp2_fast(d) * fmaf(from_d, d, constant);
        if (kSoftcap) g *= curve;
        from_float(j < valid ? g : 0.0f, &unit.elements[j]);
      }
    }
    store_unit(out + start, unit, count, aligned);
  }
  __syncthreads();
  if (threadIdx.x == 0) from_float(at_target, &out[target]);
}

// Calls f(std::integral_constant<bool, softcap>, T{}) for the dtype at hand.
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
