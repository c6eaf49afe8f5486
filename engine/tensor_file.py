# SPDX-License-Identifier: Apache-2.0
"""Safetensors files, written tensor by tensor and atomically, and read with errors that say what is wrong.

The format is 8 bytes of header length, a JSON header and the bytes of the tensors. The package's own
`save_file` makes a second copy of everything it writes; this writer holds one tensor at a time.
"""

import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from rzero.engine.errors import InputError

DTYPE_NAMES: Mapping[torch.dtype, str] = MappingProxyType(
    {
        torch.float64: "F64",
        torch.float32: "F32",
        torch.bfloat16: "BF16",
        torch.float16: "F16",
        torch.int64: "I64",
        torch.int32: "I32",
        torch.uint8: "U8",
        torch.bool: "BOOL",
    }
)


def write_tensors(
    path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    """Write a safetensors file in one step: `path` holds either what it held before or all the tensors.

    Tensors may be of any device and may be views, but must be of a number type that the format knows.
    Raises InputError, and leaves `path` as it was, where the disk is full or cannot be written.
    """
    partial = path.with_name(f".{path.name}.partial")
    with _naming_errors(path, partial, sum(tensor.nbytes for tensor in tensors.values())):
        fill_file(partial, tensors, metadata)
        partial.replace(path)


@contextmanager
def new_folder(folder: Path, needed_bytes: int = 0) -> Iterator[Path]:
    """A folder to fill that takes the place of `folder`, old contents included, when the block ends well.

    Raises InputError, and leaves `folder` as it was, where the disk is full or cannot be written, or where
    `folder` is a file.
    """
    # Behind a link lies the folder whose place is taken.
    folder = folder.resolve()
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: it is a file, and a folder is to be written there")
    partial, old = folder.with_name(f".{folder.name}.partial"), folder.with_name(f".{folder.name}.old")
    with _naming_errors(folder, partial, needed_bytes):
        recover_folder(folder)
        partial.mkdir()
        yield partial
        if folder.exists():
            folder.rename(old)
        partial.rename(folder)
        shutil.rmtree(old, ignore_errors=True)


def recover_folder(folder: Path) -> None:
    """Clear away what a process left that was killed inside `new_folder`.

    The old contents come back where the new ones are not in their place yet.
    """
    partial, old = folder.with_name(f".{folder.name}.partial"), folder.with_name(f".{folder.name}.old")
    if old.exists() and not folder.exists():
        old.rename(folder)
    shutil.rmtree(old, ignore_errors=True)
    shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def _naming_errors(target: Path, partial: Path, needed_bytes: int) -> Iterator[None]:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        free_bytes = shutil.disk_usage(target.parent).free
        if free_bytes < needed_bytes:
            raise InputError(
                f"{target}: cannot be written: it needs {needed_bytes:,} bytes, {free_bytes:,} are free"
            )
        yield
    except OSError as error:
        raise InputError(
            f"{target}: cannot be written: {error.strerror or error}; it is as it was"
        ) from error
    finally:
        if partial.is_dir():
            shutil.rmtree(partial, ignore_errors=True)
        elif partial.is_file():
            partial.unlink()


def fill_file(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write a safetensors file in place and wait until the disk has it; raises OSError where it cannot."""
    header: dict[str, object] = {"__metadata__": {"format": "pt", **(metadata or {})}}
    start = 0
    for name, tensor in tensors.items():
        offsets = [start, start + tensor.nbytes]
        header[name] = {
            "dtype": DTYPE_NAMES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": offsets,
        }
        start = offsets[1]
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # readers map the file, and tensors start at a multiple of 8 bytes
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors.values():
            file.write(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
        file.flush()
        os.fsync(file.fileno())


@contextmanager
def reading(path: Path) -> Iterator[Any]:
    """An open safetensors file (`safe_open`), to read tensor by tensor; InputError where it is unusable."""
    if not path.is_file():
        raise InputError(f"{path}: the file is missing")
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except SafetensorError as error:
        raise InputError(
            f"{path}: not a complete safetensors file (truncated or damaged): {error}"
        ) from error
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error


def read_tensors(path: Path) -> dict[str, Tensor]:
    """All tensors of a file, as own copies on the CPU."""
    with reading(path) as file:
        return {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118 (not a mapping)
