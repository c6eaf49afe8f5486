// SPDX-License-Identifier: Apache-2.0
// silu(gate) * up, forward and backward. See kernels/swiglu.py for the contract.
#include "vec.h"

namespace rzero {
namespace RZERO_ISA {
namespace {

constexpr int64_t kSerialElements = 8192;  // below this, waking the other threads costs more than they save

// 1 / (1 + exp(-x)) with an exponential that cannot overflow.
RZERO_INLINE Vec sigmoid(Vec x) {
  const Vec e = exp(x < Vec{} ? x : -x);
  return (x < Vec{} ? e : splat(1.f)) / (e + 1.f);
}

template <class S>
void forward(int64_t T, int64_t F, const S* x, int64_t stride, S* y) {
#pragma omp parallel for schedule(static) if (T * F > kSerialElements)
  for (int64_t t = 0; t < T; ++t)
    for (int64_t i = 0; i < F; i += kWidth) {
      const Vec gate = load(x + t * stride + i, F - i), up = load(x + t * stride + F + i, F - i);
      store(y + t * F + i, gate * sigmoid(gate) * up, F - i);
    }
}

// d silu(x) / dx = s + x s (1 - s) with s = sigmoid(x)
template <class S>
void backward(int64_t T, int64_t F, const S* x, int64_t stride, const S* grad_y, S* grad_x) {
#pragma omp parallel for schedule(static) if (T * F > kSerialElements)
  for (int64_t t = 0; t < T; ++t)
    for (int64_t i = 0; i < F; i += kWidth) {
      const Vec gate = load(x + t * stride + i, F - i), up = load(x + t * stride + F + i, F - i);
      const Vec dy = load(grad_y + t * F + i, F - i), s = sigmoid(gate);
      store(grad_x + t * 2 * F + i, dy * up * (s + gate * s * (splat(1.f) - s)), F - i);
      store(grad_x + t * 2 * F + F + i, dy * (gate * s), F - i);
    }
}

}  // namespace

void swiglu_forward(int code, int64_t T, int64_t F, const void* x, int64_t stride, void* y) {
  by_type(code, [&](auto zero) {
    using S = decltype(zero);
    forward(T, F, (const S*)x, stride, (S*)y);
  });
}

void swiglu_backward(int code, int64_t T, int64_t F, const void* x, int64_t stride, const void* grad_y, void* grad_x) {
  by_type(code, [&](auto zero) {
    using S = decltype(zero);
    backward(T, F, (const S*)x, stride, (const S*)grad_y, (S*)grad_x);
  });
}

}  // namespace RZERO_ISA
}  // namespace rzero
