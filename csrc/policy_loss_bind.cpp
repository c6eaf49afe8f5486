// SPDX-License-Identifier: Apache-2.0
// The clipped surrogate with KL: loss, gradient and metrics in one pass, in float64. See kernels/policy_loss.py.
// A few numbers per token next to a model's forward pass: plain scalar code in token order is fast enough.
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <limits>

#include "bind.h"

namespace rzero {
namespace {

constexpr double kMaxLogRatio = 20, kMaxK3 = 10;

struct Term {
  double value, slope;  // slope with respect to logp
};

// Inclusive bounds, as torch.clamp has its gradient.
bool inside(double x, double low, double high) { return x >= low && x <= high; }

Term k3(double d) {
  const double held = std::min(std::max(d, -kMaxLogRatio), kMaxLogRatio);
  const double value = std::exp(-held) + held - 1;
  // A comparison that a NaN fails on both sides must not hide it behind the clamp.
  if (value > kMaxK3) return {kMaxK3, 0};
  return {d == d ? value : d, inside(d, -kMaxLogRatio, kMaxLogRatio) ? 1 - std::exp(-held) : 0};
}

Term kl(double d, int estimator) {
  if (estimator == 1) return {d, 1};
  if (estimator == 2) return {d * d / 2, d};
  return k3(d);
}

// Returns loss, sums of ratio, clipped tokens, step k3, reference kl; the largest ratio; tokens with a weight.
std::array<double, 7> run(int64_t T, Address logp_, Address old_logp_, Address ref_logp_, Address advantage_,
                          Address weight_, std::array<double, 4> settings, int estimator, Address grad_) {
  const float *logp = at<float>(logp_), *old_logp = at<float>(old_logp_), *ref_logp = at<float>(ref_logp_);
  const float *advantage = at<float>(advantage_), *weight = at<float>(weight_);
  float* grad = at<float>(grad_);
  const auto [clip_low, clip_high, clip_dual, kl_coef] = settings;
  double loss = 0, ratios = 0, clipped = 0, step_kl = 0, ref_kl = 0, ratio_max = 0, tokens = 0;
  for (int64_t t = 0; t < T; ++t) {
    grad[t] = 0;
    if (weight[t] == 0) continue;
    const double A = advantage[t], log_ratio = double(logp[t]) - old_logp[t];
    const double ratio = log_ratio == log_ratio
                             ? std::exp(std::min(std::max(log_ratio, -kMaxLogRatio), kMaxLogRatio))
                             : log_ratio;
    const double low = A >= 0 ? 0 : 1 - clip_low, high = A >= 0 ? 1 + clip_high : clip_dual;
    const bool is_clipped = ratio < low || ratio > high;
    double value = -A * (ratio < low ? low : ratio > high ? high : ratio);
    double slope = is_clipped || !inside(log_ratio, -kMaxLogRatio, kMaxLogRatio) ? 0 : -A * ratio;
    if (ref_logp != nullptr) {
      const Term term = kl(double(logp[t]) - ref_logp[t], estimator);
      value += kl_coef * term.value;
      slope += kl_coef * term.slope;
      ref_kl += term.value;
    }
    loss += weight[t] * value;
    grad[t] = float(weight[t] * slope);
    ratios += ratio;
    ratio_max = std::max(ratio_max, ratio);
    clipped += is_clipped;
    step_kl += k3(log_ratio).value;
    ++tokens;
  }
  return {loss, ratios, clipped, step_kl, ref_kl, ratio_max, tokens};
}

}  // namespace

void bind_policy_loss(pybind11::module_& m) { m.def("policy_loss", &run, ReleaseGil()); }

}  // namespace rzero
