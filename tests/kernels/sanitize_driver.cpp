// Calls every CPU kernel on buffers that end exactly where their data does, for a build with sanitizers, and the CUDA
// kernels too where they are built for the emulator (then the thread sanitizer finds what a missing barrier would do):
//   cmake -S . -B build/sanitize -DPAW_FAST_SANITIZE=address,undefined && cmake --build build/sanitize
//   build/sanitize/paw_sanitize
//   cmake -S . -B build/threads -DPAW_FAST_SANITIZE=thread -DPAW_FAST_EMULATE=ON && cmake --build build/threads
// The numbers are checked only for sanity (every row of a gradient sums to about zero); the tests in Python do the
// rest.
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <thread>
#include <vector>

#include "common/cpu_dispatch.h"
#include "ops.h"

namespace {

// The CPU kernels, or the CUDA kernels on the emulator.
struct Ops {
#define PAW_SLOT(name, Args) void (*name)(const paw::Args&);
  PAW_OPS(PAW_SLOT)
};
#define PAW_ON_CPU(name, Args) [](const paw::Args& a) { paw::name##_cpu(a, 3); },
const Ops kCpu{PAW_OPS(PAW_ON_CPU)};
#ifdef PAW_EMULATE
#define PAW_ON_EMULATOR(name, Args) [](const paw::Args& a) { paw::name##_cuda(a, nullptr); },
const Ops kEmulated{PAW_OPS(PAW_ON_EMULATOR)};
#endif

size_t size_of(paw::DType dtype) {
  return dtype == paw::DType::kF32 ? 4 : 2;
}

// Small values that are exact in all three formats.
void put(char* p, paw::DType dtype, float value) {
  uint32_t bits;
  memcpy(&bits, &value, 4);
  if (dtype == paw::DType::kF32) {
    memcpy(p, &bits, 4);
    return;
  }
  uint16_t half = static_cast<uint16_t>(bits >> 16);
  if (dtype == paw::DType::kF16) {
    half = value == 0.0f ? 0
                         : static_cast<uint16_t>(((bits >> 16) & 0x8000u) | ((((bits >> 23) & 0xffu) - 112u) << 10) |
                                                 ((bits >> 13) & 0x3ffu));
  }
  memcpy(p, &half, 2);
}

int failures = 0;

void expect(bool ok, const char* what) {
  if (!ok) {
    std::printf("FAILED: %s\n", what);
    ++failures;
  }
}

void one_case(const Ops& ops, paw::DType dtype, int64_t rows, int64_t vocab, int64_t padding, int64_t gap,
              float softcap) {
  const int64_t width = vocab + padding, stride = width + gap;
  const size_t bytes = (static_cast<size_t>(rows - 1) * stride + width) * size_of(dtype);
  std::unique_ptr<char[]> logits(new char[bytes]), copy(new char[bytes]);
  memset(logits.get(), 0x7f, bytes);
  std::vector<int64_t> targets(rows);
  std::vector<uint8_t> kinds(rows), flags(rows);
  std::vector<float> ones(rows, 1.0f), old(rows, -1.0f), logprobs(rows), entropies(rows), lse(rows), losses(rows),
      kl(rows);
  for (int64_t r = 0; r < rows; ++r) {
    targets[r] = (r * 7919 + vocab - 1) % vocab;
    kinds[r] = static_cast<uint8_t>(r % 3);
    for (int64_t k = 0; k < width; ++k) {
      put(logits.get() + (r * stride + k) * size_of(dtype), dtype, static_cast<float>((r * 31 + k * 17) % 13 - 6) / 2);
    }
  }
  memcpy(copy.get(), logits.get(), bytes);
  const paw::LogitMap map{1.25f, softcap, vocab};
  const paw::TokenLogprobsArgs forward{copy.get(),       dtype,          rows, vocab + padding,
                                       stride,           targets.data(), map,  logprobs.data(),
                                       entropies.data(), lse.data()};
  ops.token_logprobs(forward);
  for (float h : entropies) expect(h >= -1e-5f && h <= std::log(static_cast<float>(vocab)) + 1e-3f, "entropy range");
  const paw::TokenLogprobsBackwardArgs backward{
      copy.get(),      copy.get(),       dtype,      rows,        width,       stride, stride, targets.data(), map,
      logprobs.data(), entropies.data(), lse.data(), ones.data(), ones.data(), nullptr};
  ops.token_logprobs_backward(backward);
  if (dtype == paw::DType::kF32 && softcap == 0.0f) {
    for (int64_t r = 0; r < rows; ++r) {
      double sum = 0.0;
      for (int64_t k = 0; k < width; ++k) {
        float g;
        memcpy(&g, copy.get() + (r * stride + k) * 4, 4);
        sum += g;
      }
      expect(std::fabs(sum) < 1e-4, "a gradient row sums to zero");
    }
  }
  const paw::PawLossSettings settings{0.2f, 0.2f, 3.0f, 0.1f, 0.05f, 0.01f, 0.2f, 1.0f, paw::WmLoss::kCmae, 1.0f};
  const paw::PawLossArgs loss{
      logits.get(),     dtype,       rows,        width,      stride,      map,         settings,      targets.data(),
      kinds.data(),     ones.data(), old.data(),  old.data(), ones.data(), ones.data(), losses.data(), logprobs.data(),
      entropies.data(), kl.data(),   flags.data()};
  ops.paw_loss(loss);
  for (float l : losses) expect(std::isfinite(l), "losses are finite");
  const float half = 0.5f;
  ops.scale_inplace(paw::ScaleInplaceArgs{logits.get(), dtype, rows, width, stride, &half});
}

// `num` transitions of 0 to 3 tokens, with many ties, some of them no candidates.
void selection_case(const Ops& ops, bool wide, int64_t num, double alpha, bool lowest, bool masked) {
  std::vector<int64_t> offsets(num + 1, 0);
  for (int64_t i = 0; i < num; ++i) offsets[i + 1] = offsets[i] + (i * 7 + 3) % 4;
  const int64_t tokens = offsets[num];
  const size_t size = wide ? 8 : 4;
  std::unique_ptr<char[]> entropies(new char[tokens * size]), means(new char[num * size]);
  for (int64_t k = 0; k < tokens; ++k) {
    const double value = static_cast<double>(k * 31 % 5) / 2;
    const float narrow = static_cast<float>(value);
    memcpy(entropies.get() + k * size, wide ? static_cast<const void*>(&value) : &narrow, size);
  }
  std::vector<float> lambdas(num, 0.5f), weights(tokens);
  std::unique_ptr<uint8_t[]> candidates(new uint8_t[num]), selected(new uint8_t[num]);
  int64_t among = 0, taken = 0, num_wm_tokens = -1, expected = 0;
  for (int64_t i = 0; i < num; ++i) among += candidates[i] = !masked || i % 3 != 0;
  std::vector<uint32_t> workspace(paw::kWorkspaceWords, 0xffffffffu);
  ops.select_transitions(paw::SelectTransitionsArgs{
      entropies.get(), wide, lowest, alpha, num, tokens, tokens, offsets.data(), offsets.data(), lambdas.data(), nullptr,
      masked ? candidates.get() : nullptr, means.get(), selected.get(), weights.data(), &num_wm_tokens,
      workspace.data(), paw::kWorkspaceWords});
  for (int64_t i = 0; i < num; ++i) {
    taken += selected[i];
    if (selected[i]) expected += offsets[i + 1] - offsets[i];
    expect(!selected[i] || candidates[i] != 0, "only candidates are selected");
  }
  expect(taken == paw::share_of(alpha, among), "as many transitions as asked for");
  expect(num_wm_tokens == expected, "the selected transitions' tokens are counted");
}

}  // namespace

