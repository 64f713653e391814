"""One linear layer of a checkpoint that is quantised already, unpacked from GPTQ's or AWQ's layout.

Both keep a matrix [outputs, inputs] as four-bit values with a scale and a zero point for each group of
inputs: weight = (value - zero) * scale. They pack eight values into an int32, the first one in the lowest
bits:

- GPTQ (https://arxiv.org/abs/2210.17323): `qweight` [inputs / 8, outputs] holds eight neighbouring inputs,
  `qzeros` [groups, outputs / 8] eight neighbouring outputs, `scales` is [groups, outputs], and `g_idx`
  [inputs] says which group an input is of. The first packing stores zero - 1, "gptq_v2" zero.
- AWQ "gemm" (https://arxiv.org/abs/2306.00978): `qweight` [inputs, outputs / 8] and `qzeros`
  [groups, outputs / 8] hold eight neighbouring outputs in the order 0, 2, 4, 6, 1, 3, 5, 7.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cleave.errors import CheckpointError
from cleave.export.quantized import GroupedInt4
from cleave.export.quantized_checkpoint_config import WHOLE_ROW, QuantizationConfig
from cleave.export.tensorfile import StoredTensor

SUFFIXES = ("qweight", "qzeros", "scales", "g_idx")
_MIDDLE = 8
"""The zero point of symmetric quantisation."""
_PACKED = 8
"""Four-bit values in an int32."""
_AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)
_FLOATS = ("F16", "BF16", "F32")
_Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class PackedLinear:
    """The tensors of one quantised linear layer, still on disk."""

    name: str
    """Of the module: "model.layers.0.mlp.up_proj"."""
    config: QuantizationConfig
    tensors: Mapping[str, StoredTensor]
    """By the last part of their names: those of `SUFFIXES` that are there, and the bias."""

    @property
    def shape(self) -> tuple[int, int]:
        """(outputs, inputs) of the matrix. Raises CheckpointError where qweight is no packed matrix."""
        rows, columns = self._matrix("qweight", ("I32",))
        if self.config.method == "gptq":
            return columns, rows * _PACKED
        return columns * _PACKED, rows

    @property
    def groups(self) -> int:
        """Groups of inputs."""
        return 1 if self.config.group_size == WHOLE_ROW else self.shape[1] // self.config.group_size

    @property
    def has_bias(self) -> bool:
        """Whether there is a bias that is not zero everywhere; it is read."""
        tensor = self.tensors.get("bias")
        return tensor is not None and tensor.dtype in _FLOATS and bool(self._read("bias").any())

    def check(self) -> None:
        """Compare the headers of the tensors with each other and with the config.

        Raises CheckpointError where one is lacking, or is not of the shape or type that it has to be.
        """
        outputs, inputs = self.shape
        size = self.config.group_size
        if size != WHOLE_ROW and inputs % size:
            raise CheckpointError(f"{self.name} has {inputs} inputs, which are no whole groups of {size}")
        if outputs % _PACKED:
            raise CheckpointError(
                f"{self.name} has {outputs} outputs; zero points are packed by {_PACKED}, so there must be "
                f"a multiple of {_PACKED}"
            )
        self._expect("qzeros", ("I32",), (self.groups, outputs // _PACKED))
        self._expect("scales", _FLOATS, (self.groups, outputs))
        if "g_idx" in self.tensors or self.config.act_order:
            self._expect("g_idx", ("I32",), (inputs,))

    def group_of(self) -> npt.NDArray[np.int64]:
        """The group of every input, [inputs].

        Raises CheckpointError where g_idx names a group that is not there.
        """
        inputs, groups = self.shape[1], self.groups
        if "g_idx" not in self.tensors:
            return np.arange(inputs) * groups // inputs
        given = self._read("g_idx").astype(np.int64)
        if given.min() < 0 or given.max() >= groups:
            raise CheckpointError(
                f"g_idx of {self.name} names groups {given.min()} to {given.max()}; there are {groups}"
            )
        return given

    def matrix(self, group_size: int) -> GroupedInt4:
        """The matrix with its inputs sorted by their groups, in groups of `group_size`.

        That is the size of its own groups, or divides it: scales and zero points are then repeated. The
        groups must be of one size. Raises CheckpointError where values contradict the config.
        """
        values = self._values()
        group_of = self.group_of()
        if (np.diff(group_of) < 0).any():
            values = values[:, np.argsort(group_of, kind="stable")]
        zeros, scales = self._zeros(), self._scales()
        repeats = values.shape[1] // self.groups // group_size
        return GroupedInt4(
            np.ascontiguousarray(values),
            np.repeat(scales, repeats, axis=1),
            np.repeat(zeros, repeats, axis=1),
            group_size,
        )

    def dequantize(self) -> npt.NDArray[np.float32]:
        """The matrix [outputs, inputs] in float32, its inputs in the order of the model."""
        group_of = self.group_of()
        weight = self._values().astype(np.float32)
        weight -= self._zeros()[:, group_of]
        weight *= self._scales()[:, group_of]
        return weight

    def _values(self) -> npt.NDArray[np.uint8]:
        """[outputs, inputs], in the order of the model."""
        packed = self._read("qweight")
        if self.config.method == "gptq":
            return _nibbles(np.ascontiguousarray(packed.T))
        return np.ascontiguousarray(self._unpack_rows(packed).T)

    def _unpack_rows(self, packed: _Array) -> npt.NDArray[np.uint8]:
        """[rows, outputs / 8] int32 -> [rows, outputs], in the order of this method."""
        values = _nibbles(np.ascontiguousarray(packed))
        if self.config.method == "gptq":
            return values
        eights = values.reshape(len(values), -1, _PACKED)
        ordered = np.empty_like(eights)
        ordered[..., list(_AWQ_ORDER)] = eights
        return ordered.reshape(values.shape)

    def _scales(self) -> npt.NDArray[np.float32]:
        """[outputs, groups]."""
        scales = np.ascontiguousarray(self._read("scales").astype(np.float32).T)
        if not np.isfinite(scales).all():
            raise CheckpointError(f"the scales of {self.name} are not all finite")
        return scales

    def _zeros(self) -> npt.NDArray[np.uint8]:
        """The zero points as they are meant, [outputs, groups].

        Those of symmetric GPTQ are known; so files that say "gptq" and store zero points as "gptq_v2" does,
        which exist, are read right too.
        """
        stored = np.ascontiguousarray(self._unpack_rows(self._read("qzeros")).T)
        if self.config.method == "gptq" and self.config.symmetric:
            if np.ptp(stored) or stored[0, 0] not in (_MIDDLE - 1, _MIDDLE):
                raise CheckpointError(
                    f"{self.name} has zero points other than {_MIDDLE}, and its config says sym: true"
                )
            return np.full_like(stored, _MIDDLE)
        return (stored + np.uint8(self.config.stored_zero_offset)) & np.uint8(15)

    def _tensor(self, suffix: str) -> StoredTensor:
        found = self.tensors.get(suffix)
        if found is None:
            needed = " (its config says desc_act: true)" if suffix == "g_idx" else ""
            raise CheckpointError(f"{self.name} lacks its tensor {suffix}{needed}; is the checkpoint whole?")
        return found

    def _matrix(self, suffix: str, dtypes: tuple[str, ...]) -> tuple[int, int]:
        tensor = self._tensor(suffix)
        if tensor.dtype not in dtypes or len(tensor.shape) != 2 or 0 in tensor.shape:
            raise CheckpointError(
                f"{self.name}.{suffix} is {tensor.dtype} {list(tensor.shape)}; "
                f"a matrix of {' or '.join(dtypes)} was expected"
            )
        return tensor.shape[0], tensor.shape[1]

    def _expect(self, suffix: str, dtypes: tuple[str, ...], shape: tuple[int, ...]) -> None:
        tensor = self._tensor(suffix)
        if tensor.dtype not in dtypes or tensor.shape != shape:
            raise CheckpointError(
                f"{self.name}.{suffix} is {tensor.dtype} {list(tensor.shape)}; by its qweight and config "
                f"({self.config}) it has to be {' or '.join(dtypes)} {list(shape)}"
            )

    def _read(self, suffix: str) -> _Array:
        return self._tensor(suffix).mapped()


def is_packed(name: str) -> bool:
    """Whether a tensor of a quantised checkpoint is part of a quantised matrix, by its name."""
    return name.rpartition(".")[2] in SUFFIXES


def _nibbles(packed: _Array) -> npt.NDArray[np.uint8]:
    """[rows, columns] int32 -> [rows, columns * 8], the lowest four bits first."""
    halves = packed.astype("<i4", copy=False).view(np.uint8)
    values = np.empty((*halves.shape, 2), np.uint8)
    np.bitwise_and(halves, 15, out=values[..., 0])
    np.right_shift(halves, 4, out=values[..., 1])
    return values.reshape(len(packed), -1)
