"""The engine kind `onnxruntime`: one session for each piece, on the CPU.

The pieces run one after the other over buffers that are bound once; between two of them the attention
server gets views of those buffers, or, where the sessions share one pool, its jobs run inside the pieces.
Nothing is copied.
"""

from __future__ import annotations

from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from cleave.export.artifact import WEIGHTS, Artifact
from cleave.export.manifest import Manifest
from cleave.export.pieces import Piece, cut, make_initializers
from cleave.export.widening import computable, widen
from cleave.runtime.engines.engine import Attention, EngineOptions, Observer
from cleave.runtime.engines.huge_pages import HugePages
from cleave.runtime.engines.integer_products import are_exact
from cleave.runtime.engines.onnxruntime_attention import PieceAttention, has_cut, piece_attention
from cleave.runtime.engines.onnxruntime_buffers import BoundStep, Buffers
from cleave.runtime.engines.onnxruntime_fusion import fuse
from cleave.runtime.engines.residual import check_observable, with_residual
from cleave.threads import physical_cores, session_options

_BINDINGS_KEPT = 64
_WORTH_MOVING = 1 << 26
"""Bytes of weights that are more than caches hold, so that it matters what pages they lie in."""
_LOADED_AT_ONCE = 8
"""Weights that are widened exist twice while they are packed: not those of all pieces at once."""
_SAVING = {
    "session.optimized_model_external_initializers_file_name": "{}.bin",
    "session.optimized_model_external_initializers_min_size_in_bytes": "100",
    "session.save_external_prepacked_constant_initializers": "1",
}
_LARGEST_GROUP_OF_ONE_ORDER = 32
_SATURATING = (
    "this processor has no VNNI, and sums of 8-bit products saturate on it: answers of int8 weights may be "
    "worse here than the export measured; int4 or unquantised weights are not concerned"
)
_Array = npt.NDArray[Any]


class OnnxRuntimeEngine:
    """See `cleave.runtime.engines.engine.Engine`."""

    kind = "onnxruntime"
    dtype = "float32"
    device = "cpu"

    def __init__(self, artifact: Artifact, options: EngineOptions) -> None:
        """Make the sessions. float16 and bfloat16 weights are widened to float32, quantised ones are not.

        Pieces that OnnxRuntimeBuilder saved in `options.cache` are taken from there.
        """
        manifest = artifact.manifest
        self.notes: tuple[str, ...] = ()
        if manifest.dtype != "float32":
            self.notes = (f"{manifest.dtype} weights are widened to float32: the CPU computes in float32",)
        self._layers = manifest.num_layers
        self._embed = artifact.embedding_rows()
        self._scale = np.float32(manifest.embedding_scale)
        self._artifact, self._options = artifact, options
        self._threads = options.threads or physical_cores()
        if manifest.quantization and manifest.quantization.method == "int8" and not are_exact(self._threads):
            self.notes += (_SATURATING,)
        _share_one_arena()
        self._pieces = cut(artifact.batchful_graph())
        # Pieces that were saved have no nodes for it.
        self._inside = piece_attention(self._threads) if options.cache is None else None
        self._sessions: list[ort.InferenceSession] = []
        self._kept: list[_Array] = []
        for session, kept in _sessions(self._pieces, artifact, self._threads, options.cache, self._inside):
            self._sessions.append(session)
            self._kept += kept
        self._rows_multiple = _rows_multiple(manifest)
        self._buffers = self._make_buffers()
        self._steps: OrderedDict[tuple[int, int], BoundStep] = OrderedDict()
        self._observer: Observer | None = None
        is_large = (artifact.folder / WEIGHTS).stat().st_size >= _WORTH_MOVING
        self._moving = HugePages() if is_large else None

    def run(self, token_ids: _Array, logit_rows: _Array, attention: Attention) -> _Array:
        """See `Engine.run`."""
        step = self._bound(len(token_ids), len(logit_rows))
        step.embeds[:] = self._embed(token_ids)
        if self._scale != 1:
            step.embeds *= self._scale
        step.logit_rows[:] = logit_rows
        observer = self._observer
        inside = self._inside if observer is None else None
        if inside is not None:
            try:
                if inside.begin(attention, self._layers, step.q, step.k, step.v, step.attention):
                    for session, binding in zip(self._sessions, step.bindings, strict=True):
                        session.run_with_iobinding(binding)
                    return step.logits
            finally:
                inside.end()
        if observer is not None:
            observer.residual(-1, step.embeds)
        for layer in range(self._layers):
            self._sessions[layer].run_with_iobinding(step.bindings[layer])
            if observer is not None and layer:
                observer.residual(layer - 1, step.residuals[layer])
            attention.run(layer, step.q, step.k, step.v, step.attention)
        self._sessions[-1].run_with_iobinding(step.bindings[-1])
        if observer is not None:
            observer.residual(self._layers - 1, step.residuals[-1])
        return step.logits

    def observe(self, observer: Observer | None) -> None:
        """See `Engine.observe`. The first time, the last piece is built anew, to give its residual too."""
        if observer is not None and len(self._pieces[-1].outputs) == 1:
            check_observable(self._pieces)
            self._pieces[-1] = with_residual(self._pieces[-1])
            self._sessions[-1], kept = make_session(self._pieces[-1], self._artifact, self._threads)
            self._kept += kept
            self._buffers = self._make_buffers()
            self._steps.clear()
        self._observer = observer

    def close(self) -> None:
        """See `Engine.close`."""
        if self._moving is not None:
            self._moving.close()
        self._steps.clear()
        self._sessions.clear()
        self._kept.clear()
        if self._inside is not None:
            self._inside.close()

    def _make_buffers(self) -> Buffers:
        vocab, most = self._artifact.manifest.vocab_size, self._options.max_tokens
        return Buffers(self._pieces, most, vocab, self._rows_multiple, self._inside)

    def _bound(self, tokens: int, rows: int) -> BoundStep:
        """The buffers of a step of this size, bound to every session: made once, kept while in use."""
        key = (tokens, rows)
        step = self._steps.get(key)
        if step is None:
            if self._buffers.grow(rows):
                self._steps.clear()  # they are bound to the buffers before
            step = self._buffers.bind(tokens, rows, self._sessions)
            self._steps[key] = step
            if len(self._steps) > _BINDINGS_KEPT:
                self._steps.popitem(last=False)
        self._steps.move_to_end(key)
        return step


