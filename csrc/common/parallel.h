// Spreads the rows of an op over the threads of the pool. Included by files that are compiled once per instruction set
// (PAW_ISA names it), hence the namespace: see vec.h.
#pragma once

#include "common/thread_pool.h"

namespace paw {
namespace PAW_ISA {

// Calls kRow(args, row) for every row of [0, rows). One thread computes a row, so its bits depend neither on the batch
// nor on the number of threads.
template <typename Args, void (*kRow)(const Args&, int64_t)>
inline void for_each_row(const Args& args, int64_t rows, int threads) {
  parallel_for(
      rows, threads, [](void* context, int64_t row) { kRow(*static_cast<const Args*>(context), row); },
      const_cast<Args*>(&args));
}

}  // namespace PAW_ISA
}  // namespace paw
