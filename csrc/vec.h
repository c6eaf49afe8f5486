// SPDX-License-Identifier: Apache-2.0
// Vectors of floats as wide as the instruction set, loads and stores that convert, a fixed-order sum, exp.
//
// Results do not depend on the width: sums use a fixed number of lanes, and the compiler may not fuse what we did not
// (-ffp-contract=off). So AVX2, AVX-512 and Arm agree bit for bit; plain x86-64 has no fused multiply-add and differs, and
// so do products of bfloat16 where the CPU makes them (kHeld).
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

#if defined(__AVX2__) || defined(__AVX512F__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#define RZERO_INLINE inline __attribute__((always_inline))

namespace rzero {
namespace RZERO_ISA {

#if defined(__AVX512F__)
constexpr int kWidth = 16;
#elif defined(__AVX2__)
constexpr int kWidth = 8;
#else
constexpr int kWidth = 4;
#endif

typedef float Vec __attribute__((vector_size(4 * kWidth)));
typedef int32_t IntVec __attribute__((vector_size(4 * kWidth)));
typedef uint32_t BitVec __attribute__((vector_size(4 * kWidth)));
typedef uint16_t HalfVec __attribute__((vector_size(2 * kWidth)));
typedef float Vec4 __attribute__((vector_size(16)));

struct bf16 {
  uint16_t bits;
};

struct fp16 {  // IEEE half precision
  uint16_t bits;
};

// Calls f with a zero of the type that a code names: kernels/native.py, DTYPE_CODE.
template <class F>
RZERO_INLINE void by_type(int code, const F& f) {
  if (code == 0) return f(float{});
  if (code == 1) return f(bf16{});
  f(fp16{});
}

// Asks for a cache line, into the second cache: the first one can wait for only a few lines at once, and cold keys came at half
// the rate or less when they were asked for there (docs/notebook.md).
RZERO_INLINE void fetch_line(const void* p) { __builtin_prefetch(p, 0, 2); }

RZERO_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }

RZERO_INLINE Vec splat(float x) { return x - Vec{}; }

RZERO_INLINE Vec fma(Vec a, Vec b, Vec c) {
#if defined(__AVX512F__)
  return (Vec)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c);
#elif defined(__AVX2__)
  return (Vec)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c);
#elif defined(__aarch64__)
  return (Vec)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
#else
  return a * b + c;
#endif
}

RZERO_INLINE Vec vmax(Vec a, Vec b) { return a > b ? a : b; }

RZERO_INLINE Vec load(const float* p) {
  Vec v;
  memcpy(&v, p, sizeof v);
  return v;
}

RZERO_INLINE Vec load(const bf16* p) {
  // By instructions of our choice: gcc 12 converts halves apart and puts them together again.
#if defined(__AVX512F__)
  const __m512i wide = _mm512_maskz_cvtepu16_epi32(0xffff, _mm256_loadu_si256((const __m256i*)p));  // the plain form warns
  return (Vec)((BitVec)wide << 16);
#elif defined(__AVX2__)
  return (Vec)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i*)p)), 16);
#else
  HalfVec h;
  memcpy(&h, p, sizeof h);
  return (Vec)(__builtin_convertvector(h, BitVec) << 16);
#endif
}

RZERO_INLINE Vec load(const fp16* p) {
#if defined(__AVX512F__)
  return (Vec)_mm512_maskz_cvtph_ps(0xffff, _mm256_loadu_si256((const __m256i*)p));  // the plain form warns in gcc 12
#elif defined(__AVX2__)
  return (Vec)_mm256_cvtph_ps(_mm_loadu_si128((const __m128i*)p));
#else
  HalfVec h;
  memcpy(&h, p, sizeof h);
  const BitVec wide = __builtin_convertvector(h, BitVec), exponent = wide & 0x7c00;
  const BitVec scaled = ((wide & 0x7fff) << 13) + ((127u - 15u) << 23);
  const Vec subnormal = (Vec)(scaled + (1u << 23)) - splat(0x1p-14f);  // the subtraction makes the digits a number
  const BitVec special = scaled + ((128u - 16u) << 23), quiet = (wide & 0x3ff) != 0 ? special | 0x400000 : special;
  const BitVec size = exponent == 0 ? (BitVec)subnormal : exponent == 0x7c00 ? quiet : scaled;
  return (Vec)(size | ((wide & 0x8000) << 16));
#endif
}

