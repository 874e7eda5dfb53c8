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

__device__ __forceinline__ RowLoss<float> loss_of_row(const PawLossArgs& a, int64_t row, float logp, float entropy) {
  if (a.kinds[row] != kPolicy) return world_model_row<float>(a.settings, a.weights[row], logp);
  const bool has_ref = a.ref_logprobs != nullptr;
  return policy_row<float>(a.settings, a.weights[row], logp, entropy, a.old_logprobs[row], has_ref,
                           has_ref ? a.ref_logprobs[row] : 0.0f, a.advantages[row],
                           a.importance ? a.importance[row] : 1.0f);
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

}  // namespace

// In paw_loss_cluster.cu. Returns false, and does nothing, where the device cannot place such a cluster.
bool paw_loss_cluster_cuda(const PawLossArgs& args, const ClusterPlan& plan, void* stream);

}  // namespace paw
