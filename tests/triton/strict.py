# SPDX-License-Identifier: Apache-2.0
"""Triton's interpreter made strict, for triton 3.7.1: what a GPU would do wrong, or leave open, fails here.

The interpreter as it comes computes bfloat16 on its bit patterns, rounds float32 to bfloat16 by cutting,
gives 0 for lanes masked without `other`, reads and writes outside of tensors, and runs one program after the
other. `install` replaces methods of its builder, all private to triton, hence the exact version:

* bfloat16: casts round to nearest even; arithmetic is float32, then rounded; tl.dot multiplies exact values;
* a sum or scan in a 16-bit type, a float32 tl.dot in TF32 and a float atomic add (no order) are refused;
* every lane of a load, store or atomic must hit an element of a tensor argument, gaps of views excluded;
* a lane masked without `other` reads NaN or the largest integer;
* device_assert and the check of integer overflow are on;
* no two programs of a launch may touch one element if one of them writes it, no store may hit an element
  twice, and no program may read back what it wrote without a barrier.
"""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import triton
import triton.language as tl
from access import AccessError, Launch, View
from triton.runtime import interpreter
from triton.runtime.interpreter import GridExecutor, InterpreterBuilder, ReduceOps, ScanOps, TensorHandle

Array = npt.NDArray[Any]
VERSION = "3.7.1"
COMPARISONS = (np.less, np.less_equal, np.greater, np.greater_equal, np.equal, np.not_equal)
BITWISE = (np.bitwise_and, np.bitwise_or, np.bitwise_xor, np.left_shift, np.right_shift)


class StrictError(Exception):
    """A construct whose result on a GPU is not what the interpreter shows."""


def install(patch: pytest.MonkeyPatch) -> None:
    """Makes the interpreter strict until `patch` is undone."""
    assert triton.__version__ == VERSION, f"written for triton {VERSION}, this is {triton.__version__}"
    options = interpreter.InterpreterOptions(debug=True)
    patch.setattr(interpreter.interpreter_builder, "options", options)
    _install_arithmetic(patch)
    _install_refusals(patch)
    _install_memory(patch)


# ---- bfloat16


def widen(bits: Array) -> Array:
    """The float32 of bfloat16 bit patterns."""
    return (np.asarray(bits, np.uint16).astype(np.uint32) << np.uint32(16)).view(np.float32)


def narrow(values: Array) -> Array:
    """The bit patterns of float32 values in bfloat16, rounded to nearest even."""
    values = np.ascontiguousarray(values, np.float32)
    bits = values.view(np.uint32)
    rounded = (bits + ((bits >> np.uint32(16)) & np.uint32(1)) + np.uint32(0x7FFF)) >> np.uint32(16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded.astype(np.uint16))


def is_bf16(handle: Any) -> bool:
    return bool(handle.dtype.scalar == tl.bfloat16)


def wide(handle: Any) -> Any:
    return TensorHandle(widen(handle.data), tl.float32) if is_bf16(handle) else handle


def bf16(values: Array) -> Any:
    return TensorHandle(narrow(values), tl.bfloat16)


