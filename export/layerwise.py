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
import onnxruntime as ort
from onnx import helper

from cleave.export.batchless import batchless_graphs
from cleave.export.pieces import ATTENTION, Piece, cut, widen
from cleave.plugins.spec import AttentionSpec
from cleave.threads import session_options

_ROWS = 512
"""Tokens of a step."""
_Arrays = dict[str, npt.NDArray[Any]]

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
        attention = {spec: _session(batchless_graphs(spec)[0], {}) for spec in dict.fromkeys(specs)}
        values: _Arrays = {"inputs_embeds": embeds}
        for piece, spec in zip(pieces, specs, strict=True):
            values = _run_piece(piece, weights, values)
            values[ATTENTION] = _attend(attention[spec], spec, values, lengths)
            advance()
        self._values = values
        self._session: ort.InferenceSession | None = None

    def logits(self, start: int, stop: int) -> npt.NDArray[np.float32]:
        """The logits [stop - start, vocab] of some tokens of all."""
        if self._session is None:
            self._session = _piece_session(self._last, self._weights)
        feeds = {name: self._values[name][start:stop] for name in self._last.inputs if name != "logit_rows"}
        feeds["logit_rows"] = np.arange(stop - start)
        (result,) = self._session.run(["logits"], feeds)
        logits: npt.NDArray[np.float32] = result
        return logits


def _run_piece(piece: Piece, weights: Weights, values: _Arrays) -> _Arrays:
    """q, k, v and what is carried on, of all tokens; the piece's weights are gone afterwards."""
    session = _piece_session(piece, weights)
    tokens = len(values[piece.inputs[0]])
    parts: list[_Arrays] = []
    for start in range(0, tokens, _ROWS):
        feeds = {name: values[name][start : start + _ROWS] for name in piece.inputs}
        parts.append(dict(zip(piece.outputs, session.run(list(piece.outputs), feeds), strict=True)))
    results = {name: np.concatenate([part[name] for part in parts]) for name in piece.outputs}
    carried = {name: results.get(source, values.get(source)) for name, source in piece.hands_on.items()}
    return {name: results[name] for name in "qkv"} | {
        name: value for name, value in carried.items() if value is not None
    }


def _attend(
    session: ort.InferenceSession, spec: AttentionSpec, values: _Arrays, lengths: Sequence[int]
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
        out[rows] = session.run(["out"], feeds)[0]
        start += length
    return out


def _piece_session(piece: Piece, weights: Weights) -> ort.InferenceSession:
    stored = {name: weights(tensor) for name, tensor in piece.weights.items()}
    wide = {
        name: np.ascontiguousarray(array, array.dtype if array.dtype.kind in "iu" else np.float32)
        for name, array in stored.items()
    }
    return _session(widen(piece.model), wide)


def _session(model: onnx.ModelProto, weights: _Arrays) -> ort.InferenceSession:
    """A session with weights as initializers: given as inputs, some would be multiplied by other kernels."""
    graph = model.graph
    for value in [value for value in graph.input if value.name in weights]:
        array = weights[value.name]
        graph.input.remove(value)
        tensor = graph.initializer.add(
            name=value.name, data_type=helper.np_dtype_to_tensor_dtype(array.dtype), dims=array.shape
        )
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for key, text in (("location", "weights"), ("offset", "0"), ("length", str(array.nbytes))):
            tensor.external_data.add(key=key, value=text)
    options = session_options()
    if weights:
        values = [ort.OrtValue.ortvalue_from_numpy(array) for array in weights.values()]
        options.add_external_initializers(list(weights), values)
    return ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
