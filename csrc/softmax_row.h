// SPDX-License-Identifier: Apache-2.0
// The reduction of one row of logits over the vocabulary. `sample` and `linear_logprob` both use it and nothing else, so
// their log-probs agree bit for bit. With x a logit and m the largest of the row:
//     y = (x - m) / temperature,   mass = sum of e^y,   log-prob = y - log(mass)
// y is float32 and never overflows, however small the temperature. The sum runs in blocks: 32 float32 lanes inside a
// block, then float64 from block to block, so 150,000 tokens lose no more than 1,000 do.
#pragma once

#include <cmath>

#include "vec.h"

namespace rzero {
namespace RZERO_ISA {

constexpr int64_t kBlock = 1024;

RZERO_INLINE int64_t blocks_of(int64_t V) { return (V + kBlock - 1) / kBlock; }

template <class S>
struct Row {
  const S* x;
  int64_t V;
  float top;  // m
  float temperature;
  float bound;  // tokens with a smaller logit have no mass

  // The logits at i.. , -inf in lanes past the end.
  RZERO_INLINE Vec logits(int64_t i) const {
    if (V - i >= kWidth) return load(x + i);
    float part[kWidth];
    for (int k = 0; k < kWidth; ++k) part[k] = i + k < V ? to_float(x[i + k]) : -INFINITY;
    return load(part);
  }
  RZERO_INLINE Vec scaled(Vec logits) const {
    const Vec y = logits - splat(top);
    return temperature == 1.f ? y : y / splat(temperature);  // the same bits; a division takes as long as half of exp
  }
  // A NaN is not below the bound: it stays, and poisons the sum.
  RZERO_INLINE Vec mass(Vec logits) const { return logits < splat(bound) ? Vec{} : exp(scaled(logits)); }

  float log_prob(int64_t v, double total) const {
    return float(double((to_float(x[v]) - top) / temperature) - log(total));
  }
};

template <class S>
float largest(const S* x, int64_t V) {
  Row<S> row{x, V, 0.f, 1.f, -INFINITY};
  Vec top = splat(-INFINITY);
  for (int64_t i = 0; i < V; i += kWidth) top = vmax(top, row.logits(i));
  float lane[kWidth], m = -INFINITY;
  store(lane, top);
  for (int k = 0; k < kWidth; ++k) m = lane[k] > m || lane[k] != lane[k] ? lane[k] : m;
  return m;
}

// The mass of a row; `blocks`, where given, receives that of each block, and `slope` the sum of y e^y.
template <class S>
double total_mass(const Row<S>& row, double* blocks, double* slope) {
  double total = 0, moment = 0;
  for (int64_t from = 0; from < row.V; from += kBlock) {
    const int64_t end = row.V - from < kBlock ? row.V : from + kBlock;
    Sum mass, weighted;
    for (int64_t i = from; i < end; i += kWidth) {
      const Vec x = row.logits(i);
      const Vec e = row.mass(x);
      mass.at(i) += e;
      if (slope != nullptr) {
        const Vec y = row.scaled(x);
        weighted.at(i) += e * (y < splat(-87.3f) ? Vec{} : y);  // e is 0 there, and y may be -inf
      }
    }
    const double part = mass.total();
    if (blocks != nullptr) blocks[from / kBlock] = part;
    total += part;
    if (slope != nullptr) moment += weighted.total();
  }
  if (slope != nullptr) *slope = moment;
  return total;
}

}  // namespace RZERO_ISA
}  // namespace rzero
