"""The activations of the largest step, in device memory that stays where it is."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from cleave.export.pieces import Piece
from cleave.runtime.engines.tensorrt_rtx.profiles import Profiles
from cleave.runtime.engines.wires import wire

Tensor = torch.Tensor


class Buffers:
    """One tensor for each value that crosses from piece to piece, or to the attention server and back."""

    def __init__(
        self,
        pieces: Sequence[Piece],
        profiles: Profiles,
        dtype: torch.dtype,
        vocab_size: int,
        device: torch.device,
    ) -> None:
        self._wires = wire(pieces)
        # Zeros: what a padded decode step computes of unused rows stays finite.
        self._tensors = {
            name: torch.zeros(profiles.max_tokens, width, dtype=dtype, device=device)
            for name, width in self._wires.widths.items()
        }
        rows = profiles.max_sequences
        self.logit_rows = torch.zeros(rows, dtype=torch.int64, device=device)
        """[max_sequences] int64; a tensor of its own, as TensorRT wants addresses aligned to 256 bytes."""
        self.logits = torch.zeros(rows, vocab_size, dtype=torch.float32, device=device)
        """[max_sequences, vocab_size] float32."""

    def rows(self, name: str, tokens: int) -> Tensor:
        """The first rows of a buffer: [tokens, width]."""
        return self._tensors[name][:tokens]

    def addresses(self, index: int) -> dict[str, int]:
        """Where piece `index` finds its inputs and puts its outputs."""
        tensors = self._tensors | {"logit_rows": self.logit_rows, "logits": self.logits}
        named = self._wires.inputs[index] | self._wires.outputs[index]
        return {name: tensors[buffer].data_ptr() for name, buffer in named.items()}

    def shapes(self, index: int, tokens: int, rows: int) -> dict[str, tuple[int, ...]]:
        """The shapes of piece `index`'s inputs in a step of so many tokens and logit rows."""
        widths = self._wires.widths
        return {
            name: (rows,) if name == "logit_rows" else (tokens, widths[buffer])
            for name, buffer in self._wires.inputs[index].items()
        }
