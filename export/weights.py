"""weights.safetensors: the only copy of the weights, streamed from the checkpoint in small blocks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

import torch

from cleave.errors import ExportError
from cleave.export.checkpoint import Checkpoint
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
    for name, wanted in shapes.items():
        tensor = checkpoint.tensor(name)
        if tensor.shape != wanted:
            raise ExportError(
                f"{name} is {list(tensor.shape)} in the checkpoint; its config asks for {list(wanted)}"
            )
        if tensor.dtype not in _TORCH:
            raise ExportError(f"{name} is {tensor.dtype}; Cleave exports {', '.join(_TORCH)}")


def weights_layout(
    checkpoint: Checkpoint, names: Sequence[str], dtype: str, *, reserve: Iterable[str] = ()
) -> TensorLayout:
    """Lay out the tensors `names` in `dtype`, with room in the header for those of `reserve`.

    A file without the embedding has a header as long as one with it, so that adding the embedding
    later moves no other tensor and the graph's offsets stay true.
    """
    described = [(name, STORED[dtype], checkpoint.tensor(name).shape) for name in names]
    later = [(name, STORED[dtype], checkpoint.tensor(name).shape) for name in reserve if name not in names]
    full = plan_layout([*described, *later])
    return plan_layout(described, header_bytes=len(full.header))


def write_weights(
    checkpoint: Checkpoint, layout: TensorLayout, dtype: str, file: Path, advance: Advance
) -> None:
    """Write the tensors of `layout`, converted to `dtype`, holding one block of 16 MiB at a time.

    Raises ExportError where a value does not fit `dtype`: float16 ends at 65504.
    """
    with TensorFileWriter(file, layout) as writer:
        for name in layout.sizes:
            writer.begin(name)
            tensor = checkpoint.tensor(name)
            _copy(name, tensor, _TORCH[STORED[dtype]], writer, advance)


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
