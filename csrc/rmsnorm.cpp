// SPDX-License-Identifier: Apache-2.0
// RMSNorm over rows, with or without a residual added first. See kernels/rmsnorm.py for the contract.
#include <cmath>

#include "vec.h"

namespace rzero {
namespace RZERO_ISA {
namespace {

constexpr int64_t kSerialElements = 16384;  // below this, waking the other threads costs more than they save

RZERO_INLINE Vec square(Vec v, Vec sum) { return fma(v, v, sum); }

template <class S>
void forward(int64_t T, int64_t D, float eps, const S* x, int64_t x_stride, const S* residual, int64_t residual_stride,
             const S* w, S* y, S* sum, float* rstd) {
#pragma omp parallel for schedule(static) if (T * D > kSerialElements)
  for (int64_t t = 0; t < T; ++t) {
    const S* row = x + t * x_stride;
    Sum squares;
    if (residual != nullptr) {
      const S* other = residual + t * residual_stride;
      S* out = sum + t * D;
      int64_t i = squares.add_pairs(row, D, [&](int64_t i, Pair& total) {
        store_pair(out + i, each([](Vec u, Vec v) { return u + v; }, load_pair(row + i), load_pair(other + i)));
        total = each(square, load_pair(out + i), total);
      });
      for (; i < D; i += kWidth) {
        const Vec v = rounded_to(row, load(row + i, D - i) + load(other + i, D - i));
        store(out + i, v, D - i);
        squares.at(i) = square(v, squares.at(i));
      }
      row = out;
    } else {
      int64_t i = squares.add_pairs(row, D, [&](int64_t i, Pair& total) { total = each(square, load_pair(row + i), total); });
      for (; i < D; i += kWidth) squares.at(i) = square(load(row + i, D - i), squares.at(i));
    }
    const float scale = 1.f / sqrtf(squares.total() / float(D) + eps);
    const auto scaled = [&](Vec v, Vec weight) { return v * splat(scale) * weight; };
    int64_t i = 0;
    for (; i + kPair <= D; i += kPair) store_pair(y + t * D + i, each(scaled, load_pair(row + i), load_pair(w + i)));
    for (; i < D; i += kWidth) store(y + t * D + i, scaled(load(row + i, D - i), load(w + i, D - i)), D - i);
    if (rstd != nullptr) rstd[t] = scale;
  }
}

template <class S>
void backward_rows(int64_t T, int64_t D, const S* x, int64_t x_stride, const S* w, const float* rstd, const S* grad_y,
                   const S* extra, S* grad_x) {
#pragma omp parallel for schedule(static) if (T * D > kSerialElements)
  for (int64_t t = 0; t < T; ++t) {
    const S* row = x + t * x_stride;
    const S* dy = grad_y + t * D;
    Sum dot;
    for (int64_t i = 0; i < D; i += kWidth) {
      const Vec wdy = load(w + i, D - i) * load(dy + i, D - i);
      dot.at(i) = fma(wdy, load(row + i, D - i), dot.at(i));
    }
    const float r = rstd[t];
    const float slope = r * r * (dot.total() / float(D));
    for (int64_t i = 0; i < D; i += kWidth) {
      const Vec wdy = load(w + i, D - i) * load(dy + i, D - i);
      Vec dx = (wdy - load(row + i, D - i) * splat(slope)) * splat(r);
      if (extra != nullptr) dx += load(extra + t * D + i, D - i);
      store(grad_x + t * D + i, dx, D - i);
    }
  }
}

// Threads share out columns, not rows: each column is then one sum in row order, whatever the number of threads.
template <class S>
void backward_weight(int64_t T, int64_t D, const S* x, int64_t x_stride, const float* rstd, const S* grad_y, S* grad_w) {
  constexpr int64_t kColumns = 64, kRows = 64;
#pragma omp parallel for schedule(static) if (T * D > kSerialElements)
  for (int64_t from = 0; from < D; from += kColumns) {
    const int64_t n = D - from < kColumns ? D - from : kColumns;
    double total[kColumns] = {};
    for (int64_t first = 0; first < T; first += kRows) {
      const int64_t last = first + kRows < T ? first + kRows : T;
      Vec part[kColumns / kWidth] = {};
      for (int64_t t = first; t < last; ++t)
        for (int64_t i = 0; i < n; i += kWidth) {
          const Vec normed = load(x + t * x_stride + from + i, n - i) * splat(rstd[t]);
          part[i / kWidth] = fma(load(grad_y + t * D + from + i, n - i), normed, part[i / kWidth]);
        }
      float flat[kColumns];
      memcpy(flat, part, sizeof flat);
      for (int64_t i = 0; i < n; ++i) total[i] += flat[i];
    }
    float flat[kColumns];
    for (int64_t i = 0; i < kColumns; ++i) flat[i] = float(total[i]);
    for (int64_t i = 0; i < n; i += kWidth) store(grad_w + from + i, load(flat + i), n - i);
  }
}

}  // namespace

void rmsnorm_forward(int code, int64_t T, int64_t D, float eps, const void* x, int64_t x_stride, const void* residual,
                     int64_t residual_stride, const void* w, void* y, void* sum, float* rstd) {
  by_type(code, [&](auto zero) {
    using S = decltype(zero);
    forward<S>(T, D, eps, (const S*)x, x_stride, (const S*)residual, residual_stride, (const S*)w, (S*)y, (S*)sum, rstd);
  });
}

void rmsnorm_backward(int code, int64_t T, int64_t D, const void* x, int64_t x_stride, const void* w, const float* rstd,
                      const void* grad_y, const void* extra, void* grad_x, void* grad_w) {
  by_type(code, [&](auto zero) {
    using S = decltype(zero);
    backward_rows<S>(T, D, (const S*)x, x_stride, (const S*)w, rstd, (const S*)grad_y, (const S*)extra, (S*)grad_x);
    if (grad_w != nullptr) backward_weight<S>(T, D, (const S*)x, x_stride, rstd, (const S*)grad_y, (S*)grad_w);
  });
}

}  // namespace RZERO_ISA
}  // namespace rzero
