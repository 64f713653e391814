"""Which matrices of a model are quantised, and how: what `--quantize` asks for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from cleave.export.quantized import Quantized


class Ready(Protocol):
    """Matrices that are quantised already, as a GPTQ or AWQ checkpoint has them.

    `Checkpoint.ready` is one, or None. The exporter takes these as they are and quantises none of them
    again; asking for `--quantize` too is refused.
    """

    method: str
    """"int8" or "int4"."""
    group_size: int | None
    """Of all matrices; None for int8."""
    shapes: Mapping[str, tuple[int, int]]
    """Name of each matrix, as an unquantised checkpoint calls it ("model.layers.0.self_attn.q_proj.weight"),
    -> (out, in)."""

    def matrix(self, name: str) -> Quantized:
        """One matrix, read when it is asked for. Raises CheckpointError where it is damaged."""
