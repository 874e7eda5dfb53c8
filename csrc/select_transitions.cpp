#include "select_transitions.h"

#include "common/thread_pool.h"

namespace paw {
namespace PAW_ISA {
namespace {

constexpr int64_t kChunk = 8192;  // transitions a task

template <typename T>
struct Run {
  using Key = typename KeyType<T>::type;
  const SelectTransitionsArgs& a;
  const T* ranked;
  Cut<Key> cut{0, 0};
  int pass = 0;
  uint32_t counts[kDigits] = {};
  int64_t num_wm_tokens = 0;

  // Calls (this->*kTask)(begin, end) for chunks of the transitions.
  template <void (Run::*kTask)(int64_t, int64_t)>
  void over_chunks(int threads) {
    const auto task = [](void* context, int64_t chunk) {
      Run& run = *static_cast<Run*>(context);
      const int64_t begin = chunk * kChunk, left = run.a.num_transitions - begin;
      (run.*kTask)(begin, begin + (left < kChunk ? left : kChunk));
    };
    parallel_for((a.num_transitions + kChunk - 1) / kChunk, threads, task, this);
  }

  Key key(int64_t i) const { return key_of<T>(ranked[i], a.lowest); }
  bool is_candidate(int64_t i) const { return a.candidates == nullptr || a.candidates[i] != 0; }

  void compute_means(int64_t begin, int64_t end) {
    T* means = static_cast<T*>(a.means);
    for (int64_t i = begin; i < end; ++i) means[i] = mean_entropy<T>(a, i);
  }

  void count_digits(int64_t begin, int64_t end) {
    uint32_t mine[kDigits] = {};
    for (int64_t i = begin; i < end; ++i) {
      const int digit = is_candidate(i) ? cut.digit(pass, key(i), static_cast<uint32_t>(i)) : -1;
      if (digit >= 0) ++mine[digit];
    }
    for (int d = 0; d < kDigits; ++d) {
      if (mine[d] != 0) __atomic_fetch_add(&counts[d], mine[d], __ATOMIC_RELAXED);
    }
  }

  void find_cut(int threads) {
    int64_t left = 0, equal = 0;  // still to be selected, of those that agree with the cut so far
    for (pass = 0; pass < Cut<Key>::kPasses; ++pass) {
      memset(counts, 0, sizeof counts);
      over_chunks<&Run::count_digits>(threads);
      if (pass == 0) {
        for (uint32_t count : counts) equal += count;
        left = share_of(a.alpha, equal);
      }
      if (left == equal) return;
      int digit = kDigits - 1;
      for (; counts[digit] < left; --digit) left -= counts[digit];
      cut.fix(pass, digit);
      equal = counts[digit];
      if (left == equal) return;
    }
  }

  void mark_selected(int64_t begin, int64_t end) {
    int64_t tokens = 0;
    for (int64_t i = begin; i < end; ++i) {
      const bool taken = is_candidate(i) && cut.selects(key(i), static_cast<uint32_t>(i));
      a.selected[i] = taken;
      const Segment observed = segment_of(a.observation_offsets, i, a.num_observation_tokens);
      if (taken) tokens += observed.end - observed.begin;
    }
    __atomic_fetch_add(&num_wm_tokens, tokens, __ATOMIC_RELAXED);
  }

  void write_weights(int64_t begin, int64_t end) {
    const float divisor = static_cast<float>(num_wm_tokens > 1 ? num_wm_tokens : 1);
    for (int64_t i = begin; i < end; ++i) {
      const Segment observed = segment_of(a.observation_offsets, i, a.num_observation_tokens);
      const float weight = a.selected[i] ? a.lambdas[i] / divisor : 0.0f;
      for (int64_t k = observed.begin; k < observed.end; ++k) a.weights[k] = weight;
    }
  }

  void operator()(int threads) {
    over_chunks<&Run::compute_means>(threads);
    find_cut(threads);
    over_chunks<&Run::mark_selected>(threads);
    *a.num_wm_tokens = num_wm_tokens;
    const int64_t first = segment_of(a.observation_offsets, 0, a.num_observation_tokens).begin;
    const int64_t last = segment_of(a.observation_offsets, a.num_transitions - 1, a.num_observation_tokens).end;
    for (int64_t k = 0; k < first && k < a.num_observation_tokens; ++k) a.weights[k] = 0.0f;
    for (int64_t k = last; k < a.num_observation_tokens; ++k) a.weights[k] = 0.0f;
    over_chunks<&Run::write_weights>(threads);
  }
};

template <typename T>
void run(const SelectTransitionsArgs& a, int threads) {
  Run<T>{a, static_cast<const T*>(a.scores ? a.scores : a.means)}(threads);
}

}  // namespace

void select_transitions(const SelectTransitionsArgs& a, int threads) {
  return a.wide ? run<double>(a, threads) : run<float>(a, threads);
}

}  // namespace PAW_ISA
}  // namespace paw
