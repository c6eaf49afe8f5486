// SPDX-License-Identifier: Apache-2.0
// One AdamW update in one pass over memory. See kernels/adamw.py for the contract.
#include "vec.h"

namespace rzero {
namespace RZERO_ISA {
namespace {

constexpr int64_t kElements = 16384;  // per unit of work

RZERO_INLINE Vec root(Vec v) {
#if defined(__AVX512F__)
  return (Vec)_mm512_maskz_sqrt_ps(0xffff, (__m512)v);  // the plain form warns in gcc 12
#elif defined(__AVX2__)
  return (Vec)_mm256_sqrt_ps((__m256)v);
#else
  for (int k = 0; k < kWidth; ++k) v[k] = __builtin_sqrtf(v[k]);
  return v;
#endif
}

template <class P, class G>
void update(int64_t n, P* param, const G* grad, float* exp_avg, float* exp_avg_sq, float* master, const float* how) {
  const Vec grad_scale = splat(how[0]), keep = splat(how[1]), rise1 = splat(how[2]), beta2 = splat(how[3]),
            rise2 = splat(how[4]), step_size = splat(how[5]), root_correction2 = splat(how[6]), eps = splat(how[7]);
#pragma omp parallel for schedule(static) if (n > kElements)
  for (int64_t from = 0; from < n; from += kElements) {
    const int64_t end = n - from < kElements ? n : from + kElements;
    for (int64_t i = from; i < end; i += kWidth) {
      const int64_t left = end - i;
      const Vec g = load(grad + i, left) * grad_scale;
      Vec p = (master != nullptr ? load(master + i, left) : load(param + i, left)) * keep;
      Vec m = load(exp_avg + i, left), v = load(exp_avg_sq + i, left);
      m += rise1 * (g - m);
      v = v * beta2 + rise2 * g * g;
      p -= step_size * (m / (root(v) / root_correction2 + eps));
      store(exp_avg + i, m, left);
      store(exp_avg_sq + i, v, left);
      store(param + i, p, left);
      if (master != nullptr) store(master + i, p, left);
    }
  }
}

}  // namespace

// how: grad_scale, 1 - lr * weight_decay, 1 - beta1, beta2, 1 - beta2, step size, sqrt(1 - beta2^step), eps
void adamw(int param_code, int grad_code, int64_t n, void* param, const void* grad, float* exp_avg, float* exp_avg_sq,
           float* master, const float* how) {
  by_type(param_code, [&](auto zero) {
    using P = decltype(zero);
    if (grad_code == 0)
      update(n, (P*)param, (const float*)grad, exp_avg, exp_avg_sq, master, how);
    else
      update(n, (P*)param, (const P*)grad, exp_avg, exp_avg_sq, master, how);
  });
}

}  // namespace RZERO_ISA
}  // namespace rzero
