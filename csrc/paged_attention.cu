// SPDX-License-Identifier: Apache-2.0
// Attention of new tokens over keys and values in pages: a block per row of q and up to four of the query heads that
// share a key head. See kernels/paged_attention.py.
//
// A key is read by `lanes` neighbouring lanes, 16 bytes each, so a warp holds 32 / lanes keys at a time and the block
// `step` of them. Position n always belongs to the same part, n % step, whose positions are taken in order with a
// running softmax; the parts are merged in a fixed order. So a row has the same bits alone, in a batch, in a chunk of a
// prompt, and with any page size.
#include "cuda.cuh"

namespace rzero {
namespace cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kMostBytes = kWarp * 16;  // of a head: one 16-byte access per lane

struct Args {
  const void *q, *k, *v;
  void* o;
  int64_t q_row, q_head, o_row, o_head;
  int64_t k_page, k_place, k_head, v_page, v_place, v_head;
  const int32_t *page_table, *q_start, *kv_len;
  int64_t table_stride;
  int P, S, B, M, E, lanes;
  int heads;  // query heads per key head
  float scale;
  bool is_aligned;  // every row of k and v, to 16 bytes
};

// The weights and values of the positions seen so far: their largest score, their mass, their weighted sum.
template <int HEADS, int SIZE>
struct Part {
  float top[HEADS], mass[HEADS], sum[HEADS][SIZE];
};

template <int HEADS, int SIZE>
struct Shared {
  float top[kWarps][HEADS], mass[kWarps][HEADS];
  float sum[kWarps][HEADS][kWarp * SIZE];
};

// As much of a row as 16 bytes hold, zeros past its end; one element at a time where the row is not aligned.
template <class T>
__device__ void load_part(const T* row, int first, int E, bool is_aligned, float* out) {
  constexpr int kSize = Vector<T>::kSize;
  if (is_aligned) {
    Vector<T> v{};
    if (first < E) v = load_vector(row + first);
#pragma unroll
    for (int i = 0; i < kSize; ++i) out[i] = to_float(v.x[i]);
  } else {
#pragma unroll
    for (int i = 0; i < kSize; ++i) out[i] = first + i < E ? to_float(row[first + i]) : 0.f;
  }
}

__device__ float weight(float score, float top) { return top == -INFINITY ? 0.f : exp_f(score - top); }

// Adds the part of the lane `offset` away. Both lanes compute the same, hence no fused multiply-add.
template <int HEADS, int SIZE>
__device__ void merge_lanes(Part<HEADS, SIZE>& part, int offset) {
#pragma unroll
  for (int h = 0; h < HEADS; ++h) {
    const float other = __shfl_xor_sync(kAllLanes, part.top[h], offset), top = fmaxf(part.top[h], other);
    const float mine = weight(part.top[h], top), theirs = weight(other, top);
    part.mass[h] = part.mass[h] * mine + __shfl_xor_sync(kAllLanes, part.mass[h], offset) * theirs;
#pragma unroll
    for (int i = 0; i < SIZE; ++i)
      part.sum[h][i] = part.sum[h][i] * mine + __shfl_xor_sync(kAllLanes, part.sum[h][i], offset) * theirs;
    part.top[h] = top;
  }
}

// The sequence that owns a row, or -1.
__device__ int sequence_of(const Args& a, int row) {
  int in = 0, out = a.B;  // the last sequence that starts at or before the row
  if (row >= a.q_start[a.B] || row < a.q_start[0]) return -1;
  while (out - in > 1) {
    const int middle = in + (out - in) / 2;
    if (a.q_start[middle] <= row) {
      in = middle;
    } else {
      out = middle;
    }
  }
  return in;
}

template <class T, int HEADS>
__global__ void __launch_bounds__(kWarps * kWarp) attend(Args a) {
  constexpr int kSize = Vector<T>::kSize;
  using Memory = Shared<HEADS, kSize>;
  RZERO_SHARED(Memory, s);
  const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
  const int row = blockIdx.x, group = blockIdx.y, first_head = blockIdx.z * HEADS;
  const int first = lane % a.lanes * kSize;  // element
  T* o = static_cast<T*>(a.o) + row * a.o_row + int64_t(group * a.heads + first_head) * a.o_head;
  const int heads = a.heads - first_head < HEADS ? a.heads - first_head : HEADS;
  const int b = sequence_of(a, row);
  // A row of no sequence is zero. A position or page that does not exist makes NaN: a launch cannot raise.
  const int count = b < 0 ? 0 : a.kv_len[b] - a.q_start[b + 1] + row + 1;
  bool is_valid = b < 0 || (count > 0 && (count - 1) / a.S < a.M);

  const T* q = static_cast<const T*>(a.q) + row * a.q_row + int64_t(group * a.heads + first_head) * a.q_head;
  float query[HEADS][kSize];
  Part<HEADS, kSize> part;
#pragma unroll
  for (int h = 0; h < HEADS; ++h) {
    load_part(q + h * a.q_head, first, h < heads ? a.E : 0, false, query[h]);
    part.top[h] = -INFINITY;
    part.mass[h] = 0;
#pragma unroll
    for (int i = 0; i < kSize; ++i) {
      query[h][i] *= a.scale;
      part.sum[h][i] = 0;
    }
  }

  const int keys = kWarp / a.lanes, step = keys * kWarps;
  for (int base = warp * keys; is_valid && base < count; base += step) {
    const int n = base + lane / a.lanes;
    const int page = n < count ? a.page_table[b * a.table_stride + n / a.S] : 0;
    const bool is_page = page >= 0 && page < a.P, is_seen = n < count && is_page;
    if (__ballot_sync(kAllLanes, !is_page) != 0) is_valid = false;
    float key[kSize], value[kSize];
    const int64_t place = n % a.S;
    const int seen = is_seen ? a.E : 0;
    load_part(static_cast<const T*>(a.k) + page * a.k_page + place * a.k_place + group * a.k_head, first, seen,
              a.is_aligned, key);
    load_part(static_cast<const T*>(a.v) + page * a.v_page + place * a.v_place + group * a.v_head, first, seen,
              a.is_aligned, value);
#pragma unroll
    for (int h = 0; h < HEADS; ++h) {
      float score = 0;
#pragma unroll
      for (int i = 0; i < kSize; ++i) score = fmaf(query[h][i], key[i], score);
      for (int offset = a.lanes / 2; offset > 0; offset /= 2) score += __shfl_xor_sync(kAllLanes, score, offset);
      if (!is_seen) score = -INFINITY;
      const float top = fmaxf(part.top[h], score), kept = weight(part.top[h], top), p = weight(score, top);
      part.top[h] = top;
      part.mass[h] = fmaf(part.mass[h], kept, p);
#pragma unroll
      for (int i = 0; i < kSize; ++i) part.sum[h][i] = fmaf(part.sum[h][i], kept, p * value[i]);
    }
  }

  for (int offset = a.lanes; offset < kWarp; offset *= 2) merge_lanes(part, offset);
#pragma unroll
  for (int h = 0; h < HEADS; ++h) {
    if (lane == 0) {
      s.top[warp][h] = is_valid ? part.top[h] : NAN;
      s.mass[warp][h] = part.mass[h];
    }
    if (lane < a.lanes)
#pragma unroll
      for (int i = 0; i < kSize; ++i) s.sum[warp][h][first + i] = part.sum[h][i];
  }
  __syncthreads();
  for (int i = threadIdx.x; i < heads * a.E; i += kWarps * kWarp) {
    const int h = i / a.E, e = i % a.E;
    float top = s.top[0][h];
    bool is_number = top == top;
    for (int w = 1; w < kWarps; ++w) {
      is_number = is_number && s.top[w][h] == s.top[w][h];
      top = fmaxf(top, s.top[w][h]);
    }
    float mass = 0, sum = 0;
    for (int w = 0; w < kWarps; ++w) {
      const float share = weight(s.top[w][h], top);
      mass = fmaf(s.mass[w][h], share, mass);
      sum = fmaf(s.sum[w][h][e], share, sum);
    }
    store(o + h * a.o_head + e, !is_number ? NAN : b < 0 ? 0.f : sum / mass);
  }
}

bool is_aligned(const Pages& view, int64_t E, int64_t unit) {
  bool yes = view[0] % 16 == 0 && E % unit == 0;
  for (int axis = 1; axis < 4; ++axis) yes = yes && view[axis] % unit == 0;
  return yes;
}

template <class T>
void run(const Attention& a, Address stream) {
  constexpr int kSize = Vector<T>::kSize;
  Args args{};
  args.q = (const void*)a.q[0];
  args.k = (const void*)a.k_pages[0];
  args.v = (const void*)a.v_pages[0];
  args.o = (void*)a.o[0];
  args.q_row = a.q[1], args.q_head = a.q[2], args.o_row = a.o[1], args.o_head = a.o[2];
  args.k_page = a.k_pages[1], args.k_place = a.k_pages[2], args.k_head = a.k_pages[3];
  args.v_page = a.v_pages[1], args.v_place = a.v_pages[2], args.v_head = a.v_pages[3];
  args.page_table = (const int32_t*)a.page_table;
  args.q_start = (const int32_t*)a.q_start;
  args.kv_len = (const int32_t*)a.kv_len;
  args.table_stride = a.table_stride;
  args.P = int(a.P), args.S = int(a.S), args.B = int(a.B), args.M = int(a.M), args.E = int(a.E);
  args.heads = int(a.H / a.G);
  args.scale = a.scale;
  args.is_aligned = is_aligned(a.k_pages, a.E, kSize) && is_aligned(a.v_pages, a.E, kSize);
  for (args.lanes = 1; args.lanes * kSize < a.E;) args.lanes *= 2;
  const auto start = [&](void (*kernel)(Args), int heads) {
    const dim3 grid(unsigned(a.T), unsigned(a.G), unsigned((args.heads + heads - 1) / heads));
    launch("paged_attention", kernel, grid, kWarps * kWarp, 0, stream, args);
  };
  if (args.heads == 1) return start(&attend<T, 1>, 1);
  if (args.heads == 2) return start(&attend<T, 2>, 2);
  start(&attend<T, 4>, 4);
}

}  // namespace

void paged_attention(const Attention& a, Address stream) {
  if (a.T == 0) return;
  by_type(a.code, [&](auto zero) {
    if (a.E * int64_t(sizeof zero) > kMostBytes)
      throw std::runtime_error("paged_attention: heads of more than " + std::to_string(kMostBytes) + " bytes");
    run<decltype(zero)>(a, stream);
  });
}

}  // namespace cuda
}  // namespace rzero
