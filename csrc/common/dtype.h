// Element types of the logits, with storage types for the 16-bit formats, which the host may not support natively.
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
