// SPDX-License-Identifier: Apache-2.0
// What the lora binding hands to its kernel.
#pragma once

#include <cstdint>

namespace rzero {

// One adapter on some rows and columns: y[rows, columns] += u b^T with u = scale * x[rows] a^T.
struct LoraPart {
  const void *a, *b;  // contiguous [rank, K] and [columns, rank]
  float* u;           // contiguous [rows, rank], written
  int64_t first_row, rows, first_column, columns, rank;
  float scale;
};

struct Lora {
  int code;  // of the type, see by_type
  int64_t K;
  const void* x;
  void* y;
  int64_t x_stride, y_stride;
  const LoraPart* parts;
  int64_t part_count;
  bool is_parallel;
};

}  // namespace rzero
