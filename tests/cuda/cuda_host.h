// SPDX-License-Identifier: Apache-2.0
// Runs CUDA kernels on the CPU: a fiber per CUDA thread, the blocks of a grid one after another.
//
// csrc/cuda.cuh includes this header when the sources are compiled by a C++ compiler with RZERO_CUDA_HOST. It gives them
// threadIdx and its kin, barriers, shuffles, ballots, atomics and shared memory, and watches what a GPU would not tell:
//   - threads that wait at different barriers, or for threads that have left, stop the program with line and thread;
//   - a lane that a shuffle or ballot names must take part, in the same line;
//   - shared memory comes from the heap for each block, filled with NaN: reading what nobody wrote shows, and
//     AddressSanitizer sees its ends;
//   - ThreadSanitizer sees every CUDA thread as a thread of its own, ordered by barriers and collectives alone, and the
//     threads of different blocks as not ordered at all.
// What it cannot show: memory ordering between blocks, forward progress, anything asynchronous. x86-64 only.
#pragma once

#include <cuda_runtime_api.h>
#include <sys/mman.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <utility>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#if defined(__SANITIZE_THREAD__)
#include <sanitizer/tsan_interface.h>
extern "C" {
void AnnotateIgnoreReadsBegin(const char*, int);
void AnnotateIgnoreReadsEnd(const char*, int);
void AnnotateIgnoreWritesBegin(const char*, int);
void AnnotateIgnoreWritesEnd(const char*, int);
}
#endif

// The CUDA headers define these as attributes that a host compiler does not know.
#undef __global__
#undef __device__
#undef __host__
#undef __launch_bounds__
#define __global__
#define __device__
#define __host__
#define __launch_bounds__(...)

