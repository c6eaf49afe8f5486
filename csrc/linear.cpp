// SPDX-License-Identifier: Apache-2.0
// A matrix product whose rows do not depend on how many rows there are. See kernels/linear.py for the contract.
//
// Every output is the sum, from the first on, of chains of kDepth fused multiply-adds over k = 0, 1, ..., whatever tile it
// falls into. So the bits of a row are the same alone and in a batch, with any number of threads and on every instruction
// set that fuses; and a sum over thousands of terms, as in gradients, errs no more than a blocked one of others. A thread
// widens a panel of kColumns columns to float once and multiplies all rows by it: 16-bit weights cross the memory bus
// at half the bytes, and the arithmetic runs at float speed on CPUs that cannot multiply 16-bit types. Few rows are
// multiplied by the columns while these are still in registers.
//
// A CPU that multiplies bfloat16 keeps pairs of k's as they are and adds both products in one instruction, k + 1 before
// k. Its bits are its own; rows are as independent as elsewhere.
#include <omp.h>

#include <type_traits>

#include "vec.h"

namespace rzero {
namespace RZERO_ISA {
namespace {

// As many accumulators as fit the vector registers beside two vectors of b and one of a.
constexpr int kRows = kWidth == 16 ? 12 : 6;
constexpr int kColumns = 2 * kWidth;
constexpr int64_t kDepth = 256;
constexpr int64_t kSerialWork = 1 << 16;  // multiply-adds; below, waking the other threads costs more than they save

// Four neighbouring lanes of a row.
template <class S>
RZERO_INLINE Vec4 four_lanes(const S* p) {
  Vec4 four;
  if constexpr (sizeof(S) * kHeld<S> == sizeof(float)) {
    memcpy(&four, p, sizeof four);
    return four;
  }
#if defined(__AVX2__)
  const __m128i half = _mm_loadl_epi64((const __m128i*)p);
  if constexpr (std::is_same<S, bf16>::value) return (Vec4)_mm_slli_epi32(_mm_cvtepu16_epi32(half), 16);
  return (Vec4)_mm_cvtph_ps(half);
#else
  for (int i = 0; i < 4; ++i) four[i] = lane(p + i, 1, 1);
  return four;
#endif
}

// out[i][r] = lane i of four of row[r], for kRows rows.
template <class S>
RZERO_INLINE void transpose_four(const S* const* row, int64_t k, float* out) {
#pragma GCC unroll 3
  for (int r = 0; r < kRows; r += 4) {
    constexpr int kLast = kRows - 1;
    const auto at = [&](int i) { return four_lanes(row[r + i < kLast ? r + i : kLast] + k); };
    Vec4 lanes[4] = {at(0), at(1), at(2), at(3)};
    transpose(lanes);
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) memcpy(out + i * kRows + r, &lanes[i], (kRows - r < 4 ? kRows - r : 4) * sizeof(float));
  }
}

// out[r] = the lane of element r of a column, for kRows neighbours.
template <class S>
RZERO_INLINE void copy_lanes(const S* p, int64_t column, float* out) {
  for (int r = 0; r < kRows; ++r) out[r] = lane(p + r, column, kHeld<S>);
}

#if defined(__AVX512BF16__)
RZERO_INLINE void copy_lanes(const bf16* p, int64_t column, float* out) {
  constexpr __mmask16 kAll = (1 << kRows) - 1;
  const __m512i low = _mm512_maskz_cvtepu16_epi32(kAll, _mm256_maskz_loadu_epi16(kAll, p));
  const __m512i high = _mm512_maskz_cvtepu16_epi32(kAll, _mm256_maskz_loadu_epi16(kAll, p + column));
  _mm512_mask_storeu_ps(out, kAll, _mm512_castsi512_ps((__m512i)((BitVec)low | (BitVec)high << 16)));
}
#endif

// out[lane of k][r] = a(first + r, k). Past the last row it may be anything: no tile reads that.
template <class S>
void pack_rows(const S* a, int64_t row, int64_t column, int64_t rows, int64_t K, float* out) {
  const S* from[kRows];
  for (int64_t r = 0; r < kRows; ++r) from[r] = a + smaller(r, rows - 1) * row;
  constexpr int64_t kFour = 4 * kHeld<S>;
  int64_t k = 0;
  if (column == 1)
    for (; k + kFour <= K; k += kFour, out += 4 * kRows) transpose_four(from, k, out);
  else if (row == 1 && rows >= kRows)
    for (; k + kHeld<S> <= K; k += kHeld<S>, out += kRows) copy_lanes(a + k * column, column, out);
  for (; k < K; k += kHeld<S>, out += kRows)
    for (int64_t r = 0; r < kRows; ++r) out[r] = lane(from[r] + k * column, column, K - k);
}

#if defined(__AVX2__)
constexpr int kBlock = 16;  // columns

// Eight k's of sixteen columns, handed over as use(k, half, eight columns), from k = 0 up. Columns meet in one register while
// they are loaded, and 16-bit types are exchanged before they are widened: the fewest shuffles.
template <class Use>
RZERO_INLINE void each_k(const float* b, int64_t column, const Use& use) {
#pragma GCC unroll 2
  for (int k = 0; k < 8; k += 4)
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      const float* from = b + half * 8 * column + k;
      const auto pair = [&](int i) {
        return _mm256_set_m128(_mm_loadu_ps(from + (i + 4) * column), _mm_loadu_ps(from + i * column));
      };
      const __m256 r0 = pair(0), r1 = pair(1), r2 = pair(2), r3 = pair(3);
      const __m256 low01 = _mm256_unpacklo_ps(r0, r1), high01 = _mm256_unpackhi_ps(r0, r1);
      const __m256 low23 = _mm256_unpacklo_ps(r2, r3), high23 = _mm256_unpackhi_ps(r2, r3);
      use(k, half, _mm256_shuffle_ps(low01, low23, 0x44));
      use(k + 1, half, _mm256_shuffle_ps(low01, low23, 0xee));
      use(k + 2, half, _mm256_shuffle_ps(high01, high23, 0x44));
      use(k + 3, half, _mm256_shuffle_ps(high01, high23, 0xee));
    }
}

// Sixteen 16-bit columns, in the order that `column_of` says, as two times eight floats.
RZERO_INLINE __m256 left_half(bf16, __m256i c) { return _mm256_castsi256_ps(_mm256_unpacklo_epi16(__m256i{}, c)); }
RZERO_INLINE __m256 right_half(bf16, __m256i c) { return _mm256_castsi256_ps(_mm256_unpackhi_epi16(__m256i{}, c)); }
RZERO_INLINE __m256 left_half(fp16, __m256i c) { return _mm256_cvtph_ps(_mm256_castsi256_si128(c)); }
RZERO_INLINE __m256 right_half(fp16, __m256i c) { return _mm256_cvtph_ps(_mm256_extracti128_si256(c, 1)); }
RZERO_INLINE constexpr int column_of(bf16, int i) { return i % 4 + i / 8 * 4 + i / 4 % 2 * 8; }
RZERO_INLINE constexpr int column_of(fp16, int i) { return i; }

template <class S, class Use>
RZERO_INLINE void each_k(const S* b, int64_t column, const Use& use) {
  __m256i r[8], s[8];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i)
    r[i] = _mm256_set_m128i(_mm_loadu_si128((const __m128i*)(b + column_of(S{}, i + 8) * column)),
                            _mm_loadu_si128((const __m128i*)(b + column_of(S{}, i) * column)));
#pragma GCC unroll 4
  for (int i = 0; i < 8; i += 2) {
    s[i] = _mm256_unpacklo_epi16(r[i], r[i + 1]);
    s[i + 1] = _mm256_unpackhi_epi16(r[i], r[i + 1]);
  }
#pragma GCC unroll 2
  for (int i = 0; i < 8; i += 4) {
    r[i] = _mm256_unpacklo_epi32(s[i], s[i + 2]);
    r[i + 1] = _mm256_unpackhi_epi32(s[i], s[i + 2]);
    r[i + 2] = _mm256_unpacklo_epi32(s[i + 1], s[i + 3]);
    r[i + 3] = _mm256_unpackhi_epi32(s[i + 1], s[i + 3]);
  }
#pragma GCC unroll 8
  for (int k = 0; k < 8; ++k) {
    const __m256i c = k % 2 ? _mm256_unpackhi_epi64(r[k / 2], r[k / 2 + 4]) : _mm256_unpacklo_epi64(r[k / 2], r[k / 2 + 4]);
    use(k, 0, left_half(S{}, c));
    use(k, 1, right_half(S{}, c));
  }
}

