// One pool of worker threads for all CPU kernels, without OpenMP, so that there is no second runtime beside torch's.
#pragma once

#include <cstdint>

namespace paw {

// Runs task(context, i) for i in [0, count) on up to `threads` threads, the caller among them. Any thread may take any
// i: a task must depend on i alone. Tasks must not throw. Callers from several threads wait for
// one another; a call from inside a task runs on its own thread; after a fork the child starts a pool of its own.
void parallel_for(int64_t count, int threads, void (*task)(void* context, int64_t i), void* context);

}  // namespace paw
