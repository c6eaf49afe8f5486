// SPDX-License-Identifier: Apache-2.0
// silu(gate) * up, forward and backward. See kernels/swiglu.py for the contract.
#include "vec.h"

namespace rzero {
namespace RZERO_ISA {
namespace {

constexpr int64_t kSerialElements = 8192;  // below this, waking the other threads costs more than they save

// A vector takes so many instructions that only a few fit the reorder buffer, which cannot hide even the second cache.
constexpr int64_t kAhead = 512;  // elements

// 1 / (1 + exp(-x)) with an exponential that cannot overflow.
RZERO_INLINE Vec sigmoid(Vec x) {
  const Vec e = exp((Vec)((BitVec)x | 0x80000000u));  // of -|x|
  return (x < Vec{} ? e : splat(1.f)) / (e + 1.f);
}

template <class S>
void forward(int64_t T, int64_t F, const S* x, int64_t stride, S* y) {
#pragma omp parallel for schedule(static) if (T * F > kSerialElements)
  for (int64_t t = 0; t < T; ++t) {
    const S *gates = x + t * stride, *ups = gates + F;
    const auto product = [](Vec gate, Vec up) { return gate * sigmoid(gate) * up; };
    int64_t i = 0;
    for (; i + kPair <= F; i += kPair) {
      __builtin_prefetch(gates + i + kAhead);
      __builtin_prefetch(ups + i + kAhead);
      store_pair(y + t * F + i, each(product, load_pair(gates + i), load_pair(ups + i)));
    }
    for (; i < F; i += kWidth) store(y + t * F + i, product(load(gates + i, F - i), load(ups + i, F - i)), F - i);
  }
}

// d silu(x) / dx = s + x s (1 - s) with s = sigmoid(x)
template <class S>
void backward(int64_t T, int64_t F, const S* x, int64_t stride, const S* grad_y, S* grad_x) {
#pragma omp parallel for schedule(static) if (T * F > kSerialElements)
  for (int64_t t = 0; t < T; ++t) {
    const S *gates = x + t * stride, *ups = gates + F, *dys = grad_y + t * F;
    S *grad_gates = grad_x + t * 2 * F, *grad_ups = grad_gates + F;
    const auto of_gate = [](Vec dy, Vec gate, Vec up, Vec s) { return dy * up * (s + gate * s * (splat(1.f) - s)); };
    const auto of_up = [](Vec dy, Vec gate, Vec s) { return dy * (gate * s); };
    int64_t i = 0;
    for (; i + kPair <= F; i += kPair) {
      const Pair gate = load_pair(gates + i), up = load_pair(ups + i), dy = load_pair(dys + i), s = each(sigmoid, gate);
      store_pair(grad_gates + i, each(of_gate, dy, gate, up, s));
      store_pair(grad_ups + i, each(of_up, dy, gate, s));
    }
    for (; i < F; i += kWidth) {
      const Vec gate = load(gates + i, F - i), up = load(ups + i, F - i), dy = load(dys + i, F - i), s = sigmoid(gate);
      store(grad_gates + i, of_gate(dy, gate, up, s), F - i);
      store(grad_ups + i, of_up(dy, gate, s), F - i);
    }
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
