// Losses of one row as functions of the log-probability of its target and its entropy. Shared by the CPU code (doubles)
// and the CUDA code (floats).
#pragma once

#include <math.h>

#include "common/host_device.h"
#include "paw_loss.h"

namespace paw {
namespace {

template <typename R>
struct RowLoss {
  R loss;          // times the weight
  R grad_logp;     // d loss / d logp, times grad_scale
  R grad_entropy;  // coefficient of p (log p + H), times grad_scale
  R kl;            // k3 estimate, clamped, without weight and grad_scale
  uint8_t flags;
};

// Propagates NaN, unlike fmin(fmax()).
template <typename R>
PAW_HOST_DEVICE R clamp_keep_nan(R x, R low, R high) {
  return x < low ? low : (x > high ? high : x);
}

template <typename R>
PAW_HOST_DEVICE RowLoss<R> policy_row(const PawLossSettings& s, R weight, R logp, R entropy, R old_logp, bool has_ref,
                                      R ref_logp, R advantage, R importance) {
  RowLoss<R> out;
  out.flags = 0;
  const R bound = R(20);  // on the log-ratios; like a clamp, the gradient is zero outside it
  const R raw = logp - old_logp;
  const R ratio = exp(clamp_keep_nan(raw, -bound, bound));
  const R clipped = clamp_keep_nan(ratio, R(1) - R(s.clip_low), R(1) + R(s.clip_high));
  R surrogate = -advantage * ratio;
  R grad = (raw < -bound || raw > bound) ? R(0) : surrogate;
  if (-advantage * clipped > surrogate) {
    surrogate = -advantage * clipped;
    grad = R(0);
    out.flags |= kClipped;
  }
  if (s.dual_clip > 0.0f && advantage < R(0) && surrogate > -advantage * R(s.dual_clip)) {
    surrogate = -advantage * R(s.dual_clip);
    grad = R(0);
    out.flags = kDualClipped;
  }
  out.loss = importance * surrogate;
  out.grad_logp = importance * grad;
  out.kl = R(0);
  if (has_ref) {
    const R gap = ref_logp - logp;
    const R d = clamp_keep_nan(gap, -bound, bound);
    out.kl = expm1(d) - d;
    const bool clamped = s.kl_clamp > 0.0f && out.kl > R(s.kl_clamp);
    if (clamped) out.kl = R(s.kl_clamp);
    if (s.kl_coef != 0.0f) {
      out.loss += R(s.kl_coef) * out.kl;
      if (!(clamped || gap < -bound || gap > bound)) out.grad_logp -= R(s.kl_coef) * expm1(d);
    }
  }
  if (s.entropy_coef != 0.0f) out.loss -= R(s.entropy_coef) * entropy;
  out.loss *= weight;
  out.grad_logp *= weight * R(s.grad_scale);
  out.grad_entropy = weight * R(s.grad_scale) * R(s.entropy_coef);
  return out;
}

template <typename R>
PAW_HOST_DEVICE RowLoss<R> world_model_row(const PawLossSettings& s, R weight, R logp) {
  RowLoss<R> out;
  const R p = exp(logp);
  const bool saturated = p >= R(s.tau);
  out.flags = saturated ? kSaturated : 0;
  out.kl = R(0);
  out.grad_entropy = R(0);
  if (s.wm_loss == WmLoss::kCe) {
    out.loss = -logp;
    out.grad_logp = R(-1);
  } else if (s.wm_loss == WmLoss::kMae) {
    out.loss = -expm1(logp);
    out.grad_logp = -p;
  } else {
    out.loss = saturated ? R(1) - R(s.tau) : R(1) - p;
    out.grad_logp = saturated ? R(0) : -p;
  }
  out.loss *= weight;
  out.grad_logp *= weight * R(s.grad_scale);
  return out;
}

}  // namespace
}  // namespace paw
