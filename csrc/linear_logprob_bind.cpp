// SPDX-License-Identifier: Apache-2.0
#include "bind.h"

RZERO_KERNEL(logprob_forward, int code, int64_t T, int64_t V, const void* logits, const int64_t* target,
             float temperature, float* logp, float* entropy, float* top, double* mass)
RZERO_KERNEL(logprob_backward, int code, int64_t T, int64_t V, int64_t first, void* logits, const int64_t* target,
             float temperature, const float* top, const double* mass, const float* grad_logp)

namespace rzero {
namespace {

void forward(int code, int64_t T, int64_t V, Address logits, Address target, float temperature, Address logp,
             Address entropy, Address top, Address mass) {
  RZERO_CALL(logprob_forward, code, T, V, at(logits), at<int64_t>(target), temperature, at<float>(logp),
             at<float>(entropy), at<float>(top), at<double>(mass));
}

void backward(int code, int64_t T, int64_t V, int64_t first, Address logits, Address target, float temperature,
              Address top, Address mass, Address grad_logp) {
  RZERO_CALL(logprob_backward, code, T, V, first, at(logits), at<int64_t>(target), temperature, at<float>(top),
             at<double>(mass), at<float>(grad_logp));
}

}  // namespace

void bind_linear_logprob(pybind11::module_& m) {
  m.def("logprob_forward", &forward, ReleaseGil());
  m.def("logprob_backward", &backward, ReleaseGil());
}

}  // namespace rzero
