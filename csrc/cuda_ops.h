// The CUDA side of every op. Launches on the current device and the given stream; never allocates or synchronises.
// Throws std::runtime_error where a launch is refused.
#pragma once

#include "paw_loss.h"
#include "scale_inplace.h"
#include "token_logprobs.h"

namespace paw {

void token_logprobs_cuda(const TokenLogprobsArgs& args, void* stream);
void token_logprobs_backward_cuda(const TokenLogprobsBackwardArgs& args, void* stream);
void paw_loss_cuda(const PawLossArgs& args, void* stream);
void scale_inplace_cuda(const ScaleInplaceArgs& args, void* stream);

}  // namespace paw