namespace shim {

constexpr size_t kStackBytes = 128 << 10;
constexpr int kLanes = 32;

struct Fiber {
  void* stack_pointer;
  char* stack;
  dim3 thread;
  int index;
  bool is_done;
  void* tsan;
};

struct Warp {
  unsigned arrived, mask, generation;
  int line;
  uint64_t values[2][kLanes];  // two generations: a fast lane may be one collective ahead
};

struct Device {
  dim3 grid, block_size, block;
  std::function<void()> body;
  std::vector<Fiber> fibers;
  std::vector<Warp> warps;
  int current = 0, alive = 0;
  void* main_pointer = nullptr;
  void* main_tsan = nullptr;
  const void* main_stack = nullptr;  // for AddressSanitizer
  size_t main_stack_bytes = 0;
  int waiting = 0, barrier_line = 0;
  unsigned barrier_generation = 0;
  bool has_moved = false;  // since the last look at all threads
  bool is_reversed = false;  // threads run from the last to the first
  std::vector<std::pair<int, void*>> shared;  // by the line that declares it
  void* dynamic_shared = nullptr;
  char* order = nullptr;  // addresses that stand for barriers and warps in ThreadSanitizer's clocks, fresh per block
  char finished = 0;
  std::vector<void*> finished_threads;  // ThreadSanitizer's
};
inline Device device;

[[noreturn]] inline void die(const char* what, int line) {
  const dim3 b = device.block;
  fprintf(stderr, "CUDA host: %s (line %d, block %u,%u,%u, thread %d)\n", what, line, b.x, b.y, b.z, device.current);
  abort();
}

// While one lives, ThreadSanitizer does not watch this thread: the shim's own state is no business of the kernel's.
struct Unwatched {
#if defined(__SANITIZE_THREAD__)
  Unwatched() {
    AnnotateIgnoreReadsBegin(__FILE__, __LINE__);
    AnnotateIgnoreWritesBegin(__FILE__, __LINE__);
  }
  ~Unwatched() {
    AnnotateIgnoreReadsEnd(__FILE__, __LINE__);
    AnnotateIgnoreWritesEnd(__FILE__, __LINE__);
  }
#else
  Unwatched() {}
#endif
};

inline void release(void* order) {
  (void)order;
#if defined(__SANITIZE_THREAD__)
  __tsan_release(order);
#endif
}

inline void acquire(void* order) {
  (void)order;
#if defined(__SANITIZE_THREAD__)
  __tsan_acquire(order);
#endif
}

// Saves the callee's registers and stack, and goes on where `load` was saved.
__attribute__((naked, noinline, no_sanitize("thread", "address", "undefined"))) inline void switch_stack(void** /*save*/,
                                                                                                        void* /*load*/) {
  asm("pushq %rbp\n pushq %rbx\n pushq %r12\n pushq %r13\n pushq %r14\n pushq %r15\n"
      "movq %rsp, (%rdi)\n movq %rsi, %rsp\n"
      "popq %r15\n popq %r14\n popq %r13\n popq %r12\n popq %rbx\n popq %rbp\n ret");
}

__attribute__((no_sanitize("thread"))) inline void switch_to(void** save, void* load, void* tsan) {
  (void)tsan;
#if defined(__SANITIZE_THREAD__)
  __tsan_switch_to_fiber(tsan, __tsan_switch_to_fiber_no_sync);
#endif
  switch_stack(save, load);
}

__attribute__((no_sanitize("thread"))) inline void pause_thread() {
  Fiber& fiber = device.fibers[device.current];
#if defined(__SANITIZE_ADDRESS__)
  void* fake = nullptr;
  __sanitizer_start_switch_fiber(fiber.is_done ? nullptr : &fake, device.main_stack, device.main_stack_bytes);
#endif
  switch_to(&fiber.stack_pointer, device.main_pointer, device.main_tsan);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
}

__attribute__((no_sanitize("thread"))) inline void resume(Fiber& fiber) {
#if defined(__SANITIZE_ADDRESS__)
  void* fake = nullptr;
  __sanitizer_start_switch_fiber(&fake, fiber.stack, kStackBytes);
#endif
  switch_to(&device.main_pointer, fiber.stack_pointer, fiber.tsan);
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
}

inline void thread_main() {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_finish_switch_fiber(nullptr, &device.main_stack, &device.main_stack_bytes);
#endif
  device.body();
  release(&device.finished);
  {
    Unwatched unwatched;
    device.fibers[device.current].is_done = true;
    --device.alive;
    device.has_moved = true;
  }
  pause_thread();
  abort();
}

inline void barrier(int line) {
  Unwatched unwatched;
  release(device.order);
  if (device.waiting == 0) {
    device.barrier_line = line;
  } else if (device.barrier_line != line) {
    die("divergent __syncthreads: threads wait in different lines", line);
  }
  const unsigned generation = device.barrier_generation;
  if (++device.waiting == int(device.fibers.size())) {
    device.waiting = 0;
    ++device.barrier_generation;
    device.has_moved = true;
  } else {
    while (device.barrier_generation == generation) pause_thread();
  }
  acquire(device.order);
}

// All lanes of `mask` bring a value; `pick(lane, value_of)` makes each lane's result.
template <class T, class Pick>
T collective(unsigned mask, T value, int line, const Pick& pick) {
  static_assert(sizeof(T) <= sizeof(uint64_t), "a lane brings at most 64 bits");
  Unwatched unwatched;
  const int index = device.fibers[device.current].index, lane = index % kLanes;
  Warp& warp = device.warps[index / kLanes];
  if ((mask >> lane & 1) == 0) die("a lane's mask leaves out the lane itself", line);
  if (warp.arrived == 0) {
    warp.mask = mask;
    warp.line = line;
  } else if (warp.mask != mask) {
    die("lanes of a warp name different masks", line);
  } else if (warp.line != line) {
    die("lanes of a warp call collectives in different lines", line);
  }
  char* order = device.order + 8 * (1 + index / kLanes);
  release(order);
  const unsigned generation = warp.generation;
  uint64_t* values = warp.values[generation % 2];
  memcpy(&values[lane], &value, sizeof value);
  warp.arrived |= 1u << lane;
  if (warp.arrived == mask) {
    warp.arrived = 0;
    ++warp.generation;
    device.has_moved = true;
  } else {
    while (warp.generation == generation) pause_thread();
  }
  acquire(order);
  return pick(lane, [&](int from) {
    if (from < 0 || from >= kLanes) return value;  // as CUDA: a lane out of range is the lane itself
    if ((mask >> from & 1) == 0) die("a collective reads a lane outside its mask", line);
    T result;
    memcpy(&result, &values[from], sizeof result);
    return result;
  });
}

inline void* poisoned(size_t bytes) {
  void* memory = nullptr;
  if (posix_memalign(&memory, 128, bytes) != 0) abort();
  memset(memory, 0xff, bytes);
  return memory;
}

inline void* shared(int line, size_t bytes) {
  Unwatched unwatched;
  for (const auto& known : device.shared)
    if (known.first == line) return known.second;
  device.shared.push_back({line, poisoned(bytes)});
  return device.shared.back().second;
}

inline char* new_stack() {
  void* memory = mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  return memory == MAP_FAILED ? (abort(), nullptr) : static_cast<char*>(memory);
}

inline void start_threads() {
  const dim3 size = device.block_size;
  for (size_t i = 0; i < device.fibers.size(); ++i) {
    Fiber& fiber = device.fibers[i];
    const unsigned n = unsigned(i);
    fiber = {nullptr, fiber.stack, dim3(n % size.x, n / size.x % size.y, n / size.x / size.y), int(i), false, nullptr};
    if (fiber.stack == nullptr) fiber.stack = new_stack();
#if defined(__SANITIZE_ADDRESS__)
    ASAN_UNPOISON_MEMORY_REGION(fiber.stack, kStackBytes);  // frames that never returned
#endif
#if defined(__SANITIZE_THREAD__)
    fiber.tsan = __tsan_create_fiber(0);
#endif
    void** top = reinterpret_cast<void**>(fiber.stack + kStackBytes - 64);
    *--top = nullptr;  // the stack is 8 off a multiple of 16, as after a call
    *--top = reinterpret_cast<void*>(&thread_main);
    for (int i = 0; i < 6; ++i) *--top = nullptr;
    fiber.stack_pointer = top;
  }
}

// A finished thread stays known to ThreadSanitizer until the launch ends: its number must not go to a thread of the
// next block, or the two would pass for one. (So a launch under it has at most 8,000 threads.)
inline void stop_threads() {
#if defined(__SANITIZE_THREAD__)
  for (Fiber& fiber : device.fibers) {
    device.finished_threads.push_back(fiber.tsan);
    munmap(fiber.stack, kStackBytes);  // what it knows of a stack must not meet the next thread either
    fiber.stack = nullptr;
  }
#endif
}

inline void run_block(size_t shared_bytes) {
  device.order = static_cast<char*>(calloc(64, 8));
  device.dynamic_shared = shared_bytes > 0 ? poisoned(shared_bytes) : nullptr;
  device.warps.assign((device.fibers.size() + kLanes - 1) / kLanes, Warp{});
  device.waiting = 0;
  device.alive = int(device.fibers.size());
  start_threads();
  while (device.alive > 0) {
    device.has_moved = false;
    for (size_t i = 0; i < device.fibers.size(); ++i) {
      device.current = int(device.is_reversed ? device.fibers.size() - 1 - i : i);
      if (!device.fibers[device.current].is_done) resume(device.fibers[device.current]);
    }
    if (device.alive > 0 && !device.has_moved)
      die("deadlock: threads wait for others that have left or wait elsewhere", device.barrier_line);
  }
  stop_threads();
  for (const auto& known : device.shared) free(known.second);
  device.shared.clear();
  free(device.dynamic_shared);
  free(device.order);
}

inline void launch(dim3 grid, dim3 block, size_t shared_bytes, std::function<void()> body) {
  Unwatched unwatched;
  device.grid = grid;
  device.block_size = block;
  device.body = std::move(body);
#if defined(__SANITIZE_THREAD__)
  device.main_tsan = __tsan_get_current_fiber();
#endif
  device.fibers.assign(size_t(block.x) * block.y * block.z, Fiber{});
  for (unsigned z = 0; z < grid.z; ++z)
    for (unsigned y = 0; y < grid.y; ++y)
      for (unsigned x = 0; x < grid.x; ++x) {
        device.block = dim3(x, y, z);
        run_block(shared_bytes);
      }
  for (Fiber& fiber : device.fibers)
    if (fiber.stack != nullptr) munmap(fiber.stack, kStackBytes);
  device.fibers.clear();
#if defined(__SANITIZE_THREAD__)
  for (void* thread : device.finished_threads) __tsan_destroy_fiber(thread);
  device.finished_threads.clear();
#endif
  acquire(&device.finished);
}

}  // namespace shim

