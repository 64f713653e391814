"""The engine kind `tensorrt_rtx`: three plans, run between calls of the attention server.

Memory, streams and graphs are torch's, since the attention backends of a GPU compute on torch tensors:
TensorRT gets addresses into them, and one allocator knows what a captured graph holds on to.
"""

from __future__ import annotations

import contextlib
import logging
import tempfile
from collections.abc import Callable, Hashable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from cleave.errors import EngineError
from cleave.export.artifact import Artifact
from cleave.export.pieces import Piece, cut
from cleave.kvcache.budget import mib
from cleave.runtime.engines.engine import Attention, DeviceOutput, EngineOptions, Observer
from cleave.runtime.engines.inductor.graphs import DecodeGraphs
from cleave.runtime.engines.inductor.weights import DeviceWeights
from cleave.runtime.engines.release import release
from cleave.runtime.engines.tensorrt_rtx import architecture, library
from cleave.runtime.engines.tensorrt_rtx.buffers import Buffers
from cleave.runtime.engines.tensorrt_rtx.build import distinct
from cleave.runtime.engines.tensorrt_rtx.builder import TensorRtRtxBuilder
from cleave.runtime.engines.tensorrt_rtx.device import check_device, compute_capability
from cleave.runtime.engines.tensorrt_rtx.execution import Plan
from cleave.runtime.engines.tensorrt_rtx.plan import EngineDescription
from cleave.runtime.engines.tensorrt_rtx.steps import ProfiledSteps

_log = logging.getLogger("cleave")
Tensor = torch.Tensor


