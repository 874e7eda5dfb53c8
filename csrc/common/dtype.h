// Element types of the logits, and the 16-bit formats on a host without native support for them.
#pragma once

#include <stdint.h>
#include <string.h>

namespace paw {

enum class DType : int32_t { kF32 = 0, kBF16 = 1, kF16 = 2 };

struct BF16 {
  uint16_t bits;
};
struct F16 {
  uint16_t bits;
};

}  // namespace paw
