// Chooses the code path of a CUDA op: the one that fits, or the one that the environment asks for.
//   PAW_FAST_CUDA_PATH     auto (the default) | plain (no clusters) | cluster (an error where it is not possible)
//   PAW_FAST_CUDA_CLUSTER  1 | 2 | 4 | 8: blocks per row in paw_loss, for tuning
#pragma once

#include <stdlib.h>

#include <stdexcept>
#include <string>

namespace paw {

enum class CudaPath { kAuto, kPlain, kCluster };

inline CudaPath cuda_path() {
  const char* value = getenv("PAW_FAST_CUDA_PATH");
  const std::string name = value == nullptr ? "" : value;
  if (name.empty() || name == "auto") return CudaPath::kAuto;
  if (name == "plain") return CudaPath::kPlain;
  if (name == "cluster") return CudaPath::kCluster;
  throw std::invalid_argument("PAW_FAST_CUDA_PATH is '" + name + "', expected auto, plain or cluster");
}

inline int cuda_cluster() {
  const char* value = getenv("PAW_FAST_CUDA_CLUSTER");
  const std::string name = value == nullptr ? "" : value;
  if (name.empty()) return 0;
  if (name == "1" || name == "2" || name == "4" || name == "8") return name[0] - '0';
  throw std::invalid_argument("PAW_FAST_CUDA_CLUSTER is '" + name + "', expected 1, 2, 4 or 8");
}

}  // namespace paw
