// Units of elements, kUnit of them at a time, and where they come from: global memory at any address, shared memory, or
// both.
#pragma once

#include <type_traits>

#include "common/device.cuh"
#include "common/row_plan.h"

namespace paw {
namespace {

template <typename T>
union Unit {
  uint4 words[kUnit * sizeof(T) / 16];
  uint32_t quads[kUnit * sizeof(T) / 4];  // of 4 bytes
  T elements[kUnit];
  __device__ Unit() {}
};
template <typename T>
constexpr int kWords = static_cast<int>(kUnit * sizeof(T) / 16);

__device__ __forceinline__ bool is_aligned(const void* p) {
  return (reinterpret_cast<uintptr_t>(p) & 15) == 0;
}

// How many of the elements [start, start + kUnit) lie before n.
__device__ __forceinline__ int left_of(int n, int start) {
  const int left = n - start;
  return left >= kUnit ? kUnit : (left > 0 ? left : 0);
}

// Elements j and j + 1, for an even j.
template <typename T>
__device__ __forceinline__ float2 pair_of(const Unit<T>& unit, int j) {
  if constexpr (sizeof(T) == 2) {
    return to_floats(unit.quads[j / 2], T{});
  } else {
    return float2{unit.elements[j], unit.elements[j + 1]};
  }
}

// The largest element, NaN left out; -inf where there is none.
template <typename T>
__device__ __forceinline__ float largest(const Unit<T>& unit) {
  float top = -CUDART_INF_F;
  if constexpr (sizeof(T) == 2) {
    uint32_t halves = unit.quads[0];
#pragma unroll
    for (int q = 1; q < kUnit / 2; ++q) halves = max_halves(halves, unit.quads[q], T{});
    const float2 two = to_floats(halves, T{});
    top = fmaxf(fmaxf(top, two.x), two.y);
  } else {
#pragma unroll
    for (int j = 0; j < kUnit; ++j) top = fmaxf(top, unit.elements[j]);
  }
  return top;
}

// A unit's elements at x, all of them. kAlign: bytes that x is a multiple of, 16, 4 or 2; what lies between two 4-byte
// pieces is put together in registers, since loads are what this costs.
template <int kAlign, typename T>
__device__ __forceinline__ void load_whole(Unit<T>& unit, const T* x) {
  if constexpr (kAlign == 16) {
#pragma unroll
    for (int w = 0; w < kWords<T>; ++w) unit.words[w] = load_16(reinterpret_cast<const char*>(x) + 16 * w);
  } else if constexpr (kAlign == 4) {
#pragma unroll
    for (int q = 0; q < 4 * kWords<T>; ++q) unit.quads[q] = reinterpret_cast<const uint32_t*>(x)[q];
  } else {
    const uint32_t* inner = reinterpret_cast<const uint32_t*>(x + 1);
    const uint32_t first = x[0].bits, last = x[7].bits, a = inner[0], b = inner[1], c = inner[2];
    unit.quads[0] = first | a << 16;
    unit.quads[1] = a >> 16 | b << 16;
    unit.quads[2] = b >> 16 | c << 16;
    unit.quads[3] = c >> 16 | last << 16;
  }
}

template <int kAlign, typename T>
__device__ __forceinline__ void store_whole(T* x, const Unit<T>& unit) {
  if constexpr (kAlign == 16) {
#pragma unroll
    for (int w = 0; w < kWords<T>; ++w) reinterpret_cast<uint4*>(x)[w] = unit.words[w];
  } else if constexpr (kAlign == 4) {
#pragma unroll
    for (int q = 0; q < 4 * kWords<T>; ++q) reinterpret_cast<uint32_t*>(x)[q] = unit.quads[q];
  } else {
    uint32_t* inner = reinterpret_cast<uint32_t*>(x + 1);
    x[0] = unit.elements[0];
#pragma unroll
    for (int q = 0; q < 3; ++q) inner[q] = unit.quads[q] >> 16 | unit.quads[q + 1] << 16;
    x[7] = unit.elements[7];
  }
}

// `count` elements, any number: none where it is negative, at most a unit. The unit's others are left as they are.
template <int kAlign, typename T>
__device__ __forceinline__ void load_unit(Unit<T>& unit, const T* x, int count) {
  if (count >= kUnit) {
    load_whole<kAlign>(unit, x);
  } else if (count > 0) {
#pragma unroll
    for (int j = 0; j < kUnit; ++j) {
      if (j < count) unit.elements[j] = x[j];
    }
  }
}

template <int kAlign, typename T>
__device__ __forceinline__ void store_unit(T* x, const Unit<T>& unit, int count) {
  if (count >= kUnit) {
    store_whole<kAlign>(x, unit);
  } else {
#pragma unroll
    for (int j = 0; j < kUnit; ++j) {
      if (j < count) x[j] = unit.elements[j];
    }
  }
}

// Sources of a row's units. `whole`: all elements are there. Whether the row is aligned is decided once, by the caller,
// and is part of the type: asked at every unit it costs as many instructions as the loads.
template <typename T, int kAlign>
struct GlobalRow {
  const T* x;
  __device__ void whole(Unit<T>& unit, int start) const { load_whole<kAlign>(unit, x + start); }
  __device__ void load(Unit<T>& unit, int start, int count) const { load_unit<kAlign>(unit, x + start, count); }
  __device__ void keep(const Unit<T>&, int) const {}
};

template <typename T>
struct SharedRow {  // 16-byte aligned, and readable up to the end of the last unit that has an element
  const T* x;
  __device__ void whole(Unit<T>& unit, int start) const {
#pragma unroll
    for (int w = 0; w < kWords<T>; ++w) unit.words[w] = reinterpret_cast<const uint4*>(x + start)[w];
  }
  __device__ void load(Unit<T>& unit, int start, int count) const {
    if (count > 0) whole(unit, start);
  }
  __device__ void keep(const Unit<T>&, int) const {}
};

// A row in global memory of which each thread keeps, in shared memory, those of its units that lie below num_kept.
template <typename T, int kAlign, bool kSecondSweep>
struct KeptRow {
  GlobalRow<T, kAlign> row;
  T* kept;
  int num_kept;
  __device__ void whole(Unit<T>& unit, int start) const {
    if (kSecondSweep && start < num_kept) {
      SharedRow<T>{kept}.whole(unit, start);
    } else {
      row.whole(unit, start);
    }
  }
  __device__ void load(Unit<T>& unit, int start, int count) const {
    if (kSecondSweep && start < num_kept) {
      SharedRow<T>{kept}.load(unit, start, count);
    } else {
      row.load(unit, start, count);
    }
  }
  __device__ void keep(const Unit<T>& unit, int start) const {
    if (!kSecondSweep && start < num_kept) store_whole<16>(kept + start, unit);
  }
};

// Calls f(std::integral_constant<int, kAlign>{}) for the alignment that all of `pointers` have.
template <typename T, typename F, typename... Pointers>
__device__ __forceinline__ void with_alignment(F f, const Pointers*... pointers) {
  const uintptr_t bits = (reinterpret_cast<uintptr_t>(pointers) | ...);
  if (bits % 16 == 0) {
    f(std::integral_constant<int, 16>{});
  } else if (sizeof(T) == 4 || bits % 4 == 0) {
    f(std::integral_constant<int, 4>{});
  } else if constexpr (sizeof(T) == 2) {
    f(std::integral_constant<int, 2>{});
  }
}

}  // namespace
}  // namespace paw
