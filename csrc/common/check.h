// Argument checks of the C++ entry points. The Python wrappers check arguments too; these checks prevent other callers
// from reading out of bounds. They throw std::invalid_argument, which pybind11 turns into a ValueError.
#pragma once

#include <cstdint>
#include <stdexcept>
#include <string>

namespace paw {

inline void check(bool ok, const std::string& message) {
  if (!ok) throw std::invalid_argument("paw_fast kernels: " + message);
}

inline void check_matrix(const void* data, int64_t rows, int64_t vocab, int64_t stride, int64_t valid_vocab) {
  check(rows >= 0 && vocab > 0, "got a matrix of " + std::to_string(rows) + " x " + std::to_string(vocab));
  check(vocab <= (1 << 30), "a row is longer than 2^30, and positions in it are 32 bits");
  check(rows == 0 || data != nullptr, "got a null pointer for the logits");
  check(rows <= 1 || stride >= vocab,
        "row stride " + std::to_string(stride) + " is less than the vocabulary " + std::to_string(vocab));
  check(valid_vocab > 0 && valid_vocab <= vocab,
        "valid_vocab " + std::to_string(valid_vocab) + " is outside [1, " + std::to_string(vocab) + "]");
}

}  // namespace paw
