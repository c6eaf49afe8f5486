// SPDX-License-Identifier: Apache-2.0
#include <pybind11/stl.h>

#include <array>

#include "bind.h"

RZERO_KERNEL(adamw, int param_code, int grad_code, int64_t n, void* param, const void* grad, float* exp_avg,
             float* exp_avg_sq, float* master, const float* how)

namespace rzero {
namespace {

void run(int param_code, int grad_code, int64_t n, Address param, Address grad, Address exp_avg, Address exp_avg_sq,
         Address master, std::array<float, 8> how) {
  RZERO_CALL(adamw, param_code, grad_code, n, at(param), at(grad), at<float>(exp_avg), at<float>(exp_avg_sq),
             at<float>(master), how.data());
}

}  // namespace

void bind_adamw(pybind11::module_& m) { m.def("adamw", &run, ReleaseGil()); }

}  // namespace rzero
