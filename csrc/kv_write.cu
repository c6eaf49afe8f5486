// SPDX-License-Identifier: Apache-2.0
// Stores keys and values into page slots and copies pages: bits only. See kernels/kv_write.py.
//
// Elements move as units of 16 bytes where every address and stride allows it, else as units of one element. A number
// outside the pages moves nothing: a launch cannot raise, and what lies outside is not ours.
#include "cuda.cuh"

namespace rzero {
namespace cuda {
namespace {

constexpr unsigned kThreads = 256;

// Strides, G and E count units. Blocks with y = 0 move keys, with y = 1 values.
struct Side {
  char* data;
  int64_t row, head;  // of tokens
};

struct PageSide {
  char* data;
  int64_t page, place, head;
};

struct Tokens {
  Side from[2];
  PageSide to[2];
  const int64_t* slot;
  int64_t slots;
  unsigned S, G, E, units;  // units: of all tokens
};

struct Copies {
  PageSide pages[2];
  const int64_t *src, *dst;
  int64_t P;
  unsigned S, G, E, units;  // units: of all pages
};

template <class Unit>
__global__ void __launch_bounds__(kThreads) write_tokens(Tokens a) {
  const unsigned i = blockIdx.x * kThreads + threadIdx.x;
  if (i >= a.units) return;
  const unsigned row = i / a.E, e = i - row * a.E, t = row / a.G, g = row - t * a.G;
  const int64_t slot = a.slot[t];
  if (slot < 0 || slot >= a.slots) return;
  const Side from = blockIdx.y == 0 ? a.from[0] : a.from[1];
  const PageSide to = blockIdx.y == 0 ? a.to[0] : a.to[1];
  const int64_t page = slot / a.S, place = slot - page * a.S;
  reinterpret_cast<Unit*>(to.data)[page * to.page + place * to.place + g * to.head + e] =
      reinterpret_cast<const Unit*>(from.data)[t * from.row + g * from.head + e];
}

template <class Unit>
__global__ void __launch_bounds__(kThreads) copy_units(Copies a) {
  const unsigned i = blockIdx.x * kThreads + threadIdx.x;
  if (i >= a.units) return;
  const unsigned row = i / a.E, e = i - row * a.E, place = row / a.G, g = row - place * a.G, n = place / a.S;
  const int64_t src = a.src[n], dst = a.dst[n];
  if (src < 0 || src >= a.P || dst < 0 || dst >= a.P) return;
  const PageSide pages = blockIdx.y == 0 ? a.pages[0] : a.pages[1];  // an index would put both into local memory
  Unit* data = reinterpret_cast<Unit*>(pages.data) + (place - n * a.S) * pages.place + g * pages.head + e;
  data[dst * pages.page] = data[src * pages.page];
}

// Bytes of a unit: 16 where it divides every address, stride and row, else one element.
template <size_t N>
int64_t unit_bytes(const PageSizes& sizes, const std::array<int64_t, N>* views, int64_t unit) {
  const int64_t per_unit = unit / sizes.bytes;
  if (sizes.E % per_unit != 0) return sizes.bytes;
  for (int i = 0; i < 2; ++i) {
    if (views[i][0] % unit != 0) return sizes.bytes;
    for (size_t axis = 1; axis < N; ++axis)
      if (views[i][axis] % per_unit != 0) return sizes.bytes;
  }
  return unit;
}

unsigned checked(const char* op, int64_t units) {
  if (units >= int64_t(1) << 32) throw std::runtime_error(std::string(op) + ": more than 2^32 units in one call");
  return unsigned(units);
}

// Calls f with a zero of the unit's type.
template <class F>
void by_unit(int64_t bytes, const F& f) {
  if (bytes == 16) return f(uint4{});
  if (bytes == 4) return f(uint32_t{});
  f(uint16_t{});
}

PageSide side(const Pages& view, int64_t per_unit) {
  return {(char*)view[0], view[1] / per_unit, view[2] / per_unit, view[3] / per_unit};
}

dim3 grid(unsigned units) { return dim3((units + kThreads - 1) / kThreads, 2); }

}  // namespace

void kv_write(const PageSizes& sizes, const Rows& k, const Rows& v, Address slot, const Pages& k_pages,
              const Pages& v_pages, Address stream) {
  const Rows from[2] = {k, v};
  const Pages to[2] = {k_pages, v_pages};
  int64_t bytes = unit_bytes(sizes, from, 16);
  if (bytes == 16) bytes = unit_bytes(sizes, to, 16);
  const int64_t per_unit = bytes / sizes.bytes, E = sizes.E / per_unit;
  const unsigned units = checked("kv_write", sizes.N * sizes.G * E);
  if (units == 0) return;
  Tokens a{{}, {}, (const int64_t*)slot, sizes.P * sizes.S, unsigned(sizes.S), unsigned(sizes.G), unsigned(E), units};
  for (int i = 0; i < 2; ++i) {
    a.from[i] = {(char*)from[i][0], from[i][1] / per_unit, from[i][2] / per_unit};
    a.to[i] = side(to[i], per_unit);
  }
  by_unit(bytes, [&](auto zero) {
    launch("kv_write", &write_tokens<decltype(zero)>, grid(units), kThreads, 0, stream, a);
  });
}

void copy_pages(const PageSizes& sizes, const Pages& k_pages, const Pages& v_pages, Address src, Address dst,
                Address stream) {
  const Pages pages[2] = {k_pages, v_pages};
  const int64_t bytes = unit_bytes(sizes, pages, 16), per_unit = bytes / sizes.bytes, E = sizes.E / per_unit;
  const unsigned units = checked("copy_pages", sizes.N * sizes.S * sizes.G * E);
  if (units == 0) return;
  const Copies a{{side(k_pages, per_unit), side(v_pages, per_unit)}, (const int64_t*)src, (const int64_t*)dst, sizes.P,
                 unsigned(sizes.S), unsigned(sizes.G), unsigned(E), units};
  by_unit(bytes, [&](auto zero) {
    launch("copy_pages", &copy_units<decltype(zero)>, grid(units), kThreads, 0, stream, a);
  });
}

}  // namespace cuda
}  // namespace rzero
