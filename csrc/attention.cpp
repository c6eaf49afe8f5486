// SPDX-License-Identifier: Apache-2.0
// Attention, forward: one row kernel for pages and for packed rows. See kernels/attention.py for the contract.
#include <cmath>

#include "attention_tile.h"

namespace rzero {
namespace RZERO_ISA {
namespace {

RZERO_INLINE constexpr bool is_float(const float**) { return true; }
template <class S>
RZERO_INLINE constexpr bool is_float(const S**) {
  return false;
}

constexpr int64_t kFewRows = 8;

struct Scratch {
  float *q, *keys, *values, *scores, *out, *normal;
  const void** queries;
  const void *rows[kTile], *more_rows[kTile];
};

// Turns a row's scores into exponentials; returns their sum. Scores past `count` become 0 up to a multiple of 32.
RZERO_INLINE float soften(float* score, int64_t count, float* largest) {
  const int64_t padded = round_up(count, Sum::kLanes);
  for (int64_t n = count; n < padded; ++n) score[n] = -INFINITY;
  Vec most = load(score);
  for (int64_t n = kWidth; n < padded; n += kWidth) most = vmax(load(score + n), most);
  float lane[kWidth], top = -INFINITY;
  memcpy(lane, &most, sizeof lane);
  for (float x : lane) top = x > top ? x : top;
  Sum sum;
  for (int64_t n = 0; n < padded; n += kWidth) {
    const Vec p = exp(load(score + n) - splat(top));
    store(score + n, p);
    sum.at(n) += p;
  }
  *largest = top;
  return sum.total();
}

template <class S>
void attend(const Attention& a, const RowJob& job, int64_t g, Scratch& s) {
  const int64_t R = a.H / a.G, E = a.E, padded = round_up(E, kWidth);
  const int64_t positions = job.position + job.rows, stride = round_up(positions, kTile);
  const S** queries = (const S**)s.queries;
  const int64_t rows = find_queries<S>(a, a.q, job.first_row, job.rows, g, queries);
  load_rows(queries, rows, E, padded, a.scale, s.q);
  const S **found = (const S**)s.rows, **coming = (const S**)s.more_rows;
  Ahead next;
  // Asks for the tile of keys (or values) from `first` on, if there is one. The one that was asked for becomes `found`.
  const auto look_ahead = [&](const KeyRows& x, int64_t first, int64_t calls) {
    const int64_t count = smaller(kTile, positions - first);
    const S** held = found;
    found = coming;
    coming = held;
    if (count > 0) find_keys(a.layout, x, job.sequence, g, first, count, coming);
    next.plan(coming, count > 0 ? count : 0, E, calls);
  };
  const int64_t blocks = rows / 4 * 4 + 3;  // about how often dots and accumulate pause for it
  look_ahead(a.k, 0, 1);
  next.fetch();
  for (int64_t first = 0; first < positions; first += kTile) {
    const int64_t count = smaller(kTile, positions - first);
    if (first + kTile < positions)
      look_ahead(a.k, first + kTile, kTile / kBlock + blocks);
    else
      look_ahead(a.v, 0, kTile / kBlock + blocks);
    load_transposed(found, count, E, s.keys, next);
    dots(s.q, padded, rows, s.keys, count, E, s.scores + first, stride, next);
  }
  for (int64_t r = 0; r < rows; ++r)
    s.normal[2 * r + 1] = 1.f / soften(s.scores + r * stride, job.position + r / R + 1, &s.normal[2 * r]);
  memset(s.out, 0, rows * padded * sizeof(float));
  const bool is_direct = is_float(coming) && padded == E && rows <= kFewRows;  // read a few times: not worth a copy
  for (int64_t first = 0; first < positions; first += kTile) {
    const int64_t count = smaller(kTile, positions - first);
    look_ahead(a.v, first + kTile, is_direct ? blocks : kTile / kBlock + blocks);
    const auto visible = [&](int64_t r) {
      const int64_t n = job.position + r / R + 1 - first;
      return n < 0 ? 0 : smaller(n, count);
    };
    const Coefficients p{s.scores + first, stride, 1};
    if (is_direct) {
      accumulate(p, rows, Scattered{(const float* const*)found}, padded, s.out, visible, next);
    } else {
      load_rows(found, count, E, padded, 1.f, s.values, next);
      accumulate(p, rows, Dense{s.values, padded}, padded, s.out, visible, next);
    }
  }
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t row = job.first_row + r / R, head = g * R + r % R;
    S* out = (S*)a.o.data + row * a.o.row + head * a.o.head;
    for (int64_t e = 0; e < E; e += kWidth) store(out + e, load(s.out + r * padded + e) * splat(s.normal[2 * r + 1]), E - e);
    if (a.softmax != nullptr) memcpy(a.softmax + (row * a.H + head) * 2, s.normal + 2 * r, 2 * sizeof(float));
  }
}

}  // namespace

void attention_forward(const Attention* problem) {
  const Attention& a = *problem;
  const int64_t padded = round_up(a.E, kWidth), rows = a.most_rows * (a.H / a.G);
  const int64_t positions = round_up(a.most_positions, kTile);
#pragma omp parallel if (a.is_parallel)
  {
    Arena arena;
    Scratch s;
    arena.reserve({{&s.q, rows * padded},
                   {&s.keys, a.E * kTile},
                   {&s.values, kTile * padded},
                   {&s.scores, rows * positions},
                   {&s.out, rows * padded},
                   {&s.normal, 2 * rows}});
    s.queries = (const void**)malloc(rows * sizeof(void*));
#pragma omp for schedule(dynamic, 1)
    for (int64_t i = 0; i < a.job_count * a.G; ++i)
      by_type(a.code, [&](auto zero) { attend<decltype(zero)>(a, a.jobs[i / a.G], i % a.G, s); });
    free(s.queries);
  }
}

}  // namespace RZERO_ISA
}  // namespace rzero