RZERO_INLINE void store(float* p, Vec v) { memcpy(p, &v, sizeof v); }

RZERO_INLINE void store(bf16* p, Vec v) {  // to nearest, ties to even
#if defined(__AVX512BF16__)
  constexpr int kSubnormal = 0x20;  // which the instruction takes for zero
  if (__builtin_expect(_mm512_fpclass_ps_mask((__m512)v, kSubnormal) == 0, 1)) {
    const __m256bh half = _mm512_cvtneps_pbh((__m512)v);
    memcpy(p, &half, sizeof half);
    return;
  }
#endif
  const BitVec bits = (BitVec)v;
  const BitVec rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const BitVec quiet_nan = (bits >> 16) | 0x40;
  const BitVec half = v == v ? rounded : quiet_nan;
#if defined(__AVX2__) && !defined(__AVX512F__)
  const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32((__m256i)half, (__m256i)half), 0x08);
  _mm_storeu_si128((__m128i*)p, _mm256_castsi256_si128(packed));
#else
  const HalfVec h = __builtin_convertvector(half, HalfVec);
  memcpy(p, &h, sizeof h);
#endif
}

RZERO_INLINE void store(fp16* p, Vec v) {  // to nearest, ties to even; a NaN keeps its first digits
#if defined(__AVX512F__)
  _mm256_storeu_si256((__m256i*)p, _mm512_maskz_cvtps_ph(0xffff, (__m512)v, _MM_FROUND_TO_NEAREST_INT));
#elif defined(__AVX2__)
  _mm_storeu_si128((__m128i*)p, _mm256_cvtps_ph((__m256)v, _MM_FROUND_TO_NEAREST_INT));
#else
  const BitVec bits = (BitVec)v, size = bits & 0x7fffffff;
  const BitVec normal = (size - ((127u - 15u) << 23) + 0xfff + ((size >> 13) & 1)) >> 13;
  const BitVec subnormal = (BitVec)((Vec)size + splat(0.5f)) - 0x3f000000;  // 0.5 has 2^-24 as its last digit
  const BitVec special = size > 0x7f800000 ? 0x7e00 | ((size >> 13) & 0x3ff) : BitVec{} + 0x7c00;
  const BitVec half = size >= 0x47800000 ? special : size < 0x38800000 ? subnormal : normal;
  const HalfVec h = __builtin_convertvector(half | ((bits >> 16) & 0x8000), HalfVec);
  memcpy(p, &h, sizeof h);
#endif
}

// The first n lanes (n may be kWidth or more, which means all); the other lanes are zero.
template <class S>
RZERO_INLINE Vec load(const S* p, int64_t n) {
  if (n >= kWidth) return load(p);
  S part[kWidth] = {};
  memcpy(part, p, n * sizeof(S));
  return load(part);
}

template <class S>
RZERO_INLINE void store(S* p, Vec v, int64_t n) {
  if (n >= kWidth) return store(p, v);
  S part[kWidth];
  store(part, v);
  memcpy(p, part, n * sizeof(S));
}

// Two vectors of neighbouring elements, for what is done element by element: 16-bit types are widened and narrowed in the
// cheapest order, which differs from the order in memory, but never between operands of one type.
struct Pair {
  Vec a, b;
};
constexpr int kPair = 2 * kWidth;

template <class S>
RZERO_INLINE Pair load_pair(const S* p) {
  return {load(p), load(p + kWidth)};
}

template <class S>
RZERO_INLINE void store_pair(S* p, Pair v) {
  store(p, v.a);
  store(p + kWidth, v.b);
}

