// Shared by both CUDA implementations of paw_loss: losses and outputs of a row, given its reductions.
#pragma once

#include "common/paw_row.h"
#include "common/row_cuda.cuh"
#include "paw_loss.h"

namespace paw {
namespace {

__device__ __forceinline__ bool target_inside(const PawLossArgs& a, int64_t row) {
  return a.targets[row] >= 0 && a.targets[row] < a.map.valid_vocab && a.kinds[row] <= kWorldModel;
}

// What a row's loss depends on besides its logits. Loaded before the last reduction, so that nothing waits after it.
struct RowInputs {
  float weight, old_logp, ref_logp, advantage, importance;
};

__device__ __forceinline__ RowInputs load_row_inputs(const PawLossArgs& a, int64_t row) {
  return RowInputs{a.weights[row], a.old_logprobs[row], a.ref_logprobs ? a.ref_logprobs[row] : 0.0f, a.advantages[row],
                   a.importance ? a.importance[row] : 1.0f};
}

__device__ __forceinline__ RowLoss<float> loss_of_row(const PawLossArgs& a, uint8_t kind, const RowInputs& row,
                                                      float logp, float entropy) {
  if (kind != kPolicy) return world_model_row<float>(a.settings, row.weight, logp);
  return policy_row<float>(a.settings, row.weight, logp, entropy, row.old_logp, a.ref_logprobs != nullptr, row.ref_logp,
                           row.advantage, row.importance);
}

// Called by one thread per row.
__device__ __forceinline__ void write_row_outputs(const PawLossArgs& a, int64_t row, const RowLoss<float>& loss,
                                                  float logp, float entropy) {
  a.losses[row] = loss.loss;
  a.logprobs[row] = logp;
  a.entropies[row] = entropy;
  a.kl[row] = loss.kl;
  a.flags[row] = loss.flags;
}

__device__ __forceinline__ void write_ignored_outputs(const PawLossArgs& a, int64_t row) {
  write_row_outputs(a, row, RowLoss<float>{0.0f, 0.0f, 0.0f, 0.0f, 0}, 0.0f, 0.0f);
}

// What all threads of a block need for the second sweep, from the one warp that works it out.
struct RowResult {
  RowStats stats;
  RowGrad grad;
  float at_target;
};

// By the first warp, which alone has the row's sums: the row's outputs (where `writes`), and `result` in shared memory.
template <bool kSoftcap>
__device__ __forceinline__ void finish_row(const PawLossArgs& a, int64_t row, uint8_t kind, bool inside,
                                           const RowInputs& inputs, float logit, const LogitMap& map, const Sums& sums,
                                           bool writes, RowResult& result) {
  const RowStats stats = finish(sums, map);
  const float logp = inside ? logp_of<kSoftcap>(logit, map, stats) : CUDART_NAN_F;
  const RowLoss<float> loss = loss_of_row(a, kind, inputs, logp, stats.entropy);
  const RowGrad grad{-loss.grad_logp, loss.grad_entropy, loss.grad_logp};
  if (threadIdx.x != 0) return;
  if (writes) write_row_outputs(a, row, loss, logp, stats.entropy);
  result = RowResult{stats, grad, target_gradient<kSoftcap>(grad, logit, logp, map, stats)};
}

}  // namespace

// In paw_loss_cluster.cu. Returns false, and does nothing, where the device cannot place such a cluster.
bool paw_loss_cluster_cuda(const PawLossArgs& args, const ClusterPlan& plan, void* stream);

}  // namespace paw
