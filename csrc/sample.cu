// SPDX-License-Identifier: Apache-2.0
// Draws one token per row, a block per row. See kernels/sample.py for the rules.
//
// Nothing is sorted. top-k and top-p become a bound on the logits, found digit by digit of the logits' bits: a histogram
// of the weights by the next 10 bits says which digit the bound has. Weights are integers (1, or the mass as a multiple of
// 2^-43), so their sums do not depend on the order in which threads add. The mass itself is summed as in
// csrc/softmax_row.h, 32 lanes to a block of 1024 tokens, so log-probs have the bits of the CPU.
#include "cuda.cuh"

namespace rzero {
namespace cuda {
namespace {

using Weight = unsigned long long;

constexpr int kBlock = 1024;  // tokens whose mass is one float32 sum, as in csrc/softmax_row.h
constexpr int kBits = 10, kBins = 1 << kBits;
static_assert(kBins == kWarp * kWarp, "a warp finds a bin in two steps");
constexpr float kUnit = 0x1p43f;  // with 2^20 tokens of mass 1 the sum still fits 64 bits
constexpr int64_t kMostTokens = 1 << 20;

enum Status { kFine, kBadRow, kBadTemperature, kBadTopK, kBadTopP, kBadMinP };

// Sums of weights, in halves: shared memory adds 32 bits at once, and spins to add 64.
struct Histogram {
  unsigned low[kBins], high[kBins];

  __device__ void clear(int i) { low[i] = high[i] = 0; }
  __device__ Weight sum(int i) const { return Weight(high[i]) << 32 | low[i]; }
  __device__ void add(int i, Weight weight) {
    const unsigned before = atomicAdd(&low[i], unsigned(weight)), after = before + unsigned(weight);
    const unsigned upper = unsigned(weight >> 32) + unsigned(after < before);
    if (upper != 0) atomicAdd(&high[i], upper);
  }
};

struct Shared {
  Histogram histogram;
  Weight group[kWarp];
  float partial[kWarp];
  double total, before;
  int chosen, token;
};

struct Place {
  int warp, warps, lane;
  __device__ Place() : warp(threadIdx.x / kWarp), warps(blockDim.x / kWarp), lane(threadIdx.x % kWarp) {}
};

template <class T>
struct Row {
  const T* x;
  int V;
  float top, temperature;
  float bound;  // tokens with a smaller logit have no mass

