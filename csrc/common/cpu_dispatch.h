// Picks the instruction set of the CPU kernels, once, by CPUID. The kernels themselves: csrc/ops.h.
#pragma once

#include <string>
#include <vector>

namespace paw {

std::vector<std::string> cpu_isas();       // those this machine can run, best first
std::string cpu_isa();                     // the one in use
void use_cpu_isa(const std::string& isa);  // for tests; throws where the machine cannot run it

}  // namespace paw