#define RZERO_SHARED(T, name) T& name = *static_cast<T*>(shim::shared(__LINE__, sizeof(T)))
#define RZERO_DYNAMIC_SHARED(T, name) T* name = static_cast<T*>(shim::device.dynamic_shared)

#define threadIdx (shim::device.fibers[shim::device.current].thread)
#define blockIdx (shim::device.block)
#define blockDim (shim::device.block_size)
#define gridDim (shim::device.grid)
#define __syncthreads() shim::barrier(__LINE__)
#define __shfl_sync(mask, value, from) \
  shim::collective(mask, value, __LINE__, [&](int, auto value_of) { return value_of((from) & 31); })
#define __shfl_xor_sync(mask, value, offset) \
  shim::collective(mask, value, __LINE__, [&](int lane, auto value_of) { return value_of(lane ^ int(offset)); })
#define __shfl_up_sync(mask, value, offset) \
  shim::collective(mask, value, __LINE__, [&](int lane, auto value_of) { return value_of(lane - int(offset)); })
#define __shfl_down_sync(mask, value, offset) \
  shim::collective(mask, value, __LINE__, [&](int lane, auto value_of) { return value_of(lane + int(offset)); })
#define __ballot_sync(mask, claim) shim::ballot(mask, claim, __LINE__)
#define __ffs __builtin_ffs
#define __clz __builtin_clz

namespace shim {

inline unsigned ballot(unsigned mask, bool claim, int line) {
  return collective(mask, unsigned(claim), line, [&](int, auto value_of) {
    unsigned bits = 0;
    for (int lane = 0; lane < kLanes; ++lane)
      if (mask >> lane & 1) bits |= value_of(lane) << lane;
    return bits;
  });
}

// p[0] becomes f(p[0]) in one piece; returns what it was.
template <class T, class F>
T atomic_update(T* p, const F& f) {
  T old = __atomic_load_n(p, __ATOMIC_RELAXED);
  while (!__atomic_compare_exchange_n(p, &old, f(old), true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
  }
  return old;
}

}  // namespace shim

template <class T>
T atomicAdd(T* p, T x) {
  return shim::atomic_update(p, [&](T old) { return T(old + x); });
}

template <class T>
T atomicMin(T* p, T x) {
  return shim::atomic_update(p, [&](T old) { return old < x ? old : x; });
}

inline uint32_t __float_as_uint(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof bits);
  return bits;
}

inline float __uint_as_float(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof x);
  return x;
}
