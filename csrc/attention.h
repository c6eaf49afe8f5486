// SPDX-License-Identifier: Apache-2.0
// What the attention bindings hand to the kernels: plain addresses, element strides and lists of work.
#pragma once

#include <cstdint>

namespace rzero {

// Queries, outputs and their gradients: row r, head h at data + r * row + h * head.
struct HeadRows {
  void* data;
  int64_t row, head;
};

// Keys or values. Packed: outer is the row stride, inner is 0. Paged: outer is the page stride, inner the slot stride.
struct KeyRows {
  const void* data;
  int64_t outer, inner, head;
};

// Where the key at a position of a sequence lives. Paged if page_table is set, else packed: the prefix's rows first,
// then the sequence's own.
struct Layout {
  const int32_t* page_table;
  int64_t table_stride;
  int64_t page_size;
  const int32_t *start, *prefix_start, *prefix_length;
};

// Consecutive query rows of one sequence; the first has this position and sees the positions up to it.
struct RowJob {
  int64_t first_row;
  int32_t rows, sequence;
  int64_t position;
};

// Jobs that are computed together: one, or several of one row each. Their first `shared` positions, a multiple of kShare,
// lie in the same pages; these keys and values are read once.
struct JobGroup {
  int64_t first_job, jobs, shared;
};

// Consecutive own rows of one segment as keys, for the gradients of keys and values. The segments
// readers[first_reader..last_reader) have (some of) the segment's rows in their prefix.
struct KeyJob {
  int64_t first_row;
  int32_t keys, segment;
  int64_t first_reader, last_reader;
};

struct Attention {
  int code;  // of the type, see by_type
  int64_t H, G, E;
  float scale;
  HeadRows q;
  KeyRows k, v;
  Layout layout;
  HeadRows o;     // forward only
  float* softmax;  // [T, H, 2]: the row's largest score and 1 / the sum of exponentials; null when nobody needs them
  const RowJob* jobs;
  int64_t job_count, most_rows, most_positions;
  const JobGroup* groups;  // forward only
  int64_t group_count;
  bool is_parallel;
};

struct AttentionGrad {
  HeadRows grad_o, grad_q, grad_k, grad_v;  // contiguous
  float* delta;                             // [T, H] scratch: sum over keys of p * dp
  const int32_t* length;                    // own rows of each segment
  const KeyJob* key_jobs;
  int64_t key_job_count;
  const int32_t* readers;
};

// Query rows (tokens times query heads per key head) that share one pass over the keys. Only speed depends on it.
constexpr int64_t kRowsPerJob = 32;
// Keys and values per tile of a kernel, for every instruction set a multiple of the vector width.
constexpr int64_t kTile = 64;
// Keys that are scored at a time for one token, or a multiple of them.
constexpr int64_t kShare = 16;

}  // namespace rzero
