#include "common/cpu_dispatch.h"

#include <atomic>

#include "common/check.h"
#include "ops.h"

namespace paw {

namespace {

struct Kernels {
  const char* isa;
#define PAW_SLOT(name, Args) void (*name)(const Args&, int threads);
  PAW_OPS(PAW_SLOT)
#undef PAW_SLOT
};

}  // namespace

#define PAW_DECLARE(name, Args) void name(const Args& args, int threads);
#define PAW_ENTRY(name, Args) name,
#define PAW_KERNELS_OF(isa)                                \
  namespace isa {                                          \
  PAW_OPS(PAW_DECLARE)                                     \
  static const Kernels kKernels{#isa, PAW_OPS(PAW_ENTRY)}; \
  }
PAW_KERNELS_OF(portable)
#if PAW_HAVE_avx2
PAW_KERNELS_OF(avx2)
#endif
#if PAW_HAVE_avx512
PAW_KERNELS_OF(avx512)
#endif

namespace {

// __builtin_cpu_supports asks CPUID, and XGETBV whether the operating system saves the wide registers.
const std::vector<Kernels>& runnable() {
  static const std::vector<Kernels> kernels = [] {
    std::vector<Kernels> found;
#if PAW_HAVE_avx2
    __builtin_cpu_init();
    // Every processor with AVX2 also has F16C, which older compilers cannot ask for by name.
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#if PAW_HAVE_avx512
    if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
      found.push_back(avx512::kKernels);
    }
#endif
    if (avx2) found.push_back(avx2::kKernels);
#endif
    found.push_back(portable::kKernels);
    return found;
  }();
  return kernels;
}

std::atomic<const Kernels*> chosen{nullptr};

const Kernels& kernels() {
  const Kernels* k = chosen.load();
  return k ? *k : runnable().front();
}

}  // namespace

std::vector<std::string> cpu_isas() {
  std::vector<std::string> names;
  for (const Kernels& k : runnable()) names.emplace_back(k.isa);
  return names;
}

std::string cpu_isa() {
  return kernels().isa;
}

void use_cpu_isa(const std::string& isa) {
  for (const Kernels& k : runnable()) {
    if (isa == k.isa) {
      chosen = &k;
      return;
    }
  }
  check(false, "this machine cannot run the '" + isa + "' kernels");
}

#define PAW_DEFINE(name, Args)                     \
  void name##_cpu(const Args& args, int threads) { \
    args.check();                                  \
    kernels().name(args, threads);                 \
  }
PAW_OPS(PAW_DEFINE)
#undef PAW_DEFINE

}  // namespace paw
