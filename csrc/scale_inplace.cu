#include "common/row_cuda.cuh"
#include "scale_inplace.h"

namespace paw {
namespace {

constexpr int kThreads = 512;

template <typename T>
__global__ void __launch_bounds__(kThreads, 2) scale_kernel(const __grid_constant__ ScaleInplaceArgs a) {
  const float factor = *a.factor;
  if (factor == 1.0f) return;
  for (int64_t row = blockIdx.x; row < a.rows; row += gridDim.x) {
    T* x = static_cast<T*>(a.matrix) + row * a.stride;
    const int columns = static_cast<int>(a.columns);
    const auto scale = [&](auto align) {
      for (int start = static_cast<int>(threadIdx.x) * kUnit; start < columns; start += kThreads * kUnit) {
        const int count = left_of(columns, start);
        Unit<T> unit;
        load_unit<decltype(align)::value>(unit, x + start, count);
#pragma unroll
        for (int j = 0; j < kUnit; j += 2) {
          from_floats(to_float(unit.elements[j]) * factor, to_float(unit.elements[j + 1]) * factor, &unit.elements[j]);
        }
        store_unit<decltype(align)::value>(x + start, unit, count);
      }
    };
    with_alignment<T>(scale, x);
  }
}

}  // namespace

void scale_inplace_cuda(const ScaleInplaceArgs& args, void* stream) {
  if (args.rows == 0) return;
  // A bounded grid: the usual factor is 1, and then every block only starts and ends.
  const int64_t blocks = args.rows < 2048 ? args.rows : 2048;
  with_types(args.dtype, false, [&](auto, auto element) {
    launch("scale_inplace", scale_kernel<decltype(element)>, blocks, kThreads, 1, 0, stream, args);
  });
}

}  // namespace paw
