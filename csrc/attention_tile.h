// SPDX-License-Identifier: Apache-2.0
// The two small matrix products that attention consists of, forward and backward, and the loading of key tiles.
//
// Order of summation: a score sums over the head's elements from 0 up (by pairs where the CPU multiplies bfloat16, see
// vec.h), an output sums over positions from 0 up, both in one float32 accumulator with fused multiply-add. How many rows
// and vectors a call handles never enters a result, so a row alone, in a batch, in a chunk of a prompt and in training has
// the same bits.
#pragma once

#include <cstdlib>

#include "attention.h"
#include "vec.h"

namespace rzero {
namespace RZERO_ISA {
namespace {

RZERO_INLINE int64_t round_up(int64_t n, int64_t unit) { return (n + unit - 1) / unit * unit; }

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

// Rows that the next step will read, asked for between the arithmetic of this one, a few cache lines at a time: as many as
// can be under way. Rows of pages are short runs at random places, which the hardware does not foresee.
class Ahead {
 public:
  // To be fetched in `calls` parts. The addresses must stay where they are.
  template <class S>
  RZERO_INLINE void plan(const S* const* rows, int64_t count, int64_t E, int64_t calls) {
    rows_ = (const char* const*)rows;
    end_ = rows_ + count;
    bytes_ = E * sizeof(S);
    offset_ = 0;
    lines_ = (count * ((bytes_ + kLine - 1) / kLine) + calls - 1) / calls;
  }
  RZERO_INLINE void fetch() {
    for (int64_t i = 0; i < lines_ && rows_ != end_; ++i) {
      fetch_line(*rows_ + offset_);
      offset_ += kLine;
      if (offset_ >= bytes_) offset_ = 0, ++rows_;
    }
  }

