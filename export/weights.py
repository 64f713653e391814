"""weights.safetensors: the only copy of the weights, written from the checkpoint in small blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from cleave.errors import ExportError
from cleave.export.checkpoint import Checkpoint
from cleave.export.manifest import EMBEDDING
from cleave.export.quantization import Described, Quantization, QuantizedTensor, embedding_stored
from cleave.export.quantize import quantize_int4, quantize_int8
from cleave.export.quantized import GroupedInt4, Quantized, RowInt8
from cleave.export.quantized_checkpoint import QuantizedCheckpoint
from cleave.export.quantized_storage import to_arrays
from cleave.export.tensorfile import StoredTensor, TensorFileWriter, TensorLayout, plan_layout

_BLOCK = 1 << 24
_TORCH = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
STORED = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
"""dtype of an artifact -> as safetensors writes it."""

Advance = Callable[[int], None]
"""Called with the bytes written since the last call."""


def check_tensors(checkpoint: Checkpoint, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Compare the checkpoint's tensors with the shapes that its config asks for, by their headers.

    Raises CheckpointError where one is lacking, ExportError for a shape or dtype that cannot be exported.
    """
    if checkpoint.ready is not None:
        checkpoint.ready.check_biases(shapes)
    for name, wanted in shapes.items():
        shape = checkpoint.shapes.get(name)
        if shape is None:
            checkpoint.tensor(name)  # says what is wrong
        elif shape != wanted:
            raise ExportError(
                f"{name} is {list(shape)} in the checkpoint; its config asks for {list(wanted)}"
            )
        elif name in checkpoint.tensors and checkpoint.tensor(name).dtype not in _TORCH:
            raise ExportError(
                f"{name} is {checkpoint.tensor(name).dtype}; Cleave exports {', '.join(_TORCH)}"
            )


@dataclass(frozen=True, slots=True)
class StoredWeights:
    """What becomes of a checkpoint's tensors in weights.safetensors."""

    checkpoint: Checkpoint
    dtype: str
    """Of what the graph computes with as floats: "float32", "float16" or "bfloat16"."""
    quantization: Quantization | None = None

    def layout(self, names: Sequence[str], *, embedding: bool) -> TensorLayout:
        """Lay out the tensors `names` that the graph reads, and the embedding, or room for it in the header.

        A file without the embedding has a header as long as one with it, so that adding the embedding
        later moves no other tensor and the graph's offsets stay true.
        """
        described = {entry[0]: entry for group in self._computed() for entry in group.stored}
        graph = [described.get(name) or self._float(name) for name in names]
        table = [entry for name, entry in described.items() if name.startswith(EMBEDDING)]
        table = [] if EMBEDDING in names else table or [self._float(EMBEDDING)]
        full = plan_layout([*graph, *table])
        return plan_layout([*graph, *table] if embedding else graph, header_bytes=len(full.header))

    def write(self, layout: TensorLayout, file: Path, advance: Advance) -> None:
        """Write the tensors of `layout`, holding one block of 16 MiB at a time, or one quantised matrix.

        Raises ExportError where a value does not fit the dtype: float16 ends at 65504.
        """
        groups = {group.stored[0][0]: group for group in self._computed()}
        beside = {entry[0] for group in groups.values() for entry in group.stored[1:]}
        with TensorFileWriter(file, layout) as writer:
            for name in layout.sizes:
                if name in groups:
                    arrays = groups[name].arrays()
                    for (stored, _, _), array in zip(groups[name].stored, arrays, strict=True):
                        writer.begin(stored)
                        writer.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
                        advance(array.nbytes)
                elif name not in beside:
                    writer.begin(name)
                    dtype = _TORCH[self._float(name)[1]]
                    _copy(name, self.checkpoint.tensor(name), dtype, writer, advance)

    def _float(self, name: str) -> Described:
        """A tensor that stays in floats. The embedding does in its own dtype where no graph reads it."""
        is_apart = name == EMBEDDING and self.quantization is not None and self.quantization.lm_head
        dtype = self.checkpoint.dtype if is_apart else self.dtype
        return name, STORED[dtype], self.checkpoint.tensor(name).shape

    def _computed(self) -> Iterator[_Group]:
        """What is no copy of a tensor of the checkpoint."""
        if self.quantization is None:
            return
        if self.checkpoint.ready is not None:
            yield from _taken_over(self.checkpoint.ready)
        for tensor in self.quantization.tensors:
            yield _Group(tuple(self.quantization.stored(tensor)), partial(self._arrays, tensor))
        if self.quantization.embedding:
            vocab, hidden = self.checkpoint.tensor(EMBEDDING).shape
            yield _Group(embedding_stored(EMBEDDING, vocab, hidden), self._embedding_arrays)

    def _arrays(self, tensor: QuantizedTensor) -> Sequence[npt.NDArray[Any]]:
        matrices = [self._matrix(name) for name, _ in tensor.members]
        kind = type(matrices[0])
        return to_arrays(matrices[0] if len(matrices) == 1 else kind.concatenate(matrices))  # type: ignore[arg-type]

    def _matrix(self, name: str) -> Quantized:
        ready, size = self.checkpoint.ready, self.quantization.group_size if self.quantization else None
        if ready is not None and name in ready.shapes:
            return ready.matrix(name)
        blocks = _row_blocks(name, self.checkpoint.tensor(name))
        if size is None:
            return RowInt8.concatenate([quantize_int8(block) for block in blocks])
        return GroupedInt4.concatenate([quantize_int4(block, size) for block in blocks])

    def _embedding_arrays(self) -> Sequence[npt.NDArray[Any]]:
        blocks = _row_blocks(EMBEDDING, self.checkpoint.tensor(EMBEDDING))
        table = RowInt8.concatenate([quantize_int8(block) for block in blocks])
        return table.values, table.scales


