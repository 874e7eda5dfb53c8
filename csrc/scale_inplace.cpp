#include "scale_inplace.h"

#include "common/parallel.h"
#include "common/vec.h"

namespace paw {
namespace PAW_ISA {
namespace {

template <typename T>
void scale_row(const ScaleInplaceArgs& a, int64_t row) {
  T* x = (T*)a.matrix + row * a.stride;
  const float factor = *a.factor;
  int64_t i = 0;
  for (; i + kWidth <= a.columns; i += kWidth) store(x + i, load(x + i) * factor);
  for (; i < a.columns; ++i) store_one(x + i, load_one(x + i) * factor);
}

void one_row(const ScaleInplaceArgs& a, int64_t row) {
  switch (a.dtype) {
    case DType::kF32:
      return scale_row<float>(a, row);
    case DType::kBF16:
      return scale_row<BF16>(a, row);
    case DType::kF16:
      return scale_row<F16>(a, row);
  }
}

}  // namespace

void scale_inplace(const ScaleInplaceArgs& a, int threads) {
  if (*a.factor == 1.0f) return;
  for_each_row<ScaleInplaceArgs, one_row>(a, a.rows, threads);
}

}  // namespace PAW_ISA
}  // namespace paw
