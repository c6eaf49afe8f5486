// SPDX-License-Identifier: Apache-2.0
// The two small matrix products that attention consists of, forward and backward, and the loading of key tiles.
//
// Order of summation: a score sums over the head's elements from 0 up, an output sums over positions from 0 up, both in
// one float32 accumulator with fused multiply-add. How many rows and vectors a call handles never enters a result, so a
// row alone, in a batch, in a chunk of a prompt and in training has the same bits.
#pragma once

#include <cstdlib>

#include "attention.h"
#include "vec.h"

namespace rzero {
namespace RZERO_ISA {
namespace {

RZERO_INLINE int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }
RZERO_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// One allocation per thread and call, cut into aligned parts.
struct Part {
  float** where;
  int64_t floats;
};

class Arena {
 public:
  template <int N>
  void reserve(const Part (&parts)[N]) {
    int64_t total = 0;
    for (const Part& part : parts) total += round_up(part.floats, 16);
    memory_ = (float*)aligned_alloc(64, total * sizeof(float));
    float* next = memory_;
    for (const Part& part : parts) {
      *part.where = next;
      next += round_up(part.floats, 16);
    }
  }
  ~Arena() { free(memory_); }

 private:
  float* memory_ = nullptr;
};

// out[r][j] = sum over e of a[r][e] * bt[e][j], for ROWS rows and the VECS vectors of keys from j on.
template <int ROWS, int VECS>
RZERO_INLINE void dots_block(const float* a, int64_t a_stride, const float* bt, int64_t E, float* out, int64_t out_stride) {
  Vec acc[ROWS][VECS] = {};
  for (int64_t e = 0; e < E; ++e) {
    Vec b[VECS];
    for (int i = 0; i < VECS; ++i) b[i] = load(bt + e * kTile + i * kWidth);
    for (int r = 0; r < ROWS; ++r)
      for (int i = 0; i < VECS; ++i) acc[r][i] = fma(splat(a[r * a_stride + e]), b[i], acc[r][i]);
  }
  for (int r = 0; r < ROWS; ++r)
    for (int i = 0; i < VECS; ++i) store(out + r * out_stride + i * kWidth, acc[r][i]);
}

// The same for any number of rows and the first `keys` keys (rounded up) of a tile bt[E][kTile].
inline void dots(const float* a, int64_t a_stride, int64_t rows, const float* bt, int64_t keys, int64_t E, float* out,
                 int64_t out_stride) {
  constexpr int kFew = kWidth == 16 ? 4 : 2;  // vectors beside four rows: what fits the registers
  int64_t r = 0;
  for (; r + 4 <= rows; r += 4)
    for (int64_t j = 0; j < keys; j += kFew * kWidth)
      dots_block<4, kFew>(a + r * a_stride, a_stride, bt + j, E, out + r * out_stride + j, out_stride);
  for (; r + 2 <= rows; r += 2)
    for (int64_t j = 0; j < keys; j += 4 * kWidth)
      dots_block<2, 4>(a + r * a_stride, a_stride, bt + j, E, out + r * out_stride + j, out_stride);
  for (; r < rows; ++r)
    for (int64_t j = 0; j < keys; j += 4 * kWidth)
      dots_block<1, 4>(a + r * a_stride, a_stride, bt + j, E, out + r * out_stride + j, out_stride);
}

// Weights p of a row over positions, laid out as p[r * row + n * step].
struct Coefficients {
  const float* p;
  int64_t row, step;
};

// out[r][e] += sum over n of p[r][n] * values[n][e], n from 0 up, for ROWS rows and VECS vectors of elements.
template <int ROWS, int VECS>
RZERO_INLINE void accumulate_block(Coefficients c, const float* values, int64_t count, int64_t padded, float* out) {
  Vec acc[ROWS][VECS];
  for (int r = 0; r < ROWS; ++r)
    for (int i = 0; i < VECS; ++i) acc[r][i] = load(out + r * padded + i * kWidth);
  for (int64_t n = 0; n < count; ++n) {
    Vec v[VECS];
    for (int i = 0; i < VECS; ++i) v[i] = load(values + n * padded + i * kWidth);
    for (int r = 0; r < ROWS; ++r)
      for (int i = 0; i < VECS; ++i) acc[r][i] = fma(splat(c.p[r * c.row + n * c.step]), v[i], acc[r][i]);
  }
  for (int r = 0; r < ROWS; ++r)
    for (int i = 0; i < VECS; ++i) store(out + r * padded + i * kWidth, acc[r][i]);
}

template <int ROWS>
RZERO_INLINE void accumulate_rows(Coefficients c, const float* values, int64_t count, int64_t padded, float* out) {
  constexpr int kMost = ROWS == 4 && kWidth < 16 ? 2 : 4;
  int64_t e = 0;
  for (; e + kMost * kWidth <= padded; e += kMost * kWidth)
    accumulate_block<ROWS, kMost>(c, values + e, count, padded, out + e);
  for (; e < padded; e += kWidth) accumulate_block<ROWS, 1>(c, values + e, count, padded, out + e);
}

// Row r of `out` sums over its first count(r) positions. A row never touches a later position, not even with weight 0:
// that one may hold anything.
template <class Count>
RZERO_INLINE void accumulate(Coefficients c, int64_t rows, const float* values, int64_t padded, float* out,
                             const Count& count) {
  int64_t r = 0;
  for (; r + 4 <= rows; r += 4) {
    int64_t shared = count(r);
    for (int i = 1; i < 4; ++i) shared = smaller(shared, count(r + i));
    accumulate_rows<4>({c.p + r * c.row, c.row, c.step}, values, shared, padded, out + r * padded);
    for (int64_t i = r; i < r + 4; ++i)
      if (count(i) > shared)
        accumulate_rows<1>({c.p + i * c.row + shared * c.step, c.row, c.step}, values + shared * padded,
                           count(i) - shared, padded, out + i * padded);
  }
  for (; r < rows; ++r)
    accumulate_rows<1>({c.p + r * c.row, c.row, c.step}, values, count(r), padded, out + r * padded);
}

RZERO_INLINE Vec4 load4(const float* p) {
  Vec4 v;
  memcpy(&v, p, sizeof v);
  return v;
}

RZERO_INLINE Vec4 load4(const bf16* p) {
  typedef uint16_t Half4 __attribute__((vector_size(8)));
  typedef uint32_t Bits4 __attribute__((vector_size(16)));
  Half4 h;
  memcpy(&h, p, sizeof h);
  return (Vec4)(__builtin_convertvector(h, Bits4) << 16);
}

// out[e][j] = rows[j][e] for `count` rows; the columns up to the next multiple of 4 repeat the last row.
template <class S>
inline void load_transposed(const S* const* rows, int64_t count, int64_t E, float* out) {
  typedef int32_t Pick __attribute__((vector_size(16)));
  for (int64_t j = 0; j < count; j += 4) {
    const S* row[4];
    for (int i = 0; i < 4; ++i) row[i] = rows[smaller(j + i, count - 1)];
    int64_t e = 0;
    for (; e + 4 <= E; e += 4) {
      const Vec4 a = load4(row[0] + e), b = load4(row[1] + e), c = load4(row[2] + e), d = load4(row[3] + e);
      const Vec4 ab_low = __builtin_shuffle(a, b, Pick{0, 4, 1, 5}), ab_high = __builtin_shuffle(a, b, Pick{2, 6, 3, 7});
      const Vec4 cd_low = __builtin_shuffle(c, d, Pick{0, 4, 1, 5}), cd_high = __builtin_shuffle(c, d, Pick{2, 6, 3, 7});
      const Vec4 column[4] = {
          __builtin_shuffle(ab_low, cd_low, Pick{0, 1, 4, 5}), __builtin_shuffle(ab_low, cd_low, Pick{2, 3, 6, 7}),
          __builtin_shuffle(ab_high, cd_high, Pick{0, 1, 4, 5}), __builtin_shuffle(ab_high, cd_high, Pick{2, 3, 6, 7})};
      for (int i = 0; i < 4; ++i) memcpy(out + (e + i) * kTile + j, &column[i], sizeof column[i]);
    }
    for (; e < E; ++e)
      for (int i = 0; i < 4; ++i) out[e * kTile + j + i] = to_float(row[i][e]);
  }
}

// out[j][e] = rows[j][e] * scale, each row padded with zeros to `padded` elements.
template <class S>
inline void load_rows(const S* const* rows, int64_t count, int64_t E, int64_t padded, float scale, float* out) {
  for (int64_t j = 0; j < count; ++j)
    for (int64_t e = 0; e < E; e += kWidth) store(out + j * padded + e, load(rows[j] + e, E - e) * splat(scale));
}

// Addresses of the keys and values at `count` positions of a sequence from `first` on, for one key head.
template <class S>
inline void find_keys(const Attention& a, int64_t sequence, int64_t g, int64_t first, int64_t count, const S** k,
                      const S** v) {
  const Layout& at = a.layout;
  const S* k_head = (const S*)a.k.data + g * a.k.head;
  const S* v_head = (const S*)a.v.data + g * a.v.head;
  for (int64_t j = 0; j < count; ++j) {
    const int64_t position = first + j;
    int64_t outer, inner = 0;
    if (at.page_table != nullptr) {
      outer = at.page_table[sequence * at.table_stride + position / at.page_size];
      inner = position % at.page_size;
    } else {
      const int64_t own = position - at.prefix_length[sequence];
      outer = own < 0 ? at.prefix_start[sequence] + position : at.start[sequence] + own;
    }
    k[j] = k_head + outer * a.k.outer + inner * a.k.inner;
    v[j] = v_head + outer * a.v.outer + inner * a.v.inner;
  }
}

// Addresses of the query rows of a job: token after token, the query heads of key head g within each.
template <class S>
inline int64_t find_queries(const Attention& a, const HeadRows& x, int64_t first_row, int64_t rows, int64_t g,
                            const S** out) {
  const int64_t R = a.H / a.G;
  for (int64_t t = 0; t < rows; ++t)
    for (int64_t r = 0; r < R; ++r) out[t * R + r] = (const S*)x.data + (first_row + t) * x.row + (g * R + r) * x.head;
  return rows * R;
}

}  // namespace
}  // namespace RZERO_ISA
}  // namespace rzero
