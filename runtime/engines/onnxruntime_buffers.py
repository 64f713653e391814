"""The activations of the engine kind `onnxruntime`, allocated once and bound to the pieces' sessions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from cleave.export.pieces import ATTENTION, Piece
from cleave.runtime.engines.onnxruntime_attention import PieceAttention, has_cut
from cleave.runtime.engines.wires import wire

_Array = npt.NDArray[Any]


@dataclass(slots=True)
class BoundStep:
    """The first rows of every buffer, and one binding for each session."""

    embeds: _Array
    q: _Array
    k: _Array
    v: _Array
    attention: _Array
    logit_rows: _Array
    logits: _Array
    residuals: list[_Array]
    """What each piece hands on: that of piece i is the residual after layer i - 1."""
    bindings: list[ort.IOBinding]


class Buffers:
    """The activations of the largest step, and which of them each piece reads and writes."""

    def __init__(
        self,
        pieces: list[Piece],
        max_tokens: int,
        vocab: int,
        multiple: int,
        inside: PieceAttention | None = None,
    ) -> None:
        """Rows are padded to a multiple of `multiple`; `inside` is what was added to the pieces."""
        self._vocab, self._multiple, self._inside = vocab, multiple, inside
        self._wires = wire(pieces)
        self._arrays: dict[str, _Array] = {
            name: np.zeros((self._padded(max_tokens), width), np.float32)
            for name, width in self._wires.widths.items()
        }
        self._logits = np.empty((0, vocab), np.float32)

    def grow(self, rows: int) -> bool:
        """Make room for the logits of `rows` rows; True where that took new memory."""
        if rows <= len(self._logits):
            return False
        self._logits = np.empty((self._padded(rows), self._vocab), np.float32)
        return True

    def _padded(self, rows: int) -> int:
        return -(-rows // self._multiple) * self._multiple

    def bind(self, tokens: int, rows: int, sessions: list[ort.InferenceSession]) -> BoundStep:
        """Bind the first `tokens` rows of the activations, and `rows` of the logits, to all sessions.

        A session may get a row more of each, which nobody reads.
        """
        arrays = {name: array[: self._padded(tokens)] for name, array in self._arrays.items()}
        arrays["logit_rows"] = np.zeros(self._padded(rows), np.int64)
        arrays["logits"] = self._logits[: self._padded(rows)]
        values = {name: ort.OrtValue.ortvalue_from_numpy(array) for name, array in arrays.items()}
        bindings = []
        for session, inputs, outputs in zip(sessions, self._wires.inputs, self._wires.outputs, strict=True):
            binding = session.io_binding()
            for name, buffer in inputs.items():
                binding.bind_ortvalue_input(name, values[buffer])
            for name, buffer in outputs.items():
                binding.bind_ortvalue_output(name, values[buffer])
            if self._inside is not None and has_cut(outputs):
                self._inside.bind(binding)
            bindings.append(binding)
        by_row = ("logit_rows", "logits")
        arrays = {name: array[: rows if name in by_row else tokens] for name, array in arrays.items()}
        return BoundStep(
            embeds=arrays["inputs_embeds"],
            q=arrays["q"],
            k=arrays["k"],
            v=arrays["v"],
            attention=arrays[ATTENTION],
            logit_rows=arrays["logit_rows"],
            logits=arrays["logits"],
            residuals=[arrays[name] for name in self._wires.residuals],
            bindings=bindings,
        )
