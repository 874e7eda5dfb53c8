// Versions of CUDA, as it counts them itself: 1000 * major + 10 * minor.
#pragma once

namespace paw {

struct CudaVersions {
  int runtime;  // that the kernels were built with
  int driver;   // the newest that the driver supports; 0: there is no driver
};

CudaVersions cuda_versions();  // in cuda_versions.cu

}  // namespace paw
