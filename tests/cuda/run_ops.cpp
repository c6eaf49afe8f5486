// SPDX-License-Identifier: Apache-2.0
// Small cases of one CUDA op on the CPU, for the sanitizers: run_ops sample|kv_write|copy_pages|paged_attention
// [reversed]. Every buffer is exactly as long as it may be read. Right values are the business of test_host_ops.py;
// here a result must only be a number, so that poisoned memory shows.
#include <cmath>
#include <cstdio>
#include <limits>
#include <memory>
#include <string>

#include "cuda.cuh"

namespace {

using rzero::cuda::Address;
using rzero::cuda::bf16;

template <class T>
T from_float(float x);
template <>
float from_float(float x) {
  return x;
}
template <>
bf16 from_float(float x) {
  return __float2bfloat16(x);
}

template <class T>
constexpr int code_of() {
  return sizeof(T) == 4 ? 0 : 1;
}

// n elements on the heap, numbers between -3 and 3.
template <class T>
struct Buffer {
  explicit Buffer(int64_t n) : size(n), data(new T[n]) {
    uint32_t state = uint32_t(n);
    for (int64_t i = 0; i < n; ++i) {
      state = state * 1664525u + 1013904223u;
      data[i] = from_float<T>(float(state >> 8) * (6.f / (1 << 24)) - 3.f);
    }
  }
  Address at(int64_t i = 0) { return Address(data.get() + i); }
  int64_t address(int64_t i = 0) { return int64_t(at(i)); }
  void check(const char* name, int64_t first = 0) {
    for (int64_t i = first; i < size; ++i)
      if (!std::isfinite(rzero::cuda::to_float(data[i]))) {
        fprintf(stderr, "%s[%d] is not a number\n", name, int(i));
        exit(1);
      }
  }
  int64_t size;
  std::unique_ptr<T[]> data;
};

template <class T>
std::unique_ptr<T[]> list(std::initializer_list<T> values) {
  std::unique_ptr<T[]> data(new T[values.size()]);
  std::copy(values.begin(), values.end(), data.get());
  return data;
}

template <class T>
Address at(const std::unique_ptr<T[]>& data) {
  return Address(data.get());
}

template <class T>
void sample() {
  constexpr int64_t B = 5, V = 1100;
  Buffer<T> logits(B * V + 1);
  for (int64_t v = 0; v < V; ++v) logits.data[1 + v] = from_float<T>(v == 3 ? NAN : 0.f);  // row 0: nothing to draw
  const auto temperature = list<float>({1, 1, 0, 0.7f, 1}), top_p = list<float>({1, 1, 1, 0.9f, 1});
  const auto min_p = list<float>({0, 0, 0, 0.02f, 0});
  const auto top_k = list<int32_t>({0, 0, 0, 9, -1});
  const auto key = list<int64_t>({1, 2, 3, 4, 5}), position = list<int64_t>({0, 1, 2, 3, 4});
  const auto token = list<int64_t>({-9, -9, -9, -9, -9});
  const auto status = list<int32_t>({-9, -9, -9, -9, -9});
  Buffer<float> logp(B), full(B);
  rzero::cuda::sample({code_of<T>(), 64, B, V, logits.at(1), V, at(temperature), at(top_k), at(top_p), at(min_p), at(key),
                       at(position), at(token), logp.at(), full.at(), at(status)},
                      0);
  for (int b = 0; b < B; ++b) {
    const bool is_drawn = token[b] >= 0 && token[b] < V && status[b] == 0 && std::isfinite(logp.data[b] + full.data[b]);
    const bool is_refused = token[b] == -1 && status[b] > 0;
    if (b == 0 || b == 4 ? !is_refused : !is_drawn) {
      fprintf(stderr, "sample: row %d: token %d, status %d, logp %g\n", b, int(token[b]), status[b], logp.data[b]);
      exit(1);
    }
  }
}

template <class T>
void kv_write(int64_t E) {
  constexpr int64_t T_ = 4, P = 3, S = 2, G = 2;
  Buffer<T> k(T_ * G * E), v(T_ * G * E), k_pages(P * S * G * E), v_pages(P * S * G * E);
  const auto slot = list<int64_t>({5, 0, -1, 6});  // two are outside
  rzero::cuda::kv_write({T_, P, S, G, E, sizeof(T)}, {k.address(), G * E, E}, {v.address(), G * E, E}, at(slot),
                        {k_pages.address(), S * G * E, G * E, E}, {v_pages.address(), S * G * E, G * E, E}, 0);
  k_pages.check("k_pages");
}

template <class T>
void copy_pages(int64_t E) {
  constexpr int64_t P = 4, S = 3, G = 2;
  Buffer<T> k_pages(P * S * G * E), v_pages(P * S * G * E);
  const auto src = list<int64_t>({0, 0, -1, 1}), dst = list<int64_t>({2, 3, 1, P});  // two are outside
  rzero::cuda::copy_pages({4, P, S, G, E, sizeof(T)}, {k_pages.address(), S * G * E, G * E, E},
                          {v_pages.address(), S * G * E, G * E, E}, at(src), at(dst), 0);
  k_pages.check("k_pages");
}

template <class T>
void paged_attention(int64_t H, int64_t G, int64_t E) {
  constexpr int64_t T_ = 4, P = 12, S = 4, B = 3, M = 10;
  constexpr int32_t kUnused = 1 << 30;
  Buffer<T> q(T_ * H * E), o(T_ * H * E), k(P * S * G * E), v(P * S * G * E);
  // 37 positions, one new; 5 positions, two new; a page that is not there.
  const auto table = list<int32_t>({9, 8, 7, 6, 5, 4, 3, 2, 1, 0, 10, 11, kUnused, kUnused, kUnused, kUnused, kUnused,
                                    kUnused, kUnused, kUnused, 0, kUnused, kUnused, kUnused, kUnused, kUnused, kUnused,
                                    kUnused, kUnused, kUnused});
  const auto start = list<int32_t>({0, 1, 3, 4}), length = list<int32_t>({37, 5, 6});
  rzero::cuda::paged_attention({code_of<T>(), T_, H, G, E, P, S, B, M, 0.3f, {q.address(), H * E, E}, {o.address(), H * E, E},
                                {k.address(), S * G * E, G * E, E}, {v.address(), S * G * E, G * E, E}, at(table), M,
                                at(start), at(length)},
                               0);
  if (!std::isnan(rzero::cuda::to_float(o.data[3 * H * E]))) {
    fprintf(stderr, "paged_attention: a page that is not there gave a number\n");
    exit(1);
  }
  for (int64_t i = 3 * H * E; i < o.size; ++i) o.data[i] = from_float<T>(0.f);
  o.check("o");
}

}  // namespace

int main(int count, char** words) {
  const std::string op = count > 1 ? words[1] : "";
  shim::device.is_reversed = count > 2;
  if (op == "sample") {
    sample<float>();
    sample<bf16>();
  } else if (op == "kv_write") {
    kv_write<bf16>(8);
    kv_write<float>(3);
  } else if (op == "copy_pages") {
    copy_pages<float>(4);
    copy_pages<bf16>(3);
  } else if (op == "paged_attention") {
    paged_attention<bf16>(6, 2, 16);
    paged_attention<float>(2, 2, 6);
  } else {
    fprintf(stderr, "run_ops: no op is called '%s'\n", op.c_str());
    return 2;
  }
  puts("fine");
}