class TensorRtRtxEngine(ProfiledSteps):
    """See `cleave.runtime.engines.engine.DeviceEngine`.

    A step whose attention server offers a `graph_key` is padded to a decode bucket and replayed as one
    CUDA graph; all others are enqueued piece by piece in the prefill profile.
    """

    kind = "tensorrt_rtx"

    def __init__(self, artifact: Artifact, options: EngineOptions) -> None:
        """Load plans and weights; without `options.cache` the plans are built first.

        Raises EngineError for a GPU, driver or plan that does not fit, MissingPackage.
        """
        manifest = artifact.manifest
        device = check_device(options.device)
        self._trt = library.load()
        capability = compute_capability(device)
        architecture.check(capability, self._trt)
        self.device, self.dtype = str(device), manifest.dtype
        self.notes: tuple[str, ...] = ()
        pieces = cut(artifact.batchful_graph())
        self._last = len(pieces) - 1
        self._logger = library.make_logger(self._trt)
        self._runtime = self._trt.Runtime(self._logger)
        with self._plans_of(artifact, options) as folder:
            described = EngineDescription.read(folder)
            described.check_fits(options, capability)
            _check_model(described, distinct(pieces))
            self._plans = {
                piece.name: Plan(self._trt, self._logger, self._runtime, folder / piece.file, piece)
                for piece in described.pieces
            }
        super().__init__(described.profiles, manifest.vocab_size, device)
        self._weights = DeviceWeights(artifact, getattr(torch, self.dtype), self._device)
        self._embedding = self._weights.get((manifest.embedding,))
        self._scale = None
        if manifest.embedding_scale != 1:
            self._scale = self._embedding.new_tensor(manifest.embedding_scale)
        scratch = max(256, *(plan.scratch_bytes for plan in self._plans.values()))
        try:
            self._scratch = torch.empty(scratch, dtype=torch.uint8, device=self._device)
            self._buffers = Buffers(
                pieces, self._profiles, self._embedding.dtype, manifest.vocab_size, self._device
            )
        except torch.OutOfMemoryError:
            raise EngineError(
                f"{self.device} has no room for a step of {self._profiles.max_tokens} tokens beside "
                f"{mib(self._weights.nbytes)} of weights; lower max_tokens_per_step"
            ) from None
        # The addresses of a layer never change: buffers are made once, and weights lie where they lie.
        self._addresses = [
            self._buffers.addresses(index)
            | {name: self._weights.get((tensor,)).data_ptr() for name, tensor in piece.weights.items()}
            for index, piece in enumerate(pieces)
        ]
        self._capturable: dict[int, bool] = {}
        self._graphs = DecodeGraphs(self._profiles.buckets, self._device)

    def observe(self, observer: Observer | None) -> None:
        """See `Engine.observe`. Raises EngineError: the last plan does not give its residual."""
        if observer is not None:
            raise EngineError(
                "the plans of the engine tensorrt_rtx do not give every residual, so it cannot be observed; "
                "observe the engine onnxruntime or inductor"
            )

    def close(self) -> None:
        """See `Engine.close`."""
        if self._stream is not None:
            self._stream.synchronize()
        self._graphs.clear()
        for plan in self._plans.values():
            plan.close()
        self._plans.clear()
        self._runtime = None
        self._addresses.clear()
        self._weights.clear()
        release(self, "_embedding", "_scale", "_scratch", "_buffers")
        self._release_steps()

    @contextlib.contextmanager
    def _plans_of(self, artifact: Artifact, options: EngineOptions) -> Iterator[Path]:
        """The folder with the plans; for as long as it is read, where they have to be built first."""
        if options.cache is not None:
            yield options.cache
            return
        with tempfile.TemporaryDirectory(prefix="cleave-engine-") as folder:
            TensorRtRtxBuilder(artifact, options).build(Path(folder), None)
            yield Path(folder)

    def _captured(self, number: int, key: Hashable, step: Callable[[], DeviceOutput]) -> DeviceOutput:
        """The step of a bucket as a graph; piece by piece where TensorRT says that it cannot be captured."""
        size = self._profiles.buckets[number]
        if self._capturable.get(number):
            return self._graphs.run(size, key, step)
        given = step()  # TensorRT compiles kernels in the first run
        if number not in self._capturable:
            self._capturable[number] = all(
                self._context(plan, number).is_capturable(self._handle) for plan in self._plans.values()
            )
            if self._capturable[number]:
                self._graphs.capture(size, key, step)
            else:
                _log.warning("decode steps of %d tokens cannot be captured", size)
        return given

    def _forward(self, number: int, token_ids: Tensor, logit_rows: Tensor, attention: Attention) -> Tensor:
        """All pieces in profile `number`: logits [rows, vocab] float32."""
        tokens = len(token_ids)
        buffers = self._buffers
        embeds = buffers.rows("inputs_embeds", tokens)
        torch.index_select(self._embedding, 0, token_ids, out=embeds)
        if self._scale is not None:
            embeds *= self._scale
        q, k, v, out = (buffers.rows(name, tokens) for name in ("q", "k", "v", "attention"))
        for layer in range(self._last):
            self._enqueue("middle" if layer else "first", layer, number, tokens)
            attention.run(layer, q, k, v, out)
        most = self._profiles.max_sequences
        if len(logit_rows) <= most:
            return self._logits(number, tokens, logit_rows)
        parts = [self._logits(number, tokens, part).clone() for part in torch.split(logit_rows, most)]
        return torch.cat(parts)

    def _logits(self, number: int, tokens: int, logit_rows: Tensor) -> Tensor:
        """The last piece: logits of as many rows as a profile takes, in memory that the next call uses."""
        rows = len(logit_rows)
        self._buffers.logit_rows[:rows].copy_(logit_rows)
        self._enqueue("last", self._last, number, tokens, rows)
        return self._buffers.logits[:rows]

    def _enqueue(self, name: str, index: int, number: int, tokens: int, rows: int = 0) -> None:
        context = self._context(self._plans[name], number)
        context.run(self._buffers.shapes(index, tokens, rows), self._addresses[index], self._handle)

    def _context(self, plan: Plan, number: int) -> Any:
        scratch = self._scratch.data_ptr(), self._scratch.nbytes
        return plan.context(number, self._profiles, scratch, self._handle)


def _check_model(described: EngineDescription, pieces: Mapping[str, Piece]) -> None:
    """Raises EngineError where plans are not of these pieces."""
    found = {piece.name: piece for piece in described.pieces}
    if found.keys() != pieces.keys() or not all(found[name].is_of(pieces[name]) for name in pieces):
        raise EngineError("this engine was built for another model; build it again for this artifact")