template <class S>
RZERO_INLINE Pair in_order(const S*, Pair v) {
  return v;
}

#if defined(__AVX2__) && !defined(__AVX512F__)
// Even elements, then odd ones: each is the half of a 32-bit lane.
RZERO_INLINE Pair load_pair(const bf16* p) {
  const BitVec both = (BitVec)_mm256_loadu_si256((const __m256i*)p);
  return {(Vec)(both << 16), (Vec)(both & 0xffff0000u)};
}

RZERO_INLINE void store_pair(bf16* p, Pair v) {
  const auto rounded = [](Vec x) {  // as in store; only the high half counts
    const BitVec bits = (BitVec)x;
    return x == x ? bits + 0x7fff + ((bits >> 16) & 1) : bits | 0x400000;
  };
  const BitVec even = rounded(v.a), odd = rounded(v.b);
  _mm256_storeu_si256((__m256i*)p, _mm256_blend_epi16((__m256i)(even >> 16), (__m256i)odd, 0xaa));
}

RZERO_INLINE Pair in_order(const bf16*, Pair v) {
  const __m256 low = _mm256_unpacklo_ps((__m256)v.a, (__m256)v.b), high = _mm256_unpackhi_ps((__m256)v.a, (__m256)v.b);
  return {(Vec)_mm256_permute2f128_ps(low, high, 0x20), (Vec)_mm256_permute2f128_ps(low, high, 0x31)};
}
#endif

template <class F, class... P>
RZERO_INLINE Pair each(const F& f, const P&... x) {
  return {f(x.a...), f(x.b...)};
}

// r[i][j] becomes r[j][i].
RZERO_INLINE void transpose(Vec4 r[4]) {
  typedef int32_t Pick __attribute__((vector_size(16)));
  const Vec4 ab_low = __builtin_shuffle(r[0], r[1], Pick{0, 4, 1, 5});
  const Vec4 ab_high = __builtin_shuffle(r[0], r[1], Pick{2, 6, 3, 7});
  const Vec4 cd_low = __builtin_shuffle(r[2], r[3], Pick{0, 4, 1, 5});
  const Vec4 cd_high = __builtin_shuffle(r[2], r[3], Pick{2, 6, 3, 7});
  r[0] = __builtin_shuffle(ab_low, cd_low, Pick{0, 1, 4, 5});
  r[1] = __builtin_shuffle(ab_low, cd_low, Pick{2, 3, 6, 7});
  r[2] = __builtin_shuffle(ab_high, cd_high, Pick{0, 1, 4, 5});
  r[3] = __builtin_shuffle(ab_high, cd_high, Pick{2, 3, 6, 7});
}

RZERO_INLINE float to_float(float x) { return x; }
RZERO_INLINE float to_float(bf16 x) {
  const uint32_t bits = uint32_t(x.bits) << 16;
  float f;
  memcpy(&f, &bits, sizeof f);
  return f;
}

RZERO_INLINE float to_float(fp16 x) {
  const fp16 part[kWidth] = {x};
  return load(part)[0];
}

// Operands of a sum of products are held in lanes of 32 bits: one element as a float, or, where the CPU multiplies bfloat16,
// two of them as they are, whose products it adds at once, the second one first.
template <class S>
constexpr int kHeld = 1;
#if defined(__AVX512BF16__)
template <>
constexpr int kHeld<bf16> = 2;
#endif

template <class S>
RZERO_INLINE int64_t lanes(int64_t elements) {
  return (elements + kHeld<S> - 1) / kHeld<S>;
}

// The lane of the first elements of `count` that lie `stride` apart; what is missing is zero.
template <class S, int HELD = kHeld<S>>
RZERO_INLINE float lane(const S* p, [[maybe_unused]] int64_t stride, int64_t count) {
  if constexpr (HELD == 1) {
    return count > 0 ? to_float(*p) : 0.f;
  } else {
    const uint32_t low = count > 0 ? p->bits : 0, high = count > 1 ? p[stride].bits : 0, both = low | high << 16;
    float held;
    memcpy(&held, &both, sizeof held);
    return held;
  }
}

