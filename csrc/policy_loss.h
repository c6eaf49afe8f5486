// SPDX-License-Identifier: Apache-2.0
// What the policy_loss binding hands to its kernel.
#pragma once

#include <cstdint>

namespace rzero {

constexpr int64_t kPolicyBlock = 2048;  // tokens whose sums are taken together
constexpr int kPolicySums = 7;          // loss, ratio, clipped, step KL, reference KL, largest ratio, tokens

struct PolicyLoss {
  int64_t T;
  const float *logp, *old_logp, *ref_logp, *advantage, *weight;  // ref_logp may be null
  float lowest, highest, dual;  // 1 - clip_low, 1 + clip_high, clip_dual
  float kl_coef;
  int estimator;  // 1, 2, 3
  float* grad;
  double* sums;  // [blocks][kPolicySums]
};

}  // namespace rzero
