#include "common/row_cuda.cuh"
#include "cuda_ops.h"
#include "token_logprobs.h"

namespace paw {
namespace {

template <bool kSoftcap, typename T>
__global__ void __launch_bounds__(kThreads, 2) forward_kernel(const __grid_constant__ TokenLogprobsArgs a) {
  const int64_t row = blockIdx.x;
  const T* x = static_cast<const T*>(a.logits) + row * a.stride;
  const RowStats stats = finish(row_sums<kSoftcap>(x, a.map), a.map);
  if (threadIdx.x != 0) return;
  const int64_t target = a.targets[row];
  const bool inside = target >= 0 && target < a.map.valid_vocab;
  a.logprobs[row] = inside ? target_logp<kSoftcap>(x, target, a.map, stats) : CUDART_NAN_F;
  a.entropies[row] = inside ? stats.entropy : CUDART_NAN_F;
  a.lse[row] = inside ? stats.lse : CUDART_NAN_F;
}

template <bool kSoftcap, typename T>
__global__ void __launch_bounds__(kThreads, 2) backward_kernel(const __grid_constant__ TokenLogprobsBackwardArgs a) {
  const int64_t row = blockIdx.x;
  const T* x = static_cast<const T*>(a.logits) + row * a.stride;
  T* out = static_cast<T*>(a.grad) + row * a.grad_stride;
  const int64_t target = a.targets[row];
  const bool inside = target >= 0 && target < a.map.valid_vocab;
  const float g = !inside ? CUDART_NAN_F : a.grad_logprobs ? a.grad_logprobs[row] : 0.0f;
  const float h = a.grad_entropies ? a.grad_entropies[row] : 0.0f;
  const float l = a.grad_lse ? a.grad_lse[row] : 0.0f;
  const RowStats stats{a.lse[row] * kLog2e, 0.0f, a.lse[row], a.entropies[row]};
  row_grad<kSoftcap>(x, out, a.vocab, inside ? target : 0, a.logprobs[row], a.map, stats, RowGrad{l - g, -h, g});
}

}  // namespace

void token_logprobs_cuda(const TokenLogprobsArgs& args, void* stream) {
  check_rows(args.rows);
  if (args.rows == 0) return;
  with_types(args.dtype, args.map.softcap > 0.0f, [&](auto softcap, auto element) {
    forward_kernel<decltype(softcap)::value, decltype(element)>
        <<<static_cast<unsigned>(args.rows), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(args);
  });
  check_launch("token_logprobs");
}

void token_logprobs_backward_cuda(const TokenLogprobsBackwardArgs& args, void* stream) {
  check_rows(args.rows);
  if (args.rows == 0) return;
  with_types(args.dtype, args.map.softcap > 0.0f, [&](auto softcap, auto element) {
    backward_kernel<decltype(softcap)::value, decltype(element)>
        <<<static_cast<unsigned>(args.rows), kThreads, 0, static_cast<cudaStream_t>(stream)>>>(args);
  });
  check_launch("token_logprobs_backward");
}

}  // namespace paw
