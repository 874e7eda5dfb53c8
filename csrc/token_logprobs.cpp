#include "token_logprobs.h"

#include "common/parallel.h"
#include "common/row_cpu.h"

namespace paw {
namespace PAW_ISA {
namespace {

template <bool kSoftcap, typename T>
void forward_row(const TokenLogprobsArgs& a, int64_t row) {
  const T* x = (const T*)a.logits + row * a.stride;
  const int64_t target = a.targets[row];
  if (target < 0 || target >= a.map.valid_vocab) {
    a.logprobs[row] = a.entropies[row] = a.lse[row] = __builtin_nanf("");
    return;
  }
  const RowStats stats = row_stats<kSoftcap>(x, a.map);
  a.logprobs[row] = (float)logp_of<kSoftcap>(x + target, a.map, stats);
  a.entropies[row] = (float)stats.entropy;
  a.lse[row] = (float)(stats.top + stats.log_sum);
}

template <bool kSoftcap, typename T>
void backward_row(const TokenLogprobsBackwardArgs& a, int64_t row) {
  const T* x = (const T*)a.logits + row * a.stride;
  T* out = (T*)a.grad + row * a.grad_stride;
  const int64_t target = a.targets[row];
  const bool inside = target >= 0 && target < a.map.valid_vocab;
  const double g = !inside ? __builtin_nan("") : a.grad_logprobs ? a.grad_logprobs[row] : 0.0;
  const double h = a.grad_entropies ? a.grad_entropies[row] : 0.0;
  const double l = a.grad_lse ? a.grad_lse[row] : 0.0;
  row_grad<kSoftcap>(x, out, a.vocab, inside ? target : 0, (double)a.logprobs[row], a.map,
                     RowStats{(double)a.lse[row], 0.0, (double)a.entropies[row]}, RowGrad{l - g, -h, g});
}

void one_row(const TokenLogprobsArgs& a, int64_t row) {
  const bool cap = a.map.softcap > 0.0f;
  switch (a.dtype) {
    case DType::kF32:
      return cap ? forward_row<true, float>(a, row) : forward_row<false, float>(a, row);
    case DType::kBF16:
      return cap ? forward_row<true, BF16>(a, row) : forward_row<false, BF16>(a, row);
    case DType::kF16:
      return cap ? forward_row<true, F16>(a, row) : forward_row<false, F16>(a, row);
  }
}

void one_row(const TokenLogprobsBackwardArgs& a, int64_t row) {
  const bool cap = a.map.softcap > 0.0f;
  switch (a.dtype) {
    case DType::kF32:
      return cap ? backward_row<true, float>(a, row) : backward_row<false, float>(a, row);
    case DType::kBF16:
      return cap ? backward_row<true, BF16>(a, row) : backward_row<false, BF16>(a, row);
    case DType::kF16:
      return cap ? backward_row<true, F16>(a, row) : backward_row<false, F16>(a, row);
  }
}

}  // namespace

void token_logprobs(const TokenLogprobsArgs& a, int threads) {
  for_each_row<TokenLogprobsArgs, one_row>(a, a.rows, threads);
}

void token_logprobs_backward(const TokenLogprobsBackwardArgs& a, int threads) {
  for_each_row<TokenLogprobsBackwardArgs, one_row>(a, a.rows, threads);
}

}  // namespace PAW_ISA
}  // namespace paw
