// SPDX-License-Identifier: Apache-2.0
// rzero._cuda: the bindings of the CUDA kernels. It imports anywhere; why_not() says whether it can run.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include "cuda.h"

namespace rzero {
namespace cuda {
namespace {

namespace py = pybind11;

using PageCounts = std::array<int64_t, 6>;        // T (or N), P, S, G, E, bytes of an element
using AttentionSizes = std::array<int64_t, 8>;    // T, H, G, E, P, S, B, M
using Table = std::array<int64_t, 2>;             // address and stride of [B, M]
using Settings = std::array<Address, 6>;          // temperature, top_k, top_p, min_p, key, position
using Drawn = std::array<Address, 4>;             // token, logp, full_logp, status

PageSizes page_sizes(const PageCounts& n) { return {n[0], n[1], n[2], n[3], n[4], n[5]}; }

void bind(py::module_& m) {
  const py::call_guard<py::gil_scoped_release> no_gil;
  m.def("why_not", &why_not, "Why no kernel can run in this process; empty where they can.");
  m.def(
      "sample",
      [](int code, int threads, const Table& sizes, const Table& logits, const Settings& in, const Drawn& out,
         Address stream) {
        sample({code, threads, sizes[0], sizes[1], Address(logits[0]), logits[1], in[0], in[1], in[2], in[3], in[4], in[5],
                out[0], out[1], out[2], out[3]},
               stream);
      },
      no_gil);
  m.def(
      "kv_write",
      [](const PageCounts& sizes, const Rows& k, const Rows& v, Address slot, const Pages& k_pages, const Pages& v_pages,
         Address stream) { kv_write(page_sizes(sizes), k, v, slot, k_pages, v_pages, stream); },
      no_gil);
  m.def(
      "copy_pages",
      [](const PageCounts& sizes, const Pages& k_pages, const Pages& v_pages, Address src, Address dst, Address stream) {
        copy_pages(page_sizes(sizes), k_pages, v_pages, src, dst, stream);
      },
      no_gil);
  m.def(
      "paged_attention",
      [](int code, const AttentionSizes& n, float scale, const Rows& q, const Rows& o, const Pages& k_pages,
         const Pages& v_pages, const Table& table, Address q_start, Address kv_len, Address stream) {
        paged_attention({code, n[0], n[1], n[2], n[3], n[4], n[5], n[6], n[7], scale, q, o, k_pages, v_pages,
                         Address(table[0]), table[1], q_start, kv_len},
                        stream);
      },
      no_gil);
}

}  // namespace
}  // namespace cuda
}  // namespace rzero

PYBIND11_MODULE(_cuda, m) {
  m.doc() = "CUDA kernels of rzero; rzero.kernels holds the contracts and checks the arguments.";
#ifdef RZERO_CUDA_HOST
  m.attr("device_type") = "cpu";
#else
  m.attr("device_type") = "cuda";
#endif
  rzero::cuda::bind(m);
}
