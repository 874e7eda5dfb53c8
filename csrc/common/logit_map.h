// How a stored logit becomes the z that enters the softmax: z = softcap * tanh(x / softcap) / temperature.
#pragma once

#include <stdint.h>

#include "common/fields.h"

namespace paw {

struct LogitMap {
  float inv_temperature = 1.0f;
  float softcap = 0.0f;     // 0: none
  int64_t valid_vocab = 0;  // columns from here on are padding: outside the softmax, gradient zero

  PAW_FIELDS(inv_temperature, softcap, valid_vocab)
};

}  // namespace paw
