// SPDX-License-Identifier: Apache-2.0
// Checks every page number, range and segment (cheap beside attention), cuts the work into jobs, calls the kernels.
#include <omp.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

#include "attention.h"
#include "bind.h"

RZERO_KERNEL(attention_forward, const rzero::Attention* problem)
RZERO_KERNEL(attention_backward, const rzero::Attention* problem, const rzero::AttentionGrad* grad)

namespace rzero {
namespace {

using std::to_string;
using View3 = std::array<int64_t, 4>;  // address and element strides of a [rows, heads, E] tensor
using View4 = std::array<int64_t, 5>;  // of a [P, S, G, E] tensor
using Sizes = std::array<int64_t, 5>;  // code, T, H, G, E

constexpr int64_t kSerialWork = 100000;  // multiplications; below this, waking the other threads costs more

HeadRows head_rows(const View3& x) { return {at(x[0]), x[1], x[2]}; }
KeyRows packed_keys(const View3& x) { return {at(x[0]), x[1], 0, x[2]}; }
KeyRows paged_keys(const View4& x) { return {at(x[0]), x[1], x[2], x[3]}; }

[[noreturn]] void refuse(const std::string& message) { throw std::invalid_argument(message); }

Attention problem(const Sizes& sizes, float scale, const View3& q) {
  Attention a{};
  a.code = int(sizes[0]);
  a.H = sizes[2], a.G = sizes[3], a.E = sizes[4];
  a.scale = scale;
  a.q = head_rows(q);
  return a;
}

void add_jobs(std::vector<RowJob>& jobs, const Attention& a, int64_t sequence, int64_t row, int64_t rows,
              int64_t position) {
  const int64_t most = std::max<int64_t>(1, kRowsPerJob / (a.H / a.G));
  for (int64_t i = 0; i < rows; i += most)
    jobs.push_back({row + i, int32_t(std::min(most, rows - i)), int32_t(sequence), position + i});
}

struct Work {
  std::vector<RowJob> jobs;
  std::vector<JobGroup> groups;
};

void set_work(Attention& a, const Work& all) {
  const auto& [jobs, groups] = all;
  int64_t work = 0;
  for (const JobGroup& group : groups) {
    int64_t rows = 0;
    for (int64_t i = group.first_job; i < group.first_job + group.jobs; ++i) {
      rows += jobs[i].rows;
      a.most_positions = std::max(a.most_positions, jobs[i].position + jobs[i].rows);
      work += jobs[i].rows * (jobs[i].position + jobs[i].rows) * a.H * a.E;
    }
    a.most_rows = std::max(a.most_rows, rows);
  }
  a.jobs = jobs.data();
  a.job_count = int64_t(jobs.size());
  a.groups = groups.data();
  a.group_count = int64_t(groups.size());
  a.is_parallel = work > kSerialWork;
}

// How many leading positions of two jobs lie in the same pages, a multiple of kShare; the page at work is not counted.
int64_t shared_positions(const Layout& at, const RowJob& x, const RowJob& y) {
  const int32_t *a = at.page_table + x.sequence * at.table_stride, *b = at.page_table + y.sequence * at.table_stride;
  const int64_t full = std::min(x.position, y.position) / at.page_size;
  int64_t same = 0;
  while (same < full && a[same] == b[same]) ++same;
  return same * at.page_size / kShare * kShare;
}

// Brings tokens together, those that begin with the same pages first: samples of one prompt, which a batch may hold apart.
void group_tokens(const Attention& a, Work& work) {
  auto& [jobs, groups] = work;
  const auto first_page = [&](const RowJob& job) { return a.layout.page_table[job.sequence * a.layout.table_stride]; };
  const auto key = [&](const RowJob& job) { return std::make_pair(job.rows == 1 ? first_page(job) : -1, job.sequence); };
  std::stable_sort(jobs.begin(), jobs.end(), [&](const RowJob& x, const RowJob& y) { return key(x) < key(y); });
  // Groups enough to share among the threads.
  const int64_t units = 4 * omp_get_max_threads(), tokens = (int64_t(jobs.size()) * a.G + units - 1) / units;
  const int64_t most = std::max<int64_t>(1, std::min(tokens, kRowsPerJob / (a.H / a.G)));
  for (size_t i = 0; i < jobs.size(); ++i) {
    const RowJob& job = jobs[i];
    const bool follows = i > 0 && job.rows == 1 && jobs[i - 1].rows == 1 && groups.back().jobs < most;
    const int64_t shared = follows ? shared_positions(a.layout, jobs[i - 1], job) : 0;
    if (follows && (groups.back().jobs == 1 || groups.back().shared == shared)) {
      groups.back().jobs += 1;
      groups.back().shared = shared;
    } else {
      groups.push_back({int64_t(i), 1, 0});
    }
  }
}

struct Pages {
  int64_t P, S, B, M;
};

// page_table holds the address and the row stride of page_table_BM.
void paged_attention(const Sizes& sizes, const std::array<int64_t, 4>& page_sizes, float scale, const View3& q,
                     const View4& k, const View4& v, const std::array<int64_t, 2>& page_table, Address q_start_B1,
                     Address kv_len_B, const View3& o) {
  Attention a = problem(sizes, scale, q);
  a.o = head_rows(o);
  const Pages pages{page_sizes[0], page_sizes[1], page_sizes[2], page_sizes[3]};
  a.k = paged_keys(k), a.v = paged_keys(v);
  a.layout.page_table = at<int32_t>(page_table[0]);
  a.layout.table_stride = page_table[1];
  a.layout.page_size = pages.S;
  const int32_t* start = at<int32_t>(q_start_B1);
  const int32_t* length = at<int32_t>(kv_len_B);
  if (start[0] != 0 || start[pages.B] != sizes[1])
    refuse("paged_attention: q_start_B1 must run from 0 to the " + to_string(sizes[1]) + " rows of q_THE, it runs from " +
           to_string(start[0]) + " to " + to_string(start[pages.B]));
  Work work;
  work.jobs.reserve(pages.B);
  for (int64_t b = 0; b < pages.B; ++b) {
    const int64_t rows = start[b + 1] - start[b], used = (int64_t(length[b]) + pages.S - 1) / pages.S;
    const std::string name = "paged_attention: sequence ";
    if (rows < 0 || length[b] < rows || used > pages.M)
      refuse(name + to_string(b) + " has " + to_string(rows) + " rows and kv_len_B " + to_string(length[b]) +
             ", allowed are 0 <= rows <= kv_len_B <= " + to_string(pages.M * pages.S) + " (the page table's width)");
    if (rows == 0) continue;
    const int32_t* table = a.layout.page_table + b * a.layout.table_stride;
    for (int64_t m = 0; m < used; ++m)
      if (table[m] < 0 || table[m] >= pages.P)
        refuse(name + to_string(b) + " names page " + to_string(table[m]) + " in page_table_BM, there are pages 0.." +
               to_string(pages.P - 1));
    add_jobs(work.jobs, a, b, start[b], rows, length[b] - rows);
  }
  group_tokens(a, work);
  set_work(a, work);
  RZERO_CALL(attention_forward, &a);
}

// Addresses of start_B, length_B, prefix_start_B, prefix_length_B, and B.
using SegmentsView = std::array<int64_t, 5>;

struct Packed {
  int64_t B;
  const int32_t *start, *length, *prefix_start, *prefix_length;