int main() {
  setvbuf(stdout, nullptr, _IOLBF, 0);
  for (const std::string& isa : paw::cpu_isas()) {
    paw::use_cpu_isa(isa);
    for (paw::DType dtype : {paw::DType::kF32, paw::DType::kBF16, paw::DType::kF16}) {
      for (int64_t vocab : {1, 2, 3, 7, 8, 9, 15, 16, 17, 31, 33, 63, 65, 2047, 2048, 2049, 2063, 4100}) {
        for (int64_t padding : {0, 5}) {
          for (float softcap : {0.0f, 4.0f}) one_case(kCpu, dtype, 5, vocab, padding, padding / 2, softcap);
        }
      }
    }
    for (int64_t num : {1, 2, 10, 8191, 8192, 8193, 40000}) {
      for (bool wide : {false, true}) {
        for (double alpha : {0.01, 0.75, 1.0}) selection_case(kCpu, wide, num, alpha, wide, num % 2 == 0);
      }
    }
    std::printf("%s: done\n", isa.c_str());
  }
  // Two callers at once share the pool.
  std::thread other([] { one_case(kCpu, paw::DType::kF32, 64, 513, 0, 0, 0.0f); });
  one_case(kCpu, paw::DType::kBF16, 64, 513, 0, 0, 0.0f);
  other.join();
#ifdef PAW_EMULATE
  // Every launch starts a thread of the CPU for each of a cluster's, so few cases: rows that are and are not aligned,
  // with a tail and padding, over several blocks and chunks.
  const char* routes[][2] = {{"plain", ""}, {"cluster", "1"}, {"cluster", "2"}};
  for (const auto& route : routes) {
    setenv("PAW_FAST_CUDA_PATH", route[0], 1);
    setenv("PAW_FAST_CUDA_CLUSTER", route[1], 1);
    one_case(kEmulated, paw::DType::kF32, 3, 7, 2, 0, 0.0f);
    one_case(kEmulated, paw::DType::kBF16, 3, 4101, 5, 2, 0.0f);
    one_case(kEmulated, paw::DType::kF32, 3, 8200, 0, 0, 4.0f);
    std::printf("emulated %s %s: done\n", route[0], route[1]);
  }
  one_case(kEmulated, paw::DType::kBF16, 2, 33000, 0, 0, 0.0f);
  for (int64_t num : {1, 300, 513, 1300}) {
    selection_case(kEmulated, num % 2 == 0, num, 0.6, num > 400, num > 1);
  }
  std::printf("emulated selection: done\n");
#endif
  return failures == 0 ? 0 : 1;
}
