// Vectors of floats with the width of the instruction set, written with the vector extension of the compilers so that
// all instruction sets share one source. Include it only in files that are compiled once per instruction set (named by
// PAW_ISA). Everything here is in a separate namespace and no standard template is instantiated: otherwise the linker
// could keep the AVX-512 copy of a shared inline function, which would crash on machines without AVX-512.
#pragma once

#include <stdint.h>
#include <string.h>

#include "common/dtype.h"

#if defined(PAW_ISA_avx2) || defined(PAW_ISA_avx512)
#include <immintrin.h>
#endif

#define PAW_INLINE inline __attribute__((always_inline))

namespace paw {
namespace PAW_ISA {

#if defined(PAW_ISA_avx512)
constexpr int kWidth = 16;
#elif defined(PAW_ISA_avx2)
constexpr int kWidth = 8;
#else
constexpr int kWidth = 4;  // the width of SSE2 and NEON; compilers split wider vectors into single elements
#endif

typedef float VF __attribute__((vector_size(4 * kWidth)));
typedef double VD __attribute__((vector_size(8 * kWidth)));
typedef int32_t VI __attribute__((vector_size(4 * kWidth)));
typedef uint32_t VU __attribute__((vector_size(4 * kWidth)));
typedef uint16_t VH __attribute__((vector_size(2 * kWidth)));

PAW_INLINE VF splat(float x) {
  return x - VF{};
}
PAW_INLINE float neg_inf() {
  return -__builtin_inff();
}

// Returns b if either is NaN, like the x86 instruction: keep_nan_max(floor, x) propagates a NaN in x.
PAW_INLINE VF keep_nan_max(VF a, VF b) {
#if defined(PAW_ISA_avx512)
  return (VF)_mm512_max_ps((__m512)a, (__m512)b);
#elif defined(PAW_ISA_avx2)
  return (VF)_mm256_max_ps((__m256)a, (__m256)b);
#else
  const VI take_a = a > b;
  return (VF)(((VI)a & take_a) | ((VI)b & ~take_a));
#endif
}

PAW_INLINE VF abs(VF x) {
  return (VF)((VI)x & 0x7fffffff);
}
PAW_INLINE VF zero_where(VI mask, VF x) {
  return (VF)((VI)x & ~mask);
}
PAW_INLINE VF select(VI mask, VF a, VF b) {
  return (VF)(((VI)a & mask) | ((VI)b & ~mask));
}

PAW_INLINE double reduce_add(VD x) {
  double sum = 0.0;
  for (int i = 0; i < kWidth; ++i) sum += x[i];
  return sum;
}
PAW_INLINE float reduce_max(VF x) {
  float top = x[0];
  for (int i = 1; i < kWidth; ++i) top = x[i] > top ? x[i] : top;
  return top;
}

// --- 16-bit floats, one at a time (portable path) ---

PAW_INLINE float half_to_float(uint16_t h) {
  const uint32_t sign = (uint32_t)(h & 0x8000u) << 16;
  uint32_t rest = h & 0x7fffu;
  float value;
  if (rest >= 0x7c00u) {
    rest = 0x7f800000u | ((rest & 0x3ffu) << 13);
    memcpy(&value, &rest, 4);
  } else if (rest >= 0x400u) {
    rest = (rest << 13) + 0x38000000u;
    memcpy(&value, &rest, 4);
  } else {
    value = (float)rest * 0x1p-24f;
  }
  uint32_t bits;
  memcpy(&bits, &value, 4);
  bits |= sign;
  memcpy(&value, &bits, 4);
  return value;
}

PAW_INLINE uint16_t float_to_half(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  const uint32_t sign = (bits >> 16) & 0x8000u;
  bits &= 0x7fffffffu;
  if (bits > 0x7f800000u) return (uint16_t)(sign | 0x7e00u);
  if (bits >= 0x47800000u) return (uint16_t)(sign | 0x7c00u);
  if (bits < 0x38800000u) {  // subnormal in fp16: adding 0.5 makes the float unit round to multiples of 2^-24
    float magnitude;
    memcpy(&magnitude, &bits, 4);
    magnitude += 0.5f;
    memcpy(&bits, &magnitude, 4);
    return (uint16_t)(sign | (bits - 0x3f000000u));
  }
  bits += 0xfffu + ((bits >> 13) & 1u);
  return (uint16_t)(sign | ((bits - 0x38000000u) >> 13));
}

// --- loads and stores, unaligned ---

PAW_INLINE VF load(const float* p) {
  VF v;
  memcpy(&v, p, sizeof v);
  return v;
}
PAW_INLINE VF load(const BF16* p) {
  VH h;
  memcpy(&h, p, sizeof h);
  return (VF)(__builtin_convertvector(h, VU) << 16);
}
PAW_INLINE VF load(const F16* p) {
#if defined(PAW_ISA_avx512)
  return (VF)_mm512_cvtph_ps(_mm256_loadu_si256((const __m256i*)p));
#elif defined(PAW_ISA_avx2)
  return (VF)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
#else
  VF v;
  for (int i = 0; i < kWidth; ++i) v[i] = half_to_float(p[i].bits);
  return v;
#endif
}

PAW_INLINE void store(float* p, VF v) {
  memcpy(p, &v, sizeof v);
}
PAW_INLINE void store(BF16* p, VF v) {
  const VU u = (VU)v;
  const VU rounded = (u + 0x7fffu + ((u >> 16) & 1u)) >> 16;
  const VU is_nan = (VU)((u & 0x7fffffffu) > 0x7f800000u);
  const VU bits = (rounded & ~is_nan) | (((u >> 16) | 0x40u) & is_nan);
  const VH h = __builtin_convertvector(bits, VH);
  memcpy(p, &h, sizeof h);
}
PAW_INLINE void store(F16* p, VF v) {
#if defined(PAW_ISA_avx512)
  _mm256_storeu_si256((__m256i*)p, _mm512_cvtps_ph((__m512)v, _MM_FROUND_TO_NEAREST_INT));
#elif defined(PAW_ISA_avx2)
  _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT));
#else
  for (int i = 0; i < kWidth; ++i) p[i].bits = float_to_half(v[i]);
#endif
}

