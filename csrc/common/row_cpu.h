// One row of logits on the CPU: its reductions, and its gradient. Compiled once per instruction set (see vec.h).
//
//   z_k = map(x_k),  lse = log sum e^z_k,  H = lse - sum p_k z_k           (k < valid_vocab)
//   dz_k = p_k * (from_p + from_entropy * (log p_k + H)) + [k = y] * from_target
//
// The row is walked in blocks that stay in the first-level cache: the block's maximum first, then one exponential per
// element against it. Sums over a block are floats, over blocks doubles, and the order depends on the row alone.
#pragma once

#include <math.h>

#include "common/logit_map.h"
#include "common/vec.h"

namespace paw {
namespace PAW_ISA {

constexpr int64_t kBlock = 2048;

struct RowStats {
  double top;  // lse = top + log_sum, kept apart: beside a top of 1e8 the sum would be lost
  double log_sum;
  double entropy;
};

template <bool kSoftcap>
PAW_INLINE VF map_logit(VF x, const LogitMap& map) {
  if (kSoftcap) return tanh(x * (1.0f / map.softcap)) * (map.softcap * map.inv_temperature);
  return x * map.inv_temperature;
}

// The n (< kWidth) last elements of a row, the other lanes filled with zeros.
template <typename T>
PAW_INLINE VF load_tail(const T* x, int64_t n) {
  T lanes[kWidth];
  memset(lanes, 0, sizeof lanes);
  memcpy(lanes, x, (size_t)n * sizeof(T));
  return load(lanes);
}

template <bool kSoftcap, typename T>
PAW_INLINE double logp_of(const T* x, const LogitMap& map, const RowStats& stats) {
  return ((double)map_logit<kSoftcap>(splat(load_one(x)), map)[0] - stats.top) - stats.log_sum;
}

template <bool kSoftcap, typename T>
inline RowStats row_stats(const T* x, const LogitMap& map) {
  const int64_t n = map.valid_vocab;
  alignas(64) float z[kBlock];
  float top = neg_inf();
  VD s1{}, s2{};
  for (int64_t start = 0; start < n; start += kBlock) {
    const int64_t size = n - start < kBlock ? n - start : kBlock;
    const int64_t whole = size / kWidth * kWidth;
    VF tops[4];
    for (auto& t : tops) t = splat(neg_inf());
    int64_t i = 0;
    for (; i + 4 * kWidth <= whole; i += 4 * kWidth) {
      for (int u = 0; u < 4; ++u) {
        const VF v = map_logit<kSoftcap>(load(x + start + i + u * kWidth), map);
        store(z + i + u * kWidth, v);
        tops[u] = keep_nan_max(v, tops[u]);
      }
    }
    for (; i < whole; i += kWidth) {
      const VF v = map_logit<kSoftcap>(load(x + start + i), map);
      store(z + i, v);
      tops[0] = keep_nan_max(v, tops[0]);
    }
    int64_t padded = whole;
    if (whole < size) {
      store(z + whole, map_logit<kSoftcap>(load_tail(x + start + whole, size - whole), map));
      padded = whole + kWidth;
      for (int64_t k = size; k < padded; ++k) z[k] = neg_inf();
      tops[1] = keep_nan_max(load(z + whole), tops[1]);
    }
    const float block_top = reduce_max(keep_nan_max(keep_nan_max(tops[0], tops[1]), keep_nan_max(tops[2], tops[3])));
    if (block_top > top) {
      if (top > neg_inf()) {
        const double shift = (double)top - (double)block_top;
        const double scale = ::exp(shift);
        s2 = scale * (s2 + shift * s1);
        s1 = scale * s1;
      }
      top = block_top;
    }
    // Nothing finite yet: any finite reference gives the zeros (and NaNs) that belong in the sums.
    const float reference = top > neg_inf() ? top : 0.0f;
    VF sums[2], products[2];
    for (int u = 0; u < 2; ++u) sums[u] = products[u] = VF{};
    VF d;
    for (i = 0; i + 2 * kWidth <= padded; i += 2 * kWidth) {
      for (int u = 0; u < 2; ++u) {
        const VF e = exp_nonpositive(load(z + i + u * kWidth) - reference, &d);
        sums[u] += e;
        products[u] += e * d;
      }
    }
    if (i < padded) {
      const VF e = exp_nonpositive(load(z + i) - reference, &d);
      sums[0] += e;
      products[0] += e * d;
    }
    // In double lane by lane: next to a token of probability near 1 the rest of the row must not be lost, or 1 - p_y
    // would be zero.
    for (int u = 0; u < 2; ++u) {
      s1 += __builtin_convertvector(sums[u], VD);
      s2 += __builtin_convertvector(products[u], VD);
    }
  }
  const double sum = reduce_add(s1), log_sum = ::log(sum);
  return RowStats{(double)top, log_sum, log_sum - reduce_add(s2) / sum};
}

struct RowGrad {
  double from_p;        // coefficient of p_k
  double from_entropy;  // coefficient of p_k (log p_k + H)
  double from_target;   // added at the target
};

// Writes the row's gradient; `out` may be `x`. Columns from valid_vocab to vocab become zero.
template <bool kSoftcap, typename T>
inline void row_grad(const T* x, T* out, int64_t vocab, int64_t target, double logp, const LogitMap& map,
                     const RowStats& stats, const RowGrad& grad) {
  const int64_t n = map.valid_vocab;
  if (grad.from_p == 0.0 && grad.from_entropy == 0.0 && grad.from_target == 0.0) {
    memset((void*)out, 0, (size_t)vocab * sizeof(T));
    return;
  }
  const float top = (float)stats.top, log_sum = (float)stats.log_sum, entropy = (float)stats.entropy;
  const float from_p = (float)(grad.from_p * map.inv_temperature);
  const float from_entropy = (float)(grad.from_entropy * map.inv_temperature);
  const float inv_cap = kSoftcap ? 1.0f / map.softcap : 0.0f;
  const float z_scale = kSoftcap ? map.softcap * map.inv_temperature : map.inv_temperature;

  // The target in double: from_p * p + from_target = (from_p + from_target) * p - from_target * expm1(logp), which
  // loses nothing where p is close to one and from_p = -from_target.
  double slope_at_target = map.inv_temperature;
  if (kSoftcap) {
    const double t = ::tanh((double)load_one(x + target) / map.softcap);
    slope_at_target *= 1.0 - t * t;
  }
  const double p_target = ::exp(logp);
  double at_target = (grad.from_p + grad.from_target) * p_target - grad.from_target * ::expm1(logp);
  if (grad.from_entropy != 0.0 && p_target != 0.0) at_target += grad.from_entropy * p_target * (logp + stats.entropy);
  at_target *= slope_at_target;

  auto one = [&](VF v) {
    VF slope = splat(1.0f);
    VF z;
    if (kSoftcap) {
      const VF t = tanh(v * inv_cap);
      z = t * z_scale;
      slope = 1.0f - t * t;
    } else {
      z = v * z_scale;
    }
    VF d;
    const VF p = exp_nonpositive((z - top) - log_sum, &d);
    VF g = p * (from_p + from_entropy * (d + entropy));
    if (kSoftcap) g *= slope;
    return g;
  };
  int64_t i = 0;
  for (; i + 2 * kWidth <= n; i += 2 * kWidth) {
    const VF a = one(load(x + i)), b = one(load(x + i + kWidth));
    store(out + i, a);
    store(out + i + kWidth, b);
  }
  for (; i < n; i += kWidth) {
    const int64_t left = n - i < kWidth ? n - i : kWidth;
    T lanes[kWidth];
    store(lanes, one(load_tail(x + i, left)));
    memcpy((void*)(out + i), lanes, (size_t)left * sizeof(T));
  }
  store_one(out + target, (float)at_target);
  if (n < vocab) memset((void*)(out + n), 0, (size_t)(vocab - n) * sizeof(T));
}

}  // namespace PAW_ISA
}  // namespace paw