 private:
  static constexpr int64_t kLine = 64;
  const char* const* rows_ = nullptr;
  const char* const* end_ = nullptr;
  int64_t bytes_ = 0, offset_ = 0, lines_ = 0;
};

struct Nothing {
  RZERO_INLINE void fetch() {}
};

// The address as one number: otherwise gcc keeps an index per vector, of which the registers cannot hold enough.
RZERO_INLINE const float* whole(const float* p) {
  asm("" : "+r"(p));
  return p;
}

// A score's scale is applied to the query, or, where queries are multiplied as they are, to the sum.
struct Scale {
  float query, sum;
};
template <class S>
RZERO_INLINE Scale scale_of(float scale) {
  return kHeld<S> == 1 ? Scale{scale, 1.f} : Scale{1.f, scale};
}

// out[r][j] = scale * sum over e of a[r][e] * bt[e][j], for ROWS rows and the VECS vectors of keys from j on.
template <class S, int ROWS, int VECS>
RZERO_INLINE void dots_block(const float* a, int64_t a_stride, const float* bt, int64_t E, float scale, float* out,
                             int64_t out_stride) {
  Vec acc[ROWS][VECS] = {};
  for (int64_t l = 0; l < lanes<S>(E); ++l) {
    const float* row = whole(bt + l * kTile);
    Vec b[VECS];
    for (int i = 0; i < VECS; ++i) b[i] = load(row + i * kWidth);
    for (int r = 0; r < ROWS; ++r)
      for (int i = 0; i < VECS; ++i) acc[r][i] = multiply_add<S>(a[r * a_stride + l], b[i], acc[r][i]);
  }
  for (int r = 0; r < ROWS; ++r)
    for (int i = 0; i < VECS; ++i) store(out + r * out_stride + i * kWidth, acc[r][i] * splat(scale));
}

// The same for any number of rows and the first `keys` keys (rounded up) of a tile bt[lanes][kTile].
template <class S, class Next>
inline void dots(const float* a, int64_t a_stride, int64_t rows, const float* bt, int64_t keys, int64_t E, float scale,
                 float* out, int64_t out_stride, Next& next) {
  constexpr int kFew = kWidth == 16 ? 4 : 2;  // vectors beside four rows: what fits the registers
  constexpr int kMany = kWidth == 8 ? 8 : 4;  // beside one: enough sums under way to hide a multiply-add's latency
  int64_t r = 0;
  for (; r + 4 <= rows; r += 4)
    for (int64_t j = 0; j < keys; j += kFew * kWidth, next.fetch())
      dots_block<S, 4, kFew>(a + r * a_stride, a_stride, bt + j, E, scale, out + r * out_stride + j, out_stride);
  for (; r + 2 <= rows; r += 2)
    for (int64_t j = 0; j < keys; j += 4 * kWidth, next.fetch())
      dots_block<S, 2, 4>(a + r * a_stride, a_stride, bt + j, E, scale, out + r * out_stride + j, out_stride);
  for (; r < rows; ++r)
    for (int64_t j = 0; j < keys; j += kMany * kWidth, next.fetch())
      dots_block<S, 1, kMany>(a + r * a_stride, a_stride, bt + j, E, scale, out + r * out_stride + j, out_stride);
}

template <class S>
inline void dots(const float* a, int64_t a_stride, int64_t rows, const float* bt, int64_t keys, int64_t E, float scale,
                 float* out, int64_t out_stride) {
  Nothing next;
  dots<S>(a, a_stride, rows, bt, keys, E, scale, out, out_stride, next);
}

// Weights p of a row over positions, laid out as p[r * row + n * step].
struct Coefficients {
  const float* p;
  int64_t row, step;
};

// Where the values of position n lie.
struct Dense {
  const float* first;
  int64_t stride;
  RZERO_INLINE const float* operator()(int64_t n) const { return first + n * stride; }
  RZERO_INLINE Dense from(int64_t n) const { return {first + n * stride, stride}; }
};

// out[r][e] += sum over n of p[r][n] * values(n)[e], n from 0 up, for ROWS rows and VECS vectors of elements.
template <int ROWS, int VECS>
RZERO_INLINE void accumulate_block(Coefficients c, const Dense& values, int64_t e, int64_t count, int64_t padded,
                                   float* out) {
  Vec acc[ROWS][VECS];
  for (int r = 0; r < ROWS; ++r)
    for (int i = 0; i < VECS; ++i) acc[r][i] = load(out + r * padded + e + i * kWidth);
  for (int64_t n = 0; n < count; ++n) {
    const float* row = whole(values(n) + e);
    Vec v[VECS];
    for (int i = 0; i < VECS; ++i) v[i] = load(row + i * kWidth);
    for (int r = 0; r < ROWS; ++r)
      for (int i = 0; i < VECS; ++i) acc[r][i] = fma(splat(c.p[r * c.row + n * c.step]), v[i], acc[r][i]);
  }
  for (int r = 0; r < ROWS; ++r)
    for (int i = 0; i < VECS; ++i) store(out + r * padded + e + i * kWidth, acc[r][i]);
}

template <int ROWS, class Next>
RZERO_INLINE void accumulate_rows(Coefficients c, const Dense& values, int64_t count, int64_t padded, float* out,
                                  Next& next) {
  constexpr int kMost = kWidth == 16 ? 4 : ROWS == 4 ? 2 : ROWS == 1 && kWidth == 8 ? 8 : 4;  // what fits the registers
  int64_t e = 0;
  for (; e + kMost * kWidth <= padded; e += kMost * kWidth, next.fetch())
    accumulate_block<ROWS, kMost>(c, values, e, count, padded, out);
  for (; e < padded; e += kWidth) accumulate_block<ROWS, 1>(c, values, e, count, padded, out);
}

// ROWS rows from r on: together as far as all of them go, then each on its own.
template <int ROWS, class Count, class Next>
RZERO_INLINE void accumulate_some(Coefficients c, int64_t r, const Dense& values, int64_t padded, float* out,
                                  const Count& count, Next& next) {
  int64_t shared = count(r);
  for (int i = 1; i < ROWS; ++i) shared = smaller(shared, count(r + i));
  accumulate_rows<ROWS>({c.p + r * c.row, c.row, c.step}, values, shared, padded, out + r * padded, next);
  for (int64_t i = r; i < r + ROWS; ++i)
    if (count(i) > shared)
      accumulate_rows<1>({c.p + i * c.row + shared * c.step, c.row, c.step}, values.from(shared), count(i) - shared,
                         padded, out + i * padded, next);
}

// Row r of `out` sums over its first count(r) positions. A row never touches a later position, not even with weight 0:
// that one may hold anything.
template <class Count, class Next>
RZERO_INLINE void accumulate(Coefficients c, int64_t rows, const Dense& values, int64_t padded, float* out,
                             const Count& count, Next& next) {
  int64_t r = 0;
  for (; r + 4 <= rows; r += 4) accumulate_some<4>(c, r, values, padded, out, count, next);
  for (; r + 2 <= rows; r += 2) accumulate_some<2>(c, r, values, padded, out, count, next);
  if (r < rows) accumulate_some<1>(c, r, values, padded, out, count, next);
}

template <class Count>
RZERO_INLINE void accumulate(Coefficients c, int64_t rows, const Dense& values, int64_t padded, float* out,
                             const Count& count) {
  Nothing next;
  accumulate(c, rows, values, padded, out, count, next);
}

// Square blocks of 4 or 8 elements are transposed in registers, by the widest vectors that interleave cheaply.
#if defined(__AVX2__)
constexpr int kBlock = 8;
#else
constexpr int kBlock = 4;
#endif
typedef float Row __attribute__((vector_size(4 * kBlock)));
typedef int32_t Pick __attribute__((vector_size(4 * kBlock)));

RZERO_INLINE Row load_block_row(const float* p) {
  Row v;
  memcpy(&v, p, sizeof v);
  return v;
}

RZERO_INLINE Row load_block_row(const bf16* p) {
#if defined(__AVX2__)
  return (Row)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)), 16);
#else
  typedef uint16_t Half __attribute__((vector_size(2 * kBlock)));
  typedef uint32_t Bits __attribute__((vector_size(4 * kBlock)));
  Half h;
  memcpy(&h, p, sizeof h);
  return (Row)(__builtin_convertvector(h, Bits) << 16);
#endif
}