  explicit Packed(const SegmentsView& view)
      : B(view[4]),
        start(at<int32_t>(view[0])),
        length(at<int32_t>(view[1])),
        prefix_start(at<int32_t>(view[2])),
        prefix_length(at<int32_t>(view[3])) {}
};

// The segments in row order, after checking that they share out the T rows and that prefixes are rows.
std::vector<int32_t> ordered(const Packed& p, int64_t T) {
  std::vector<int32_t> order(p.B);
  std::iota(order.begin(), order.end(), 0);
  const auto before = [&](int32_t x, int32_t y) {
    return std::make_pair(p.start[x], p.length[x]) < std::make_pair(p.start[y], p.length[y]);
  };
  if (!std::is_sorted(order.begin(), order.end(), before)) std::sort(order.begin(), order.end(), before);
  int64_t next = 0;
  for (int32_t b : order) {
    const std::string name = "attention: segment " + to_string(b);
    if (p.length[b] < 0 || p.start[b] != next)
      refuse(name + " has start_B " + to_string(p.start[b]) + " and length_B " + to_string(p.length[b]) +
             ", but every row must belong to exactly one segment and the next free row is " + to_string(next));
    const int64_t from = p.prefix_start[b], rows = p.prefix_length[b];
    if (rows < 0 || (rows > 0 && (from < 0 || from + rows > T)))
      refuse(name + " has the prefix rows " + to_string(from) + ".." + to_string(from + rows) + ", there are " +
             to_string(T) + " rows");
    next += p.length[b];
  }
  if (next != T) refuse("attention: the segments cover " + to_string(next) + " rows of " + to_string(T));
  return order;
}

Attention packed_problem(const Sizes& sizes, float scale, const View3& q, const View3& k, const View3& v,
                         const Packed& p, Address softmax, Work& work) {
  Attention a = problem(sizes, scale, q);
  a.k = packed_keys(k), a.v = packed_keys(v);
  a.layout.start = p.start;
  a.layout.prefix_start = p.prefix_start;
  a.layout.prefix_length = p.prefix_length;
  a.softmax = at<float>(softmax);
  for (int64_t b = 0; b < p.B; ++b) add_jobs(work.jobs, a, b, p.start[b], p.length[b], p.prefix_length[b]);
  for (size_t i = 0; i < work.jobs.size(); ++i) work.groups.push_back({int64_t(i), 1, 0});
  set_work(a, work);
  return a;
}

void forward(const Sizes& sizes, float scale, const View3& q, const View3& k, const View3& v,
             const SegmentsView& segments, const View3& o, Address softmax) {
  const Packed p(segments);
  ordered(p, sizes[1]);
  Work work;
  Attention a = packed_problem(sizes, scale, q, k, v, p, softmax, work);
  a.o = head_rows(o);
  RZERO_CALL(attention_forward, &a);
}

struct KeyWork {
  std::vector<KeyJob> jobs;
  std::vector<int32_t> readers;
};

// Which segments read the rows of which segment as their prefix, and the rows of every segment in tiles.
KeyWork key_work(const Packed& p, const std::vector<int32_t>& order) {
  std::vector<std::vector<int32_t>> readers(p.B);
  const auto ends_before = [&](int32_t b, int64_t row) { return p.start[b] + p.length[b] <= row; };
  for (int32_t c = 0; c < p.B; ++c) {
    const int64_t from = p.prefix_start[c], until = from + p.prefix_length[c];
    if (until == from || p.length[c] == 0) continue;
    auto b = std::lower_bound(order.begin(), order.end(), from, ends_before);
    for (; b != order.end() && p.start[*b] < until; ++b) readers[*b].push_back(c);
  }
  KeyWork work;
  for (int32_t b : order) {
    const int64_t first = int64_t(work.readers.size());
    work.readers.insert(work.readers.end(), readers[b].begin(), readers[b].end());
    for (int64_t i = 0; i < p.length[b]; i += kTile)
      work.jobs.push_back({p.start[b] + i, int32_t(std::min(kTile, p.length[b] - i)), b, first,
                           int64_t(work.readers.size())});
  }
  return work;
}

// grads: addresses of grad_o, grad_q, grad_k, grad_v (contiguous [T, heads, E]) and of the scratch delta [T, H].
void backward(const Sizes& sizes, float scale, const View3& q, const View3& k, const View3& v,
              const SegmentsView& segments, Address softmax, const std::array<int64_t, 5>& grads) {
  const Packed p(segments);
  Work rows;
  const Attention a = packed_problem(sizes, scale, q, k, v, p, softmax, rows);
  const KeyWork work = key_work(p, ordered(p, sizes[1]));
  AttentionGrad grad{};
  grad.grad_o = {at(grads[0]), a.H * a.E, a.E};
  grad.grad_q = {at(grads[1]), a.H * a.E, a.E};
  grad.grad_k = {at(grads[2]), a.G * a.E, a.E};
  grad.grad_v = {at(grads[3]), a.G * a.E, a.E};
  grad.delta = at<float>(grads[4]);
  grad.length = p.length;
  grad.key_jobs = work.jobs.data();
  grad.key_job_count = int64_t(work.jobs.size());
  grad.readers = work.readers.data();
  RZERO_CALL(attention_backward, &a, &grad);
}

}  // namespace

void bind_attention(pybind11::module_& m) {
  m.def("paged_attention", &paged_attention, ReleaseGil());
  m.def("attention_forward", &forward, ReleaseGil());
  m.def("attention_backward", &backward, ReleaseGil());
}

}  // namespace rzero