// Asks for the panel `ahead` columns further on, from the k's at hand on, a cache line of each column at a time. A panel is as
// many streams as it has columns, each a short run; of 16-bit types, which run out soon, the hardware foresees too few.
template <class S>
RZERO_INLINE void fetch_next(const S* b, int64_t column, int64_t k, int64_t ahead) {
  if (sizeof(S) == 4 || k % (64 / (int64_t)sizeof(S)) != 0) return;
#pragma GCC unroll 4
  for (int c = 0; c < kColumns; ++c) fetch_line(b + k + (ahead + c) * column);
}
#endif

// out[lane of k][c] = b(k, c), zero past the last column, where columns are neighbours.
template <class S>
void pack_dense(const S* b, int64_t row, int64_t columns, int64_t K, float* out) {
  for (int64_t k = 0; k < K; ++k) {
    store(out + k * kColumns, load(b + k * row, columns));
    store(out + k * kColumns + kWidth, columns > kWidth ? load(b + k * row + kWidth, columns - kWidth) : Vec{});
  }
}

#if defined(__AVX512BF16__)
void pack_dense(const bf16* b, int64_t row, int64_t columns, int64_t K, float* out) {
  const __mmask32 here = columns < kColumns ? (1u << columns) - 1 : ~0u;
  const __m512i even = _mm512_set_epi16(47, 15, 46, 14, 45, 13, 44, 12, 43, 11, 42, 10, 41, 9, 40, 8, 39, 7, 38, 6, 37, 5,
                                        36, 4, 35, 3, 34, 2, 33, 1, 32, 0);
  const __m512i odd = _mm512_add_epi16(even, _mm512_set1_epi16(16));
  for (int64_t k = 0; k < K; k += 2, out += kColumns) {
    const __m512i low = _mm512_maskz_loadu_epi16(here, b + k * row);
    const __m512i high = _mm512_maskz_loadu_epi16(k + 1 < K ? here : 0, b + (k + 1) * row);
    _mm512_storeu_si512(out, _mm512_permutex2var_epi16(low, even, high));
    _mm512_storeu_si512(out + kWidth, _mm512_permutex2var_epi16(low, odd, high));
  }
}
#endif

