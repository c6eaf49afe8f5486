// SPDX-License-Identifier: Apache-2.0
// A matrix product whose rows do not depend on how many rows there are. See kernels/linear.py for the contract.
//
// Every output is the sum, from the first on, of chains of kDepth fused multiply-adds over k = 0, 1, ..., whatever tile it
// falls into. So the bits of a row are the same alone and in a batch, with any number of threads and on every instruction
// set that fuses; and a sum over thousands of terms, as in gradients, errs no more than a blocked one of others. A thread
// widens a panel of kColumns columns to float once and multiplies all rows by it: 16-bit weights cross the memory bus
// at half the bytes, and the arithmetic runs at float speed on CPUs that cannot multiply 16-bit types.
#include <omp.h>

#include "vec.h"

namespace rzero {
namespace RZERO_ISA {
namespace {

// As many accumulators as fit the vector registers beside two vectors of b and one of a.
constexpr int kRows = kWidth == 16 ? 12 : 6;
constexpr int kColumns = 2 * kWidth;
constexpr int64_t kDepth = 256;
constexpr int64_t kSerialWork = 1 << 16;  // multiply-adds; below, waking the other threads costs more than they save

// out[k][r] = a(first + r, k), zero past the last row.
template <class S>
void pack_rows(const S* a, int64_t row, int64_t column, int64_t rows, int64_t K, float* out) {
  for (int64_t k = 0; k < K; ++k)
    for (int64_t r = 0; r < kRows; ++r) out[k * kRows + r] = r < rows ? to_float(a[r * row + k * column]) : 0.f;
}

#if defined(__AVX2__)
RZERO_INLINE __m256 load8(const float* p) { return _mm256_loadu_ps(p); }
RZERO_INLINE __m256 load8(const bf16* p) {
  const __m256i wide = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p));
  return _mm256_castsi256_ps(_mm256_slli_epi32(wide, 16));
}
RZERO_INLINE __m256 load8(const fp16* p) { return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p)); }

