// Log-probability of each row's target, entropy and log-sum-exp, one read of the logits; and its backward for
// any upstream gradients, one read and one write, in place where `grad` is `logits`.
#pragma once

#include <stdint.h>

#include "common/check.h"
#include "common/dtype.h"
#include "common/fields.h"
#include "common/logit_map.h"

namespace paw {

struct TokenLogprobsArgs {
  const void* logits;  // [rows, vocab], row stride in elements
  DType dtype;
  int64_t rows, vocab, stride;
  const int64_t* targets;  // [rows], inside [0, valid_vocab); elsewhere the row's outputs are NaN
  LogitMap map;
  float* logprobs;   // [rows]
  float* entropies;  // [rows]
  float* lse;        // [rows]

  PAW_FIELDS(logits, dtype, rows, vocab, stride, targets, map, logprobs, entropies, lse)
  void check() const { check_matrix(logits, rows, vocab, stride, map.valid_vocab); }
};

struct TokenLogprobsBackwardArgs {
  const void* logits;
  void* grad;  // [rows, vocab], may be `logits`
  DType dtype;
  int64_t rows, vocab, stride, grad_stride;
  const int64_t* targets;
  LogitMap map;
  const float* logprobs;
  const float* entropies;
  const float* lse;
  const float* grad_logprobs;  // each [rows] or null, which stands for zeros
  const float* grad_entropies;
  const float* grad_lse;

  PAW_FIELDS(logits, grad, dtype, rows, vocab, stride, grad_stride, targets, map, logprobs, entropies, lse,
             grad_logprobs, grad_entropies, grad_lse)
  void check() const {
    check_matrix(logits, rows, vocab, stride, map.valid_vocab);
    check_matrix(grad, rows, vocab, grad_stride, map.valid_vocab);
  }
};

}  // namespace paw
