// One thread block a row: reductions, row function, gradient over the logits. 2 reads and 1 write of a row, the second
// read mostly from L2.
#include "common/paw_row.h"
#include "common/row_cuda.cuh"
#include "cuda_ops.h"
#include "paw_loss.h"

namespace paw {
namespace {

template <bool kSoftcap, typename T>
__global__ void __launch_bounds__(kThreads, 2) loss_kernel(const __grid_constant__ PawLossArgs a) {
  const int64_t row = blockIdx.x;
  T* x = static_cast<T*>(a.logits) + row * a.stride;
  const uint8_t kind = a.kinds[row];
  if (kind == kIgnored) {
    zero_row(x, a.vocab);
    if (threadIdx.x == 0) {
      a.losses[row] = a.logprobs[row] = a.entropies[row] = a.kl[row] = 0.0f;
      a.flags[row] = 0;
    }
    return;
  }
  const int64_t target = a.targets[row];
  const bool inside = target >= 0 && target < a.map.valid_vocab && kind <= kWorldModel;
  const RowStats stats = finish(row_sums<kSoftcap>(x, a.map), a.map);
  const float logp = inside ? target_logp<kSoftcap>(x, target, a.map, stats) : CUDART_NAN_F;
  RowLoss<float> loss;
  if (kind == kPolicy) {
    const float ref = a.ref_logprobs ? a.ref_logprobs[row] : 0.0f;
    loss =
        policy_row<float>(a.settings, a.weights[row], logp, stats.entropy, a.old_logprobs[row],
                          a.ref_logprobs ? &ref : nullptr, a.advantages[row], a.importance ? a.importance[row] : 1.0f);
  } else {
    loss = world_model_row<float>(a.settings, a.weights[row], logp);
  }
  if (threadIdx.x == 0) {
    a.losses[row] = loss.loss;
    a.logprobs[row] = logp;
    a.entropies[row] = stats.entropy;
    a.kl[row] = loss.kl;
    a.flags[row] = loss.flags;
  }
  __syncthreads();  // row_grad may zero the row at once, and every thread has to have read the target first
  row_grad<kSoftcap>(x, x, a.vocab, inside ? target : 0, logp, a.map, stats,
                     RowGrad{-loss.grad_logp, loss.grad_entropy, loss.grad_logp});
}

}  // namespace

void paw_loss_cuda(const PawLossArgs& args, void* stream) {
  check_rows(args.rows);
  if (args.rows == 0) return;
  with_types(args.dtype, args.map.softcap > 0.0f, [&](auto softcap, auto element) {
    loss_kernel<decltype(softcap)::value, decltype(element)>
        <<<static_cast<unsigned>(args.rows), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(args);
  });
  check_launch("paw_loss");
}

}  // namespace paw
