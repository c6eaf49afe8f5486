// SPDX-License-Identifier: Apache-2.0
#include <omp.h>

#include <memory>
#include <vector>

#include "bind.h"

RZERO_KERNEL(sample, int code, int64_t B, int64_t V, const void* logits, int64_t stride, const float* temperature,
             const int32_t* top_k, const float* top_p, const float* min_p, const int64_t* key, const int64_t* position,
             int64_t* token, float* logp, float* full_logp, void* const* scratch)

namespace rzero {
namespace {

void run(int code, int64_t B, int64_t V, Address logits, int64_t stride, Address temperature, Address top_k,
         Address top_p, Address min_p, Address key, Address position, Address token, Address logp, Address full_logp) {
  // Per thread: the mass of each block of tokens, and room for every token as a candidate. Pages that a row does not
  // touch cost nothing.
  const size_t doubles = size_t(V) / 1024 + 1 + size_t(V);
  std::vector<std::unique_ptr<double[]>> owned;
  std::vector<void*> scratch;
  for (int i = 0; i < omp_get_max_threads(); ++i) {
    owned.emplace_back(new double[doubles]);
    scratch.push_back(owned.back().get());
  }
  RZERO_CALL(sample, code, B, V, at(logits), stride, at<float>(temperature), at<int32_t>(top_k), at<float>(top_p),
             at<float>(min_p), at<int64_t>(key), at<int64_t>(position), at<int64_t>(token), at<float>(logp),
             at<float>(full_logp), scratch.data());
}

}  // namespace

void bind_sample(pybind11::module_& m) { m.def("sample", &run, ReleaseGil()); }

}  // namespace rzero
