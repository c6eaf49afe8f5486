// SPDX-License-Identifier: Apache-2.0
// What the CUDA sources share: element types, 128-bit vectors, e^x, reductions, launches.
//
// The sources are plain C++ but for the words of this file, so that a host can compile them too: with
// RZERO_CUDA_HOST=<header> that header stands in for the CUDA runtime (tests/cuda/cuda_host.h).
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cmath>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>

#include "cuda.h"

#ifdef RZERO_CUDA_HOST
#include RZERO_CUDA_HOST
#else
#define RZERO_SHARED(T, name) __shared__ T name
#define RZERO_DYNAMIC_SHARED(T, name) extern __shared__ T name[]
#endif

namespace rzero {
namespace cuda {

using bf16 = __nv_bfloat16;
using fp16 = __half;

constexpr unsigned kAllLanes = 0xffffffffu;
constexpr int kWarp = 32;

// Blocks of `threads` threads over `grid`, with `shared` bytes of dynamic shared memory.
template <class... Params, class... Args>
void launch(const char* op, void (*kernel)(Params...), dim3 grid, int threads, size_t shared, Address stream,
            const Args&... args) {
#ifdef RZERO_CUDA_HOST
  (void)op;
  (void)stream;
  shim::launch(grid, dim3(unsigned(threads)), shared, [&] { kernel(args...); });
#else
  kernel<<<grid, threads, shared, (cudaStream_t)stream>>>(args...);
  const cudaError_t error = cudaGetLastError();
  if (error != cudaSuccess) throw std::runtime_error(std::string(op) + ": " + cudaGetErrorString(error));
#endif
}

// Calls f with a zero of the type that a code names.
template <class F>
void by_type(int code, const F& f) {
  if (code == 0) return f(float{});
  if (code == 1) return f(bf16{});
  f(fp16{});
}

__device__ inline float to_float(float x) { return x; }
__device__ inline float to_float(bf16 x) { return __bfloat162float(x); }
__device__ inline float to_float(fp16 x) { return __half2float(x); }
__device__ inline void store(float* p, float x) { *p = x; }
__device__ inline void store(bf16* p, float x) { *p = __float2bfloat16(x); }  // to nearest, ties to even
__device__ inline void store(fp16* p, float x) { *p = __float2half(x); }

// As many elements as 16 bytes hold: one 128-bit access.
template <class T>
struct alignas(16) Vector {
  static constexpr int kSize = 16 / sizeof(T);
  T x[kSize];
};

template <class T>
__device__ inline Vector<T> load_vector(const T* p) {
  const uint4 bits = *reinterpret_cast<const uint4*>(p);
  Vector<T> v;
  memcpy(&v, &bits, sizeof v);
  return v;
}

// e^x to about 1 ulp for x <= 88, 0 below -87.3: the very operations of csrc/vec.h, so that CPU and GPU agree in bits.
__device__ inline float exp_f(float x) {
  const float magic = 12582912.f;  // 1.5 * 2^23: adding it rounds to an integer, kept in the low bits
  const float shifted = fmaf(x, 1.44269504088896341f, magic);
  const float n = shifted - magic;
  const float r = fmaf(n, 2.12194440e-4f, fmaf(n, -0.693359375f, x));
  float p = 1.9875691500e-4f;
  p = fmaf(p, r, 1.3981999507e-3f);
  p = fmaf(p, r, 8.3334519073e-3f);
  p = fmaf(p, r, 4.1665795894e-2f);
  p = fmaf(p, r, 1.6666665459e-1f);
  p = fmaf(p, r, 5.0000001201e-1f);
  p = fmaf(p, r * r, r) + 1.f;
  const float power = __uint_as_float((__float_as_uint(shifted) - 0x4b400000u + 127u) << 23);
  return x < -87.3f ? 0.f : p * power;
}

}  // namespace cuda
}  // namespace rzero
