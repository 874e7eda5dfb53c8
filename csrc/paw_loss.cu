// (b) before Hopper: one thread block a row. The first sweep reads the row and keeps in shared memory as much of it as
// fits; the second writes the gradient backwards, reading the rest again, most of it from L2.
#include "common/cuda_path.h"
#include "paw_loss_row.cuh"

namespace paw {
namespace {

constexpr int kThreads = 512;

struct Scratch {
  Sums warps[kThreads / 32];
};
constexpr int64_t kScratchBytes = round_up(sizeof(Scratch), 128);

template <bool kSoftcap, typename T>
__global__ void __launch_bounds__(kThreads, 2) loss_kernel(const __grid_constant__ PawLossArgs a, int64_t num_kept) {
  Scratch& scratch = *reinterpret_cast<Scratch*>(shared_memory());
  T* kept = reinterpret_cast<T*>(shared_memory() + kScratchBytes);
  const int64_t row = blockIdx.x, n = a.map.valid_vocab;
  T* x = static_cast<T*>(a.logits) + row * a.stride;
  if (a.kinds[row] == kIgnored) {
    write_zeros<kThreads>(x, a.vocab);
    if (threadIdx.x == 0) write_ignored_outputs(a, row);
    return;
  }
  const bool inside = target_inside(a, row);
  const int64_t target = inside ? a.targets[row] : 0;
  const float logit = to_float(x[target]);  // before the barrier below, after which it may be overwritten
  const GlobalRow<T> global{x, is_aligned(x)};
  const LogitMap map = map_of_kind(a, a.kinds[row]);
  const float scale = scale_of(map);
  Sums sums = no_sums();
  add_range<kSoftcap, kThreads, T>(sums, KeptRow<T, false>{global, kept, num_kept}, 0, n, scale, map);
  store_warp_sums<kThreads>(scratch.warps, sums, scale);
  __syncthreads();
  const RowStats stats = finish(block_sums<kThreads>(scratch.warps, scale), map);
  const float logp = inside ? logp_of<kSoftcap>(logit, map, stats) : CUDART_NAN_F;
  const RowLoss<float> loss = loss_of_row(a, row, logp, stats.entropy);
  if (threadIdx.x == 0) write_row_outputs(a, row, loss, logp, stats.entropy);
  const RowGrad grad{-loss.grad_logp, loss.grad_entropy, loss.grad_logp};
  if (grad.is_zero()) return write_zeros<kThreads>(x, a.vocab);
  write_gradient<kSoftcap, kThreads, T>(KeptRow<T, true>{global, kept, num_kept}, x, n, a.vocab, target,
                                        target_gradient<kSoftcap>(grad, logit, logp, map, stats), map, stats, grad);
}

}  // namespace

void paw_loss_cuda(const PawLossArgs& args, void* stream) {
  if (args.rows == 0) return;
  const Device device = current_device();
  const int size = args.dtype == DType::kF32 ? 4 : 2;
  const CudaPath path = cuda_path();
  if (path != CudaPath::kPlain) {
    ClusterPlan plan = plan_cluster(args.map.valid_vocab, size, device.clusters ? device.shared_block : -1,
                                    device.shared_processor, cuda_cluster());
    if (plan.reason == nullptr) {
      if (paw_loss_cluster_cuda(args, plan, stream)) return;
      plan.reason = "the device cannot place its blocks side by side (a MIG slice?)";
    }
    if (path == CudaPath::kCluster) throw std::runtime_error(std::string("paw_loss: no cluster: ") + plan.reason);
  }
  const int64_t kept = plan_kept(args.map.valid_vocab, size, kThreads * kUnit, kScratchBytes, device.shared_block,
                                 device.shared_processor);
  with_types(args.dtype, args.map.softcap > 0.0f, [&](auto softcap, auto element) {
    launch("paw_loss", loss_kernel<decltype(softcap)::value, decltype(element)>, args.rows, kThreads, 1,
           kScratchBytes + kept * size, stream, args, kept);
  });
}

}  // namespace paw
