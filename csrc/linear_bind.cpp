// SPDX-License-Identifier: Apache-2.0
#include <omp.h>

#include <algorithm>
#include <array>
#include <memory>

#include <pybind11/stl.h>

#include "bind.h"

RZERO_KERNEL(linear_product, int code, const int64_t* sizes, const void* a, const int64_t* a_strides, const void* b,
             const int64_t* b_strides, const void* bias, void* y, int64_t y_stride, float* packed_rows, float* scratch)

namespace rzero {
namespace {

// A multiple of the row tiles of every instruction set; such a block stays within the second cache where K is not large.
constexpr int64_t kRowBlock = 240;
constexpr int64_t kMostColumns = 32;  // of a panel, on the widest instruction set

// (M, N, K), and an operand as (address, row stride, column stride).
using Sizes = std::array<int64_t, 3>;
using Operand = std::array<int64_t, 3>;

void product(int code, const Sizes& sizes, const Operand& a, const Operand& b, Address bias, Address y,
             int64_t y_stride) {
  const auto [M, N, K] = sizes;
  const int64_t width = code == 0 ? 4 : 2;
  const std::unique_ptr<float[]> rows(new float[(std::min(M, kRowBlock) + 12) * K]);
  // A panel and its sums for every thread.
  const std::unique_ptr<float[]> scratch(new float[omp_get_max_threads() * kMostColumns * (K + std::min(M, kRowBlock))]);
  for (int64_t first = 0; first < M; first += kRowBlock) {
    const int64_t block[] = {std::min(kRowBlock, M - first), N, K};
    RZERO_CALL(linear_product, code, block, at(a[0] + first * a[1] * width), a.data() + 1, at(b[0]), b.data() + 1,
               at(bias), at(y + first * y_stride * width), y_stride, rows.get(), scratch.get());
  }
}

}  // namespace

void bind_linear(pybind11::module_& m) { m.def("linear_product", &product, ReleaseGil()); }

}  // namespace rzero
