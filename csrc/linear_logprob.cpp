// SPDX-License-Identifier: Apache-2.0
// Log-prob and entropy of rows of logits, and the gradient with respect to a block of their columns.
// See kernels/linear_logprob.py for the contract.
#include "softmax_row.h"

namespace rzero {
namespace RZERO_ISA {
namespace {

constexpr int64_t kSerialElements = 32768;  // below this, waking the other threads costs more than they save

template <class S>
void forward(int64_t T, int64_t V, const S* logits, const int64_t* target, float temperature, float* logp,
             float* entropy, float* top, double* mass) {
#pragma omp parallel for schedule(static) if (T * V > kSerialElements)
  for (int64_t t = 0; t < T; ++t) {
    const S* x = logits + t * V;
    const Row<S> row{x, V, largest(x, V), temperature, -INFINITY};
    double slope;
    const double total = total_mass(row, nullptr, &slope);
    logp[t] = row.log_prob(target[t], total);
    entropy[t] = float(log(total) - slope / total);
    top[t] = row.top;
    mass[t] = total;
  }
}

template <class S>
void backward(int64_t T, int64_t V, int64_t first, S* logits, const int64_t* target, float temperature,
              const float* top, const double* mass, const float* grad_logp) {
#pragma omp parallel for schedule(static) if (T * V > kSerialElements)
  for (int64_t t = 0; t < T; ++t) {
    S* x = logits + t * V;
    const float slope = grad_logp[t] / temperature;
    if (slope == 0) {  // a token that the loss ignores, whatever its logits are
      memset(x, 0, V * sizeof(S));
      continue;
    }
    const Row<S> row{x, V, top[t], temperature, -INFINITY};
    const Vec scale = splat(float(-double(slope) / mass[t]));
    const int64_t hit = target[t] - first;
    const bool is_here = hit >= 0 && hit < V;
    // Both terms in float32, rounded once at the store: 1 - p of a nearly certain token keeps its digits.
    const Vec hit_grad = is_here ? splat(slope) + exp(row.scaled(splat(to_float(x[hit])))) * scale : Vec{};
    for (int64_t i = 0; i < V; i += kWidth) store(x + i, exp(row.scaled(row.logits(i))) * scale, V - i);
    if (is_here) store(x + hit, hit_grad, 1);
  }
}

}  // namespace

void logprob_forward(int code, int64_t T, int64_t V, const void* logits, const int64_t* target, float temperature,
                     float* logp, float* entropy, float* top, double* mass) {
  by_type(code, [&](auto zero) {
    forward(T, V, (const decltype(zero)*)logits, target, temperature, logp, entropy, top, mass);
  });
}

void logprob_backward(int code, int64_t T, int64_t V, int64_t first, void* logits, const int64_t* target,
                      float temperature, const float* top, const double* mass, const float* grad_logp) {
  by_type(code, [&](auto zero) {
    backward(T, V, first, (decltype(zero)*)logits, target, temperature, top, mass, grad_logp);
  });
}

}  // namespace RZERO_ISA
}  // namespace rzero
