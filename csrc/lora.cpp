// SPDX-License-Identifier: Apache-2.0
// Low-rank adapters added to a projection, several in one batch. See kernels/lora.py for the contract.
//
// An element of u sums over K in 16 lanes, an element of y over the rank from 0 up: neither depends on how many rows or
// adapters a call has.
#include "lora.h"

#include "attention_tile.h"

namespace rzero {
namespace RZERO_ISA {
namespace {

constexpr int kLanes = 16;
constexpr int64_t kRows = 16;  // per unit of work

RZERO_INLINE float total(const Vec* part) {
  float lane[kLanes];
  memcpy(lane, part, sizeof lane);
  for (int half = kLanes / 2; half > 0; half /= 2)
    for (int i = 0; i < half; ++i) lane[i] += lane[i + half];
  return lane[0];
}

// u[r][j] = scale * sum over k of x[r][k] a[j][k]
template <int ROWS, int RANKS, class S>
RZERO_INLINE void shrink_block(const S* x, int64_t x_stride, const S* a, int64_t K, float scale, float* u, int64_t rank) {
  constexpr int kParts = kLanes / kWidth;
  Vec acc[ROWS][RANKS][kParts] = {};
  const auto add = [&](int64_t k, int p, int64_t n) {
    Vec b[RANKS];
    for (int j = 0; j < RANKS; ++j) b[j] = load(a + j * K + k, n);
    for (int r = 0; r < ROWS; ++r) {
      const Vec v = load(x + r * x_stride + k, n);
      for (int j = 0; j < RANKS; ++j) acc[r][j][p] = fma(v, b[j], acc[r][j][p]);
    }
  };
  int64_t k = 0;
  for (; k + kLanes <= K; k += kLanes)
    for (int p = 0; p < kParts; ++p) add(k + p * kWidth, p, kWidth);
  for (int p = 0; p < kParts; ++p)
    if (k + p * kWidth < K) add(k + p * kWidth, p, K - k - p * kWidth);
  for (int r = 0; r < ROWS; ++r)
    for (int j = 0; j < RANKS; ++j) u[r * rank + j] = total(acc[r][j]) * scale;
}

template <int ROWS, class S>
RZERO_INLINE void shrink_rows(const S* x, int64_t x_stride, const S* a, int64_t K, float scale, float* u, int64_t rank) {
  int64_t j = 0;
  for (; j + 2 <= rank; j += 2) shrink_block<ROWS, 2>(x, x_stride, a + j * K, K, scale, u + j, rank);
  if (j < rank) shrink_block<ROWS, 1>(x, x_stride, a + j * K, K, scale, u + j, rank);
}

template <class S>
void shrink(const Lora& lora, const LoraPart& part, int64_t first, int64_t last) {
  for (int64_t t = first; t < last;) {
    const S* x = (const S*)lora.x + (part.first_row + t) * lora.x_stride;
    float* u = part.u + t * part.rank;
    if (t + 2 <= last) {
      shrink_rows<2>(x, lora.x_stride, (const S*)part.a, lora.K, part.scale, u, part.rank);
      t += 2;
    } else {
      shrink_rows<1>(x, lora.x_stride, (const S*)part.a, lora.K, part.scale, u, part.rank);
      t += 1;
    }
  }
}

// The columns [first, first + kTile) of a part; bt holds [rank][kTile], out [kRows][kTile].
template <class S>
void expand(const Lora& lora, const LoraPart& part, int64_t first, float* bt, float* out) {
  const int64_t count = smaller(kTile, part.columns - first);
  const S* rows[kTile];
  for (int64_t n = 0; n < count; ++n) rows[n] = (const S*)part.b + (first + n) * part.rank;
  load_transposed<S, 1>(rows, count, part.rank, bt);  // as floats, which u are
  for (int64_t from = 0; from < part.rows; from += kRows) {
    const int64_t here = smaller(kRows, part.rows - from);
    dots<float>(part.u + from * part.rank, part.rank, here, bt, count, part.rank, 1.f, out, kTile);
    for (int64_t t = 0; t < here; ++t) {
      S* y = (S*)lora.y + (part.first_row + from + t) * lora.y_stride + part.first_column + first;
      for (int64_t n = 0; n < count; n += kWidth)
        store(y + n, load(y + n, count - n) + load(out + t * kTile + n), count - n);
    }
  }
}

template <class S>
void run(const Lora& lora) {
  int64_t rank = 0;
  for (int64_t i = 0; i < lora.part_count; ++i) rank = rank < lora.parts[i].rank ? lora.parts[i].rank : rank;
#pragma omp parallel if (lora.is_parallel)
  {
    Arena arena;
    float *bt, *out;
    arena.reserve({{&bt, rank * kTile}, {&out, kRows * kTile}});
    for (int64_t i = 0; i < lora.part_count; ++i) {
      const LoraPart& part = lora.parts[i];
#pragma omp for schedule(static)
      for (int64_t first = 0; first < part.rows; first += kRows)
        shrink<S>(lora, part, first, smaller(first + kRows, part.rows));
#pragma omp for schedule(static)
      for (int64_t first = 0; first < part.columns; first += kTile) expand<S>(lora, part, first, bt, out);
    }
  }
}

}  // namespace

void lora(const Lora* call) {
  by_type(call->code, [&](auto zero) { run<decltype(zero)>(*call); });
}

}  // namespace RZERO_ISA
}  // namespace rzero