@dataclass(frozen=True, slots=True)
class _Group:
    """A quantised matrix or another computed tensor: what it is stored as, and what computes it."""

    stored: Sequence[Described]
    arrays: Callable[[], Sequence[npt.NDArray[Any]]]


def _taken_over(ready: QuantizedCheckpoint) -> Iterator[_Group]:
    """What a quantised checkpoint brings beside its matrices: their orders, and those dequantised."""
    for name in dict.fromkeys(ready.orders.values()):
        yield _Group(((name, "I32", ready.order(name).shape),), partial(_alone, ready.order, name))
    for name, shape in ready.dequantized_shapes.items():
        yield _Group(((name, "F32", shape),), partial(_alone, ready.dequantize, name))


def _alone(read: Callable[[str], npt.NDArray[Any]], name: str) -> Sequence[npt.NDArray[Any]]:
    return (read(name),)


def _row_blocks(name: str, tensor: StoredTensor) -> Iterator[torch.Tensor]:
    """The rows of a matrix of floats, as many at a time as fit a block."""
    rows, columns = tensor.shape
    width = tensor.nbytes // rows
    step = max(1, _BLOCK // width)
    with tensor.file.open("rb") as file:
        file.seek(tensor.offset)
        for start in range(0, rows, step):
            count = min(step, rows - start)
            block = bytearray(count * width)
            if file.readinto(block) != len(block):
                raise ExportError(f"{tensor.file} ended while {name} was read")
            values = torch.frombuffer(block, dtype=_TORCH[tensor.dtype]).reshape(count, columns)
            if not bool(torch.isfinite(values).all()):
                raise ExportError(
                    f"{name} has values that are not finite and cannot be quantised: is the checkpoint whole?"
                )
            yield values


def _copy(
    name: str, tensor: StoredTensor, dtype: torch.dtype, writer: TensorFileWriter, advance: Advance
) -> None:
    source = _TORCH[tensor.dtype]
    # Plain reads, not a memory map: mapped pages would count as memory of this process.
    with tensor.file.open("rb") as file:
        file.seek(tensor.offset)
        left = tensor.nbytes
        while left:
            block = bytearray(min(_BLOCK, left))
            if file.readinto(block) != len(block):
                raise ExportError(f"{tensor.file} ended while {name} was read")
            left -= len(block)
            if source is dtype:
                converted = memoryview(block)
            else:
                values = torch.frombuffer(block, dtype=source)
                narrow = values.to(dtype)
                if bool((torch.isinf(narrow) & torch.isfinite(values)).any()):
                    raise ExportError(
                        f"{name} has values beyond {dtype}; export with --dtype bfloat16 or float32"
                    )
                converted = memoryview(narrow.view(torch.uint8).numpy().data)
            writer.write(converted)
            advance(converted.nbytes)
