// SPDX-License-Identifier: Apache-2.0
// One source, several instruction sets. setup.py compiles every kernel source once per set, with RZERO_ISA naming the
// namespace that its functions live in; the bindings, compiled once, call the copy that this CPU can run.
//
// To add an op: write <op>.cpp (kernels, namespace rzero::RZERO_ISA) and <op>_bind.cpp (RZERO_KERNEL declarations and a
// bind_<op> function), name the pair in setup.py and bind_<op> in module.cpp.
//
// Kernel sources use nothing inline from the C++ library: such code would be compiled with, say, AVX-512 and the linker
// might keep that copy for everybody. Checks, vectors and exceptions belong to the bindings.
#pragma once

namespace rzero {

enum class Isa { baseline, avx2, avx512, avx512_bf16 };

Isa current_isa();  // module.cpp

}  // namespace rzero

#if defined(__x86_64__)
#define RZERO_KERNEL(name, ...)          \
  namespace rzero {                      \
  namespace baseline {                   \
  void name(__VA_ARGS__);                \
  }                                      \
  namespace avx2 {                       \
  void name(__VA_ARGS__);                \
  }                                      \
  namespace avx512 {                     \
  void name(__VA_ARGS__);                \
  }                                      \
  namespace avx512_bf16 {                \
  void name(__VA_ARGS__);                \
  }                                      \
  }
#define RZERO_CALL(name, ...)                                                        \
  do {                                                                               \
    switch (rzero::current_isa()) {                                                  \
      case rzero::Isa::avx512_bf16: rzero::avx512_bf16::name(__VA_ARGS__); break;    \
      case rzero::Isa::avx512: rzero::avx512::name(__VA_ARGS__); break;              \
      case rzero::Isa::avx2: rzero::avx2::name(__VA_ARGS__); break;                  \
      case rzero::Isa::baseline: rzero::baseline::name(__VA_ARGS__); break;          \
    }                                                                                \
  } while (false)
#else
#define RZERO_KERNEL(name, ...)          \
  namespace rzero {                      \
  namespace baseline {                   \
  void name(__VA_ARGS__);                \
  }                                      \
  }
#define RZERO_CALL(name, ...) rzero::baseline::name(__VA_ARGS__)
#endif