RZERO_INLINE Row load_block_row(const fp16* p) {
#if defined(__AVX2__)
  return (Row)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
#else
  return load(p);  // here a block is as wide as a vector
#endif
}

RZERO_INLINE void store_block_row(float* p, Row v) { memcpy(p, &v, sizeof v); }

template <class S>
RZERO_INLINE Row multiply_add_rows(float a, Row b, Row sum) {
#if defined(__AVX512BF16__)
  if constexpr (kHeld<S> == 2) return (Row)_mm256_dpbf16_ps((__m256)sum, (__m256bh)_mm256_set1_ps(a), (__m256bh)b);
#endif
#if defined(__AVX2__)
  return (Row)_mm256_fmadd_ps(_mm256_set1_ps(a), (__m256)b, (__m256)sum);
#else
  return fma(splat(a), b, sum);  // here a block is as wide as a vector
#endif
}

#if defined(__AVX2__)
RZERO_INLINE void transpose(Row r[8]) {
  const Pick low{0, 8, 1, 9, 4, 12, 5, 13}, high{2, 10, 3, 11, 6, 14, 7, 15};
  const Pick low_pairs{0, 1, 8, 9, 4, 5, 12, 13}, high_pairs{2, 3, 10, 11, 6, 7, 14, 15};
  const Pick low_half{0, 1, 2, 3, 8, 9, 10, 11}, high_half{4, 5, 6, 7, 12, 13, 14, 15};
  Row a[8], b[8];
#pragma GCC unroll 8
  for (int i = 0; i < 8; i += 2) {
    a[i] = __builtin_shuffle(r[i], r[i + 1], low);
    a[i + 1] = __builtin_shuffle(r[i], r[i + 1], high);
  }
#pragma GCC unroll 8
  for (int i = 0; i < 8; i += 4)
    for (int k = 0; k < 2; ++k) {
      b[i + 2 * k] = __builtin_shuffle(a[i + k], a[i + k + 2], low_pairs);
      b[i + 2 * k + 1] = __builtin_shuffle(a[i + k], a[i + k + 2], high_pairs);
    }
#pragma GCC unroll 8
  for (int i = 0; i < 4; ++i) {
    r[i] = __builtin_shuffle(b[i], b[i + 4], low_half);
    r[i + 4] = __builtin_shuffle(b[i], b[i + 4], high_half);
  }
}
#endif

