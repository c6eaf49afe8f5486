// SPDX-License-Identifier: Apache-2.0
#include "policy_loss.h"

#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <vector>

#include "bind.h"

RZERO_KERNEL(policy_loss, const rzero::PolicyLoss* problem)

namespace rzero {
namespace {

constexpr int kLargest = 5;  // the one that is a maximum and not a sum

// Returns loss, sums of ratio, clipped tokens, step k3, reference kl; the largest ratio; tokens with a weight.
std::array<double, kPolicySums> run(int64_t T, Address logp, Address old_logp, Address ref_logp, Address advantage,
                                    Address weight, std::array<double, 4> settings, int estimator, Address grad) {
  const auto [clip_low, clip_high, clip_dual, kl_coef] = settings;
  std::vector<double> sums((T + kPolicyBlock - 1) / kPolicyBlock * kPolicySums);
  const PolicyLoss problem{T,
                           at<float>(logp),
                           at<float>(old_logp),
                           at<float>(ref_logp),
                           at<float>(advantage),
                           at<float>(weight),
                           float(1 - clip_low),
                           float(1 + clip_high),
                           float(clip_dual),
                           float(kl_coef),
                           estimator,
                           at<float>(grad),
                           sums.data()};
  RZERO_CALL(policy_loss, &problem);
  std::array<double, kPolicySums> total{};
  for (size_t i = 0; i < sums.size(); ++i) {
    double& place = total[i % kPolicySums];
    place = i % kPolicySums == kLargest ? std::max(place, sums[i]) : place + sums[i];
  }
  return total;
}

}  // namespace

void bind_policy_loss(pybind11::module_& m) { m.def("policy_loss", &run, ReleaseGil()); }

}  // namespace rzero
