#include "common/cuda_versions.h"
#include "common/device.cuh"

namespace paw {

CudaVersions cuda_versions() {
  return CudaVersions{runtime_version(), driver_version()};
}

}  // namespace paw
