// SPDX-License-Identifier: Apache-2.0
#include "bind.h"

RZERO_KERNEL(rmsnorm_forward, int code, int64_t T, int64_t D, float eps, const void* x, int64_t x_stride,
             const void* residual, int64_t residual_stride, const void* w, void* y, void* sum, float* rstd)
RZERO_KERNEL(rmsnorm_backward, int code, int64_t T, int64_t D, const void* x, int64_t x_stride, const void* w,
             const float* rstd, const void* grad_y, const void* extra, void* grad_x, void* grad_w)

namespace rzero {
namespace {

void forward(int code, int64_t T, int64_t D, float eps, Address x, int64_t x_stride, Address residual,
             int64_t residual_stride, Address w, Address y, Address sum, Address rstd) {
  RZERO_CALL(rmsnorm_forward, code, T, D, eps, at(x), x_stride, at(residual), residual_stride, at(w), at(y), at(sum),
             at<float>(rstd));
}

void backward(int code, int64_t T, int64_t D, Address x, int64_t x_stride, Address w, Address rstd, Address grad_y,
              Address extra, Address grad_x, Address grad_w) {
  RZERO_CALL(rmsnorm_backward, code, T, D, at(x), x_stride, at(w), at<float>(rstd), at(grad_y), at(extra), at(grad_x),
             at(grad_w));
}

}  // namespace

void bind_rmsnorm(pybind11::module_& m) {
  m.def("rmsnorm_forward", &forward, ReleaseGil());
  m.def("rmsnorm_backward", &backward, ReleaseGil());
}

}  // namespace rzero
