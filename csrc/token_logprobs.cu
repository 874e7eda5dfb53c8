// A row is one part, or several where it is long (row_plan.h). With many rows one block reduces all parts of a row, one
// after another; with few, each part has a block of its own in a cluster. Both merge the same sums in the same order.
#include "common/cuda_path.h"
#include "common/row_cuda.cuh"
#include "token_logprobs.h"

namespace paw {
namespace {

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / 32;

struct Scratch {
  float4 parts[kMaxParts];  // in the first block of a cluster: the parts' sums
  Sums warps[kMaxParts * kWarps];
};

// The target's logit, on which nothing waits before the last reduction: loaded before it, not after.
struct Target {
  bool inside;
  float logit;
};

template <typename T>
__device__ __forceinline__ Target load_target(const TokenLogprobsArgs& a, const T* x, int64_t target) {
  const bool inside = target >= 0 && target < a.map.valid_vocab;
  return Target{inside, to_float(x[inside ? target : 0])};
}

template <bool kSoftcap>
__device__ __forceinline__ void write_outputs(const TokenLogprobsArgs& a, int64_t row, const Target& target,
                                              const Sums& sums) {
  const RowStats stats = finish(sums, a.map);
  a.logprobs[row] = target.inside ? logp_of<kSoftcap>(target.logit, a.map, stats) : CUDART_NAN_F;
  a.entropies[row] = target.inside ? stats.entropy : CUDART_NAN_F;
  a.lse[row] = target.inside ? stats.lse : CUDART_NAN_F;
}

template <bool kSoftcap, int kAlign, typename T>
__device__ __forceinline__ Sums part_sums(const TokenLogprobsArgs& a, const T* x, int parts, int part) {
  const int n = static_cast<int>(a.map.valid_vocab), length = static_cast<int>(slice_length(n, parts));
  const int begin = part * length < n ? part * length : n, end = begin + length < n ? begin + length : n;
  Sums sums = no_sums();
  add_range<kSoftcap, kThreads, T>(sums, GlobalRow<T, kAlign>{x}, begin, end, scale_of(a.map), a.map);
  return sums;
}

template <bool kSoftcap, typename T>
__global__ void __launch_bounds__(kThreads, 2) row_kernel(const __grid_constant__ TokenLogprobsArgs a) {
  Scratch& scratch = *reinterpret_cast<Scratch*>(shared_memory());
  const int64_t row = blockIdx.x;
  const T* x = static_cast<const T*>(a.logits) + row * a.stride;
  const int64_t at = a.targets[row];
  const int parts = token_parts(a.map.valid_vocab);
  const float scale = scale_of(a.map);
  const auto reduce = [&](auto align) {
    for (int part = 0; part < parts; ++part) {
      store_warp_sums<kThreads>(scratch.warps + part * kWarps,
                                part_sums<kSoftcap, decltype(align)::value>(a, x, parts, part), scale);
    }
  };
  with_alignment<T>(reduce, x);
  const Target target = load_target(a, x, at);
  __syncthreads();
  if (threadIdx.x >= 32) return;
  Sums sums = block_sums<kThreads>(scratch.warps, scale);
  for (int part = 1; part < parts; ++part) {
    sums = merge(sums, block_sums<kThreads>(scratch.warps + part * kWarps, scale), scale);
  }
  if (threadIdx.x == 0) write_outputs<kSoftcap>(a, row, target, sums);
}

template <bool kSoftcap, typename T>
__global__ void __launch_bounds__(kThreads, 2) part_kernel(const __grid_constant__ TokenLogprobsArgs a) {
#ifdef PAW_HAS_CLUSTERS
  Scratch& scratch = *reinterpret_cast<Scratch*>(shared_memory());
  const int parts = token_parts(a.map.valid_vocab), part = static_cast<int>(blockIdx.x) & (parts - 1);
  const int64_t row = blockIdx.x >> log2_of(parts);
  const T* x = static_cast<const T*>(a.logits) + row * a.stride;
  const float scale = scale_of(a.map);
  const int64_t at = a.targets[row];
  cluster_arrive_relaxed();  // this block runs: its shared memory may be written to by the others
  const auto reduce = [&](auto align) {
    store_warp_sums<kThreads>(scratch.warps, part_sums<kSoftcap, decltype(align)::value>(a, x, parts, part), scale);
  };
  with_alignment<T>(reduce, x);
  const Target target = load_target(a, x, at);
  __syncthreads();
  const Sums mine = block_sums<kThreads>(scratch.warps, scale);
  cluster_wait();  // all blocks run
  if (threadIdx.x == 0) remote_store(&scratch.parts[part], 0, float4{mine.top, mine.s1, mine.s2, 0.0f});
  cluster_arrive();
  cluster_wait();  // all sums have arrived; no block's memory is written to from here on, so each may end
  if (part != 0 || threadIdx.x != 0) return;
  Sums sums = mine;
  for (int other = 1; other < parts; ++other) {
    const float4 v = scratch.parts[other];
    sums = merge(sums, Sums{v.x, v.y, v.z}, scale);
  }
  write_outputs<kSoftcap>(a, row, target, sums);
#endif
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
  const RowGrad grad{l - g, -h, g};
  const int n = static_cast<int>(a.map.valid_vocab), width = static_cast<int>(a.vocab);
  if (grad.is_zero()) return write_zeros<kThreads>(out, width);
  const RowStats stats{a.lse[row] * kLog2e, 0.0f, a.lse[row], a.entropies[row]};
  const float at_target =
      target_gradient<kSoftcap>(grad, to_float(x[inside ? target : 0]), a.logprobs[row], a.map, stats);
  __syncthreads();  // every thread has read the target's logit, which may be overwritten now
  const auto write = [&](auto align) {
    constexpr int kAlign = decltype(align)::value;
    write_units<kSoftcap, kThreads, kAlign, T>(GlobalRow<T, kAlign>{x}, out, n, width, slope_of(a.map, stats, grad),
                                               a.map);
  };
  with_alignment<T>(write, x, out);
  write_target(out, n, inside ? static_cast<int>(target) : 0, at_target);
}

}  // namespace

void token_logprobs_cuda(const TokenLogprobsArgs& args, void* stream) {
  if (args.rows == 0) return;
  const int parts = token_parts(args.map.valid_vocab);
  const Device device = current_device();
  const CudaPath path = cuda_path();
  if (path == CudaPath::kCluster && !device.clusters) {
    throw std::runtime_error("token_logprobs: PAW_FAST_CUDA_PATH=cluster, but the device has no clusters");
  }
  // A block a part once there are too few rows to keep every multiprocessor at work with several.
  const bool few = args.rows <= 4 * static_cast<int64_t>(device.processors);
  const bool wanted = parts > 1 && device.clusters && path != CudaPath::kPlain && (few || path == CudaPath::kCluster);
  with_types(args.dtype, args.map.softcap > 0.0f, [&](auto softcap, auto element) {
    constexpr bool kSoftcap = decltype(softcap)::value;
    using T = decltype(element);
    const auto split = part_kernel<kSoftcap, T>;
    if (wanted && cluster_fits("token_logprobs", split, kThreads, parts, sizeof(Scratch))) {
      launch("token_logprobs", split, args.rows * parts, kThreads, parts, sizeof(Scratch), stream, args);
    } else if (wanted && path == CudaPath::kCluster) {
      throw std::runtime_error("token_logprobs: PAW_FAST_CUDA_PATH=cluster, but the device cannot place a cluster");
    } else {
      launch("token_logprobs", row_kernel<kSoftcap, T>, args.rows, kThreads, 1, sizeof(Scratch), stream, args);
    }
  });
}

void token_logprobs_backward_cuda(const TokenLogprobsBackwardArgs& args, void* stream) {
  if (args.rows == 0) return;
  with_types(args.dtype, args.map.softcap > 0.0f, [&](auto softcap, auto element) {
    launch("token_logprobs_backward", backward_kernel<decltype(softcap)::value, decltype(element)>, args.rows, kThreads,
           1, 0, stream, args);
  });
}

}  // namespace paw