// The same, whichever of the two strides is 1.
template <class S>
void pack_columns(const S* b, int64_t row, int64_t column, int64_t columns, int64_t K, [[maybe_unused]] int64_t ahead,
                  float* out) {
  if (column == 1) return pack_dense(b, row, columns, K, out);
  int64_t k = 0;
#if defined(__AVX2__)
  constexpr int kStep = 8 * kHeld<S>;
  if (columns == kColumns && column % kHeld<S> == 0)
    for (; k + kStep <= K; k += kStep, out += 8 * kColumns) {
      fetch_next(b, column, k, ahead);
      for (int c = 0; c < kColumns; c += kBlock)
        each_k(as_lanes(b + k + c * column), column / kHeld<S>, [&](int i, int half, __m256 eight) {
          _mm256_storeu_ps(out + i * kColumns + c + half * 8, eight);
        });
    }
#endif
  for (; k < K; k += kHeld<S>, out += kColumns)
    for (int64_t c = 0; c < kColumns; ++c)
      out[c] = lane(b + k * row + (c < columns ? c * column : 0), row, c < columns ? K - k : 0);
}

// What a product reads and writes: operands with any strides, a as (row, k) and b as (k, column).
template <class S>
struct Product {
  int64_t M, N, K;
  const S* a;
  const int64_t* a_strides;
  const S* b;
  const int64_t* b_strides;
  const S* bias;
  S* y;
  int64_t y_stride;
};

// The sums of a row, by the kColumns columns from `first` on, plus the bias, rounded once.
template <class S>
RZERO_INLINE void finish(const Product<S>& p, int64_t row, int64_t first, const float* total) {
  const int64_t columns = smaller(kColumns, p.N - first), right_columns = columns - kWidth;
  Vec left = load(total), right = load(total + kWidth);
  if (p.bias != nullptr) {
    left += load(p.bias + first, columns);
    if (right_columns > 0) right += load(p.bias + first + kWidth, right_columns);
  }
  S* y = p.y + row * p.y_stride + first;
  store(y, left, columns);
  if (right_columns > 0) store(y + kWidth, right, right_columns);
}

// Adds the chain of `count` lanes to the sums of R rows: `steps(l, sum)` adds what comes at lane l, for `kStep` of them.
template <int R, int kStep, class Steps>
RZERO_INLINE void add_chain(int64_t count, float* total, const Steps& steps) {
  Vec sum[R][2] = {};
  for (int64_t l = 0; l < count; l += kStep) steps(l, sum);
#pragma GCC unroll 12
  for (int r = 0; r < R; ++r)
#pragma GCC unroll 2
    for (int half = 0; half < kColumns; half += kWidth) {
      float* at = total + r * kColumns + half;
      store(at, load(at) + sum[r][half / kWidth]);
    }
}

// A chain of R rows by a packed panel.
template <class S, int R>
void tile(int64_t count, const float* a, const float* b, float* total) {
  add_chain<R, 1>(count, total, [&](int64_t l, Vec (&sum)[R][2]) {
    const Vec left = load(b + l * kColumns), right = load(b + l * kColumns + kWidth);
#pragma GCC unroll 12
    for (int r = 0; r < R; ++r) {
      sum[r][0] = multiply_add<S>(a[l * kRows + r], left, sum[r][0]);
      sum[r][1] = multiply_add<S>(a[l * kRows + r], right, sum[r][1]);
    }
  });
}

