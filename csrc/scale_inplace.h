// Multiplies a matrix by one number in place; the backward of the loss for an upstream gradient that is not 1. On CUDA
// the number is read on the device and a 1 ends the kernel at once, so that nothing waits for the host.
#pragma once

#include <stdint.h>

#include "common/check.h"
#include "common/dtype.h"
#include "common/fields.h"

namespace paw {

struct ScaleInplaceArgs {
  void* matrix;  // [rows, columns], row stride in elements
  DType dtype;
  int64_t rows, columns, stride;
  const float* factor;  // [1]

  PAW_FIELDS(matrix, dtype, rows, columns, stride, factor)
  void check() const { check_matrix(matrix, rows, columns, stride, columns); }
};

}  // namespace paw
