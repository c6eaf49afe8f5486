// SPDX-License-Identifier: Apache-2.0
// What the rope binding hands to its kernels.
#pragma once

#include <cstdint>

namespace rzero {

struct Rope {
  int code;  // of the type, see by_type
  int64_t T, H, G, E;
  float eps;
  const void* qkv;
  int64_t qkv_stride;
  const int64_t* pos;
  const float *cos, *sin;         // [positions, E/2]
  const void *q_norm, *k_norm;    // [E], or both null
  void *q, *k, *v;                // contiguous; v null where a view of qkv does
};

struct RopeGrad {
  const void *q, *k, *v;  // contiguous, what flows in
  void *qkv;              // contiguous
  void *q_norm, *k_norm;  // null without norms
};

}  // namespace rzero