template <class S, int R = kRows>
RZERO_INLINE void tile_of(int64_t rows, int64_t count, const float* a, const float* b, float* total) {
  if (rows >= R) return tile<S, R>(count, a, b, total);
  if constexpr (R > 1) tile_of<S, R - 1>(rows, count, a, b, total);
}

// All rows, if they are at most R, by a whole panel that is not packed: columns are used once. Returns whether it could.
template <int R, class S>
bool multiply_few([[maybe_unused]] const Product<S>& p, [[maybe_unused]] int64_t first, [[maybe_unused]] const float* a,
                  [[maybe_unused]] int64_t ahead) {
#if defined(__AVX2__)
  if constexpr (kColumns == kBlock) {
    const int64_t column = p.b_strides[1];
    if (p.M > R || p.N - first < kColumns || column == 1 || p.K % 8 != 0) return false;
    if constexpr (R > 1)
      if (p.M < R) return multiply_few<R - 1>(p, first, a, ahead);
    const S* b = p.b + first * column;
    float total[R * kColumns] = {};
    for (int64_t from = 0; from < p.K; from += kDepth)
      add_chain<R, 8>(smaller(kDepth, p.K - from), total, [&](int64_t k, Vec (&sum)[R][2]) {
        k += from;
        fetch_next(b, column, k, ahead);
        each_k(b + k, column, [&](int i, int half, __m256 eight) {
#pragma GCC unroll 6
          for (int r = 0; r < R; ++r) sum[r][half] = multiply_add<S>(a[(k + i) * kRows + r], (Vec)eight, sum[r][half]);
        });
      });
    for (int r = 0; r < R; ++r) finish(p, r, first, total + r * kColumns);
    return true;
  }
#endif
  return false;
}

// All rows by a packed panel, a chain at a time: its part of the panel stays in the first cache.
template <class S>
void multiply(const Product<S>& p, int64_t first, const float* rows, const float* panel, float* total) {
  constexpr int64_t kChain = kDepth / kHeld<S>;
  const int64_t end = lanes<S>(p.K);
  memset(total, 0, p.M * kColumns * sizeof(float));
  for (int64_t from = 0; from < end; from += kChain)
    for (int64_t row = 0; row < p.M; row += kRows)
      tile_of<S>(p.M - row, smaller(kChain, end - from), rows + row * end + from * kRows, panel + from * kColumns,
                 total + row * kColumns);
  for (int64_t row = 0; row < p.M; ++row) finish(p, row, first, total + row * kColumns);
}

template <class S>
void product(const Product<S>& p, float* packed_rows, float* scratch) {
  const int64_t row_tiles = (p.M + kRows - 1) / kRows, column_tiles = (p.N + kColumns - 1) / kColumns;
  const int64_t end = lanes<S>(p.K);
#pragma omp parallel if (p.M * p.N * p.K > kSerialWork)
  {
#pragma omp for schedule(static)
    for (int64_t i = 0; i < row_tiles; ++i)
      pack_rows(p.a + i * kRows * p.a_strides[0], p.a_strides[0], p.a_strides[1], p.M - i * kRows, p.K,
                packed_rows + i * kRows * end);
    // Panels go round among the threads: the next of this one is as many panels further on.
    const int64_t ahead = kColumns * omp_get_num_threads();
    float* panel = scratch + omp_get_thread_num() * kColumns * (end + p.M);
#pragma omp for schedule(dynamic, 1)
    for (int64_t j = 0; j < column_tiles; ++j) {
      const int64_t first = j * kColumns, columns = smaller(kColumns, p.N - first);
      if (multiply_few<kRows>(p, first, packed_rows, ahead)) continue;
      pack_columns(p.b + first * p.b_strides[1], p.b_strides[0], p.b_strides[1], columns, p.K, ahead, panel);
      multiply(p, first, packed_rows, panel, panel + kColumns * end);
    }
  }
}

}  // namespace

void linear_product(int code, const int64_t* sizes, const void* a, const int64_t* a_strides, const void* b,
                    const int64_t* b_strides, const void* bias, void* y, int64_t y_stride, float* packed_rows,
                    float* scratch) {
  by_type(code, [&](auto zero) {
    using S = decltype(zero);
    product(Product<S>{sizes[0], sizes[1], sizes[2], (const S*)a, a_strides, (const S*)b, b_strides, (const S*)bias, (S*)y,
                       y_stride},
            packed_rows, scratch);
  });
}

}  // namespace RZERO_ISA
}  // namespace rzero
