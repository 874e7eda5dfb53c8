// paw_loss before Hopper: one thread block a row. The first sweep reads the row and keeps in shared memory as much of
// it as fits; the second writes the gradient backwards, reading the rest again, most of it from L2.
#include "common/cuda_path.h"
#include "paw_loss_row.cuh"

namespace paw {
namespace {

constexpr int kThreads = 512;

struct Scratch {
  Sums warps[kThreads / 32];
  RowResult result;
};
constexpr int64_t kScratchBytes = round_up(sizeof(Scratch), 128);

template <bool kSoftcap, typename T>
__global__ void __launch_bounds__(kThreads, 2) loss_kernel(const __grid_constant__ PawLossArgs a, int num_kept) {
  Scratch& scratch = *reinterpret_cast<Scratch*>(shared_memory());
  T* kept = reinterpret_cast<T*>(shared_memory() + kScratchBytes);
  const int64_t row = blockIdx.x;
  const int n = static_cast<int>(a.map.valid_vocab), width = static_cast<int>(a.vocab);
  T* x = static_cast<T*>(a.logits) + row * a.stride;
  const uint8_t kind = a.kinds[row];
  if (kind == kIgnored) {
    write_zeros<kThreads>(x, width);
    if (threadIdx.x == 0) write_ignored_outputs(a, row);
    return;
  }
  const bool inside = target_inside(a, row);
  const int target = inside ? static_cast<int>(a.targets[row]) : 0;
  const LogitMap map = map_of_kind(a, kind);
  const float scale = scale_of(map);
  Sums sums = no_sums();
  const auto reduce = [&](auto align) {
    constexpr int kAlign = decltype(align)::value;
    add_range<kSoftcap, kThreads, T>(sums, KeptRow<T, kAlign, false>{{x}, kept, num_kept}, 0, n, scale, map);
  };
  with_alignment<T>(reduce, x);
  RowInputs inputs;
  float logit;
  if (threadIdx.x < 32) {
    inputs = load_row_inputs(a, row);
    logit = to_float(x[target]);  // before the second barrier, after which it may be overwritten
  }
  store_warp_sums<kThreads>(scratch.warps, sums, scale);
  __syncthreads();
  if (threadIdx.x < 32) {
    finish_row<kSoftcap>(a, row, kind, inside, inputs, logit, map, block_sums<kThreads>(scratch.warps, scale), true,
                         scratch.result);
  }
  __syncthreads();
  const RowResult result = scratch.result;
  if (result.grad.is_zero()) return write_zeros<kThreads>(x, width);
  const auto write = [&](auto align) {
    constexpr int kAlign = decltype(align)::value;
    write_units<kSoftcap, kThreads, kAlign, T>(KeptRow<T, kAlign, true>{{x}, kept, num_kept}, x, n, width,
                                               slope_of(map, result.stats, result.grad), map);
  };
  with_alignment<T>(write, x);
  write_target(x, n, target, result.at_target);
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
           kScratchBytes + kept * size, stream, args, static_cast<int>(kept));
  });
}

}  // namespace paw
