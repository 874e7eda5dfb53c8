// The table of ops: one row registers an op for every instruction set, for CUDA and the emulator, and for Python.
//
// PAW_OP(name, Args) expects
//   <op>.h    the struct Args: PAW_FIELDS (common/fields.h) names its fields for Python, check() refuses what would
//             leave the buffers
//   <op>.cpp  void PAW_ISA::name(const Args&, int threads), compiled once per instruction set
//   <op>.cu   void name_cuda(const Args&, void* stream): launches on the current device and the given stream, never
//             allocates or synchronises, throws std::runtime_error where a launch is refused
// CMake finds the sources by their endings. docs/howto/add_kernel.md walks through an example.
#pragma once

#include "paw_loss.h"
#include "scale_inplace.h"
#include "select_transitions.h"
#include "token_logprobs.h"

#define PAW_OPS(PAW_OP)                                      \
  PAW_OP(token_logprobs, TokenLogprobsArgs)                  \
  PAW_OP(token_logprobs_backward, TokenLogprobsBackwardArgs) \
  PAW_OP(paw_loss, PawLossArgs)                              \
  PAW_OP(scale_inplace, ScaleInplaceArgs)                    \
  PAW_OP(select_transitions, SelectTransitionsArgs)

namespace paw {

// name_cpu runs on the instruction set that common/cpu_dispatch.h has chosen.
#define PAW_DECLARE(name, Args)                   \
  void name##_cpu(const Args& args, int threads); \
  void name##_cuda(const Args& args, void* stream);
PAW_OPS(PAW_DECLARE)
#undef PAW_DECLARE

}  // namespace paw
