// SPDX-License-Identifier: Apache-2.0
#include "rope.h"

#include <pybind11/stl.h>

#include <array>
#include <stdexcept>
#include <string>

#include "bind.h"

RZERO_KERNEL(rope_forward, const rzero::Rope* rope)
RZERO_KERNEL(rope_backward, const rzero::Rope* rope, const rzero::RopeGrad* grad)

namespace rzero {
namespace {

using Sizes = std::array<int64_t, 6>;    // code, T, H, G, E, rows of the tables
using Inputs = std::array<int64_t, 7>;   // qkv, its row stride, pos, cos, sin, q_norm, k_norm
using Outputs = std::array<int64_t, 3>;  // q, k, v
using Grads = std::array<int64_t, 6>;    // of q, k, v, qkv, q_norm, k_norm

Rope problem(const Sizes& sizes, float eps, const Inputs& in) {
  Rope r{};
  r.code = int(sizes[0]);
  r.T = sizes[1], r.H = sizes[2], r.G = sizes[3], r.E = sizes[4];
  r.eps = eps;
  r.qkv = at(in[0]), r.qkv_stride = in[1];
  r.pos = at<int64_t>(in[2]);
  r.cos = at<float>(in[3]), r.sin = at<float>(in[4]);
  r.q_norm = at(in[5]), r.k_norm = at(in[6]);
  for (int64_t t = 0; t < r.T; ++t)
    if (r.pos[t] < 0 || r.pos[t] >= sizes[5])
      throw std::invalid_argument("rope: pos_T[" + std::to_string(t) + "] is " + std::to_string(r.pos[t]) +
                                  ", the tables have the positions 0.." + std::to_string(sizes[5] - 1));
  return r;
}

void forward(const Sizes& sizes, float eps, const Inputs& in, const Outputs& out) {
  Rope r = problem(sizes, eps, in);
  r.q = at(out[0]), r.k = at(out[1]), r.v = at(out[2]);
  RZERO_CALL(rope_forward, &r);
}

void backward(const Sizes& sizes, float eps, const Inputs& in, const Grads& grads) {
  const Rope r = problem(sizes, eps, in);
  const RopeGrad grad{at(grads[0]), at(grads[1]), at(grads[2]), at(grads[3]), at(grads[4]), at(grads[5])};
  RZERO_CALL(rope_backward, &r, &grad);
}

}  // namespace

void bind_rope(pybind11::module_& m) {
  m.def("rope_forward", &forward, ReleaseGil());
  m.def("rope_backward", &backward, ReleaseGil());
}

}  // namespace rzero
