# SPDX-License-Identifier: Apache-2.0
"""CUDA sources through nvcc, and on the CPU through the host shim."""
