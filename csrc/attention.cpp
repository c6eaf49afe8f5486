// SPDX-License-Identifier: Apache-2.0
// Attention, forward: one row kernel for pages and for packed rows. See kernels/attention.py for the contract.
#include <cmath>

#include "attention_tile.h"

namespace rzero {
namespace RZERO_ISA {
namespace {

struct Scratch {
  float *q, *by_head, *keys, *values, *scores, *out, *normal;
  const void** queries;
  const void *rows[kTile], *more_rows[kTile];
};

// The addresses of keys (or values), a tile at a time, and the fetching of the tile after it.
template <class S>
class Tiles {
 public:
  Tiles(const Attention& a, const RowJob& job, int64_t g, Scratch& s)
      : a_(a), job_(job), g_(g), found_((const S**)s.rows), coming_((const S**)s.more_rows) {}

  // The tile that was asked for becomes the one at hand; the next, from `first` on, is fetched in `calls` parts. The last
  // address is repeated to the end of a tile.
  void turn(const KeyRows& x, int64_t first, int64_t calls) {
    const int64_t count = smaller(kTile, job_.position + job_.rows - first);
    const S** held = found_;
    found_ = coming_;
    coming_ = held;
    if (count > 0) find_keys(a_.layout, x, job_.sequence, g_, first, count, coming_);
    for (int64_t n = count; n > 0 && n < kTile; ++n) coming_[n] = coming_[count - 1];
    next.plan(coming_, count > 0 ? count : 0, a_.E, calls);
  }
  RZERO_INLINE const S* const* found() const { return found_; }

  Ahead next;

