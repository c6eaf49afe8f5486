// SPDX-License-Identifier: Apache-2.0
// The CUDA kernels as the bindings see them: addresses of device memory, sizes, strides in elements, and a stream as
// plain integers. kernels/<op>_cuda.py checks the arguments. Each function only starts work; it throws
// std::runtime_error where the launch itself is refused.
//
// Rounding: nvcc may fuse nothing that the source does not (-fmad=false), e^x is exp_f of cuda.cuh, and every sum has a
// fixed order. So the arithmetic is IEEE throughout, and the same source run on a CPU gives the same bits.
#pragma once

#include <array>
#include <cstdint>
#include <string>

namespace rzero {
namespace cuda {

using Address = uintptr_t;
using Rows = std::array<int64_t, 3>;   // address and strides of [T, H], each a row of E elements
using Pages = std::array<int64_t, 4>;  // address and strides of [P, S, G], each a row of E elements

// Why no kernel can run in this process (no driver, no device), empty where they can.
std::string why_not();

struct SampleRows {
  int code;  // of the logits' type: kernels/native.py, DTYPE_CODE
  int threads;  // per block, a multiple of 32; no result depends on it
  int64_t B, V;
  Address logits;
  int64_t stride;
  Address temperature, top_k, top_p, min_p, key, position;
  Address token, logp, full_logp, status;
};
void sample(const SampleRows& rows, Address stream);

struct PageSizes {
  int64_t N, P, S, G, E;  // N: tokens or pairs of pages
  int64_t bytes;          // of an element
};
void kv_write(const PageSizes& sizes, const Rows& k, const Rows& v, Address slot, const Pages& k_pages,
              const Pages& v_pages, Address stream);
void copy_pages(const PageSizes& sizes, const Pages& k_pages, const Pages& v_pages, Address src, Address dst,
                Address stream);

struct Attention {
  int code;
  int64_t T, H, G, E, P, S, B, M;
  float scale;
  Rows q, o;
  Pages k_pages, v_pages;
  Address page_table;
  int64_t table_stride;
  Address q_start, kv_len;
};
void paged_attention(const Attention& attention, Address stream);

}  // namespace cuda
}  // namespace rzero
