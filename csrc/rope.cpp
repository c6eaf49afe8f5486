// SPDX-License-Identifier: Apache-2.0
// Rotary position embedding of the fused projection, with an optional RMSNorm per head. See kernels/rope.py.
#include <cmath>
#include <cstdlib>

#include "rope.h"
#include "vec.h"

namespace rzero {
namespace RZERO_ISA {
namespace {

constexpr int64_t kSerialElements = 16384;  // below this, waking the other threads costs more than they save

template <class S>
RZERO_INLINE float rstd_of(const S* x, int64_t E, float eps) {
  Sum squares;
  for (int64_t e = 0; e < E; e += kWidth) {
    const Vec v = load(x + e, E - e);
    squares.at(e) = fma(v, v, squares.at(e));
  }
  return 1.f / sqrtf(squares.total() / float(E) + eps);
}

// y = rotation of x * rstd * w by (cos, sin); element i pairs with i + half. w is null where there is no norm.
template <class S>
RZERO_INLINE void rotate(const S* x, const S* w, float rstd, const float* cos, const float* sin, int64_t half, S* y) {
  for (int64_t i = 0; i < half; i += kWidth) {
    const int64_t n = half - i;
    Vec a = load(x + i, n), b = load(x + half + i, n);
    if (w != nullptr) {
      a = a * splat(rstd) * load(w + i, n);
      b = b * splat(rstd) * load(w + half + i, n);
    }
    const Vec c = load(cos + i, n), s = load(sin + i, n);
    store(y + i, a * c - b * s, n);
    store(y + half + i, b * c + a * s, n);
  }
}

template <class S>
void forward(const Rope& r) {
  const int64_t half = r.E / 2;
#pragma omp parallel for schedule(static) if (r.T * (r.H + r.G) * r.E > kSerialElements)
  for (int64_t t = 0; t < r.T; ++t) {
    const S* x = (const S*)r.qkv + t * r.qkv_stride;
    const float *cos = r.cos + r.pos[t] * half, *sin = r.sin + r.pos[t] * half;
    for (int64_t h = 0; h < r.H + r.G; ++h, x += r.E) {
      const S* w = (const S*)(h < r.H ? r.q_norm : r.k_norm);
      S* y = h < r.H ? (S*)r.q + (t * r.H + h) * r.E : (S*)r.k + (t * r.G + h - r.H) * r.E;
      rotate(x, w, w != nullptr ? rstd_of(x, r.E, r.eps) : 1.f, cos, sin, half, y);
    }
    if (r.v != nullptr) memcpy((S*)r.v + t * r.G * r.E, x, r.G * r.E * sizeof(S));
  }
}

// The rotation's transpose, then the norm's gradient. `normed_grad` receives the gradient of x * rstd * w.
template <class S>
void unrotate(const S* dy, const float* cos, const float* sin, int64_t half, float* normed_grad) {
  for (int64_t i = 0; i < half; i += kWidth) {
    const int64_t n = half - i;
    const Vec a = load(dy + i, n), b = load(dy + half + i, n), c = load(cos + i, n), s = load(sin + i, n);
    store(normed_grad + i, a * c + b * s, n);
    store(normed_grad + half + i, b * c - a * s, n);
  }
}

template <class S>
void backward_rows(const Rope& r, const RopeGrad& grad) {
  const int64_t half = r.E / 2;
#pragma omp parallel if (r.T * (r.H + r.G) * r.E > kSerialElements)
  {
    float* d = (float*)malloc(r.E * sizeof(float));
#pragma omp for schedule(static)
    for (int64_t t = 0; t < r.T; ++t) {
      const S* x = (const S*)r.qkv + t * r.qkv_stride;
      S* dx = (S*)grad.qkv + t * (r.H + 2 * r.G) * r.E;
      const float *cos = r.cos + r.pos[t] * half, *sin = r.sin + r.pos[t] * half;
      for (int64_t h = 0; h < r.H + r.G; ++h, x += r.E, dx += r.E) {
        const S* w = (const S*)(h < r.H ? r.q_norm : r.k_norm);
        const S* dy = h < r.H ? (const S*)grad.q + (t * r.H + h) * r.E : (const S*)grad.k + (t * r.G + h - r.H) * r.E;
        unrotate(dy, cos, sin, half, d);
        if (w == nullptr) {
          for (int64_t e = 0; e < r.E; e += kWidth) store(dx + e, load(d + e, r.E - e), r.E - e);
          continue;
        }
        const float rstd = rstd_of(x, r.E, r.eps);
        Sum dot;
        for (int64_t e = 0; e < r.E; e += kWidth)
          dot.at(e) = fma(load(d + e, r.E - e) * load(w + e, r.E - e), load(x + e, r.E - e), dot.at(e));
        const float slope = rstd * rstd * (dot.total() / float(r.E));
        for (int64_t e = 0; e < r.E; e += kWidth) {
          const int64_t n = r.E - e;
          store(dx + e, (load(d + e, n) * load(w + e, n) - load(x + e, n) * splat(slope)) * splat(rstd), n);
        }
      }
      memcpy(dx, (const S*)grad.v + t * r.G * r.E, r.G * r.E * sizeof(S));
    }
    free(d);
  }
}

// One norm weight's gradient: a sum over the heads from `first` on of every row, in row order, on one thread; blocks of
// rows are summed apart, which keeps float32's rounding from piling up.
template <class S>
void backward_norm(const Rope& r, const S* grad_y, int64_t first, int64_t heads, S* grad_w) {
  const int64_t E = r.E, half = E / 2, rows = heads < 64 ? 64 / heads : 1;
  float* memory = (float*)malloc(2 * E * sizeof(float));
  double* total = (double*)calloc(E, sizeof(double));
  float *d = memory, *part = memory + E;
  for (int64_t from = 0; from < r.T; from += rows) {
    memset(part, 0, E * sizeof(float));
    for (int64_t t = from; t < r.T && t < from + rows; ++t)
      for (int64_t h = 0; h < heads; ++h) {
        const S* x = (const S*)r.qkv + t * r.qkv_stride + (first + h) * E;
        const float rstd = rstd_of(x, E, r.eps);
        unrotate(grad_y + (t * heads + h) * E, r.cos + r.pos[t] * half, r.sin + r.pos[t] * half, half, d);
        for (int64_t e = 0; e < E; e += kWidth) {
          const int64_t n = E - e;
          store(part + e, fma(load(d + e, n), load(x + e, n) * splat(rstd), load(part + e, n)), n);
        }
      }
    for (int64_t e = 0; e < E; ++e) total[e] += part[e];
  }
  for (int64_t e = 0; e < E; ++e) part[e] = float(total[e]);
  for (int64_t e = 0; e < E; e += kWidth) store(grad_w + e, load(part + e, E - e), E - e);
  free(total);
  free(memory);
}

template <class S>
void backward(const Rope& r, const RopeGrad& grad) {
  backward_rows<S>(r, grad);
  if (grad.q_norm == nullptr) return;
#pragma omp parallel sections if (r.T * (r.H + r.G) * r.E > kSerialElements)
  {
#pragma omp section
    backward_norm<S>(r, (const S*)grad.q, 0, r.H, (S*)grad.q_norm);
#pragma omp section
    backward_norm<S>(r, (const S*)grad.k, r.H, r.G, (S*)grad.k_norm);
  }
}

}  // namespace

void rope_forward(const Rope* rope) {
  by_type(rope->code, [&](auto zero) { forward<decltype(zero)>(*rope); });
}

void rope_backward(const Rope* rope, const RopeGrad* grad) {
  by_type(rope->code, [&](auto zero) { backward<decltype(zero)>(*rope, *grad); });
}

}  // namespace RZERO_ISA
}  // namespace rzero