def _install_arithmetic(patch: pytest.MonkeyPatch) -> None:
    old = {
        name: getattr(InterpreterBuilder, name)
        for name in ("binary_op", "ternary_op", "unary_op", "cast_impl", "create_fma", "create_fp_to_fp")
    }

    def binary_op(self: Any, lhs: Any, rhs: Any, op: Any) -> Any:
        if op in COMPARISONS:
            return TensorHandle(op(wide(lhs).data, wide(rhs).data), tl.int1)
        if not is_bf16(lhs) or op in BITWISE:
            return old["binary_op"](self, lhs, rhs, op)
        return bf16(op(widen(lhs.data), widen(rhs.data)))

    def ternary_op(self: Any, x: Any, y: Any, z: Any, op: Any) -> Any:
        if is_bf16(z) and op is not np.where:
            return bf16(op(widen(x.data), widen(y.data), widen(z.data)))
        return old["ternary_op"](self, x, y, z, op)

    def unary_op(self: Any, arg: Any, op: Any) -> Any:
        return bf16(op(widen(arg.data))) if is_bf16(arg) else old["unary_op"](self, arg, op)

    def cast_impl(self: Any, src: Any, dst_type: Any) -> Any:
        if dst_type.scalar == tl.bfloat16:
            return src if is_bf16(src) else bf16(src.data.astype(np.float32))
        return old["cast_impl"](self, wide(src), dst_type) if dst_type.scalar != tl.float32 else _float32(src)

    def _float32(src: Any) -> Any:
        return wide(src) if is_bf16(src) else TensorHandle(src.data.astype(np.float32), tl.float32)

    def create_fp_to_fp(self: Any, src: Any, dst_type: Any, mode: Any) -> Any:
        to_nearest = mode is None or mode == interpreter._ir.ROUNDING_MODE.RTNE
        if tl.bfloat16 in (src.dtype.scalar, dst_type.scalar) and to_nearest:
            return self.cast_impl(src, dst_type)
        return old["create_fp_to_fp"](self, src, dst_type, mode)

    def create_fma(self: Any, x: Any, y: Any, z: Any) -> Any:
        if is_bf16(z):
            return bf16(widen(x.data) * widen(y.data) + widen(z.data))
        return old["create_fma"](self, x, y, z)

    new = (binary_op, ternary_op, unary_op, cast_impl, create_fma, create_fp_to_fp)
    for function in new:
        patch.setattr(InterpreterBuilder, function.__name__, function)
    # tl.maximum and tl.minimum return the number where one side is NaN, as the hardware does.
    for name, op in (("create_maxnumf", np.fmax), ("create_minnumf", np.fmin)):
        patch.setattr(InterpreterBuilder, name, lambda self, x, y, op=op: self.binary_op(x, y, op))
    constant = lambda self, value: bf16(np.array([value], np.float32))  # noqa: E731
    patch.setattr(InterpreterBuilder, "get_bf16", constant, raising=False)


# ---- what is refused


def _install_refusals(patch: pytest.MonkeyPatch) -> None:
    dot, rmw = InterpreterBuilder.create_dot, InterpreterBuilder.create_atomic_rmw

    def create_dot(self: Any, a: Any, b: Any, d: Any, precision: Any, imprecise: Any) -> Any:
        if a.dtype.scalar == tl.float32 and precision != interpreter._ir.INPUT_PRECISION.IEEE:
            raise StrictError('this float32 tl.dot is TF32 on a GPU: write input_precision="ieee"')
        return dot(self, wide(a), wide(b), d, precision, imprecise)

    def create_atomic_rmw(self: Any, op: Any, *args: Any) -> Any:
        if op == interpreter._ir.ATOMIC_OP.FADD:
            raise StrictError("a float atomic add has no fixed order")
        return rmw(self, op, *args)

    patch.setattr(InterpreterBuilder, "create_dot", create_dot)
    patch.setattr(InterpreterBuilder, "create_atomic_rmw", create_atomic_rmw)
    for owner, name in (
        (ReduceOps, "sum"),
        (ScanOps, "cumsum"),
        (ScanOps, "cumprod"),
        (ReduceOps, "min_max"),
    ):
        patch.setattr(owner, name, _only_wide(getattr(owner, name), allows_fp16=name == "min_max"))


