// SPDX-License-Identifier: Apache-2.0
// Is there a device that the CUDA kernels can run on.
#include <cuda_runtime_api.h>

#include "cuda.h"

namespace rzero {
namespace cuda {

std::string why_not() {
#ifdef RZERO_CUDA_HOST
  return "";
#else
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess) return cudaGetErrorString(error);
  return count > 0 ? "" : "no CUDA device";
#endif
}

}  // namespace cuda
}  // namespace rzero