// Neighbouring elements as lanes, where a vector load will not have to widen them.
template <class S, int HELD = kHeld<S>>
RZERO_INLINE auto as_lanes(const S* p) {
  if constexpr (HELD == 1)
    return p;
  else
    return (const float*)p;
}

template <class S>
RZERO_INLINE Vec multiply_add(float a, Vec b, Vec sum) {
#if defined(__AVX512BF16__)
  if constexpr (kHeld<S> == 2) return (Vec)_mm512_dpbf16_ps((__m512)sum, (__m512bh)_mm512_set1_ps(a), (__m512bh)b);
#endif
  return fma(splat(a), b, sum);
}

// What the value becomes when it is stored as S.
RZERO_INLINE Vec rounded_to(const float*, Vec v) { return v; }
template <class S>
RZERO_INLINE Vec rounded_to(const S*, Vec v) {
  S part[kWidth];
  store(part, v);
  return load(part);
}

// A sum whose order depends on the place of each element alone: element i goes to lane i % 32, the lanes form a tree.
struct Sum {
  static constexpr int kLanes = 32;
  static constexpr int kParts = kLanes / kWidth;
  Vec part[kParts] = {};

  RZERO_INLINE Vec& at(int64_t element) { return part[(element / kWidth) % kParts]; }
  // Calls f(i, sum of a pair) for i = 0, kPair, ..., as far as whole rounds of kLanes elements go up to n, and returns
  // where it stopped. To be called first: it sets the lanes.
  template <class S, class F>
  RZERO_INLINE int64_t add_pairs(const S* type, int64_t n, const F& f) {
    Pair pair[kLanes / kPair] = {};
    int64_t i = 0;
    for (; i + kLanes <= n; i += kLanes)
#pragma GCC unroll 4
      for (int k = 0; k < kLanes / kPair; ++k) f(i + k * kPair, pair[k]);
    for (int k = 0; k < kLanes / kPair; ++k) {
      const Pair next = in_order(type, pair[k]);
      part[2 * k] = next.a;
      part[2 * k + 1] = next.b;
    }
    return i;
  }
  RZERO_INLINE float total() const {
    float lane[kLanes];
    memcpy(lane, part, sizeof lane);
    for (int half = kLanes / 2; half > 0; half /= 2)
      for (int i = 0; i < half; ++i) lane[i] += lane[i + half];
    return lane[0];
  }
};

// e^x to about 1 ulp for x <= 88, 0 below -87.3; NaN stays NaN. Range reduction and polynomial as in Cephes' expf.
RZERO_INLINE Vec exp(Vec x) {
  const Vec magic = splat(12582912.f);  // 1.5 * 2^23: adding it rounds to an integer, kept in the low bits
  const Vec shifted = fma(x, splat(1.44269504088896341f), magic);
  const Vec n = shifted - magic;
  const Vec r = fma(n, splat(2.12194440e-4f), fma(n, splat(-0.693359375f), x));
  Vec p = splat(1.9875691500e-4f);
  p = fma(p, r, splat(1.3981999507e-3f));
  p = fma(p, r, splat(8.3334519073e-3f));
  p = fma(p, r, splat(4.1665795894e-2f));
  p = fma(p, r, splat(1.6666665459e-1f));
  p = fma(p, r, splat(5.0000001201e-1f));
  p = fma(p, r * r, r) + 1.f;
#if defined(__AVX512F__)
  const Vec result = (Vec)_mm512_maskz_scalef_ps(0xffff, (__m512)p, (__m512)n);  // the plain form warns in gcc 12
#else
  const Vec result = p * (Vec)(((BitVec)shifted - 0x4b400000u + 127u) << 23);
#endif
  return x < splat(-87.3f) ? Vec{} : result;
}

}  // namespace RZERO_ISA
}  // namespace rzero