def _only_wide(function: Callable[..., Any], allows_fp16: bool) -> Callable[..., Any]:
    refused = (tl.bfloat16,) if allows_fp16 else (tl.bfloat16, tl.float16)

    def checked(self: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
        if (x[0] if isinstance(x, tuple) else x).dtype in refused:
            raise StrictError("a reduction in a 16-bit type: cast to float32 first")
        return function(self, x, *args, **kwargs)

    return checked


# ---- memory


def _views(name: str, value: Any) -> Iterator[View]:
    if isinstance(value, tuple):
        for i, part in enumerate(value):
            yield from _views(f"{name}[{i}]", part)
    elif isinstance(value, interpreter.TensorDescriptor):
        yield from _views(name, value.base)
    elif hasattr(value, "data_ptr"):
        tensor = interpreter._unwrap_tensor(value)
        if tensor.numel():
            yield View.of(name, tensor)


def _addresses(pointers: Any, mask: Any) -> Array:
    """The addresses of the lanes that are on."""
    on = np.broadcast_to(mask.data if isinstance(mask, TensorHandle) else mask, pointers.data.shape)
    return np.asarray(pointers.data[on.astype(bool)])


def _item_bytes(pointers: Any) -> int:
    return max(1, int(pointers.get_element_ty().primitive_bitwidth) // 8)


def _poison(pointers: Any) -> Any:
    """What lanes hold that no one loaded: NaN, or the largest integer."""
    kind, shape = pointers.get_element_ty(), pointers.data.shape
    np_type = interpreter._get_np_dtype(kind)
    if kind == tl.bfloat16:
        return TensorHandle(np.full(shape, 0x7FC0, np.uint16), kind)
    if np_type.kind == "f":
        return TensorHandle(np.full(shape, np.nan, np_type), kind)
    worst = True if np_type.kind == "b" else np.iinfo(np_type).max
    return TensorHandle(np.full(shape, worst, np_type), kind)


def _install_memory(patch: pytest.MonkeyPatch) -> None:
    builder = InterpreterBuilder
    load, store, cas = builder.create_masked_load, builder.create_masked_store, builder.create_atomic_cas
    rmw, barrier, set_grid_idx = builder.create_atomic_rmw, builder.create_barrier, builder.set_grid_idx
    begin, end = GridExecutor._init_args_hst, GridExecutor._restore_args_dev
    current: list[Launch] = [Launch(())]

    def create_masked_load(self: Any, pointers: Any, mask: Any, other: Any, *rest: Any) -> Any:
        on = _addresses(pointers, mask)
        current[0].load(on, _item_bytes(pointers))
        if other is None and on.size != pointers.data.size:
            other = _poison(pointers)
        return load(self, pointers, mask, other, *rest)

    def create_masked_store(self: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        current[0].store(_addresses(pointers, mask), _item_bytes(pointers))
        return store(self, pointers, value, mask, *rest)

    def create_atomic_rmw(self: Any, op: Any, pointers: Any, value: Any, mask: Any, *rest: Any) -> Any:
        current[0].atomic(_addresses(pointers, mask), _item_bytes(pointers))
        return rmw(self, op, pointers, value, mask, *rest)

    def create_atomic_cas(self: Any, pointers: Any, *rest: Any) -> Any:
        current[0].atomic(pointers.data.ravel(), _item_bytes(pointers))
        return cas(self, pointers, *rest)

    def create_barrier(self: Any) -> Any:
        current[0].barrier()
        return barrier(self)

    def set_grid_index(self: Any, x: int, y: int, z: int) -> None:
        set_grid_idx(self, x, y, z)
        current[0].next_program((x, y, z))

    def _init_args_hst(self: Any, args: Any, kwargs: Any) -> Any:
        host = begin(self, args, kwargs)
        named = [*zip(self.arg_names, host[0], strict=False), *host[1].items()]
        current[0] = Launch(tuple(view for name, value in named for view in _views(name, value)))
        return host

    def _restore_args_dev(self: Any, *args: Any) -> Any:
        current[0].finish()
        return end(self, *args)

    for function in (
        create_masked_load,
        create_masked_store,
        create_atomic_rmw,
        create_atomic_cas,
        create_barrier,
    ):
        patch.setattr(builder, function.__name__, function)
    patch.setattr(builder, "set_grid_idx", set_grid_index)
    patch.setattr(GridExecutor, "_init_args_hst", _init_args_hst)
    patch.setattr(GridExecutor, "_restore_args_dev", _restore_args_dev)


__all__ = ["AccessError", "StrictError", "install"]
