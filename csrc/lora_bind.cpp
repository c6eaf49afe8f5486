// SPDX-License-Identifier: Apache-2.0
#include "lora.h"

#include <pybind11/stl.h>

#include <array>
#include <vector>

#include "bind.h"

RZERO_KERNEL(lora, const rzero::Lora* call)

namespace rzero {
namespace {

using View = std::array<int64_t, 2>;        // address and row stride
using PartView = std::array<int64_t, 8>;  // addresses of a, b, u; first row, rows, first column, columns, rank

constexpr int64_t kSerialWork = 100000;  // multiplications; below this, waking the other threads costs more

void run(int code, int64_t K, const View& x, const View& y, const std::vector<PartView>& parts,
         const std::vector<float>& scales) {
  std::vector<LoraPart> list;
  int64_t work = 0;
  for (size_t i = 0; i < parts.size(); ++i) {
    const PartView& p = parts[i];
    list.push_back({at(p[0]), at(p[1]), at<float>(p[2]), p[3], p[4], p[5], p[6], p[7], scales[i]});
    work += p[4] * p[7] * (K + p[6]);
  }
  const Lora call{code, K, at(x[0]), at(y[0]), x[1], y[1], list.data(), int64_t(list.size()), work > kSerialWork};
  RZERO_CALL(lora, &call);
}

}  // namespace

void bind_lora(pybind11::module_& m) { m.def("lora", &run, ReleaseGil()); }

}  // namespace rzero
