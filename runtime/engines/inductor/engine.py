"""The engine kind `inductor`: the pieces compiled by Inductor, run between calls of the attention server."""

from __future__ import annotations

from collections.abc import Hashable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from cleave.errors import EngineError
from cleave.export.artifact import Artifact
from cleave.export.pieces import ATTENTION
from cleave.kvcache.budget import mib
from cleave.runtime.engines.engine import Attention, DeviceOutput, EngineOptions, Observer
from cleave.runtime.engines.inductor.device import check_deterministic, check_device
from cleave.runtime.engines.inductor.functions import Functions
from cleave.runtime.engines.inductor.graphs import DecodeGraphs, batch_sizes
from cleave.runtime.engines.inductor.inputs import StepInputs, StepNumbers, check_rows
from cleave.runtime.engines.inductor.outputs import HostLogits, StepOutputs, first_rows
from cleave.runtime.engines.inductor.weights import DeviceWeights
from cleave.runtime.engines.no_attention import NoAttention

Tensor = torch.Tensor
_Array = npt.NDArray[Any]


class InductorEngine:
    """See `cleave.runtime.engines.engine.DeviceEngine`.

    Pieces of the same structure are compiled once, with weights as inputs, so the time that takes does
    not grow with the number of layers. On a GPU a step whose attention server offers a `graph_key` is
    padded to one of `batch_sizes` and replayed as one CUDA graph; all others are launched piece by piece.
    """

    kind = "inductor"

    @staticmethod
    def build(artifact: Artifact, options: EngineOptions, folder: Path) -> None:
        """Compile everything into `folder`, which later `EngineOptions.cache` names. Reads no weights.

        Raises EngineError for a graph, a device or a dtype that this engine cannot run.
        """
        device = check_device(options.device, artifact.manifest.dtype)
        if options.deterministic:
            check_deterministic(device, artifact.manifest.dtype)
        Functions(artifact, device, deterministic=options.deterministic).compile_all(folder)

    def __init__(self, artifact: Artifact, options: EngineOptions) -> None:
        """Load the weights. What `options.cache` lacks is compiled on its first use.

        Raises EngineError for a graph, a device or a dtype that this engine cannot run.
        """
        manifest = artifact.manifest
        device = check_device(options.device, manifest.dtype)
        if options.deterministic:
            check_deterministic(device, manifest.dtype)
        is_gpu = device.type == "cuda"
        self.device = str(device)
        self.dtype = manifest.dtype if is_gpu else "float32"
        self.notes: tuple[str, ...] = ()
        if self.dtype != manifest.dtype:
            self.notes = (f"{manifest.dtype} weights are widened to float32: the CPU computes in float32",)
        self._torch_device, self._options = device, options
        self._functions = Functions(artifact, device, options.cache, deterministic=options.deterministic)
        self._weights = DeviceWeights(artifact, getattr(torch, self.dtype), device)
        self._given = [
            [self._weights.get(names) for names in self._functions.weights(index)]
            for index in range(manifest.num_layers + 1)
        ]
        self._embedding = self._weights.get((manifest.embedding,))
        self._scale = None
        if manifest.embedding_scale != 1:
            self._scale = torch.tensor(manifest.embedding_scale, dtype=self._embedding.dtype, device=device)
        sizes = batch_sizes(options.max_sequences, self._functions.least_rows)
        self._graphs = DecodeGraphs(sizes, device) if is_gpu else None
        self._inputs = StepInputs(max(options.max_tokens, sizes[-1]), device)
        self._outputs = StepOutputs(self._inputs.sampled)
        self._host_logits = HostLogits(manifest.vocab_size, device)
        self._observer: Observer | None = None

    @property
    def compilations(self) -> int:
        """Functions that this engine has compiled so far."""
        return self._functions.compilations

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """See `DeviceEngine`."""
        return self._graphs.sizes if self._graphs is not None else ()

    def run(self, token_ids: _Array, logit_rows: _Array, attention: Attention) -> _Array:
        """See `Engine.run`."""
        return self._host_logits.fetch(self.launch(token_ids, logit_rows, attention).logits)

    def launch(
        self,
        token_ids: _Array | Tensor,
        logit_rows: _Array,
        attention: Attention,
        sampled: Tensor | None = None,
    ) -> DeviceOutput:
        """See `DeviceEngine.launch`."""
        tokens = len(token_ids)
        check_rows(logit_rows, tokens)
        key: Hashable | None = getattr(attention, "graph_key", None)
        if key is not None and self._graphs is not None and self._observer is None:
            size = self._graphs.size_for(tokens)
            if size is not None:
                given = self._inputs.send(token_ids, logit_rows, size, size, sampled)
                output = self._graphs.run(size, key, lambda: self._step(given, attention))
                return first_rows(output, len(logit_rows))
        rows = self._functions.rows_for(tokens) or max(2, len(logit_rows))
        padded = max(tokens, self._functions.least_rows)
        given = self._inputs.send(token_ids, logit_rows, padded, rows, sampled)
        if padded > tokens:
            attention = _FirstRows(attention, tokens)
        return first_rows(self._step(given, attention), len(logit_rows))

    def free_memory(self) -> int | None:
        """See `DeviceEngine.free_memory`: runs the largest step over an attention that does nothing."""
        if self._torch_device.type != "cuda":
            return None
        tokens, rows = self._options.max_tokens, min(self._options.max_tokens, self._options.max_sequences)
        try:
            self.launch(np.zeros(tokens, np.int64), np.arange(rows), NoAttention())
            torch.cuda.synchronize(self._torch_device)
        except torch.OutOfMemoryError:
            raise EngineError(
                f"{self.device} has no room for a step of {tokens} tokens beside "
                f"{mib(self._weights.nbytes)} of weights; lower max_tokens_per_step"
            ) from None
        free, _ = torch.cuda.mem_get_info(self._torch_device)
        return int(free)

    def observe(self, observer: Observer | None) -> None:
        """See `Engine.observe`. The first time, the last piece gives its residual too from then on."""
        if observer is not None:
            self._functions.give_residual()
        self._observer = observer

    def close(self) -> None:
        """See `Engine.close`."""
        if self._graphs is not None:
            self._graphs.clear()
        self._given.clear()
        self._weights.clear()

    def _step(self, given: StepNumbers, attention: Attention) -> DeviceOutput:
        """All that a graph captures."""
        logits = self._forward(given.token_ids(), given.logit_rows, attention)
        return self._outputs.choose(logits)

    def _forward(self, token_ids: Tensor, logit_rows: Tensor, attention: Attention) -> Tensor:
        """All pieces over tensors on the device: logits [rows, vocab] float32."""
        embeds = torch.nn.functional.embedding(token_ids, self._embedding)
        if self._scale is not None:
            embeds *= self._scale
        observer = self._observer
        if observer is not None:
            observer.residual(-1, embeds)
        values = {"inputs_embeds": embeds}
        pieces = self._functions.pieces
        last = len(pieces) - 1
        rows = self._functions.rows_for(len(token_ids))
        for index, piece in enumerate(pieces):
            inputs = [values[name] for name in piece.inputs]
            outputs = self._functions.get(index, rows)(*inputs, *self._given[index])
            values |= zip(piece.outputs, outputs, strict=True)
            if index == last:
                break
            out = torch.empty_like(values["q"], memory_format=torch.contiguous_format)
            if observer is not None and index:
                observer.residual(index - 1, values[piece.hands_on["carried_0"]])
            attention.run(index, values["q"], values["k"], values["v"], out)
            values = {name: values[source] for name, source in piece.hands_on.items()}
            values[ATTENTION] = out
            values["logit_rows"] = logit_rows
        if observer is not None:
            observer.residual(last - 1, values[pieces[-1].outputs[-1]])
        return values["logits"]


class _FirstRows:
    """Hands the rows of a step over, and not those that it was padded with."""

    def __init__(self, attention: Attention, rows: int) -> None:
        self._attention, self._rows = attention, rows

    def run(self, layer: int, q: Tensor, k: Tensor, v: Tensor, out: Tensor) -> None:
        """See `Attention.run`."""
        q, k, v, given = (tensor[: self._rows] for tensor in (q, k, v, out))
        self._attention.run(layer, q, k, v, given)
        out[self._rows :] = 0
