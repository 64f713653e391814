"""Quantised matrices as they lie in weights.safetensors: in the layout that their operators read.

See `cleave.export.quantization.Quantization.stored` for names, dtypes and shapes.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from cleave.export.quantized import GroupedInt4, Quantized, RowInt8

_Array = npt.NDArray[Any]
_Bytes = npt.NDArray[np.uint8]
_BLOCK = 64
"""Rows that are transposed at a time, so that reads and writes both stay in the cache."""


def to_arrays(matrix: Quantized) -> tuple[_Array, ...]:
    """The arrays to store, in the order of `Quantization.stored`."""
    if isinstance(matrix, RowInt8):
        return _transposed(matrix.values), matrix.scales
    out, groups = matrix.scales.shape
    packed = _pack(matrix.values).reshape(out, groups, matrix.group_size // 2)
    return packed, matrix.scales, _pack(matrix.zero_points)


def from_arrays(arrays: Sequence[_Array]) -> Quantized:
    """The matrix that `to_arrays` stored; two arrays are int8, three int4."""
    if len(arrays) == 2:
        values, scales = arrays
        return RowInt8(_transposed(values), scales)
    packed, scales, zeros = arrays
    out, groups, half = packed.shape
    values = _unpack(packed.reshape(out, groups * half))
    return GroupedInt4(values, scales, _unpack(zeros)[:, :groups], half * 2)


def _pack(values: _Bytes) -> _Bytes:
    """Two values a byte along the last axis, the earlier one in the low half; an odd end is filled with 0."""
    if values.shape[1] % 2:
        values = np.pad(values, ((0, 0), (0, 1)))
    packed: _Bytes = (values[:, 0::2] | (values[:, 1::2] << 4)).astype(np.uint8)
    return packed


def _unpack(packed: _Bytes) -> _Bytes:
    rows, count = packed.shape
    values = np.empty((rows, 2 * count), np.uint8)
    values[:, 0::2] = packed & 0xF
    values[:, 1::2] = packed >> 4
    return values


def _transposed(matrix: npt.NDArray[np.int8]) -> npt.NDArray[np.int8]:
    rows, columns = matrix.shape
    result = np.empty((columns, rows), np.int8)
    for start in range(0, rows, _BLOCK):
        result[:, start : start + _BLOCK] = matrix[start : start + _BLOCK].T
    return result
