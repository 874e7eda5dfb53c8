// The policy and world-model losses of every row, with the gradient written over the logits.
#pragma once

#include <stdint.h>

#include "common/check.h"
#include "common/dtype.h"
#include "common/fields.h"
#include "common/host_device.h"
#include "common/logit_map.h"

namespace paw {

enum RowKind : uint8_t { kIgnored = 0, kPolicy = 1, kWorldModel = 2 };
enum RowFlag : uint8_t { kClipped = 1, kSaturated = 2, kDualClipped = 4 };
enum class WmLoss : int32_t { kCmae = 0, kMae = 1, kCe = 2 };

struct PawLossSettings {
  float clip_low, clip_high;
  float dual_clip;  // 0: off
  float kl_coef;
  float kl_clamp;  // of the k3 estimate; 0: off
  float entropy_coef;
  float tau;
  float grad_scale;  // multiplies the written gradient and nothing else (loss scaling for fp16)
  WmLoss wm_loss;
  float wm_inv_temperature;  // of world-model rows, in place of the map's

  PAW_FIELDS(clip_low, clip_high, dual_clip, kl_coef, kl_clamp, entropy_coef, tau, grad_scale, wm_loss,
             wm_inv_temperature)
};

struct PawLossArgs {
  void* logits;  // [rows, vocab], row stride in elements; overwritten with the gradient
  DType dtype;
  int64_t rows, vocab, stride;
  LogitMap map;
  PawLossSettings settings;
  const int64_t* targets;     // [rows]
  const uint8_t* kinds;       // [rows], RowKind
  const float* weights;       // [rows]
  const float* old_logprobs;  // [rows], read on policy rows
  const float* ref_logprobs;  // [rows] or null
  const float* advantages;    // [rows]
  const float* importance;    // [rows] or null
  float* losses;              // [rows] each
  float* logprobs;
  float* entropies;
  float* kl;
  uint8_t* flags;

  PAW_FIELDS(logits, dtype, rows, vocab, stride, map, settings, targets, kinds, weights, old_logprobs, ref_logprobs,
             advantages, importance, losses, logprobs, entropies, kl, flags)
  void check() const { check_matrix(logits, rows, vocab, stride, map.valid_vocab); }
};

// The map of a row's logits: the sampling temperature is the policy's alone.
PAW_HOST_DEVICE LogitMap map_of_kind(const PawLossArgs& args, uint8_t kind) {
  LogitMap map = args.map;
  if (kind == kWorldModel) map.inv_temperature = args.settings.wm_inv_temperature;
  return map;
}

}  // namespace paw
