#include "cpu_dispatch.h"

#include <atomic>

#include "common/check.h"
#include "common/thread_pool.h"

namespace paw {

#define PAW_DECLARE(isa)                                                                \
  namespace isa {                                                                       \
  void token_logprobs_row(const TokenLogprobsArgs& args, int64_t row);                  \
  void token_logprobs_backward_row(const TokenLogprobsBackwardArgs& args, int64_t row); \
  void paw_loss_row(const PawLossArgs& args, int64_t row);                              \
  void scale_inplace_row(const ScaleInplaceArgs& args, int64_t row);                    \
  }
#define PAW_TABLE(isa) \
  {#isa, isa::token_logprobs_row, isa::token_logprobs_backward_row, isa::paw_loss_row, isa::scale_inplace_row}

PAW_DECLARE(portable)
#if PAW_HAVE_avx2
PAW_DECLARE(avx2)
#endif
#if PAW_HAVE_avx512
PAW_DECLARE(avx512)
#endif

namespace {

struct Kernels {
  const char* name;
  void (*token_logprobs)(const TokenLogprobsArgs&, int64_t);
  void (*token_logprobs_backward)(const TokenLogprobsBackwardArgs&, int64_t);
  void (*paw_loss)(const PawLossArgs&, int64_t);
  void (*scale_inplace)(const ScaleInplaceArgs&, int64_t);
};

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
      found.push_back(PAW_TABLE(avx512));
    }
#endif
    if (avx2) found.push_back(PAW_TABLE(avx2));
#endif
    found.push_back(PAW_TABLE(portable));
    return found;
  }();
  return kernels;
}

std::atomic<const Kernels*> chosen{nullptr};

const Kernels& kernels() {
  const Kernels* k = chosen.load();
  return k ? *k : runnable().front();
}

template <typename Args>
void over_rows(void (*row_kernel)(const Args&, int64_t), const Args& args, int threads) {
  struct Context {
    void (*row_kernel)(const Args&, int64_t);
    const Args* args;
  } context{row_kernel, &args};
  parallel_for(
      args.rows, threads,
      [](void* c, int64_t row) { static_cast<Context*>(c)->row_kernel(*static_cast<Context*>(c)->args, row); },
      &context);
}

}  // namespace

std::vector<std::string> cpu_isas() {
  std::vector<std::string> names;
  for (const Kernels& k : runnable()) names.emplace_back(k.name);
  return names;
}

std::string cpu_isa() {
  return kernels().name;
}

void use_cpu_isa(const std::string& isa) {
  for (const Kernels& k : runnable()) {
    if (isa == k.name) {
      chosen = &k;
      return;
    }
  }
  check(false, "this machine cannot run the '" + isa + "' kernels");
}

void token_logprobs_cpu(const TokenLogprobsArgs& args, int threads) {
  check_matrix(args.logits, args.rows, args.vocab, args.stride, args.map.valid_vocab);
  over_rows(kernels().token_logprobs, args, threads);
}

void token_logprobs_backward_cpu(const TokenLogprobsBackwardArgs& args, int threads) {
  check_matrix(args.logits, args.rows, args.vocab, args.stride, args.map.valid_vocab);
  check_matrix(args.grad, args.rows, args.vocab, args.grad_stride, args.map.valid_vocab);
  over_rows(kernels().token_logprobs_backward, args, threads);
}

void paw_loss_cpu(const PawLossArgs& args, int threads) {
  check_matrix(args.logits, args.rows, args.vocab, args.stride, args.map.valid_vocab);
  over_rows(kernels().paw_loss, args, threads);
}

void scale_inplace_cpu(const ScaleInplaceArgs& args, int threads) {
  check_matrix(args.matrix, args.rows, args.columns, args.stride, args.columns);
  if (*args.factor == 1.0f) return;
  over_rows(kernels().scale_inplace, args, threads);
}

}  // namespace paw
