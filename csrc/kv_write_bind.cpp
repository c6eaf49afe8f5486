// SPDX-License-Identifier: Apache-2.0
// Stores keys and values into page slots and copies pages: bytes only, so one copy of the code serves every CPU.
#include <pybind11/stl.h>

#include <array>
#include <cstring>
#include <stdexcept>
#include <string>

#include "bind.h"

namespace rzero {
namespace {

using View3 = std::array<int64_t, 4>;  // address and strides in elements of [T, G, E]
using View4 = std::array<int64_t, 5>;  // of [P, S, G, E]
using Sizes = std::array<int64_t, 6>;  // T (or N), P, S, G, E, bytes of an element

constexpr int64_t kSerialBytes = 1 << 18;  // below this, waking the other threads costs more than they save

void check_range(const char* name, const int64_t* index, int64_t count, int64_t size) {
  for (int64_t i = 0; i < count; ++i)
    if (index[i] < 0 || index[i] >= size)
      throw std::invalid_argument(std::string(name) + "[" + std::to_string(i) + "] is " + std::to_string(index[i]) +
                                  ", allowed are 0.." + std::to_string(size - 1));
}

// G rows of E elements, as one block where both sides are dense.
void copy_heads(const char* from, int64_t from_head, char* to, int64_t to_head, int64_t G, int64_t E, int64_t bytes) {
  if (from_head == E && to_head == E) {
    std::memcpy(to, from, G * E * bytes);
    return;
  }
  for (int64_t g = 0; g < G; ++g) std::memcpy(to + g * to_head * bytes, from + g * from_head * bytes, E * bytes);
}

void kv_write(const Sizes& sizes, const View3& k, const View3& v, Address slot_T, const View4& k_pages,
              const View4& v_pages) {
  const auto [T, P, S, G, E, bytes] = sizes;
  const int64_t* slot = at<int64_t>(slot_T);
  check_range("kv_write: slot_T", slot, T, P * S);
  const struct {
    const View3& from;
    const View4& to;
  } pairs[] = {{k, k_pages}, {v, v_pages}};
  const bool is_parallel = T * G * E * bytes > kSerialBytes;
  const int64_t rows = T, page_size = S, heads = G, size = E, item = bytes;
  for (const auto& pair : pairs) {
#pragma omp parallel for schedule(static) if (is_parallel)
    for (int64_t t = 0; t < rows; ++t) {
      const int64_t place = slot[t] / page_size * pair.to[1] + slot[t] % page_size * pair.to[2];
      copy_heads(at<char>(pair.from[0]) + t * pair.from[1] * item, pair.from[2], at<char>(pair.to[0]) + place * item,
                 pair.to[3], heads, size, item);
    }
  }
}

void copy_pages(const Sizes& sizes, const View4& k_pages, const View4& v_pages, Address src, Address dst) {
  const auto [N, P, S, G, E, bytes] = sizes;
  const int64_t *from = at<int64_t>(src), *to = at<int64_t>(dst);
  check_range("copy_pages: src", from, N, P);
  check_range("copy_pages: dst", to, N, P);
  for (const View4& pages : {k_pages, v_pages})
    for (int64_t i = 0; i < N; ++i)
      for (int64_t s = 0; s < S; ++s) {
        const auto place = [&](int64_t page) { return at<char>(pages[0]) + (page * pages[1] + s * pages[2]) * bytes; };
        copy_heads(place(from[i]), pages[3], place(to[i]), pages[3], G, E, bytes);
      }
}

}  // namespace

void bind_kv_write(pybind11::module_& m) {
  m.def("kv_write", &kv_write, ReleaseGil());
  m.def("copy_pages", &copy_pages, ReleaseGil());
}

}  // namespace rzero
