// The CPU side of every op: picks the instruction set once, by CPUID, and spreads the rows over the threads. A row is
// computed by one thread, so its bits depend neither on the batch nor on the number of threads.
#pragma once

#include <string>
#include <vector>

#include "paw_loss.h"
#include "scale_inplace.h"
#include "token_logprobs.h"

namespace paw {

std::vector<std::string> cpu_isas();       // those this machine can run, best first
std::string cpu_isa();                     // the one in use
void use_cpu_isa(const std::string& isa);  // for tests; throws where the machine cannot run it

void token_logprobs_cpu(const TokenLogprobsArgs& args, int threads);
void token_logprobs_backward_cpu(const TokenLogprobsBackwardArgs& args, int threads);
void paw_loss_cpu(const PawLossArgs& args, int threads);
void scale_inplace_cpu(const ScaleInplaceArgs& args, int threads);

}  // namespace paw
