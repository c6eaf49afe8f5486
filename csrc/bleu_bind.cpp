// SPDX-License-Identifier: Apache-2.0
// Sentence BLEU of all pairs, by an inverted index: for each n-gram the sequences that hold it, and how often. One
// sequence then meets only those that share something with it. Whole numbers until the score. See kernels/bleu.py.
#include <algorithm>
#include <cmath>
#include <utility>
#include <vector>

#include "bind.h"

namespace rzero {
namespace {

constexpr int kOrders = 4;
constexpr double kEpsilon = 0.1;

struct Holder {
  int64_t sequence;
  int32_t count;
};

struct Held {
  int64_t gram;
  int32_t count;
};

struct Index {
  std::vector<int64_t> begin;         // of each n-gram in holders, and the end
  std::vector<Holder> holders;        // by n-gram, then by sequence
  std::vector<std::vector<Held>> of;  // what each sequence holds
};

// Groups the n-grams, given as (key, place); writes to `id` a number per place that is equal where the keys are.
Index index_of(std::vector<std::pair<uint64_t, int64_t>> grams, const std::vector<int64_t>& sequence_of, int64_t N,
               std::vector<uint32_t>& id) {
  std::sort(grams.begin(), grams.end());
  Index index;
  index.of.resize(N);
  for (size_t i = 0; i < grams.size(); ++i) {
    const bool is_new = i == 0 || grams[i].first != grams[i - 1].first;
    const int64_t sequence = sequence_of[grams[i].second];
    if (is_new) index.begin.push_back(int64_t(index.holders.size()));
    if (is_new || index.holders.back().sequence != sequence) index.holders.push_back({sequence, 0});
    ++index.holders.back().count;
    id[grams[i].second] = uint32_t(index.begin.size() - 1);
  }
  index.begin.push_back(int64_t(index.holders.size()));
  for (size_t g = 0; g + 1 < index.begin.size(); ++g)
    for (int64_t h = index.begin[g]; h < index.begin[g + 1]; ++h)
      index.of[index.holders[h].sequence].push_back({int64_t(g), index.holders[h].count});
  return index;
}

std::vector<Index> indices(int64_t N, const int64_t* tokens, const int64_t* begins) {
  const int64_t L = begins[N];
  std::vector<int64_t> sequence_of(L);
  for (int64_t i = 0; i < N; ++i) std::fill(sequence_of.begin() + begins[i], sequence_of.begin() + begins[i + 1], i);
  std::vector<uint32_t> word(L), shorter(L);
  std::vector<Index> built;
  for (int n = 0; n < kOrders; ++n) {
    std::vector<std::pair<uint64_t, int64_t>> grams;
    for (int64_t i = 0; i < N; ++i)
      for (int64_t p = begins[i]; p + n < begins[i + 1]; ++p)
        // An n-gram is the (n - 1)-gram at its place and one word more.
        grams.emplace_back(n == 0 ? uint64_t(tokens[p]) : uint64_t(shorter[p]) << 32 | word[p + n], p);
    built.push_back(index_of(std::move(grams), sequence_of, N, shorter));
    if (n == 0) word = shorter;
  }
  return built;
}

double score(const int32_t* matches, int64_t stride, int64_t hypothesis, int64_t reference) {
  if (matches[0] == 0) return 0;
  double product = 1;
  for (int n = 0; n < kOrders; ++n) {
    const int32_t m = matches[n * stride];
    product *= (m == 0 ? kEpsilon : double(m)) / double(std::max<int64_t>(1, hypothesis - n));
  }
  const double brevity = hypothesis >= reference ? 1 : std::exp(1 - double(reference) / double(hypothesis));
  return brevity * std::sqrt(std::sqrt(product));
}

void run(int64_t N, Address tokens_, Address begins_, Address scores_) {
  const int64_t* begins = at<int64_t>(begins_);
  double* scores = at<double>(scores_);
  const std::vector<Index> built = indices(N, at<int64_t>(tokens_), begins);
#pragma omp parallel if (N > 16)
  {
    std::vector<int32_t> matches(kOrders * N);
#pragma omp for schedule(dynamic, 8)
    for (int64_t i = 0; i < N; ++i) {
      std::fill(matches.begin(), matches.end(), 0);
      for (int n = 0; n < kOrders; ++n)
        for (const Held& held : built[n].of[i])
          for (int64_t h = built[n].begin[held.gram]; h < built[n].begin[held.gram + 1]; ++h) {
            const Holder& other = built[n].holders[h];
            matches[n * N + other.sequence] += std::min(held.count, other.count);
          }
      for (int64_t j = 0; j < N; ++j)
        scores[i * N + j] = score(matches.data() + j, N, begins[i + 1] - begins[i], begins[j + 1] - begins[j]);
    }
  }
}

}  // namespace

void bind_bleu(pybind11::module_& m) { m.def("bleu", &run, ReleaseGil()); }

}  // namespace rzero
