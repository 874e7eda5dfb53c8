// How a row of n logits is divided among thread blocks, and what of it stays on the chip. Plain arithmetic, the same
// for the host that launches and the device that runs; tests/kernels/test_row_plan.py checks it for every n.
//
// A division depends on n and the element type (and the device), never on the number of rows or on an address: so the
// same row gives the same bits in every batch.
#pragma once

#include <stdint.h>

#include "common/host_device.h"

namespace paw {

constexpr int kUnit = 8;             // elements a thread handles at once: 16 bytes of 16-bit logits, 32 of fp32
constexpr int64_t kSliceAlign = 64;  // slices begin at multiples of 128 bytes, from where their row does

PAW_HOST_DEVICE constexpr int64_t ceil_div(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}
PAW_HOST_DEVICE constexpr int64_t round_up(int64_t a, int64_t b) {
  return ceil_div(a, b) * b;
}

struct Slice {
  int64_t begin, count;  // elements; count may be 0
};

// Parts and clusters are powers of two, at most 8: no division, which is a loop of its own on a GPU.
PAW_HOST_DEVICE int log2_of(int parts) {
  return (parts >= 2) + (parts >= 4) + (parts >= 8);
}
PAW_HOST_DEVICE int64_t slice_length(int64_t n, int parts) {
  return round_up((n + parts - 1) >> log2_of(parts), kSliceAlign);
}
PAW_HOST_DEVICE Slice slice_of(int64_t n, int64_t length, int part) {
  const int64_t begin = part * length < n ? part * length : n;
  return Slice{begin, n - begin < length ? n - begin : length};
}

// --- token_logprobs: parts of a row that are reduced separately, by one block in turn or by a cluster at once ---

constexpr int kMaxParts = 4;

PAW_HOST_DEVICE int token_parts(int64_t n) {
  return n >= 65536 ? 4 : n >= 32768 ? 2 : 1;
}

// --- paw_loss on Hopper and newer: the row in the shared memory of a cluster, a slice in each block ---

constexpr int kClusterThreads = 256;
constexpr int kMaxCluster = 8;            // the largest that every device with clusters allows
constexpr int64_t kHeaderBytes = 512;     // barriers and partial sums, before the slice
constexpr int64_t kBulkAlign = 16;        // of addresses and sizes of bulk copies
constexpr int64_t kChunkBytes = 16384;    // a bulk copy, with a barrier of its own; below the barrier's 2^20 - 1
constexpr int kMaxChunks = 16;            // 227 KB
constexpr int64_t kReservedBytes = 1024;  // of shared memory, taken by the system for each block
constexpr int kBlocksPerProcessor = 3;    // so that loads of one row overlap the stores of another

struct ClusterPlan {
  int cluster;           // blocks a row; 0: not possible, see `reason`
  int64_t slice;         // elements a block
  int64_t shared_bytes;  // dynamic shared memory of a block
  const char* reason;    // nullptr where the plan can be used
};

// The smallest cluster whose slices leave room for three blocks a multiprocessor; failing that, the largest that fits
// at all. `shared_block`, `shared_processor`: bytes of shared memory that a block may have, and that a multiprocessor
// has.
inline ClusterPlan plan_cluster(int64_t n, int element_bytes, int64_t shared_block, int64_t shared_processor,
                                int forced = 0) {
  if (shared_block < 0) return ClusterPlan{0, 0, 0, "the device has no thread block clusters (before sm_90)"};
  const int64_t roomy = shared_processor / kBlocksPerProcessor - kReservedBytes;
  for (int cluster = 1; cluster <= kMaxCluster; cluster *= 2) {
    const int64_t slice = slice_length(n, cluster), bytes = kHeaderBytes + slice * element_bytes;
    const bool wanted = forced ? cluster == forced : bytes <= roomy || cluster == kMaxCluster;
    if (wanted && bytes <= shared_block && slice * element_bytes <= kMaxChunks * kChunkBytes) {
      return ClusterPlan{cluster, slice, bytes, nullptr};
    }
  }
  return ClusterPlan{0, 0, 0, "the row does not fit into the shared memory of a cluster of 8"};
}

// Bytes at the start of a slice that bulk copies load; the rest (less than 16 bytes) is loaded element by element.
PAW_HOST_DEVICE int64_t bulk_bytes(int64_t count, int element_bytes) {
  return count * element_bytes / kBulkAlign * kBulkAlign;
}
PAW_HOST_DEVICE int64_t chunk_bytes(int64_t bulk, int64_t chunk) {
  const int64_t left = bulk - chunk * kChunkBytes;
  return left < kChunkBytes ? left : kChunkBytes;
}

// --- paw_loss without clusters: the start of the row stays in the block's shared memory, the rest is read twice ---

// Elements that stay, a multiple of `round` (what all threads of a block handle at once) unless it is the whole row.
// Two blocks a multiprocessor where the row fits into half of it, else one with all it can have.
inline int64_t plan_kept(int64_t n, int element_bytes, int64_t round, int64_t scratch_bytes, int64_t shared_block,
                         int64_t shared_processor) {
  const int64_t whole = round_up(n, round), half = shared_processor / 2 - kReservedBytes - scratch_bytes;
  if (whole * element_bytes <= half) return whole;
  const int64_t most = (shared_block - scratch_bytes) / element_bytes / round * round;
  return most < whole ? most : whole;
}

}  // namespace paw