 private:
  const Attention& a_;
  const RowJob& job_;
  int64_t g_;
  const S **found_, **coming_;
};

// Turns a row's scores into exponentials; returns their sum. Tiles of scores lie `step` apart; those past `count` become
// 0 up to a multiple of 32.
RZERO_INLINE float soften(float* scores, int64_t count, int64_t step, float* largest) {
  const int64_t padded = round_up(count, Sum::kLanes);
  const auto at = [&](int64_t n) { return scores + n / kTile * step + n % kTile; };
  for (int64_t n = count; n < padded; ++n) *at(n) = -INFINITY;
  Vec most = load(scores);
  for (int64_t n = kWidth; n < padded; n += kWidth) most = vmax(load(at(n)), most);
  float lane[kWidth], top = -INFINITY;
  memcpy(lane, &most, sizeof lane);
  for (float x : lane) top = x > top ? x : top;
  Sum sum;
  for (int64_t n = 0; n < padded; n += kWidth) {
    const Vec p = exp(load(at(n)) - splat(top));
    store(at(n), p);
    sum.at(n) += p;
  }
  *largest = top;
  return sum.total();
}

// The outputs of a job's rows, divided by their sums, and what backward needs to know of the softmax.
template <class S>
RZERO_INLINE void finish(const Attention& a, const RowJob& job, int64_t g, int64_t rows, int64_t padded, const float* sums,
                         const float* normal) {
  const int64_t R = a.H / a.G, E = a.E;
  for (int64_t r = 0; r < rows; ++r, sums += padded, normal += 2) {
    const int64_t row = job.first_row + r / R, head = g * R + r % R;
    S* out = (S*)a.o.data + row * a.o.row + head * a.o.head;
    for (int64_t e = 0; e < E; e += kWidth) store(out + e, load(sums + e) * splat(normal[1]), E - e);
    if (a.softmax != nullptr) memcpy(a.softmax + (row * a.H + head) * 2, normal, 2 * sizeof(float));
  }
}

// Tokens of a group, each with few enough query heads to a key head for the registers. What the tokens share is computed as
// in `attend`, for all of them at once. A token's own keys are transposed in registers and used there, values are read
// where they lie. The sums are those of `attend`, term for term.
constexpr int kMostHeads = 8;
constexpr int kFew = 3;  // up to so many heads leave registers for a second block of keys, and twice as many values

template <class S, int ROWS, int BLOCKS>
RZERO_INLINE void score_block(const S* const* keys, int64_t E, const float* q, float* out) {
  Row sum[BLOCKS][ROWS] = {};
  for (int64_t e = 0; e < E; e += kBlock)
#pragma GCC unroll 2
    for (int b = 0; b < BLOCKS; ++b) {
      Row block[kBlock];
#pragma GCC unroll 8
      for (int i = 0; i < kBlock; ++i) block[i] = load_block_row(keys[b * kBlock + i] + e);
      transpose(block);
#pragma GCC unroll 8
      for (int i = 0; i < kBlock; ++i)
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r) sum[b][r] = fma_rows(q[(e + i) * ROWS + r] - Row{}, block[i], sum[b][r]);
    }
#pragma GCC unroll 2
  for (int b = 0; b < BLOCKS; ++b)
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r) store_block_row(out + r * kTile + b * kBlock, sum[b][r]);
}

template <class S, int ROWS, int VECS>
RZERO_INLINE void value_block(const S* const* values, int64_t e, int64_t count, const float* p, float* out, int64_t E) {
  Vec sum[ROWS][VECS];
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
    for (int i = 0; i < VECS; ++i) sum[r][i] = load(out + r * E + e + i * kWidth);
  for (int64_t n = 0; n < count; ++n, ++p) {
    const S* row = values[n] + e;
    Vec v[VECS];
#pragma GCC unroll 4
    for (int i = 0; i < VECS; ++i) v[i] = load(row + i * kWidth);
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r) {
      const Vec weight = splat(p[r * kTile]);
#pragma GCC unroll 4
      for (int i = 0; i < VECS; ++i) sum[r][i] = fma(weight, v[i], sum[r][i]);
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < ROWS; ++r)
#pragma GCC unroll 4
    for (int i = 0; i < VECS; ++i) store(out + r * E + e + i * kWidth, sum[r][i]);
}

// The rows of a group, of all its tokens. Scores lie tile after tile, within a tile row after row.
struct Members {
  int64_t rows, shared;
  RZERO_INLINE float* scores(const Scratch& s, int64_t position, int64_t row) const {
    return s.scores + position * rows + row * kTile;
  }
  int64_t calls() const { return kTile / kBlock + rows / 4 * 4 + 3; }  // about how often a tile's computation pauses
};

template <class S>
void score_shared(const Attention& a, const RowJob& job, int64_t g, const Members& group, Scratch& s) {
  Tiles<S> tiles(a, job, g, s);
  tiles.turn(a.k, 0, 1);
  tiles.next.fetch();
  for (int64_t first = 0; first < group.shared; first += kTile) {
    tiles.turn(a.k, first + kTile, group.calls());
    load_transposed(tiles.found(), kTile, a.E, s.keys, tiles.next);
    dots(s.q, a.E, group.rows, s.keys, kTile, a.E, group.scores(s, first, 0), kTile, tiles.next);
  }
}

template <class S>
void add_shared(const Attention& a, const RowJob& job, int64_t g, const Members& group, Scratch& s) {
  const auto all = [](int64_t) { return kTile; };
  Tiles<S> tiles(a, job, g, s);
  tiles.turn(a.v, 0, 1);
  tiles.next.fetch();
  for (int64_t first = 0; first < group.shared; first += kTile) {
    tiles.turn(a.v, first + kTile, group.calls());
    load_rows(tiles.found(), kTile, a.E, a.E, 1.f, s.values, tiles.next);
    accumulate({group.scores(s, first, 0), kTile, 1}, group.rows, Dense{s.values, a.E}, a.E, s.out, all, tiles.next);
  }
}

// The scores of a token's own keys, and the exponentials of all of them. Its rows are those of the group from `row` on.
template <class S, int ROWS>
void score_token(const Attention& a, const RowJob& job, int64_t g, const Members& group, int64_t row, Scratch& s) {
  constexpr int kBlocks = ROWS <= kFew ? 2 : 1;
  const int64_t E = a.E, positions = job.position + 1;
  for (int64_t e = 0; e < E; ++e)
    for (int r = 0; r < ROWS; ++r) s.by_head[e * ROWS + r] = s.q[(row + r) * E + e];
  Tiles<S> tiles(a, job, g, s);
  tiles.turn(a.k, group.shared, 1);
  tiles.next.fetch();
  for (int64_t first = group.shared; first < positions; first += kTile) {
    const int64_t count = smaller(kTile, positions - first), calls = kTile / kBlock / kBlocks;
    first + kTile < positions ? tiles.turn(a.k, first + kTile, calls) : tiles.turn(a.v, group.shared, calls);
    for (int64_t j = 0; j < count; j += kBlocks * kBlock, tiles.next.fetch())
      score_block<S, ROWS, kBlocks>(tiles.found() + j, E, s.by_head, group.scores(s, first, row) + j);
  }
  for (int64_t r = row; r < row + ROWS; ++r)
    s.normal[2 * r + 1] = 1.f / soften(group.scores(s, 0, r), positions, group.rows * kTile, &s.normal[2 * r]);
}

template <class S, int ROWS>
void add_token(const Attention& a, const RowJob& job, int64_t g, const Members& group, int64_t row, Scratch& s) {
  constexpr int kVecs = ROWS <= kFew ? 4 : ROWS <= 6 ? 2 : 1;
  const int64_t E = a.E, positions = job.position + 1;
  Tiles<S> tiles(a, job, g, s);
  tiles.turn(a.v, group.shared, 1);
  for (int64_t first = group.shared; first < positions; first += kTile) {
    const int64_t count = smaller(kTile, positions - first);
    tiles.turn(a.v, first + kTile, E / (kVecs * kWidth));
    for (int64_t e = 0; e < E; e += kVecs * kWidth, tiles.next.fetch())
      value_block<S, ROWS, kVecs>(tiles.found(), e, count, group.scores(s, first, row), s.out + row * E, E);
  }
  finish<S>(a, job, g, ROWS, E, s.out + row * E, s.normal + 2 * row);
}

template <class S, int ROWS>
void attend_group(const Attention& a, const JobGroup& jobs, int64_t g, Scratch& s) {
  const RowJob* job = a.jobs + jobs.first_job;
  const Members group{jobs.jobs * ROWS, jobs.shared};
  const S** queries = (const S**)s.queries;
  for (int64_t i = 0; i < jobs.jobs; ++i) find_queries<S>(a, a.q, job[i].first_row, 1, g, queries + i * ROWS);
  load_rows(queries, group.rows, a.E, a.E, a.scale, s.q);
  if (group.shared > 0) score_shared<S>(a, job[0], g, group, s);
  for (int64_t i = 0; i < jobs.jobs; ++i) score_token<S, ROWS>(a, job[i], g, group, i * ROWS, s);
  memset(s.out, 0, group.rows * a.E * sizeof(float));
  if (group.shared > 0) add_shared<S>(a, job[0], g, group, s);
  for (int64_t i = 0; i < jobs.jobs; ++i) add_token<S, ROWS>(a, job[i], g, group, i * ROWS, s);
}

// Whether attend_group takes the group; if so, it is done.
template <class S, int ROWS = kMostHeads>
RZERO_INLINE bool is_attended(const Attention& a, const JobGroup& group, int64_t g, Scratch& s) {
  if (a.jobs[group.first_job].rows != 1 || a.H / a.G > ROWS || a.E % (4 * kWidth) != 0) return false;
  if (a.H / a.G == ROWS) return attend_group<S, ROWS>(a, group, g, s), true;
  if constexpr (ROWS > 1) return is_attended<S, ROWS - 1>(a, group, g, s);
  return false;
}

template <class S>
void attend(const Attention& a, const RowJob& job, int64_t g, Scratch& s) {
  const int64_t R = a.H / a.G, E = a.E, padded = round_up(E, kWidth);
  const int64_t positions = job.position + job.rows, stride = round_up(positions, kTile);
  const S** queries = (const S**)s.queries;
  const int64_t rows = find_queries<S>(a, a.q, job.first_row, job.rows, g, queries);
  load_rows(queries, rows, E, padded, a.scale, s.q);
  const int64_t calls = kTile / kBlock + rows / 4 * 4 + 3;  // about how often loading and multiplying a tile pause
  Tiles<S> tiles(a, job, g, s);
  tiles.turn(a.k, 0, 1);
  tiles.next.fetch();
  for (int64_t first = 0; first < positions; first += kTile) {
    const int64_t count = smaller(kTile, positions - first);
    first + kTile < positions ? tiles.turn(a.k, first + kTile, calls) : tiles.turn(a.v, 0, calls);
    load_transposed(tiles.found(), count, E, s.keys, tiles.next);
    dots(s.q, padded, rows, s.keys, count, E, s.scores + first, stride, tiles.next);
  }
  for (int64_t r = 0; r < rows; ++r)
    s.normal[2 * r + 1] = 1.f / soften(s.scores + r * stride, job.position + r / R + 1, kTile, &s.normal[2 * r]);
  memset(s.out, 0, rows * padded * sizeof(float));
  for (int64_t first = 0; first < positions; first += kTile) {
    const int64_t count = smaller(kTile, positions - first);
    tiles.turn(a.v, first + kTile, calls);
    const auto visible = [&](int64_t r) {
      const int64_t n = job.position + r / R + 1 - first;
      return n < 0 ? 0 : smaller(n, count);
    };
    load_rows(tiles.found(), count, E, padded, 1.f, s.values, tiles.next);
    accumulate({s.scores + first, stride, 1}, rows, Dense{s.values, padded}, padded, s.out, visible, tiles.next);
  }
  finish<S>(a, job, g, rows, padded, s.out, s.normal);
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
                   {&s.by_head, kMostHeads * a.E},
                   {&s.keys, a.E * kTile},
                   {&s.values, kTile * padded},
                   {&s.scores, rows * positions},
                   {&s.out, rows * padded},
                   {&s.normal, 2 * rows}});
    s.queries = (const void**)malloc(rows * sizeof(void*));
#pragma omp for schedule(dynamic, 1)
    for (int64_t i = 0; i < a.group_count * a.G; ++i)
      by_type(a.code, [&](auto zero) {
        using S = decltype(zero);
        const JobGroup& group = a.groups[i / a.G];
        const int64_t g = i % a.G;
        if (is_attended<S>(a, group, g, s)) return;
        for (int64_t j = 0; j < group.jobs; ++j) attend<S>(a, a.jobs[group.first_job + j], g, s);
      });
    free(s.queries);
  }
}

}  // namespace RZERO_ISA
}  // namespace rzero
