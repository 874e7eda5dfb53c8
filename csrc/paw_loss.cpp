#include "paw_loss.h"

#include "common/parallel.h"
#include "common/paw_row.h"
#include "common/row_cpu.h"

namespace paw {
namespace PAW_ISA {
namespace {

template <bool kSoftcap, typename T>
void loss_row(const PawLossArgs& a, int64_t row) {
  T* x = (T*)a.logits + row * a.stride;
  const uint8_t kind = a.kinds[row];
  if (kind == kIgnored) {
    memset((void*)x, 0, (size_t)a.vocab * sizeof(T));
    a.losses[row] = a.logprobs[row] = a.entropies[row] = a.kl[row] = 0.0f;
    a.flags[row] = 0;
    return;
  }
  const LogitMap map = map_of_kind(a, kind);
  const int64_t target = a.targets[row];
  const bool inside = target >= 0 && target < map.valid_vocab && kind <= kWorldModel;
  const RowStats stats = row_stats<kSoftcap>(x, map);
  const double logp = inside ? logp_of<kSoftcap>(x + target, map, stats) : __builtin_nan("");
  RowLoss<double> loss;
  if (kind == kPolicy) {
    const bool has_ref = a.ref_logprobs != nullptr;
    loss = policy_row<double>(a.settings, a.weights[row], logp, stats.entropy, a.old_logprobs[row], has_ref,
                              has_ref ? a.ref_logprobs[row] : 0.0, a.advantages[row],
                              a.importance ? a.importance[row] : 1.0);
  } else {
    loss = world_model_row<double>(a.settings, a.weights[row], logp);
  }
  a.losses[row] = (float)loss.loss;
  a.logprobs[row] = (float)logp;
  a.entropies[row] = (float)stats.entropy;
  a.kl[row] = (float)loss.kl;
  a.flags[row] = loss.flags;
  row_grad<kSoftcap>(x, x, a.vocab, inside ? target : 0, logp, map, stats,
                     RowGrad{-loss.grad_logp, loss.grad_entropy, loss.grad_logp});
}

void one_row(const PawLossArgs& a, int64_t row) {
  const bool cap = a.map.softcap > 0.0f;
  switch (a.dtype) {
    case DType::kF32:
      return cap ? loss_row<true, float>(a, row) : loss_row<false, float>(a, row);
    case DType::kBF16:
      return cap ? loss_row<true, BF16>(a, row) : loss_row<false, BF16>(a, row);
    case DType::kF16:
      return cap ? loss_row<true, F16>(a, row) : loss_row<false, F16>(a, row);
  }
}

}  // namespace

void paw_loss(const PawLossArgs& a, int threads) {
  for_each_row<PawLossArgs, one_row>(a, a.rows, threads);
}

}  // namespace PAW_ISA
}  // namespace paw
