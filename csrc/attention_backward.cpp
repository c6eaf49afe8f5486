// SPDX-License-Identifier: Apache-2.0
// Attention, backward, in two passes that need no locks: queries' gradients by blocks of rows, then keys' and values'
// by tiles of keys. The probabilities are computed again from the saved maximum and sum of each row.
//
//   p = exp(s - max) / sum    dp = do . v    ds = p * (dp - sum(p * dp))    dq = scale ds k    dk = scale ds q    dv = p do
//
// sum(p * dp) is summed over the keys, not taken as do . o: with few keys dp and the sum nearly cancel, and a sum in
// another order, or of an output rounded to bfloat16, would leave its rounding as the gradient.
#include "attention_tile.h"

namespace rzero {
namespace RZERO_ISA {
namespace {

// A block of query rows (q already scaled) against a tile of keys: p and ds, [rows][kTile].
struct Block {
  float *q, *grad_o;               // [rows][padded]
  float *q_left, *grad_o_left;     // as left operands of `dots`: the same memory where these are floats
  float *largest, *inverse, *delta;  // [rows]
  float *p, *ds;                   // [rows][kTile]
  const void** rows;
};

struct Tile {
  float *keys_t, *values_t;  // [E][kTile]
  float *keys;               // [kTile][padded]
  const void *k[kTile], *v[kTile];
};

template <class S>
int64_t load_block(const Attention& a, const AttentionGrad& grad, int64_t first_row, int64_t tokens, int64_t g, Block& b) {
  const int64_t R = a.H / a.G, padded = round_up(a.E, kWidth);
  const S** address = (const S**)b.rows;
  const int64_t rows = find_queries<S>(a, a.q, first_row, tokens, g, address);
  load_rows(address, rows, a.E, padded, a.scale, b.q);
  if constexpr (kHeld<S> != 1) load_left(address, rows, a.E, padded, 1.f, b.q_left);
  find_queries<S>(a, grad.grad_o, first_row, tokens, g, address);
  load_rows(address, rows, a.E, padded, 1.f, b.grad_o);
  if constexpr (kHeld<S> != 1) load_left(address, rows, a.E, padded, 1.f, b.grad_o_left);
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t at = (first_row + r / R) * a.H + g * R + r % R;
    b.largest[r] = a.softmax[2 * at];
    b.inverse[r] = a.softmax[2 * at + 1];
    b.delta[r] = grad.delta[at];
  }
  return rows;
}

template <class S>
void load_tile(const Attention& a, int64_t sequence, int64_t g, int64_t first, int64_t count, Tile& tile) {
  const S **k = (const S**)tile.k, **v = (const S**)tile.v;
  find_keys(a.layout, a.k, sequence, g, first, count, k);
  find_keys(a.layout, a.v, sequence, g, first, count, v);
  load_transposed(k, count, a.E, tile.keys_t);
  load_transposed(v, count, a.E, tile.values_t);
}

// Row r sees the keys [from, until(r)) of the tile; the others get p = ds = 0.
template <class S, class Until>
RZERO_INLINE void scores_grad(const Attention& a, const Block& b, const Tile& tile, int64_t rows, int64_t keys,
                              int64_t from, const Until& until) {
  const int64_t padded = round_up(a.E, kWidth);
  dots<S>(b.q_left, padded, rows, tile.keys_t, keys, a.E, scale_of<S>(a.scale).sum, b.p, kTile);
  dots<S>(b.grad_o_left, padded, rows, tile.values_t, keys, a.E, 1.f, b.ds, kTile);
  for (int64_t r = 0; r < rows; ++r) {
    float *p = b.p + r * kTile, *ds = b.ds + r * kTile;
    const int64_t end = until(r);
    for (int64_t j = 0; j < keys; j += kWidth) {
      const Vec prob = exp(load(p + j) - splat(b.largest[r])) * splat(b.inverse[r]);
      store(ds + j, prob * (load(ds + j) - splat(b.delta[r])));
      store(p + j, prob);
    }
    for (int64_t j = 0; j < from && j < keys; ++j) p[j] = ds[j] = 0.f;
    for (int64_t j = end < 0 ? 0 : end; j < keys; ++j) p[j] = ds[j] = 0.f;
  }
}

struct RowSums {
  float *p, *dp;  // [rows][positions]
  float* q;       // [rows][padded]
};

// Turns a row's scores into probabilities and dp into ds; returns sum(p * dp).
RZERO_INLINE float row_grad(float* p, float* dp, int64_t visible, int64_t positions, float largest, float inverse) {
  Sum sum;
  for (int64_t n = 0; n < visible; n += kWidth) {
    const Vec prob = exp(load(p + n) - splat(largest)) * splat(inverse);
    store(p + n, prob);
    const int64_t past = visible - n;
    sum.at(n) = fma(load(p + n, past), load(dp + n, past), sum.at(n));
  }
  const float delta = sum.total();
  for (int64_t n = 0; n < visible; n += kWidth) store(dp + n, load(p + n) * (load(dp + n) - splat(delta)));
  for (int64_t n = visible; n < positions; ++n) dp[n] = 0.f;
  return delta;
}

template <class S>
void query_grad(const Attention& a, const AttentionGrad& grad, const RowJob& job, int64_t g, Block& b, Tile& tile,
                RowSums& sum) {
  const int64_t R = a.H / a.G, E = a.E, padded = round_up(E, kWidth), positions = job.position + job.rows;
  const int64_t stride = round_up(positions, kTile);
  const int64_t rows = load_block<S>(a, grad, job.first_row, job.rows, g, b);
  for (int64_t first = 0; first < positions; first += kTile) {
    const int64_t keys = smaller(kTile, positions - first);
    load_tile<S>(a, job.sequence, g, first, keys, tile);
    dots<S>(b.q_left, padded, rows, tile.keys_t, keys, E, scale_of<S>(a.scale).sum, sum.p + first, stride);
    dots<S>(b.grad_o_left, padded, rows, tile.values_t, keys, E, 1.f, sum.dp + first, stride);
  }
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t at = (job.first_row + r / R) * a.H + g * R + r % R;
    grad.delta[at] = row_grad(sum.p + r * stride, sum.dp + r * stride, job.position + r / R + 1, positions,
                              b.largest[r], b.inverse[r]);
  }
  memset(sum.q, 0, rows * padded * sizeof(float));
  for (int64_t first = 0; first < positions; first += kTile) {
    const int64_t keys = smaller(kTile, positions - first);
    find_keys(a.layout, a.k, job.sequence, g, first, keys, (const S**)tile.k);
    load_rows((const S**)tile.k, keys, E, padded, 1.f, tile.keys);
    accumulate({sum.dp + first, stride, 1}, rows, Dense{tile.keys, padded}, padded, sum.q, [&](int64_t) { return keys; });
  }
  for (int64_t r = 0; r < rows; ++r) {
    S* out = (S*)grad.grad_q.data + (job.first_row + r / R) * grad.grad_q.row + (g * R + r % R) * grad.grad_q.head;
    for (int64_t e = 0; e < E; e += kWidth) store(out + e, load(sum.q + r * padded + e) * splat(a.scale), E - e);
  }
}

// The gradients of a tile's keys and values. A prompt has thousands of readers' rows: each block of rows is summed apart
// and then added, which keeps float32's rounding from piling up.
struct KeySums {
  float *k, *v, *part;  // [kTile][padded]
};

RZERO_INLINE void add_product(Coefficients c, int64_t keys, const float* values, int64_t rows, int64_t padded, float* part,
                              float* sum) {
  memset(part, 0, keys * padded * sizeof(float));
  accumulate(c, keys, Dense{values, padded}, padded, part, [&](int64_t) { return rows; });
  for (int64_t i = 0; i < keys * padded; i += kWidth) store(sum + i, load(sum + i) + load(part + i));
}

template <class S>
void key_grad(const Attention& a, const AttentionGrad& grad, const KeyJob& job, int64_t g, Block& b, Tile& tile,
              KeySums& sum) {
  const int64_t R = a.H / a.G, E = a.E, padded = round_up(E, kWidth), keys = job.keys;
  const Layout& at = a.layout;
  const int64_t own = job.first_row - at.start[job.segment];  // place of the first key among its segment's rows
  load_tile<S>(a, job.segment, g, at.prefix_length[job.segment] + own, keys, tile);
  memset(sum.k, 0, keys * padded * sizeof(float));
  memset(sum.v, 0, keys * padded * sizeof(float));
  // Adds what the rows first..last of one segment contribute; row i of them sees the keys [from, until(i)).
  const auto add = [&](int64_t first, int64_t last, int64_t from, const auto& until) {
    const int64_t most = kRowsPerJob / R > 1 ? kRowsPerJob / R : 1;
    for (int64_t row = first; row < last; row += most) {
      const int64_t rows = load_block<S>(a, grad, row, smaller(most, last - row), g, b);
      scores_grad<S>(a, b, tile, rows, keys, from, [&](int64_t r) { return until(row + r / R); });
      add_product({b.ds, 1, kTile}, keys, b.q, rows, padded, sum.part, sum.k);
      add_product({b.p, 1, kTile}, keys, b.grad_o, rows, padded, sum.part, sum.v);
    }
  };
  const int64_t end = at.start[job.segment] + grad.length[job.segment];
  add(job.first_row, end, 0, [&](int64_t row) { return row - job.first_row + 1; });
  for (int64_t i = job.first_reader; i < job.last_reader; ++i) {
    const int64_t c = grad.readers[i];
    const int64_t from = at.prefix_start[c] - job.first_row, until = from + at.prefix_length[c];
    if (until <= 0 || from >= keys) continue;
    add(at.start[c], at.start[c] + grad.length[c], from, [&](int64_t) { return until; });
  }
  for (int64_t j = 0; j < keys; ++j) {
    S* out_k = (S*)grad.grad_k.data + (job.first_row + j) * grad.grad_k.row + g * grad.grad_k.head;
    S* out_v = (S*)grad.grad_v.data + (job.first_row + j) * grad.grad_v.row + g * grad.grad_v.head;
    for (int64_t e = 0; e < E; e += kWidth) {
      store(out_k + e, load(sum.k + j * padded + e), E - e);  // q carries the scale
      store(out_v + e, load(sum.v + j * padded + e), E - e);
    }
  }
}

template <class S>
void backward(const Attention& a, const AttentionGrad& grad) {
  const int64_t padded = round_up(a.E, kWidth), R = a.H / a.G;
  const int64_t rows = kRowsPerJob > R ? kRowsPerJob : R, positions = round_up(a.most_positions, kTile);
#pragma omp parallel if (a.is_parallel)
  {
    Arena arena;
    Block b;
    Tile tile;
    RowSums row_sums;
    KeySums key_sums;
    arena.reserve({{&b.q, rows * padded},
                   {&b.grad_o, rows * padded},
                   {&b.q_left, rows * padded},
                   {&b.grad_o_left, rows * padded},
                   {&b.largest, rows},
                   {&b.inverse, rows},
                   {&b.delta, rows},
                   {&b.p, rows * kTile},
                   {&b.ds, rows * kTile},
                   {&tile.keys_t, a.E * kTile},
                   {&tile.values_t, a.E * kTile},
                   {&tile.keys, kTile * padded},
                   {&row_sums.p, rows * positions},
                   {&row_sums.dp, rows * positions},
                   {&row_sums.q, rows * padded},
                   {&key_sums.k, kTile * padded},
                   {&key_sums.v, kTile * padded},
                   {&key_sums.part, kTile * padded}});
    if constexpr (kHeld<S> == 1) b.q_left = b.q, b.grad_o_left = b.grad_o;
    b.rows = (const void**)malloc(rows * sizeof(void*));
    // The barrier after this loop matters: the second pass reads every row's delta.
#pragma omp for schedule(dynamic, 1)
    for (int64_t i = 0; i < a.job_count * a.G; ++i) query_grad<S>(a, grad, a.jobs[i / a.G], i % a.G, b, tile, row_sums);
#pragma omp for schedule(dynamic, 1)
    for (int64_t i = 0; i < grad.key_job_count * a.G; ++i)
      key_grad<S>(a, grad, grad.key_jobs[i / a.G], i % a.G, b, tile, key_sums);
    free(b.rows);
  }
}

}  // namespace

void attention_backward(const Attention* problem, const AttentionGrad* grad) {
  by_type(problem->code, [&](auto zero) { backward<decltype(zero)>(*problem, *grad); });
}

}  // namespace RZERO_ISA
}  // namespace rzero
