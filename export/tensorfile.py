"""Safetensors files: where each tensor lies in one, and writing one tensor after another.

The format (https://huggingface.co/docs/safetensors): eight bytes of header length, a JSON header that may
be padded with spaces, then the data without gaps. The library reads and writes whole tensors in
memory; an artifact needs offsets into the file and writes that hold one block at a time.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

from cleave.errors import CleaveError

_NUMPY: dict[str, Any] = {
    "F32": np.float32,
    "F16": np.float16,
    "BF16": ml_dtypes.bfloat16,
    "I8": np.int8,
    "U8": np.uint8,
    "I32": np.int32,
}
ITEM_BYTES: dict[str, int] = {name: np.dtype(kind).itemsize for name, kind in _NUMPY.items()}


class TensorFileError(CleaveError):
    """The file is not a safetensors file, or is cut short."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where one tensor lies: the bytes `offset:offset + nbytes` of `file`, row-major."""

    file: Path
    offset: int
    nbytes: int
    dtype: str
    """As safetensors writes it; Cleave reads "F32", "F16", "BF16", "I8", "U8" and "I32"."""
    shape: tuple[int, ...]

    def mapped(self) -> npt.NDArray[Any]:
        """The tensor, mapped from disk: read-only. Raises KeyError for a dtype that Cleave does not read."""
        return np.memmap(self.file, _NUMPY[self.dtype], mode="r", offset=self.offset, shape=self.shape)


def read_header(file: Path) -> dict[str, StoredTensor]:
    """The tensors of a safetensors file. Raises TensorFileError where header and size do not agree."""
    size = file.stat().st_size
    tensors: dict[str, StoredTensor] = {}
    with file.open("rb") as stream:
        start = stream.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if length > size - 8:
            raise TensorFileError(f"{file} is not a safetensors file, or is cut short")
        try:
            header = json.loads(stream.read(length))
            for name, entry in header.items():
                if name != "__metadata__":
                    tensors[name] = _stored(file, 8 + length, entry)
        except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError, RecursionError):
            raise TensorFileError(f"{file} is not a safetensors file: its header cannot be read") from None
    end = max((tensor.offset + tensor.nbytes for tensor in tensors.values()), default=0)
    if end > size:
        raise TensorFileError(f"{file} is cut short: it has {size} bytes, and its header speaks of {end}")
    return tensors


def _stored(file: Path, base: int, entry: Mapping[str, Any]) -> StoredTensor:
    begin, end = (int(offset) for offset in entry["data_offsets"])
    shape = tuple(int(size) for size in entry["shape"])
    dtype = str(entry["dtype"])
    if begin < 0 or end < begin or min(shape, default=0) < 0:
        raise ValueError("offsets run backwards")
    if dtype in ITEM_BYTES and math.prod(shape) * ITEM_BYTES[dtype] != end - begin:
        raise ValueError("offsets and shape do not agree")
    return StoredTensor(file, base + begin, end - begin, dtype, shape)


@dataclass(frozen=True, slots=True)
class TensorLayout:
    """The header of a file to be written, and with it the place of every tensor."""

    header: bytes
    offsets: dict[str, int]
    """Tensor name -> its offset in the file, in bytes."""
    sizes: dict[str, int]

    @property
    def total(self) -> int:
        """Bytes of the whole file."""
        return len(self.header) + sum(self.sizes.values())


def plan_layout(
    tensors: Iterable[tuple[str, str, tuple[int, ...]]], *, header_bytes: int = 0
) -> TensorLayout:
    """Lay out (name, dtype, shape) one after another, dtype as in `ITEM_BYTES`.

    The header is padded to at least `header_bytes`, so that a tensor can be added later without
    moving the others.
    """
    header: dict[str, Any] = {}
    sizes: dict[str, int] = {}
    end = 0
    for name, dtype, shape in tensors:
        count = ITEM_BYTES[dtype] * math.prod(shape)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + count]}
        sizes[name] = count
        end += count
    text = json.dumps(header, separators=(",", ":")).encode()
    # 64-byte alignment of the data: what mapped reads and ONNX Runtime like best.
    length = -(-max(len(text), header_bytes - 8) // 64) * 64 + 56
    encoded = struct.pack("<Q", length) + text.ljust(length)
    offsets = {name: len(encoded) + int(entry["data_offsets"][0]) for name, entry in header.items()}
    return TensorLayout(encoded, offsets, sizes)


class TensorFileWriter:
    """Writes the tensors of a layout in order, block by block. Use as a context manager."""

    def __init__(self, file: Path, layout: TensorLayout) -> None:
        self._layout = layout
        self._names = iter(layout.sizes.items())
        self._left = 0
        self._name = ""
        self._stream = file.open("wb")

    def __enter__(self) -> TensorFileWriter:
        self._stream.write(self._layout.header)
        return self

    def begin(self, name: str) -> None:
        """Start the next tensor. Raises TensorFileError out of order, or if the last one is not whole."""
        expected, size = next(self._names, ("", 0))
        if self._left or name != expected:
            raise TensorFileError(
                f"{name} was begun where {expected or 'nothing'} is due; "
                f"{self._name or 'nothing'} lacks {self._left} bytes"
            )
        self._name, self._left = name, size

    def write(self, block: bytes | memoryview) -> None:
        """Append a block of the tensor that was begun."""
        size = len(block) if isinstance(block, bytes) else block.nbytes
        if size > self._left:
            raise TensorFileError(f"{self._name}: {size} bytes were given, {self._left} are left of it")
        self._stream.write(block)
        self._left -= size

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stream.close()
        if kind is None and (self._left or next(self._names, None) is not None):
            raise TensorFileError(f"the file ends in {self._name}, before its last tensor is whole")
