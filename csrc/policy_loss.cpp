// SPDX-License-Identifier: Apache-2.0
// The clipped surrogate with KL: loss, gradient and metrics in one pass over memory. See kernels/policy_loss.py.
//
// A difference of log-probs keeps what its rounding lost, or a ratio of e^20 would be off by 16 units in the last place.
// Sums go over blocks of fixed length in float32 lanes of fixed number, and from block to block in float64: neither
// threads nor the width of vectors enter a result.
#include <cmath>

#include "policy_loss.h"
#include "vec.h"

namespace rzero {
namespace RZERO_ISA {
namespace {

constexpr int64_t kSerialTokens = 16384;  // below this, waking the other threads costs more than they save
constexpr float kMaxLogRatio = 20, kMaxK3 = 10;

RZERO_INLINE Vec size_of(Vec x) { return (Vec)((BitVec)x & 0x7fffffffu); }

// a - b within -20..20. `lost` is what rounding took from it (Knuth's two-sum), 0 where the bounds hold it.
struct Difference {
  Vec all, held, lost;
  IntVec is_inside;
};

RZERO_INLINE Difference difference(Vec a, Vec b) {
  const Vec most = splat(kMaxLogRatio);
  Difference d;
  d.all = a - b;
  const Vec back = d.all - a;
  d.held = d.all < -most ? -most : (d.all > most ? most : d.all);  // a NaN stays
  d.is_inside = size_of(d.all) <= most;
  d.lost = d.is_inside ? (a - (d.all - back)) - (b + back) : Vec{};
  return d;
}

RZERO_INLINE IntVec is_small(Vec x) { return size_of(x) < splat(0.34f); }

// e^x, and where x is small e^x - 1 - x, in which nothing has cancelled. As exp of vec.h, for |x| <= 20; a NaN stays.
struct Exp {
  Vec all, tail;
};

RZERO_INLINE Exp exponential(Vec x) {
  const Vec magic = splat(12582912.f);
  const Vec shifted = fma(x, splat(1.44269504088896341f), magic);
  const Vec n = shifted - magic;
  const Vec r = fma(n, splat(2.12194440e-4f), fma(n, splat(-0.693359375f), x));  // x itself where x is small
  Vec p = splat(1.9875691500e-4f);
  p = fma(p, r, splat(1.3981999507e-3f));
  p = fma(p, r, splat(8.3334519073e-3f));
  p = fma(p, r, splat(4.1665795894e-2f));
  p = fma(p, r, splat(1.6666665459e-1f));
  p = fma(p, r, splat(5.0000001201e-1f));
  const Vec power = (Vec)(((BitVec)shifted - 0x4b400000u + 127u) << 23), tail = p * (r * r);
  return {(tail + r + 1.f) * power, tail};
}

RZERO_INLINE Vec at_most(Vec x, float bound) { return x > splat(bound) ? splat(bound) : x; }

// exp(-d) + d - 1 from exp(d). Where d is small, d^2 + d t - t over exp(d), with t = exp(d) - 1 - d.
RZERO_INLINE Vec k3(Vec d, const Exp& e) {
  const Vec inverse = splat(1.f) / e.all, small = (fma(d, e.tail, d * d) - e.tail) * inverse;
  return at_most(is_small(d) ? small : inverse + (d - splat(1.f)), kMaxK3);
}

struct Kl {
  Vec value, slope;  // slope with respect to logp
};

template <int ESTIMATOR>
RZERO_INLINE Kl kl(Vec logp, Vec ref_logp) {
  const Difference d = difference(logp, ref_logp);
  if (ESTIMATOR == 1) return {d.all, splat(1.f)};
  if (ESTIMATOR == 2) return {d.all * d.all * splat(0.5f), d.all};
  const Exp e = exponential(-d.held);
  const Vec inverse = fma(e.all, -d.lost, e.all);
  const IntVec is_near = is_small(d.held);
  const Vec value = is_near ? e.tail : at_most(inverse + (d.held - splat(1.f)), kMaxK3);
  const Vec slope = is_near ? d.held - e.tail + d.lost : splat(1.f) - inverse;
  return {value, d.is_inside & (value < splat(kMaxK3)) ? slope : Vec{}};
}

// The sums of a block while it is walked through.
struct Walk {
  Sum loss, ref_kl, ratios, step_kl;
  IntVec clipped{}, tokens{};  // minus the counts: a true lane is -1
  Vec most{};
};

// The tokens at.. of a block, which begins at token first: a whole vector of them, or n.
template <int ESTIMATOR, bool IS_WHOLE>
RZERO_INLINE void step(const PolicyLoss& p, int64_t first, int64_t i, int64_t n, Walk& sum) {
  const auto load_some = [&](const float* x) { return IS_WHOLE ? load(x + first + i) : load(x + first + i, n); };
  const Vec weight = load_some(p.weight);
  const IntVec is_counted = weight != Vec{};
  // What is ignored may be NaN: it is replaced before the arithmetic.
  const auto counted = [&](const float* x) { return is_counted ? load_some(x) : Vec{}; };
  const Vec logp = counted(p.logp), A = counted(p.advantage);
  const Difference d = difference(logp, counted(p.old_logp));
  Exp e = exponential(d.held);
  const Vec ratio = e.all = fma(e.all, d.lost, e.all);
  const IntVec is_good = A >= Vec{};
  const Vec low = is_good ? Vec{} : splat(p.lowest), high = is_good ? splat(p.highest) : splat(p.dual);
  const IntVec is_clipped = (ratio < low) | (ratio > high);
  Vec value = -A * (ratio < low ? low : (ratio > high ? high : ratio));
  Vec slope = is_clipped | ~d.is_inside ? Vec{} : -A * ratio;
  if (ESTIMATOR != 0) {
    const Kl term = kl<ESTIMATOR>(logp, counted(p.ref_logp));
    value = fma(splat(p.kl_coef), term.value, value);
    slope = fma(splat(p.kl_coef), term.slope, slope);
    sum.ref_kl.at(i) += term.value;  // of an ignored token 0
  }
  sum.loss.at(i) += weight * value;
  const Vec grad = is_counted ? weight * slope : Vec{};  // not -0
  IS_WHOLE ? store(p.grad + first + i, grad) : store(p.grad + first + i, grad, n);
  const Vec counted_ratio = is_counted ? ratio : Vec{};
  sum.ratios.at(i) += counted_ratio;
  sum.most = counted_ratio > sum.most ? counted_ratio : sum.most;
  sum.clipped += is_clipped;  // an ignored token has ratio 1 and advantage 0: not clipped
  sum.step_kl.at(i) += k3(d.held, e);
  sum.tokens += is_counted;
}

int64_t count(IntVec minus) {
  int64_t total = 0;
  for (int k = 0; k < kWidth; ++k) total -= minus[k];
  return total;
}

template <int ESTIMATOR>
void block(const PolicyLoss& problem, int64_t first, int64_t n, double* sums) {
  const PolicyLoss p = problem;  // a copy that no store can be thought to change
  Walk sum;
  int64_t i = 0;
  for (; i + kWidth <= n; i += kWidth) step<ESTIMATOR, true>(p, first, i, kWidth, sum);
  if (i < n) step<ESTIMATOR, false>(p, first, i, n - i, sum);
  float lane[kWidth], largest = 0;
  store(lane, sum.most);
  for (float x : lane) largest = x > largest ? x : largest;
  const double all[kPolicySums] = {sum.loss.total(),   sum.ratios.total(), double(count(sum.clipped)), sum.step_kl.total(),
                                   sum.ref_kl.total(), largest,            double(count(sum.tokens))};
  memcpy(sums, all, sizeof all);
}

template <int ESTIMATOR>
void blocks(const PolicyLoss& p) {
#pragma omp parallel for schedule(static) if (p.T > kSerialTokens)
  for (int64_t first = 0; first < p.T; first += kPolicyBlock)
    block<ESTIMATOR>(p, first, p.T - first < kPolicyBlock ? p.T - first : kPolicyBlock,
                     p.sums + first / kPolicyBlock * kPolicySums);
}

}  // namespace

void policy_loss(const PolicyLoss* p) {
  if (p->ref_logp == nullptr) return blocks<0>(*p);
  if (p->estimator == 1) return blocks<1>(*p);
  if (p->estimator == 2) return blocks<2>(*p);
  blocks<3>(*p);
}

}  // namespace RZERO_ISA
}  // namespace rzero
