// SPDX-License-Identifier: Apache-2.0
// What every binding needs: addresses come from Python as integers, the GIL is released while a kernel runs.
#pragma once

#include <pybind11/pybind11.h>

#include <cstdint>

#include "isa.h"

namespace rzero {

using Address = uintptr_t;  // 0 where there is no tensor
using ReleaseGil = pybind11::call_guard<pybind11::gil_scoped_release>;

template <class S = void>
S* at(Address address) {
  return reinterpret_cast<S*>(address);
}

}  // namespace rzero