// out[lane of e][j] = rows[j][e] for `count` rows; the columns up to the next multiple of kBlock repeat the last row.
template <class S, int HELD = kHeld<S>, class Next>
inline void load_transposed(const S* const* rows, int64_t count, int64_t E, float* out, Next& next) {
  constexpr int64_t kStep = kBlock * HELD;
  for (int64_t j = 0; j < count; j += kBlock, next.fetch()) {
    const S* row[kBlock];
    for (int i = 0; i < kBlock; ++i) row[i] = rows[smaller(j + i, count - 1)];
    int64_t e = 0;
    float* to = out + j;
    for (; e + kStep <= E; e += kStep, to += kBlock * kTile) {
      Row block[kBlock];  // in registers, which takes loops without an end to test
#pragma GCC unroll 8
      for (int i = 0; i < kBlock; ++i) block[i] = load_block_row(as_lanes<S, HELD>(row[i] + e));
      transpose(block);
#pragma GCC unroll 8
      for (int i = 0; i < kBlock; ++i) memcpy(to + i * kTile, &block[i], sizeof block[i]);
    }
    for (; e < E; e += HELD, to += kTile)
      for (int i = 0; i < kBlock; ++i) to[i] = lane<S, HELD>(row[i] + e, 1, E - e);
  }
}

template <class S, int HELD = kHeld<S>>
inline void load_transposed(const S* const* rows, int64_t count, int64_t E, float* out) {
  Nothing next;
  load_transposed<S, HELD>(rows, count, E, out, next);
}

// out[j][e] = rows[j][e] * scale, each row padded with zeros to `padded` elements.
template <class S, class Next>
inline void load_rows(const S* const* rows, int64_t count, int64_t E, int64_t padded, float scale, float* out,
                      Next& next) {
  for (int64_t j = 0; j < count; ++j) {
    for (int64_t e = 0; e < E; e += kWidth) store(out + j * padded + e, load(rows[j] + e, E - e) * splat(scale));
    if (j % kBlock == kBlock - 1) next.fetch();
  }
}

template <class S>
inline void load_rows(const S* const* rows, int64_t count, int64_t E, int64_t padded, float scale, float* out) {
  Nothing next;
  load_rows(rows, count, E, padded, scale, out, next);
}

// The left operand of `dots`: the lanes of the rows. The scale, see scale_of, is 1 where they hold pairs.
template <class S>
inline void load_left(const S* const* rows, int64_t count, int64_t E, int64_t padded, float scale, float* out) {
  if constexpr (kHeld<S> == 1) return load_rows(rows, count, E, padded, scale, out);
  for (int64_t r = 0; r < count; ++r)
    for (int64_t l = 0; l < lanes<S>(E); ++l) out[r * padded + l] = lane(rows[r] + l * kHeld<S>, 1, E - l * kHeld<S>);
}

// Addresses of the keys (or values) at `count` positions of a sequence from `first` on, for one key head.
template <class S>
inline void find_keys(const Layout& at, const KeyRows& x, int64_t sequence, int64_t g, int64_t first, int64_t count,
                      const S** out) {
  const S* head = (const S*)x.data + g * x.head;
  const auto run = [&](const S* row, int64_t n, int64_t stride) {
    for (int64_t i = 0; i < n; ++i) *out++ = row + i * stride;
  };
  const int64_t last = first + count;
  if (at.page_table != nullptr) {
    const int32_t* pages = at.page_table + sequence * at.table_stride;
    for (int64_t position = first; position < last;) {
      const int64_t slot = position % at.page_size, n = smaller(at.page_size - slot, last - position);
      run(head + pages[position / at.page_size] * x.outer + slot * x.inner, n, x.inner);
      position += n;
    }
    return;
  }
  const int64_t prefix = at.prefix_length[sequence], shared = smaller(prefix, last) - first;
  if (shared > 0) run(head + (at.prefix_start[sequence] + first) * x.outer, shared, x.outer);
  const int64_t own = first > prefix ? first - prefix : 0;
  if (last > prefix) run(head + (at.start[sequence] + own) * x.outer, last - prefix - own, x.outer);
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
