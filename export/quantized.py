"""Quantised matrices: integers, and the numbers that turn them back into floats.

A matrix is that of a linear layer, [out, in]: a row gives one output. These are what the exporter writes,
whether it quantised them itself or took them as they are from a quantised checkpoint; see
`cleave.export.quantized_checkpoint`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cleave.errors import ExportError

GROUP_SIZES = (32, 64, 128)
"""Inputs that share a scale and a zero point in int4."""
INT8_LARGEST = 127
"""Symmetric: -128 is not used."""
INT4_LARGEST = 15

_Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class RowInt8:
    """One scale for each output: weight[o, i] = values[o, i] * scales[o]."""

    values: npt.NDArray[np.int8]
    """[out, in], from -127 to 127."""
    scales: _Floats
    """[out]."""

    def __post_init__(self) -> None:
        """Raises ExportError where shapes or dtypes do not fit together."""
        _check("values", self.values, np.int8, 2)
        _check("scales", self.scales, np.float32, 1)
        if self.scales.shape != self.values.shape[:1]:
            raise ExportError(
                f"{self.values.shape[0]} rows have {self.scales.shape[0]} scales; give one each"
            )

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        return self.values.shape[0], self.values.shape[1]

    def dequantize(self) -> _Floats:
        """The matrix that this stands for, [out, in]."""
        return self.values.astype(np.float32) * self.scales[:, None]

    @classmethod
    def concatenate(cls, parts: Sequence[RowInt8]) -> RowInt8:
        """Matrices that read the same input, one below the other."""
        return cls(
            np.concatenate([part.values for part in parts]), np.concatenate([part.scales for part in parts])
        )


@dataclass(frozen=True, slots=True)
class GroupedInt4:
    """A scale and a zero point for each group of inputs of each output.

    weight[o, i] = (values[o, i] - zero_points[o, g]) * scales[o, g], g = i // group_size.
    """

    values: npt.NDArray[np.uint8]
    """[out, in], one value a byte, from 0 to 15."""
    scales: _Floats
    """[out, in / group_size]."""
    zero_points: npt.NDArray[np.uint8]
    """[out, in / group_size], one a byte, from 0 to 15."""
    group_size: int
    """One of `GROUP_SIZES`."""

    def __post_init__(self) -> None:
        """Raises ExportError where shapes, dtypes and group size do not fit together."""
        _check("values", self.values, np.uint8, 2)
        _check("scales", self.scales, np.float32, 2)
        _check("zero_points", self.zero_points, np.uint8, 2)
        out, inputs = self.values.shape
        check_group_size(self.group_size, inputs)
        groups = (out, inputs // self.group_size)
        if self.scales.shape != groups or self.zero_points.shape != groups:
            raise ExportError(
                f"a matrix {[out, inputs]} in groups of {self.group_size} needs scales and zero points "
                f"{list(groups)}; given are {list(self.scales.shape)} and {list(self.zero_points.shape)}"
            )
        if max(self.values.max(initial=0), self.zero_points.max(initial=0)) > INT4_LARGEST:
            raise ExportError(f"an int4 value or zero point is above {INT4_LARGEST}")

    @property
    def shape(self) -> tuple[int, int]:
        """(out, in)."""
        return self.values.shape[0], self.values.shape[1]

    def dequantize(self) -> _Floats:
        """The matrix that this stands for, [out, in]."""
        out, groups = self.scales.shape
        values = self.values.reshape(out, groups, self.group_size).astype(np.float32)
        values -= self.zero_points[:, :, None]
        values *= self.scales[:, :, None]
        return values.reshape(self.shape)

    @classmethod
    def concatenate(cls, parts: Sequence[GroupedInt4]) -> GroupedInt4:
        """Matrices that read the same input, one below the other; all of one group size."""
        return cls(
            np.concatenate([part.values for part in parts]),
            np.concatenate([part.scales for part in parts]),
            np.concatenate([part.zero_points for part in parts]),
            parts[0].group_size,
        )


Quantized = RowInt8 | GroupedInt4


def check_group_size(group_size: int, inputs: int, name: str = "a matrix") -> None:
    """Raises ExportError for a group size that the operators lack, or that does not divide the inputs."""
    if group_size not in GROUP_SIZES:
        raise ExportError(
            f"group_size is {group_size}; int4 has groups of {', '.join(map(str, GROUP_SIZES))}"
        )
    if inputs % group_size:
        fitting = [str(size) for size in GROUP_SIZES if inputs % size == 0]
        instead = (
            f"--group_size {' or '.join(fitting)}" if fitting else "--quantize int8, which has no groups"
        )
        raise ExportError(
            f"{name} has {inputs} inputs, not a multiple of group_size {group_size}; use {instead}"
        )


def _check(name: str, array: npt.NDArray[Any], dtype: type, ndim: int) -> None:
    if array.dtype != dtype or array.ndim != ndim:
        raise ExportError(
            f"{name} is {array.dtype} {list(array.shape)}; {np.dtype(dtype)} of {ndim} dimensions is needed"
        )