  __device__ float logit(int v) const { return to_float(x[v]); }
  __device__ float scaled(float logit) const { return (logit - top) / temperature; }
  __device__ float mass(float logit) const { return logit < bound ? 0.f : exp_f(scaled(logit)); }
  __device__ float log_prob(int v, double total) const { return float(double(scaled(logit(v))) - log(total)); }
};

// Philox4x32-10 (Salmon et al., SC'11) -> a number in (0, 1).
__device__ double uniform(uint64_t key, uint64_t position) {
  uint32_t c[4] = {uint32_t(position), uint32_t(position >> 32), 0, 0};
  uint32_t k[2] = {uint32_t(key), uint32_t(key >> 32)};
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t(c[0]) * 0xD2511F53u, b = uint64_t(c[2]) * 0xCD9E8D57u;
    c[0] = uint32_t(b >> 32) ^ c[1] ^ k[0];
    c[1] = uint32_t(b);
    c[2] = uint32_t(a >> 32) ^ c[3] ^ k[1];
    c[3] = uint32_t(a);
    k[0] += 0x9E3779B9u;
    k[1] += 0xBB67AE85u;
  }
  const uint64_t bits = (uint64_t(c[0]) << 20) | (c[1] >> 12);
  return double(2 * bits + 1) * 0x1p-53;
}

// Larger floats have larger keys, NaN aside.
__device__ uint32_t key_of(float x) {
  const uint32_t bits = __float_as_uint(x);
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}

__device__ float from_key(uint32_t key) { return __uint_as_float(key >> 31 ? key & 0x7fffffffu : ~key); }

// f(logit) for all of the row by all of the block, in no order; 128 bits at a time between the ragged ends.
template <class T, class F>
__device__ void each_logit(const T* x, int V, const F& f) {
  constexpr int kSize = Vector<T>::kSize;
  const int ragged = int((16 - uintptr_t(x) % 16) % 16 / sizeof(T)), head = ragged < V ? ragged : V;
  const int vectors = (V - head) / kSize;
  for (int i = threadIdx.x; i < vectors; i += blockDim.x) {
    const Vector<T> v = load_vector(x + head + i * kSize);
#pragma unroll
    for (int k = 0; k < kSize; ++k) f(to_float(v.x[k]));
  }
  for (int i = threadIdx.x; i < V - vectors * kSize; i += blockDim.x) f(to_float(x[i < head ? i : i + vectors * kSize]));
}

__device__ float larger(float a, float b) { return b > a || b != b ? b : a; }  // NaN wins

__device__ float warp_largest(float x) {
  for (int offset = kWarp / 2; offset > 0; offset /= 2) x = larger(x, __shfl_xor_sync(kAllLanes, x, offset));
  return x;
}

template <class T>
__device__ float largest(const T* x, int V, Shared& s) {
  const Place at;
  float top = -INFINITY;
  each_logit(x, V, [&](float logit) { top = larger(top, logit); });
  top = warp_largest(top);
  if (at.lane == 0) s.partial[at.warp] = top;
  __syncthreads();
  return warp_largest(at.lane < at.warps ? s.partial[at.lane] : -INFINITY);
}

// The mass of a row and, in `blocks`, of every 1024 tokens.
template <class T>
__device__ double total_mass(const Row<T>& row, float* blocks, Shared& s) {
  const Place at;
  const int count = (row.V + kBlock - 1) / kBlock;
  for (int b = at.warp; b < count; b += at.warps) {
    float sum = 0;
    for (int v = b * kBlock + at.lane; v < (b + 1) * kBlock; v += kWarp) sum += v < row.V ? row.mass(row.logit(v)) : 0.f;
    for (int half = kWarp / 2; half > 0; half /= 2) sum += __shfl_down_sync(kAllLanes, sum, half);
    if (at.lane == 0) blocks[b] = sum;
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    double total = 0;
    for (int b = 0; b < count; ++b) total += double(blocks[b]);
    s.total = total;
  }
  __syncthreads();
  return s.total;
}

// The first lane up to which the values weigh at least `wanted`; what comes before it is taken off `wanted`.
__device__ int first_reaching(Weight value, Weight* wanted) {
  const int lane = Place().lane;
  Weight sum = value;
  for (int offset = 1; offset < kWarp; offset *= 2) {
    const Weight below = __shfl_up_sync(kAllLanes, sum, offset);
    if (lane >= offset) sum += below;
  }
  const int first = __ffs(int(__ballot_sync(kAllLanes, sum >= *wanted))) - 1;
  *wanted -= __shfl_sync(kAllLanes, sum - value, first);
  return first;
}

// The largest bound such that the tokens at or above it weigh at least wanted_of(weight of all); the row's own bound
// where all of them weigh less.
template <class T, class WeightOf, class WantedOf>
__device__ float bound_of(const Row<T>& row, Shared& s, const WeightOf& weight_of, const WantedOf& wanted_of) {
  const Place at;
  const int last = sizeof(T) == 2 ? 12 : 0;  // all 16-bit floats differ in the upper 20 bits
  uint32_t found = 0;
  Weight wanted = 0;
  int shift = 32;
  while (shift > last) {
    const int bits = shift < kBits ? shift : kBits, above = shift;
    shift -= bits;
    for (int i = threadIdx.x; i < kBins; i += blockDim.x) s.histogram.clear(i);
    __syncthreads();
    each_logit(row.x, row.V, [&](float logit) {
      const uint32_t key = key_of(logit);
      if (uint64_t(key) >> above != found) return;
      // Zero for nearly every token of a peaked row: few of them contend for the bins.
      const Weight weight = weight_of(logit);
      if (weight != 0) s.histogram.add(int(key >> shift & ((1u << bits) - 1)), weight);
    });
    __syncthreads();
    for (int g = at.warp; g < kWarp; g += at.warps) {
      Weight sum = s.histogram.sum(g * kWarp + at.lane);
      for (int offset = kWarp / 2; offset > 0; offset /= 2) sum += __shfl_xor_sync(kAllLanes, sum, offset);
      if (at.lane == 0) s.group[g] = sum;
    }
    __syncthreads();
    // From the largest down; every warp searches for itself, so the result needs no broadcast.
    const Weight mine = s.group[kWarp - 1 - at.lane];
    if (above == 32) {
      Weight whole = mine;
      for (int offset = kWarp / 2; offset > 0; offset /= 2) whole += __shfl_xor_sync(kAllLanes, whole, offset);
      wanted = wanted_of(whole);
      if (wanted > whole) return row.bound;
    }
    const int group = kWarp - 1 - first_reaching(mine, &wanted);
    const int top_bin = group * kWarp + kWarp - 1;
    const int bin = top_bin - first_reaching(s.histogram.sum(top_bin - at.lane), &wanted);
    found = found << bits | uint32_t(bin);
    __syncthreads();  // before the next digit clears the histogram
  }
  return from_key(found << shift);
}

// min-p as a bound on the logits: the smallest float whose y is at least log(min_p), by bisection of the keys.
template <class T>
__device__ float min_p_bound(const Row<T>& row, float min_p) {
  const float lowest = float(log(double(min_p)));
  uint32_t out = key_of(-INFINITY), in = key_of(row.top);
  while (in - out > 1) {
    const uint32_t middle = out + (in - out) / 2;
    if (row.scaled(from_key(middle)) >= lowest) {
      in = middle;
    } else {
      out = middle;
    }
  }
  return from_key(in);
}

template <class T>
__device__ float bound_of_settings(Row<T> row, int top_k, float top_p, float min_p, Shared& s) {
  if (min_p > 0) row.bound = min_p_bound(row, min_p);
  if (top_k > 0 && top_k < row.V) {
    const float bound = bound_of(
        row, s, [&](float logit) { return Weight(logit >= row.bound); }, [&](Weight) { return Weight(top_k); });
    row.bound = bound > row.bound ? bound : row.bound;
  }
  if (top_p < 1)
    row.bound = bound_of(
        row, s, [&](float logit) { return Weight(rintf(row.mass(logit) * kUnit)); },
        [&](Weight whole) { return Weight(ceil(double(top_p) * double(whole))); });
  return row.bound;
}

// The first token whose cumulated mass exceeds u times the whole. Rounding may leave the sums at or below that: the
// last block and the last token with mass are then taken.
template <class T>
__device__ int draw(const Row<T>& row, const float* blocks, double total, double u, Shared& s) {
  const Place at;
  const double target = u * total;
  if (threadIdx.x == 0) {
    double sum = 0;
    for (int b = 0; b < (row.V + kBlock - 1) / kBlock && sum <= target; ++b) {
      if (blocks[b] <= 0) continue;
      s.chosen = b;
      s.before = sum;
      sum += double(blocks[b]);
    }
  }
  __syncthreads();
  if (at.warp == 0) {
    const int from = s.chosen * kBlock + at.lane * (kBlock / kWarp);
    const int end = from + kBlock / kWarp < row.V ? from + kBlock / kWarp : row.V;
    double part = 0;
    for (int v = from; v < end; ++v) part += double(row.mass(row.logit(v)));
    double sum = part;
    for (int offset = 1; offset < kWarp; offset *= 2) {
      const double below = __shfl_up_sync(kAllLanes, sum, offset);
      if (at.lane >= offset) sum += below;
    }
    const unsigned has_mass = __ballot_sync(kAllLanes, part > 0);
    const unsigned exceeds = has_mass & __ballot_sync(kAllLanes, s.before + sum > target);
    if (at.lane == (exceeds != 0 ? __ffs(int(exceeds)) - 1 : kWarp - 1 - __clz(int(has_mass)))) {
      double reached = s.before + (sum - part);
      for (int v = from; v < end && reached <= target; ++v) {
        const float mass = row.mass(row.logit(v));
        if (mass > 0) s.token = v;
        reached += double(mass);
      }
    }
  }
  __syncthreads();
  return s.token;
}

template <class T>
__device__ int first_equal(const Row<T>& row, Shared& s) {
  if (threadIdx.x == 0) s.token = row.V;
  __syncthreads();
  for (int v = threadIdx.x; v < row.V; v += blockDim.x)
    if (row.logit(v) == row.top) atomicMin(&s.token, v);
  __syncthreads();
  return s.token;
}

struct Rows_ {
  const void* logits;
  int64_t stride;
  int V;
  const float *temperature, *top_p, *min_p;
  const int32_t* top_k;
  const int64_t *key, *position;
  int64_t* token;
  float *logp, *full_logp;
  int32_t* status;
};

__device__ Status judge(float temperature, int top_k, float top_p, float min_p) {
  if (!(temperature >= 0 && temperature < INFINITY)) return kBadTemperature;
  if (top_k < 0) return kBadTopK;
  if (!(top_p > 0 && top_p <= 1)) return kBadTopP;
  return min_p >= 0 && min_p <= 1 ? kFine : kBadMinP;
}

template <class T>
__global__ void __launch_bounds__(1024, 1) sample_rows(Rows_ a) {
  RZERO_SHARED(Shared, s);
  RZERO_DYNAMIC_SHARED(float, blocks);
  const int64_t b = blockIdx.x;
  const float temperature = a.temperature[b], top_p = a.top_p[b], min_p = a.min_p[b];
  const int top_k = a.top_k[b];
  const T* x = static_cast<const T*>(a.logits) + b * a.stride;
  Status status = judge(temperature, top_k, top_p, min_p);
  const float top = largest(x, a.V, s);
  if (status == kFine && !(top - top == 0)) status = kBadRow;  // NaN, +inf, or nothing but -inf
  if (threadIdx.x == 0) a.status[b] = status;
  if (status != kFine) {
    if (threadIdx.x == 0) {
      a.token[b] = -1;
      a.logp[b] = a.full_logp[b] = NAN;
    }
    return;
  }
  const Row<T> full{x, a.V, top, 1.f, -INFINITY};
  const double full_total = total_mass(full, blocks, s);
  int token;
  float logp = 0;
  if (temperature == 0) {
    token = first_equal(full, s);
  } else {
    Row<T> row{x, a.V, top, temperature, -INFINITY};
    row.bound = bound_of_settings(row, top_k, top_p, min_p, s);
    const double total = row.bound == -INFINITY && temperature == 1 ? full_total : total_mass(row, blocks, s);
    token = draw(row, blocks, total, uniform(uint64_t(a.key[b]), uint64_t(a.position[b])), s);
    logp = row.log_prob(token, total);
  }
  if (threadIdx.x == 0) {
    a.token[b] = token;
    a.logp[b] = logp;
    a.full_logp[b] = full.log_prob(token, full_total);
  }
}

}  // namespace

void sample(const SampleRows& a, Address stream) {
  if (a.B == 0) return;
  if (a.V > kMostTokens) throw std::runtime_error("sample: at most " + std::to_string(kMostTokens) + " tokens");
  const Rows_ rows{(const void*)a.logits,   a.stride,
                   int(a.V),                (const float*)a.temperature,
                   (const float*)a.top_p,   (const float*)a.min_p,
                   (const int32_t*)a.top_k, (const int64_t*)a.key,
                   (const int64_t*)a.position, (int64_t*)a.token,
                   (float*)a.logp,          (float*)a.full_logp,
                   (int32_t*)a.status};
  const size_t shared = size_t(a.V + kBlock - 1) / kBlock * sizeof(float);
  by_type(a.code, [&](auto zero) {
    launch("sample", &sample_rows<decltype(zero)>, dim3(unsigned(a.B)), a.threads, shared, stream, rows);
  });
}

}  // namespace cuda
}  // namespace rzero