def _sessions(
    pieces: list[Piece],
    artifact: Artifact,
    threads: int,
    saved: Path | None,
    inside: PieceAttention | None,
) -> list[tuple[ort.InferenceSession, list[_Array]]]:
    """A session for each piece, several made at a time: the weights of each are packed on one thread."""

    def make(index: int) -> tuple[ort.InferenceSession, list[_Array]]:
        if saved is not None:
            return _saved_session(saved_piece(saved, index), threads), []
        return make_session(pieces[index], artifact, threads, inside=inside)

    first = make(0)  # alone: it makes the pool of the process, if there is to be one
    with ThreadPoolExecutor(min(threads, _LOADED_AT_ONCE), thread_name_prefix="cleave-load") as pool:
        try:
            return [first, *pool.map(make, range(1, len(pieces)))]
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def saved_piece(folder: Path, index: int) -> Path:
    """The graph of a saved piece; its weights lie beside it in a file of the same name and ".bin"."""
    return folder / f"{index:03}.onnx"


def _saved_session(graph: Path, threads: int) -> ort.InferenceSession:
    """A session of a piece that was optimised and packed before; its weights are mapped."""
    options = _options(threads)
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    return ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])


def _options(threads: int) -> ort.SessionOptions:
    options = session_options(threads)
    options.add_session_config_entry("session.use_env_allocators", "1")
    return options


def make_session(
    piece: Piece,
    artifact: Artifact,
    threads: int,
    *,
    save_as: Path | None = None,
    inside: PieceAttention | None = None,
) -> tuple[ort.InferenceSession, list[_Array]]:
    """A session with the piece's weights as initializers, which ONNX Runtime packs on loading.

    Packed weights make a row's result independent of the other rows; weights given as inputs do not.
    Returns also the arrays that must outlive the session: matrices are copied by the packing. `save_as` is
    where to write the piece as it was optimised and packed; see `saved_piece`. `inside` adds attention to it.
    """
    model = widen(piece.model)
    arrays = {name: computable(artifact.weight(tensor)) for name, tensor in piece.weights.items()}
    for name, members in fuse(model, arrays.keys()).items():
        arrays[name] = np.concatenate([arrays.pop(member) for member in members])
    make_initializers(model, arrays)
    options = _options(threads)
    if inside is not None and has_cut(piece.outputs):
        inside.add(model, options)
    if save_as is not None:
        options.optimized_model_filepath = str(save_as)
        for name, value in _SAVING.items():
            options.add_session_config_entry(name, value.format(save_as.stem))
    options.add_external_initializers(
        list(arrays), [ort.OrtValue.ortvalue_from_numpy(array) for array in arrays.values()]
    )
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session, [array for array in arrays.values() if array.ndim < 2 or array.dtype != np.float32]


def _rows_multiple(manifest: Manifest) -> int:
    """What the rows of a step are padded to a multiple of, so that each has the same bits in any step.

    MatMulNBits computes two rows at a time, and with groups larger than 32 it sums the odd one that is
    left in another order.
    """
    group_size = manifest.quantization.group_size if manifest.quantization else None
    return 2 if group_size is not None and group_size > _LARGEST_GROUP_OF_ONE_ORDER else 1


def _share_one_arena() -> None:
    """Let all sessions share one arena: one for each piece would keep the memory of its largest step."""
    memory = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    ort.create_and_register_allocator(memory, None)
