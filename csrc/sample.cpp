// SPDX-License-Identifier: Apache-2.0
// Draws one token per row. See kernels/sample.py for the rules.
//
// Nothing is sorted over the vocabulary. min-p, top-k and top-p each become a bound on the logits: the place of the
// bound is found in a histogram over y, and the bound itself by selection among the logits of one bin.
#include <omp.h>

#include "softmax_row.h"

namespace rzero {
namespace RZERO_ISA {
namespace {

constexpr int64_t kSerialElements = 32768;  // below this, waking the other threads costs more than they save
constexpr int kBins = 1024;
constexpr float kBinsPerNat = 32.f;

struct Settings {
  float temperature;
  int64_t top_k;
  float top_p;
  float min_p;
};

// Philox4x32-10 (Salmon et al., SC'11) -> a number in (0, 1).
double uniform(uint64_t key, uint64_t position) {
  uint32_t c[4] = {uint32_t(position), uint32_t(position >> 32), 0, 0};
  uint32_t k[2] = {uint32_t(key), uint32_t(key >> 32)};
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t(c[0]) * 0xD2511F53u, b = uint64_t(c[2]) * 0xCD9E8D57u;
    const uint32_t next[4] = {uint32_t(b >> 32) ^ c[1] ^ k[0], uint32_t(b), uint32_t(a >> 32) ^ c[3] ^ k[1],
                              uint32_t(a)};
    memcpy(c, next, sizeof c);
    k[0] += 0x9E3779B9u;
    k[1] += 0xBB67AE85u;
  }
  const uint64_t bits = (uint64_t(c[0]) << 20) | (c[1] >> 12);
  return double(2 * bits + 1) * 0x1p-53;
}

struct Candidate {
  float x, weight;
};

void swap(Candidate& a, Candidate& b) {
  const Candidate held = a;
  a = b;
  b = held;
}

// The largest bound such that the candidates at or above it weigh at least `wanted`; the lowest one if none does.
float select_bound(Candidate* c, int64_t n, double wanted) {
  float bound = -INFINITY;
  double above = 0;
  while (n > 0) {
    const float a = c[0].x, b = c[n / 2].x, z = c[n - 1].x;
    const float pivot = (a < b) ? (b < z ? b : (a < z ? z : a)) : (a < z ? a : (b < z ? z : b));
    // Larger ones to the front, equal ones behind them, smaller ones last.
    int64_t greater = 0, i = 0, end = n;
    double weight_greater = 0, weight_equal = 0;
    while (i < end) {
      if (c[i].x > pivot) {
        weight_greater += c[i].weight;
        swap(c[greater++], c[i++]);
      } else if (c[i].x < pivot) {
        swap(c[i], c[--end]);
      } else {
        weight_equal += c[i++].weight;
      }
    }
    if (greater > 0 && above + weight_greater >= wanted) {
      n = greater;
      continue;
    }
    bound = pivot;
    above += weight_greater + weight_equal;
    if (above >= wanted) break;
    c += end;
    n -= end;
  }
  return bound;
}

RZERO_INLINE int bin_of(float y) {
  const float place = -y * kBinsPerNat;
  return place < float(kBins - 1) ? int(place) : kBins - 1;
}

// The largest bound whose tokens weigh at least `wanted` (a share of the whole where is_share). A token weighs 1, or
// its mass where is_share.
template <class S>
float bound_of(const Row<S>& row, double wanted, bool is_share, Candidate* scratch) {
  double histogram[kBins] = {};
  float x[kWidth], y[kWidth], weight[kWidth];
  auto measure = [&](int64_t i) {
    const Vec logits = row.logits(i);
    store(x, logits);
    store(y, row.scaled(logits));
    store(weight, is_share ? row.mass(logits) : (logits < splat(row.bound) ? Vec{} : splat(1.f)));
    return row.V - i < kWidth ? int(row.V - i) : kWidth;
  };
  for (int64_t i = 0; i < row.V; i += kWidth)
    for (int k = 0, n = measure(i); k < n; ++k) histogram[bin_of(y[k])] += weight[k];
  if (is_share) {
    double whole = 0;
    for (double part : histogram) whole += part;
    wanted *= whole;
  }
  double above = 0;
  int bin = 0, last = 0;
  for (; bin < kBins; ++bin) {
    if (histogram[bin] == 0) continue;
    last = bin;
    if (above + histogram[bin] >= wanted) break;
    above += histogram[bin];
  }
  if (bin == kBins) return row.bound;  // fewer than wanted: all stay
  int64_t count = 0;
  for (int64_t i = 0; i < row.V; i += kWidth)
    for (int k = 0, n = measure(i); k < n; ++k)
      if (weight[k] > 0 && bin_of(y[k]) == last) scratch[count++] = {x[k], weight[k]};
  return select_bound(scratch, count, wanted - above);
}

// min-p as a bound on the logits: the smallest one whose y is at least log(min_p).
template <class S>
float min_p_bound(const Row<S>& row, float min_p) {
  const float lowest = float(log(double(min_p)));
  float bound = row.top, lane[kWidth];
  Vec smallest = splat(row.top);
  for (int64_t i = 0; i < row.V; i += kWidth) {
    const Vec x = row.logits(i);
    const Vec kept = row.scaled(x) >= splat(lowest) ? x : splat(row.top);
    smallest = kept < smallest ? kept : smallest;
  }
  store(lane, smallest);
  for (float x : lane) bound = x < bound ? x : bound;
  return bound;
}

template <class S>
int64_t draw(const Row<S>& row, const double* blocks, double total, double u) {
  const double target = u * total;
  int64_t chosen = 0, token = 0;
  double before = 0, sum = 0;
  // Rounding may leave the sums at or below the target: the last block and the last token with mass are then taken.
  for (int64_t b = 0; b < blocks_of(row.V); ++b) {
    if (blocks[b] <= 0) continue;
    chosen = b;
    before = sum;
    sum += blocks[b];
    if (sum > target) break;
  }
  const int64_t from = chosen * kBlock, end = row.V - from < kBlock ? row.V : from + kBlock;
  double reached = before;
  for (int64_t i = from; i < end; i += kWidth) {
    float mass[kWidth];
    store(mass, row.mass(row.logits(i)));
    for (int k = 0; k < kWidth && i + k < end; ++k) {
      if (mass[k] <= 0) continue;
      token = i + k;
      reached += mass[k];
      if (reached > target) return token;
    }
  }
  return token;
}

template <class S>
int64_t first_equal(const S* x, int64_t V, float value) {
  for (int64_t v = 0; v < V; ++v)
    if (to_float(x[v]) == value) return v;
  return 0;
}

// The token, or -1 for a row that nothing can be drawn from.
template <class S>
int64_t sample_row(const S* x, int64_t V, const Settings& how, uint64_t key, uint64_t position, double* blocks,
                   Candidate* scratch, float* logp, float* full_logp) {
  const Row<S> full{x, V, largest(x, V), 1.f, -INFINITY};
  const double full_total = total_mass(full, blocks, nullptr);
  if (!(full.top - full.top == 0) || full_total != full_total) return -1;
  int64_t token;
  if (how.temperature == 0) {
    token = first_equal(x, V, full.top);
    *logp = 0;
  } else {
    Row<S> row = full;
    row.temperature = how.temperature;
    if (how.min_p > 0) row.bound = min_p_bound(row, how.min_p);
    if (how.top_k > 0 && how.top_k < V) {
      const float bound = bound_of(row, double(how.top_k), false, scratch);
      row.bound = bound > row.bound ? bound : row.bound;
    }
    if (how.top_p < 1) row.bound = bound_of(row, double(how.top_p), true, scratch);
    const bool is_full = row.bound == -INFINITY && row.temperature == 1.f;
    const double total = is_full ? full_total : total_mass(row, blocks, nullptr);
    token = draw(row, blocks, total, uniform(key, position));
    *logp = row.log_prob(token, total);
  }
  *full_logp = full.log_prob(token, full_total);
  return token;
}

template <class S>
void run(int64_t B, int64_t V, const S* logits, int64_t stride, const float* temperature, const int32_t* top_k,
         const float* top_p, const float* min_p, const int64_t* key, const int64_t* position, int64_t* token,
         float* logp, float* full_logp, void* const* scratch) {
#pragma omp parallel for schedule(dynamic) if (B > 1 && B * V > kSerialElements)
  for (int64_t b = 0; b < B; ++b) {
    char* own = (char*)scratch[omp_get_thread_num()];
    double* blocks = (double*)own;
    Candidate* candidates = (Candidate*)(own + blocks_of(V) * sizeof(double));
    const Settings how{temperature[b], top_k[b], top_p[b], min_p[b]};
    token[b] = sample_row(logits + b * stride, V, how, uint64_t(key[b]), uint64_t(position[b]), blocks, candidates,
                          logp + b, full_logp + b);
  }
}

}  // namespace

void sample(int code, int64_t B, int64_t V, const void* logits, int64_t stride, const float* temperature,
            const int32_t* top_k, const float* top_p, const float* min_p, const int64_t* key, const int64_t* position,
            int64_t* token, float* logp, float* full_logp, void* const* scratch) {
  by_type(code, [&](auto zero) {
    run(B, V, (const decltype(zero)*)logits, stride, temperature, top_k, top_p, min_p, key, position, token, logp,
        full_logp, scratch);
  });
}

}  // namespace RZERO_ISA
}  // namespace rzero
