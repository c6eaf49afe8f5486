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

// Positions from `first` on that lie in the same tile, up to `end`.
RZERO_INLINE int64_t in_tile(int64_t first, int64_t end) { return smaller(kTile - first % kTile, end - first); }

// The addresses of keys (or values), a tile at a time, and the fetching of the tile after it.
template <class S>
class Tiles {
 public:
  Tiles(const Attention& a, int64_t g, Scratch& s)
      : a_(a), g_(g), found_((const S**)s.rows), coming_((const S**)s.more_rows) {}

  // The tile that was asked for becomes the one at hand; the next, of `job` from `first` on, is fetched in `calls` parts.
  // The last address is repeated to the end of a tile.
  void turn(const RowJob& job, const KeyRows& x, int64_t first, int64_t calls) {
    const int64_t count = in_tile(first, job.position + job.rows);
    const S** held = found_;
    found_ = coming_;
    coming_ = held;
    if (count > 0) find_keys(a_.layout, x, job.sequence, g_, first, count, coming_);
    for (int64_t n = count; n > 0 && n < kTile; ++n) coming_[n] = coming_[count - 1];
    next.plan(coming_, count > 0 ? count : 0, a_.E, calls);
  }
  // Asks for the first tile, at once.
  void begin(const RowJob& job, const KeyRows& x, int64_t first) {
    turn(job, x, first, 1);
    next.fetch();
  }
  RZERO_INLINE const S* const* found() const { return found_; }

  Ahead next;