PAW_INLINE float load_one(const float* p) {
  return *p;
}
PAW_INLINE float load_one(const BF16* p) {
  const uint32_t bits = (uint32_t)p->bits << 16;
  float x;
  memcpy(&x, &bits, 4);
  return x;
}
PAW_INLINE float load_one(const F16* p) {
  return half_to_float(p->bits);
}

template <typename T>
PAW_INLINE void store_one(T* p, float x) {
  T lanes[kWidth];
  store(lanes, splat(x));
  *p = lanes[0];
}

// --- elementary functions ---

// e^x for x <= 0 within 2 ulp. Exactly 0 for x < -87.3 (where e^x is subnormal) and -inf; NaN gives NaN. `clamped` is
// max(x, -87.3), so that clamped * e^x is 0 and not NaN for x = -inf.
PAW_INLINE VF exp_nonpositive(VF x, VF* clamped) {
  const float lowest = -87.33f;
  const VF d = keep_nan_max(splat(lowest), x);
  const VI gone = x < lowest;
  const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
  const VF shifted = d * 1.44269504088896341f + magic;
  const VF n = shifted - magic;
  VF r = d - n * 0.693359375f;  // exact, because the constant has only nine bits
  r = r + n * 2.12194440054690583e-4f;
  VF p = r * 1.9875691500e-4f + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 0.5f;
  p = p * (r * r) + (r + 1.0f);
  // The low bits of `shifted` hold n; moved into the exponent they multiply by 2^n.
  const VF scaled = (VF)((VU)p + ((VU)shifted << 23));
  *clamped = d;
  return zero_where(gone, scaled);
}

// tanh(x) within 3 ulp; NaN gives NaN.
PAW_INLINE VF tanh(VF x) {
  const VF a = abs(x);
  VF unused;
  const VF e = exp_nonpositive(a * -2.0f, &unused);
  VF large = (1.0f - e) / (1.0f + e);
  large = (VF)((VI)large | ((VI)x & (int32_t)0x80000000));
  const VF s = x * x;
  VF p = s * -5.70498872745e-3f + 2.06390887954e-2f;
  p = p * s - 5.37397155531e-2f;
  p = p * s + 1.33314422036e-1f;
  p = p * s - 3.33332819422e-1f;
  const VF small = p * s * x + x;
  return select(a < 0.625f, small, large);
}

}  // namespace PAW_ISA
}  // namespace paw
