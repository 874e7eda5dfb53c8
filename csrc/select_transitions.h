// Selects the transitions the world-model loss learns from, and weighs their observation tokens.
//
//   mean_i     mean entropy of the transition's action tokens, summed in double from first to last; 0 where it has none
//   count      max(1, floor(alpha * candidates)), and 0 where nothing is a candidate
//   selected   the `count` candidates of the highest means (or scores), or of the lowest; of equal ones the first
//   weight     lambda_i / N_WM on the observation tokens of selected transitions, else 0; N_WM is the number of those
//
// The selection is exact, by radix: a value becomes an integer key of the same order (NaN the highest), and each pass
// counts the next digit of the keys that still agree with the cut, the key down to which everything is selected. Where
// several have the cut's key and not all fit, four more passes find the index up to which they do. Counts are integers,
// so their order does not matter: the result is the same on every device, to the bit.
#pragma once

#include <stdint.h>
#include <string.h>

#include "common/check.h"
#include "common/fields.h"
#include "common/host_device.h"

namespace paw {

constexpr int kDigits = 256;  // values of a digit, 8 bits
constexpr int kMaxPasses = 8 + 4;
constexpr int64_t kWorkspaceWords = kDigits * kMaxPasses;

struct SelectTransitionsArgs {
  const void* entropies;  // [num_action_tokens], doubles where `wide`, else floats
  bool wide;
  bool lowest;
  double alpha;
  int64_t num_transitions, num_action_tokens, num_observation_tokens;
  const int64_t* action_offsets;       // [num_transitions + 1]; what lies outside the tokens is left out
  const int64_t* observation_offsets;  // [num_transitions + 1], likewise
  const float* lambdas;                // [num_transitions]
  const void* scores;                  // [num_transitions] like entropies: ranked in place of the means; or null
  const uint8_t* candidates;           // [num_transitions], 0 or 1; or null: every transition is one
  void* means;                         // [num_transitions] like entropies
  uint8_t* selected;                   // [num_transitions], 0 or 1
  float* weights;                      // [num_observation_tokens]
  int64_t* num_wm_tokens;              // [1], N_WM
  uint32_t* workspace;                 // [workspace_words], free on entry; used on CUDA
  int64_t workspace_words;

  PAW_FIELDS(entropies, wide, lowest, alpha, num_transitions, num_action_tokens, num_observation_tokens, action_offsets,
             observation_offsets, lambdas, scores, candidates, means, selected, weights, num_wm_tokens, workspace,
             workspace_words)
  void check() const {
    paw::check(num_transitions > 0 && num_transitions < (int64_t{1} << 31),
               "got " + std::to_string(num_transitions) + " transitions, expected 1 to 2^31 - 1");
    paw::check(num_action_tokens >= 0 && num_observation_tokens >= 0, "got a negative number of tokens");
    paw::check(alpha > 0.0 && alpha <= 1.0, "alpha is outside (0, 1]");
    paw::check(action_offsets && observation_offsets && lambdas && means && selected && num_wm_tokens && workspace &&
                   (entropies || num_action_tokens == 0) && (weights || num_observation_tokens == 0),
               "got a null pointer");
    paw::check(workspace_words == kWorkspaceWords, "the workspace has " + std::to_string(workspace_words) + " words");
  }
};

// As Python computes max(1, floor(alpha * n + 1e-9)): two roundings, which a fused multiply-add would not give.
PAW_HOST_DEVICE int64_t share_of(double alpha, int64_t n) {
  if (n == 0) return 0;
#ifdef __CUDA_ARCH__
  const double share = __dadd_rn(__dmul_rn(alpha, static_cast<double>(n)), 1e-9);
#else
  const volatile double product = alpha * static_cast<double>(n);
  const double share = product + 1e-9;
#endif
  const int64_t count = static_cast<int64_t>(share);
  return count < 1 ? 1 : (count < n ? count : n);
}

struct Segment {
  int64_t begin, end;
};

// Tokens of transition i, none of them outside [0, total).
PAW_HOST_DEVICE Segment segment_of(const int64_t* offsets, int64_t i, int64_t total) {
  const int64_t low = offsets[i] > 0 ? offsets[i] : 0, high = offsets[i + 1] < total ? offsets[i + 1] : total;
  return Segment{low, high > low ? high : low};
}

template <typename T>
PAW_HOST_DEVICE T mean_entropy(const SelectTransitionsArgs& a, int64_t i) {
  const T* entropies = static_cast<const T*>(a.entropies);
  const Segment tokens = segment_of(a.action_offsets, i, a.num_action_tokens);
  double sum = 0.0;
  for (int64_t k = tokens.begin; k < tokens.end; ++k) sum += static_cast<double>(entropies[k]);
  return tokens.end > tokens.begin ? static_cast<T>(sum / static_cast<double>(tokens.end - tokens.begin)) : T(0);
}

template <typename T>
struct KeyType {
  using type = uint32_t;
};
template <>
struct KeyType<double> {
  using type = uint64_t;
};

// Larger where `x` is to be selected first. Equal numbers (0 and -0 too) have equal keys.
template <typename T>
PAW_HOST_DEVICE typename KeyType<T>::type key_of(T x, bool lowest) {
  using Key = typename KeyType<T>::type;
  constexpr Key kSign = Key(1) << (8 * sizeof(Key) - 1);
  Key bits;
  x += T(0);  // -0 becomes 0
  memcpy(&bits, &x, sizeof bits);
  Key key = bits & kSign ? ~bits : bits | kSign;
  if (x != x) key = ~Key(0);
  return lowest ? ~key : key;
}

// What has been found of the cut. Passes look at the digits of the key, highest first, then at those of ~index.
template <typename Key>
struct Cut {
  static constexpr int kKeyPasses = sizeof(Key), kPasses = kKeyPasses + 4;
  Key key;
  uint32_t tie;  // of those with just this key, those are selected whose ~index is at least this

  PAW_HOST_DEVICE_MEMBER bool selects(Key k, uint32_t index) const { return k > key || (k == key && ~index >= tie); }

  // The digit that this transition adds to the counts of a pass; -1 where it disagrees with what has been found.
  PAW_HOST_DEVICE_MEMBER int digit(int pass, Key k, uint32_t index) const {
    if (pass < kKeyPasses) {
      const int shift = 8 * (kKeyPasses - 1 - pass);
      const bool agrees = pass == 0 || (k >> (shift + 8)) == (key >> (shift + 8));
      return agrees ? static_cast<int>((k >> shift) & 255) : -1;
    }
    const int shift = 8 * (kPasses - 1 - pass);
    const bool agrees = k == key && (pass == kKeyPasses || (~index >> (shift + 8)) == (tie >> (shift + 8)));
    return agrees ? static_cast<int>((~index >> shift) & 255) : -1;
  }

  PAW_HOST_DEVICE_MEMBER void fix(int pass, int digit) {
    if (pass < kKeyPasses) {
      key |= static_cast<Key>(digit) << (8 * (kKeyPasses - 1 - pass));
    } else {
      tie |= static_cast<uint32_t>(digit) << (8 * (kPasses - 1 - pass));
    }
  }
};

}  // namespace paw
