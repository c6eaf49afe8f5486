// SPDX-License-Identifier: Apache-2.0
#include "bind.h"

RZERO_KERNEL(swiglu_forward, int code, int64_t T, int64_t F, const void* x, int64_t stride, void* y)
RZERO_KERNEL(swiglu_backward, int code, int64_t T, int64_t F, const void* x, int64_t stride, const void* grad_y,
             void* grad_x)

namespace rzero {
namespace {

void forward(int code, int64_t T, int64_t F, Address x, int64_t stride, Address y) {
  RZERO_CALL(swiglu_forward, code, T, F, at(x), stride, at(y));
}

void backward(int code, int64_t T, int64_t F, Address x, int64_t stride, Address grad_y, Address grad_x) {
  RZERO_CALL(swiglu_backward, code, T, F, at(x), stride, at(grad_y), at(grad_x));
}

}  // namespace

void bind_swiglu(pybind11::module_& m) {
  m.def("swiglu_forward", &forward, ReleaseGil());
  m.def("swiglu_backward", &backward, ReleaseGil());
}

}  // namespace rzero
