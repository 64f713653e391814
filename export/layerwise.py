"""A batchful graph run piece by piece over whole sequences, with the weights of one piece in memory.

It computes what the engine `onnxruntime` computes: the same pieces and operators, weights as initializers,
in ONNX Runtime on the CPU. Attention is that of the batchless graphs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from cleave.export.batchless import batchless_graphs
from cleave.export.pieces import ATTENTION, Piece, cut
from cleave.export.session import Arrays, GraphSession
from cleave.export.widening import computable, widen
from cleave.plugins.spec import AttentionSpec

_ROWS = 512
"""Tokens of a step."""

Weights = Callable[[str], npt.NDArray[Any]]
"""Gives a weight by its name in the graph, as it is stored: floats are widened to float32."""
Advance = Callable[[], None]
"""Called after each piece."""


class Layerwise:
    """A model that has read some sequences, up to its last piece, which gives their logits."""

    def __init__(
        self,
        graph: onnx.ModelProto,
        weights: Weights,
        specs: Sequence[AttentionSpec],
        embeds: npt.NDArray[np.float32],
        lengths: Sequence[int],
        advance: Advance = lambda: None,
    ) -> None:
        """`embeds` [tokens, hidden]: all sequences, one after the other; `lengths`: tokens of each."""
        *pieces, self._last = cut(graph)
        self._weights = weights
        attention = {spec: GraphSession(batchless_graphs(spec)[0]) for spec in dict.fromkeys(specs)}
        values: Arrays = {"inputs_embeds": embeds}
        for piece, spec in zip(pieces, specs, strict=True):
            values = _run_piece(piece, weights, values)
            values[ATTENTION] = _attend(attention[spec], spec, values, lengths)
            advance()
        self._values = values
        self._session: GraphSession | None = None

    def logits(self, start: int, stop: int) -> npt.NDArray[np.float32]:
        """The logits [stop - start, vocab] of some tokens of all."""
        if self._session is None:
            self._session = _piece_session(self._last, self._weights)
        feeds = {name: self._values[name][start:stop] for name in self._last.inputs if name != "logit_rows"}
        feeds["logit_rows"] = np.arange(stop - start)
        return self._session.run(feeds, ["logits"])["logits"]


def _run_piece(piece: Piece, weights: Weights, values: Arrays) -> Arrays:
    """q, k, v and what is carried on, of all tokens; the piece's weights are gone afterwards."""
    session = _piece_session(piece, weights)
    tokens = len(values[piece.inputs[0]])
    parts: list[Arrays] = []
    for start in range(0, tokens, _ROWS):
        feeds = {name: values[name][start : start + _ROWS] for name in piece.inputs}
        parts.append(session.run(feeds, piece.outputs))
    results = {name: np.concatenate([part[name] for part in parts]) for name in piece.outputs}
    carried = {name: results.get(source, values.get(source)) for name, source in piece.hands_on.items()}
    return {name: results[name] for name in "qkv"} | {
        name: value for name, value in carried.items() if value is not None
    }


def _attend(
    session: GraphSession, spec: AttentionSpec, values: Arrays, lengths: Sequence[int]
) -> npt.NDArray[np.float32]:
    """Attention of one layer, [tokens, heads * head_dim], each sequence for itself."""
    q, k, v = (values[name] for name in "qkv")
    out = np.empty((len(q), spec.heads * spec.head_dim), np.float32)
    start = 0
    for length in lengths:
        rows, places = slice(start, start + length), np.arange(length)
        cache = np.zeros((length, spec.kv_heads, spec.head_dim), np.float32)
        feeds = {"q": q[rows], "k": k[rows], "v": v[rows], "k_cache": cache, "v_cache": cache.copy()}
        feeds |= dict.fromkeys(("positions", "slots", "context_slots"), places)
        out[rows] = session.run(feeds, ["out"])["out"]
        start += length
    return out


def _piece_session(piece: Piece, weights: Weights) -> GraphSession:
    wide = {name: computable(weights(tensor)) for name, tensor in piece.weights.items()}
    return GraphSession(widen(piece.model), wide)
