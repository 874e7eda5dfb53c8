// paw_loss on Hopper and newer: one read and one write of the logits.
//
//   a cluster of blocks has a row, each block a slice of it (row_plan.h)
//   1  the slice comes into shared memory by bulk copies, 16 KB each, each with a barrier of its own
//   2  first sweep: sums, chunk by chunk as they arrive
//   3  every block sends its sums to all blocks of the cluster and merges them in the order of ranks
//   4  second sweep: the gradient from shared memory, in 16-byte stores over the slice
//
// Blocks do one row and end. Three or more share a multiprocessor, so that while one loads, others compute and store;
// and no barrier or buffer is used twice, so that there are no phases to keep track of and no reuse to guard.
#include "paw_loss_row.cuh"

namespace paw {
namespace {

struct Header {
  Barrier chunks[kMaxChunks];
  float4 blocks[kMaxCluster];  // each block's sums and, from the one that has it, the target's logit
  Sums warps[kClusterThreads / 32];
  RowResult result;
};
static_assert(sizeof(Header) <= kHeaderBytes, "the header has outgrown its place");
static_assert(kChunkBytes % (kClusterThreads * kUnit * 4) == 0, "a chunk is whole units of all threads");

// Starts the copies of what is 16-byte aligned and a multiple of 16 bytes; threads copy the rest, or all of a row that
// is not aligned, element by element. Returns how many bytes will come by bulk copies.
template <typename T>
__device__ __forceinline__ int fill_slice(Header& header, T* data, const T* x, const Slice& slice) {
  const T* from = x + slice.begin;
  const int count = static_cast<int>(slice.count);
  const int bulk = is_aligned(from) ? static_cast<int>(bulk_bytes(count, sizeof(T))) : 0;
  if (threadIdx.x == 0) {
    const int chunks = static_cast<int>(ceil_div(bulk, kChunkBytes));
    init_barriers(header.chunks, chunks);
    for (int c = 0; c < chunks; ++c) {
      bulk_load(reinterpret_cast<char*>(data) + c * kChunkBytes, reinterpret_cast<const char*>(from) + c * kChunkBytes,
                static_cast<uint32_t>(chunk_bytes(bulk, c)), &header.chunks[c]);
    }
  }
  constexpr int kAhead = 8;  // loads in flight
  for (int k = bulk / static_cast<int>(sizeof(T)) + static_cast<int>(threadIdx.x); k < count;
       k += kAhead * kClusterThreads) {
    T ahead[kAhead];
#pragma unroll
    for (int j = 0; j < kAhead; ++j) {
      if (k + j * kClusterThreads < count) ahead[j] = from[k + j * kClusterThreads];
    }
#pragma unroll
    for (int j = 0; j < kAhead; ++j) {
      if (k + j * kClusterThreads < count) data[k + j * kClusterThreads] = ahead[j];
    }
  }
  return bulk;
}

template <bool kSoftcap, typename T>
__global__ void __launch_bounds__(kClusterThreads, kBlocksPerProcessor)
    cluster_kernel(const __grid_constant__ PawLossArgs a, const __grid_constant__ ClusterPlan plan) {
#ifdef PAW_HAS_CLUSTERS
  Header& header = *reinterpret_cast<Header*>(shared_memory());
  T* data = reinterpret_cast<T*>(shared_memory() + kHeaderBytes);
  const int rank = static_cast<int>(blockIdx.x) & (plan.cluster - 1);
  const int64_t row = blockIdx.x >> log2_of(plan.cluster);
  const Slice slice = slice_of(a.map.valid_vocab, plan.slice, rank);
  // The last block also writes the padding's zeros.
  const int n = static_cast<int>(slice.count);
  const int width = rank == plan.cluster - 1 ? static_cast<int>(a.vocab - slice.begin) : n;
  T* x = static_cast<T*>(a.logits) + row * a.stride;
  T* out = x + slice.begin;
  const int bulk = fill_slice(header, data, x, slice);  // before anything else: all that follows waits for it
  const uint8_t kind = a.kinds[row];
  __syncthreads();         // all threads see the barriers initialised, and the elements that threads copied
  if (kind == kIgnored) {  // all blocks of the cluster leave here together, before any cluster barrier
    for (int c = 0; c * kChunkBytes < bulk; ++c) wait_for(&header.chunks[c]);  // no copy may outlive its block
    write_zeros<kClusterThreads>(out, width);
    if (rank == 0 && threadIdx.x == 0) write_ignored_outputs(a, row);
    return;
  }
  if (plan.cluster > 1) cluster_arrive_relaxed();  // this block runs: the others may write to its shared memory
  const bool inside = target_inside(a, row);
  const int64_t target = inside ? a.targets[row] : 0;
  const LogitMap map = map_of_kind(a, kind);
  const float scale = scale_of(map);

  Sums sums = no_sums();
  constexpr int kChunk = static_cast<int>(kChunkBytes / sizeof(T));
  for (int begin = 0, chunk = 0; begin < n; begin += kChunk, ++chunk) {
    if (chunk * kChunkBytes < bulk) wait_for(&header.chunks[chunk]);
    add_range<kSoftcap, kClusterThreads, T>(sums, SharedRow<T>{data}, begin, begin + kChunk < n ? begin + kChunk : n,
                                            scale, map);
  }
  const bool first_warp = threadIdx.x < 32;
  RowInputs inputs;
  if (first_warp) inputs = load_row_inputs(a, row);
  store_warp_sums<kClusterThreads>(header.warps, sums, scale);
  __syncthreads();  // besides: every chunk has arrived in every thread's eyes, the target's among them

  const int64_t in_slice = target - slice.begin;
  const bool owned = in_slice >= 0 && in_slice < n;
  float logit = owned ? to_float(data[in_slice]) : 0.0f;
  if (first_warp) sums = block_sums<kClusterThreads>(header.warps, scale);
  if (plan.cluster > 1) {
    cluster_wait();  // all blocks run
    if (static_cast<int>(threadIdx.x) < plan.cluster) {
      remote_store(&header.blocks[rank], static_cast<int>(threadIdx.x), float4{sums.top, sums.s1, sums.s2, logit});
    }
    cluster_arrive();
    cluster_wait();  // all sums are here; from now on no block touches another's memory, so each may end when it likes
    if (first_warp) {
      float4 v = header.blocks[0];
      sums = Sums{v.x, v.y, v.z};
      logit = v.w;
      for (int other = 1; other < plan.cluster; ++other) {
        v = header.blocks[other];
        sums = merge(sums, Sums{v.x, v.y, v.z}, scale);
        logit += v.w;  // zeros, but for the block that has the target
      }
    }
  }
  if (first_warp) {
    finish_row<kSoftcap>(a, row, kind, inside, inputs, logit, map, sums, rank == 0, header.result);
  }
  __syncthreads();
  const RowResult result = header.result;
  // The copies into this slice are complete, and no other block reads it: it may be overwritten.
  if (result.grad.is_zero()) return write_zeros<kClusterThreads>(out, width);
  const auto write = [&](auto align) {
    write_units<kSoftcap, kClusterThreads, decltype(align)::value, T>(SharedRow<T>{data}, out, n, width,
                                                                      slope_of(map, result.stats, result.grad), map);
  };
  with_alignment<T>(write, out);
  write_target(out, n, owned ? static_cast<int>(in_slice) : -1, result.at_target);
#endif
}

}  // namespace

bool paw_loss_cluster_cuda(const PawLossArgs& args, const ClusterPlan& plan, void* stream) {
  bool fits = false;
  with_types(args.dtype, args.map.softcap > 0.0f, [&](auto softcap, auto element) {
    const auto kernel = cluster_kernel<decltype(softcap)::value, decltype(element)>;
    fits = cluster_fits("paw_loss", kernel, kClusterThreads, plan.cluster, plan.shared_bytes);
    if (!fits) return;
    launch("paw_loss", kernel, args.rows * plan.cluster, kClusterThreads, plan.cluster, plan.shared_bytes, stream, args,
           plan);
  });
  return fits;
}

}  // namespace paw