 private:
  const Attention& a_;
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
RZERO_INLINE void score_block(const S* const* keys, int64_t E, float scale, const float* q, float* out) {
  Row sum[BLOCKS][ROWS] = {};
  for (int64_t e = 0; e < E; e += kBlock * kHeld<S>, q += kBlock * ROWS)
#pragma GCC unroll 2
    for (int b = 0; b < BLOCKS; ++b) {
      Row block[kBlock];
#pragma GCC unroll 8
      for (int i = 0; i < kBlock; ++i) block[i] = load_block_row(as_lanes(keys[b * kBlock + i] + e));
      transpose(block);
#pragma GCC unroll 8
      for (int i = 0; i < kBlock; ++i)
#pragma GCC unroll 8
        for (int r = 0; r < ROWS; ++r) sum[b][r] = multiply_add_rows<S>(q[i * ROWS + r], block[i], sum[b][r]);
    }
#pragma GCC unroll 2
  for (int b = 0; b < BLOCKS; ++b)
#pragma GCC unroll 8
    for (int r = 0; r < ROWS; ++r) store_block_row(out + r * kTile + b * kBlock, sum[b][r] * (scale - Row{}));
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

// The tokens of a group and their rows. Scores lie tile after tile, within a tile row after row.
struct Members {
  const RowJob* job;
  int64_t jobs, rows, shared;
  RZERO_INLINE float* scores(const Scratch& s, int64_t position, int64_t row) const {
    return s.scores + position / kTile * kTile * rows + row * kTile + position % kTile;
  }
  int64_t calls() const { return kTile / kBlock + rows / 4 * 4 + 3; }  // about how often a tile's computation pauses
};

// The next four begin with the tile that was asked for last, and end by asking for the one that the next of them needs: all
// shared keys, the tokens' own keys one after the other, all shared values, the tokens' own values.
template <class S>
void score_shared(const Attention& a, const Members& group, Scratch& s, Tiles<S>& tiles) {
  for (int64_t first = 0, count; first < group.shared; first += count) {
    count = in_tile(first, group.shared);
    tiles.turn(group.job[0], a.k, first + count, group.calls());
    load_transposed(tiles.found(), count, a.E, s.keys, tiles.next);
    dots<S>(s.q, a.E, group.rows, s.keys, count, a.E, scale_of<S>(a.scale).sum, group.scores(s, first, 0), kTile,
            tiles.next);
  }
}

// And the exponentials of all of the token's scores.
template <class S, int ROWS>
void score_token(const Attention& a, const Members& group, int64_t token, Scratch& s, Tiles<S>& tiles) {
  constexpr int kBlocks = ROWS <= kFew ? 2 : 1;
  const RowJob& job = group.job[token];
  const int64_t E = a.E, positions = job.position + 1, row = token * ROWS;
  const float scale = scale_of<S>(a.scale).sum;
  for (int64_t l = 0; l < lanes<S>(E); ++l)
    for (int r = 0; r < ROWS; ++r) s.by_head[l * ROWS + r] = s.q[(row + r) * E + l];
  for (int64_t first = group.shared, count; first < positions; first += count) {
    count = in_tile(first, positions);
    const int64_t calls = kTile / kBlock / kBlocks;
    if (first + count < positions)
      tiles.turn(job, a.k, first + count, calls);
    else if (token + 1 < group.jobs)
      tiles.turn(group.job[token + 1], a.k, group.shared, calls);
    else
      tiles.turn(group.job[0], a.v, 0, calls);
    for (int64_t j = 0; j < count; j += kBlocks * kBlock, tiles.next.fetch())
      score_block<S, ROWS, kBlocks>(tiles.found() + j, E, scale, s.by_head, group.scores(s, first, row) + j);
  }
  for (int64_t r = row; r < row + ROWS; ++r)
    s.normal[2 * r + 1] = 1.f / soften(group.scores(s, 0, r), positions, group.rows * kTile, &s.normal[2 * r]);
}

template <class S>
void add_shared(const Attention& a, const Members& group, Scratch& s, Tiles<S>& tiles) {
  for (int64_t first = 0, count; first < group.shared; first += count) {
    count = in_tile(first, group.shared);
    tiles.turn(group.job[0], a.v, first + count, group.calls());
    load_rows(tiles.found(), count, a.E, a.E, 1.f, s.values, tiles.next);
    accumulate({group.scores(s, first, 0), kTile, 1}, group.rows, Dense{s.values, a.E}, a.E, s.out,
               [&](int64_t) { return count; }, tiles.next);
  }
}

template <class S, int ROWS>
void add_token(const Attention& a, const Members& group, int64_t token, int64_t g, Scratch& s, Tiles<S>& tiles) {
  constexpr int kVecs = ROWS <= kFew ? 4 : ROWS <= 6 ? 2 : 1;
  const RowJob& job = group.job[token];
  const int64_t E = a.E, positions = job.position + 1, row = token * ROWS;
  for (int64_t first = group.shared, count; first < positions; first += count) {
    count = in_tile(first, positions);
    const bool is_last = first + count == positions && token + 1 < group.jobs;
    const RowJob& next = group.job[is_last ? token + 1 : token];
    tiles.turn(next, a.v, is_last ? group.shared : first + count, E / (kVecs * kWidth));
    for (int64_t e = 0; e < E; e += kVecs * kWidth, tiles.next.fetch())
      value_block<S, ROWS, kVecs>(tiles.found(), e, count, group.scores(s, first, row), s.out + row * E, E);
  }
  finish<S>(a, job, g, ROWS, E, s.out + row * E, s.normal + 2 * row);
}

template <class S, int ROWS>
void attend_group(const Attention& a, const JobGroup& jobs, int64_t g, Scratch& s) {
  const Members group{a.jobs + jobs.first_job, jobs.jobs, jobs.jobs * ROWS, jobs.shared};
  const S** queries = (const S**)s.queries;
  for (int64_t i = 0; i < group.jobs; ++i) find_queries<S>(a, a.q, group.job[i].first_row, 1, g, queries + i * ROWS);
  load_left(queries, group.rows, a.E, a.E, scale_of<S>(a.scale).query, s.q);
  memset(s.out, 0, group.rows * a.E * sizeof(float));
  Tiles<S> tiles(a, g, s);
  tiles.begin(group.job[0], a.k, 0);
  score_shared(a, group, s, tiles);
  for (int64_t i = 0; i < group.jobs; ++i) score_token<S, ROWS>(a, group, i, s, tiles);
  add_shared(a, group, s, tiles);
  for (int64_t i = 0; i < group.jobs; ++i) add_token<S, ROWS>(a, group, i, g, s, tiles);
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
  const Scale scale = scale_of<S>(a.scale);
  load_left(queries, rows, E, padded, scale.query, s.q);
  const int64_t calls = kTile / kBlock + rows / 4 * 4 + 3;  // about how often loading and multiplying a tile pause
  Tiles<S> tiles(a, g, s);
  tiles.begin(job, a.k, 0);
  for (int64_t first = 0; first < positions; first += kTile) {
    const int64_t count = smaller(kTile, positions - first);
    first + kTile < positions ? tiles.turn(job, a.k, first + kTile, calls) : tiles.turn(job, a.v, 0, calls);
    load_transposed(tiles.found(), count, E, s.keys, tiles.next);
    dots<S>(s.q, padded, rows, s.keys, count, E, scale.sum, s.scores + first, stride, tiles.next);
  }
  for (int64_t r = 0; r < rows; ++r)
    s.normal[2 * r + 1] = 1.f / soften(s.scores + r * stride, job.position + r / R + 1, kTile, &s.normal[2 * r]);
  memset(s.out, 0, rows * padded * sizeof(float));
  for (int64_t first = 0; first < positions; first += kTile) {
    const int64_t count = smaller(kTile, positions - first);
    tiles.turn(job, a.v, first + kTile, calls);
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