// Eight rows of eight k's each become eight k's of eight columns, `kColumns` apart.
template <class S>
RZERO_INLINE void transpose8(const S* b, int64_t column, float* out) {
  __m256 r[8], s[8];
  for (int i = 0; i < 8; ++i) r[i] = load8(b + i * column);
  for (int i = 0; i < 8; i += 2) {
    s[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
    s[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
  }
  for (int i = 0; i < 8; i += 4) {
    r[i] = _mm256_shuffle_ps(s[i], s[i + 2], 0x44);
    r[i + 1] = _mm256_shuffle_ps(s[i], s[i + 2], 0xee);
    r[i + 2] = _mm256_shuffle_ps(s[i + 1], s[i + 3], 0x44);
    r[i + 3] = _mm256_shuffle_ps(s[i + 1], s[i + 3], 0xee);
  }
  for (int i = 0; i < 4; ++i) {
    _mm256_storeu_ps(out + i * kColumns, _mm256_permute2f128_ps(r[i], r[i + 4], 0x20));
    _mm256_storeu_ps(out + (i + 4) * kColumns, _mm256_permute2f128_ps(r[i], r[i + 4], 0x31));
  }
}
#endif

// out[k][c] = b(k, first + c), zero past the last column. One of the two strides is 1.
template <class S>
void pack_columns(const S* b, int64_t row, int64_t column, int64_t columns, int64_t K, float* out) {
  if (column == 1) {
    for (int64_t k = 0; k < K; ++k) {
      store(out + k * kColumns, load(b + k * row, columns));
      store(out + k * kColumns + kWidth, columns > kWidth ? load(b + k * row + kWidth, columns - kWidth) : Vec{});
    }
    return;
  }
  int64_t k = 0;
#if defined(__AVX2__)
  if (columns == kColumns)
    for (; k + 8 <= K; k += 8)
      for (int c = 0; c < kColumns; c += 8) transpose8(b + k + c * column, column, out + k * kColumns + c);
#endif
  for (; k < K; ++k)
    for (int64_t c = 0; c < kColumns; ++c)
      out[k * kColumns + c] = c < columns ? to_float(b[k * row + c * column]) : 0.f;
}

// R rows by kColumns columns of the product, plus the bias, rounded once.
template <int R, class S>
void tile(int64_t K, const float* a, const float* b, const float* bias, S* y, int64_t stride, int64_t columns) {
  float total[R][kColumns] = {};
  for (int64_t first = 0; first < K; first += kDepth) {
    Vec sum[R][2] = {};
    for (int64_t k = first; k < K && k < first + kDepth; ++k, a += kRows, b += kColumns) {
      const Vec left = load(b), right = load(b + kWidth);
#pragma GCC unroll 12
      for (int r = 0; r < R; ++r) {
        const Vec x = splat(a[r]);
        sum[r][0] = fma(x, left, sum[r][0]);
        sum[r][1] = fma(x, right, sum[r][1]);
      }
    }
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r) {
      store(total[r], load(total[r]) + sum[r][0]);
      store(total[r] + kWidth, load(total[r] + kWidth) + sum[r][1]);
    }
  }
  for (int r = 0; r < R; ++r) {
    store(y + r * stride, load(total[r]) + load(bias), columns);
    if (columns > kWidth)
      store(y + r * stride + kWidth, load(total[r] + kWidth) + load(bias + kWidth), columns - kWidth);
  }
}

template <int R, class S>
void tile_of(int64_t rows, int64_t K, const float* a, const float* b, const float* bias, S* y, int64_t stride,
             int64_t columns) {
  if (rows >= R) return tile<R>(K, a, b, bias, y, stride, columns);
  if constexpr (R > 1) tile_of<R - 1>(rows, K, a, b, bias, y, stride, columns);
}

template <class S>
void product(const int64_t* sizes, const S* a, const int64_t* a_strides, const S* b, const int64_t* b_strides,
             const S* bias, S* y, int64_t y_stride, float* packed_rows, float* packed_columns) {
  const int64_t M = sizes[0], N = sizes[1], K = sizes[2];
  const int64_t row_tiles = (M + kRows - 1) / kRows, column_tiles = (N + kColumns - 1) / kColumns;
#pragma omp parallel if (M * N * K > kSerialWork)
  {
#pragma omp for schedule(static)
    for (int64_t i = 0; i < row_tiles; ++i)
      pack_rows(a + i * kRows * a_strides[0], a_strides[0], a_strides[1], M - i * kRows, K,
                packed_rows + i * kRows * K);
    float* panel = packed_columns + omp_get_thread_num() * kColumns * K;
#pragma omp for schedule(dynamic)
    for (int64_t j = 0; j < column_tiles; ++j) {
      const int64_t first = j * kColumns, columns = N - first < kColumns ? N - first : kColumns;
      pack_columns(b + first * b_strides[1], b_strides[0], b_strides[1], columns, K, panel);
      float shift[kColumns] = {};
      for (int64_t c = 0; bias && c < columns; ++c) shift[c] = to_float(bias[first + c]);
      for (int64_t i = 0; i < row_tiles; ++i)
        tile_of<kRows>(M - i * kRows, K, packed_rows + i * kRows * K, panel, shift,
                       y + i * kRows * y_stride + first, y_stride, columns);
    }
  }
}

}  // namespace

void linear_product(int code, const int64_t* sizes, const void* a, const int64_t* a_strides, const void* b,
                    const int64_t* b_strides, const void* bias, void* y, int64_t y_stride, float* packed_rows,
                    float* packed_columns) {
  by_type(code, [&](auto zero) {
    using S = decltype(zero);
    product(sizes, (const S*)a, a_strides, (const S*)b, b_strides, (const S*)bias, (S*)y, y_stride, packed_rows,
            packed_columns);
  });
}

}  // namespace RZERO_ISA
}  // namespace rzero
