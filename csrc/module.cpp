// SPDX-License-Identifier: Apache-2.0
// rzero._native: chooses the instruction set of this CPU once and lists the ops' bindings.
#include <pybind11/stl.h>

#include <atomic>
#include <stdexcept>
#include <string>
#include <vector>

#include "bind.h"

namespace rzero {

// One per op; add a line here and a call below.
void bind_adamw(pybind11::module_& m);
void bind_attention(pybind11::module_& m);
void bind_bleu(pybind11::module_& m);
void bind_kv_write(pybind11::module_& m);
void bind_linear(pybind11::module_& m);
void bind_linear_logprob(pybind11::module_& m);
void bind_lora(pybind11::module_& m);
void bind_policy_loss(pybind11::module_& m);
void bind_rmsnorm(pybind11::module_& m);
void bind_rope(pybind11::module_& m);
void bind_sample(pybind11::module_& m);
void bind_swiglu(pybind11::module_& m);

namespace {

constexpr const char* kNames[] = {"baseline", "avx2", "avx512", "avx512_bf16"};

std::vector<Isa> usable_isas() {
  std::vector<Isa> usable{Isa::baseline};
#if defined(__x86_64__)
  __builtin_cpu_init();
  if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")) {
    usable.push_back(Isa::avx2);
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl")) {
      usable.push_back(Isa::avx512);
      if (__builtin_cpu_supports("avx512bf16")) usable.push_back(Isa::avx512_bf16);  // every CPU with AMX has it too
    }
  }
#endif
  return usable;
}

std::atomic<Isa> chosen{usable_isas().back()};

std::vector<std::string> instruction_sets() {
  std::vector<std::string> names;
  for (Isa isa : usable_isas()) names.push_back(kNames[int(isa)]);
  return names;
}

void use_instruction_set(const std::string& name) {
  for (Isa isa : usable_isas())
    if (name == kNames[int(isa)]) {
      chosen = isa;
      return;
    }
  throw std::invalid_argument("instruction set " + name + " was not built or this CPU cannot run it");
}

}  // namespace

Isa current_isa() { return chosen.load(std::memory_order_relaxed); }

}  // namespace rzero

PYBIND11_MODULE(_native, m) {
  m.doc() = "Native CPU kernels of rzero; rzero.kernels holds the contracts and checks the arguments.";
  m.def("instruction_set", [] { return rzero::kNames[int(rzero::current_isa())]; }, "The instruction set in use.");
  m.def("instruction_sets", &rzero::instruction_sets, "What was built and can run here, slowest first.");
  m.def("use_instruction_set", &rzero::use_instruction_set, "For tests and benchmarks: applies to the whole process.");
  rzero::bind_adamw(m);
  rzero::bind_attention(m);
  rzero::bind_bleu(m);
  rzero::bind_kv_write(m);
  rzero::bind_linear(m);
  rzero::bind_linear_logprob(m);
  rzero::bind_lora(m);
  rzero::bind_policy_loss(m);
  rzero::bind_rmsnorm(m);
  rzero::bind_rope(m);
  rzero::bind_sample(m);
  rzero::bind_swiglu(m);
}
