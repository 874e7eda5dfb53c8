// One cooperative launch. Each block has a range of the transitions; the blocks add their counts of digits up in global
// memory and meet at a barrier of the grid, after which every block reads the sums and finds the same digit of the cut.
#include "common/device.cuh"
#include "common/row_plan.h"
#include "select_transitions.h"

namespace paw {
namespace {

constexpr int kThreads = 512;
constexpr int kBlocksAProcessor = 2;  // all blocks of the grid must run at once

struct Scratch {
  uint32_t counts[kDigits];
  uint32_t total, digit, above, equal;
  uint64_t num_wm_tokens;
};

// Adds this block's counts to those of the pass in global memory; after the grid's barrier scratch.counts holds all.
__device__ __forceinline__ void add_up(Scratch& scratch, uint32_t* counts, bool cleared) {
  if (!cleared) grid_sync();  // block 0 has cleared the workspace
  __syncthreads();
  for (int d = static_cast<int>(threadIdx.x); d < kDigits; d += kThreads) {
    if (scratch.counts[d] != 0) atomic_add(&counts[d], scratch.counts[d]);
  }
  grid_sync();
  for (int d = static_cast<int>(threadIdx.x); d < kDigits; d += kThreads) scratch.counts[d] = counts[d];
  __syncthreads();
}

template <typename T>
struct Transitions {
  using Key = typename KeyType<T>::type;
  const SelectTransitionsArgs& a;
  __device__ Key key(int64_t i) const {
    return key_of<T>(static_cast<const T*>(a.scores ? a.scores : a.means)[i], a.lowest);
  }
  __device__ bool is_candidate(int64_t i) const { return a.candidates == nullptr || a.candidates[i] != 0; }
};

// The same cut in every thread of the grid. `first`, `end`: this thread's transitions, kThreads apart.
template <typename T>
__device__ __forceinline__ Cut<typename KeyType<T>::type> find_cut(const SelectTransitionsArgs& a, Scratch& scratch,
                                                                   int64_t first, int64_t end) {
  const Transitions<T> transitions{a};
  Cut<typename KeyType<T>::type> cut{0, 0};
  uint32_t left = 0;  // still to be selected, of those that agree with the cut so far
  const int mine = static_cast<int>(threadIdx.x);
  for (int pass = 0; pass < cut.kPasses; ++pass) {
    if (mine < kDigits) scratch.counts[mine] = 0;
    __syncthreads();
    for (int64_t i = first; i < end; i += kThreads) {
      const uint32_t index = static_cast<uint32_t>(i);
      const int digit = transitions.is_candidate(i) ? cut.digit(pass, transitions.key(i), index) : -1;
      if (digit >= 0) atomic_add(&scratch.counts[digit], 1u);
    }
    add_up(scratch, a.workspace + pass * kDigits, pass > 0);
    uint32_t above = 0;
    if (mine < kDigits) {
      for (int d = kDigits - 1; d > mine; --d) above += scratch.counts[d];
      if (mine == 0) scratch.total = above + scratch.counts[0];
    }
    __syncthreads();
    if (pass == 0) {
      left = static_cast<uint32_t>(share_of(a.alpha, scratch.total));
      if (left == scratch.total) return cut;
    }
    if (mine < kDigits && above < left && left - above <= scratch.counts[mine]) {  // one thread
      scratch.digit = threadIdx.x;
      scratch.above = above;
      scratch.equal = scratch.counts[mine];
    }
    __syncthreads();
    cut.fix(pass, static_cast<int>(scratch.digit));
    left -= scratch.above;
    if (left == scratch.equal) return cut;
  }
  return cut;
}

// A warp a transition, so that neighbouring lanes write neighbouring weights.
__device__ __forceinline__ void write_weights(const SelectTransitionsArgs& a, int64_t begin, int64_t end) {
  const int64_t total = a.num_observation_tokens, num = *a.num_wm_tokens;
  const float divisor = static_cast<float>(num > 1 ? num : 1);
  const int lane = static_cast<int>(threadIdx.x % 32);
  for (int64_t i = begin + threadIdx.x / 32; i < end; i += kThreads / 32) {
    const Segment observed = segment_of(a.observation_offsets, i, total);
    const float weight = a.selected[i] ? a.lambdas[i] / divisor : 0.0f;
    for (int64_t k = observed.begin + lane; k < observed.end; k += 32) a.weights[k] = weight;
  }
  // Tokens of no transition.
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t first = segment_of(a.observation_offsets, 0, total).begin;
  const int64_t last = segment_of(a.observation_offsets, a.num_transitions - 1, total).end;
  const int64_t stride = static_cast<int64_t>(gridDim.x) * kThreads;
  for (int64_t k = thread; k < first && k < total; k += stride) a.weights[k] = 0.0f;
  for (int64_t k = last + thread; k < total; k += stride) a.weights[k] = 0.0f;
}

template <typename T>
__global__ void __launch_bounds__(kThreads, kBlocksAProcessor)
    select_kernel(const __grid_constant__ SelectTransitionsArgs a) {
  Scratch& scratch = *reinterpret_cast<Scratch*>(shared_memory());
  const int64_t length = ceil_div(a.num_transitions, gridDim.x);
  const Slice slice = slice_of(a.num_transitions, length, static_cast<int>(blockIdx.x));
  const int64_t first = slice.begin + threadIdx.x, end = slice.begin + slice.count;
  if (blockIdx.x == 0) {
    for (int64_t k = threadIdx.x; k < kWorkspaceWords; k += kThreads) a.workspace[k] = 0;
    if (threadIdx.x == 0) *a.num_wm_tokens = 0;
  }
  if (threadIdx.x == 0) scratch.num_wm_tokens = 0;
  // A thread reads only the means that it has written itself, until the marks are all made.
  for (int64_t i = first; i < end; i += kThreads) static_cast<T*>(a.means)[i] = mean_entropy<T>(a, i);
  const auto cut = find_cut<T>(a, scratch, first, end);
  const Transitions<T> transitions{a};
  uint64_t tokens = 0;
  for (int64_t i = first; i < end; i += kThreads) {
    const bool taken = transitions.is_candidate(i) && cut.selects(transitions.key(i), static_cast<uint32_t>(i));
    a.selected[i] = taken;
    const Segment observed = segment_of(a.observation_offsets, i, a.num_observation_tokens);
    if (taken) tokens += static_cast<uint64_t>(observed.end - observed.begin);
  }
  if (tokens != 0) atomic_add(&scratch.num_wm_tokens, tokens);
  __syncthreads();
  if (threadIdx.x == 0) atomic_add(reinterpret_cast<uint64_t*>(a.num_wm_tokens), scratch.num_wm_tokens);
  grid_sync();
  write_weights(a, slice.begin, end);
}

}  // namespace

void select_transitions_cuda(const SelectTransitionsArgs& args, void* stream) {
  const int64_t most = static_cast<int64_t>(current_device().processors) * kBlocksAProcessor;
  const int64_t wanted = ceil_div(args.num_transitions, kThreads);
  const auto kernel = args.wide ? select_kernel<double> : select_kernel<float>;
  launch_cooperative("select_transitions", kernel, wanted < most ? wanted : most, kThreads, sizeof(Scratch), stream,
                     args);
}

}  // namespace paw
