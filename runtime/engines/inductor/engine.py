"""The engine kind `inductor`: the pieces compiled by Inductor, run between calls of the attention server."""

from __future__ import annotations

import logging
from collections.abc import Hashable, Iterator
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
from cleave.runtime.engines.inductor.first_rows import FirstRows
from cleave.runtime.engines.inductor.functions import Functions
from cleave.runtime.engines.inductor.graphs import DecodeGraphs, GraphPool, batch_sizes
from cleave.runtime.engines.inductor.inputs import StepInputs, StepNumbers, check_rows
from cleave.runtime.engines.inductor.layer_graphs import Cut, LayerGraphs, Values, layer_sizes, run_layers
from cleave.runtime.engines.inductor.outputs import HostLogits, StepOutputs, first_rows
from cleave.runtime.engines.inductor.weights import DeviceWeights
from cleave.runtime.engines.no_attention import NoAttention
from cleave.runtime.engines.release import release

_log = logging.getLogger("cleave")
Tensor = torch.Tensor
_Array = npt.NDArray[Any]


class InductorEngine:
    """See `cleave.runtime.engines.engine.DeviceEngine`.

    Pieces of the same structure are compiled once, with weights as inputs, so the time that takes does
    not grow with the number of layers. On a GPU a step whose attention server offers a `graph_key` is
    padded to one of `batch_sizes` and replayed as one CUDA graph. Of others each piece but the last is a
    graph where they have few rows; those of many rows, and all that are observed, are launched kernel by
    kernel.
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
        self._graphs: DecodeGraphs | None = None
        self._layer_graphs: LayerGraphs | None = None
        if is_gpu:
            pool = GraphPool(device)
            self._graphs = DecodeGraphs(sizes, device, pool)
            self._layer_graphs = LayerGraphs(layer_sizes(options.max_tokens), pool)
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
                compiled_for = self._functions.band_for(size)
                output = self._graphs.run(size, key, lambda: self._step(given, attention, compiled_for))
                return first_rows(output, len(logit_rows))
        layers = self._layer_graphs if self._observer is None else None
        size = None if layers is None else layers.size_for(tokens)
        padded = size or max(tokens, self._functions.least_rows)
        compiled_for = self._functions.rows_for(padded)
        rows = compiled_for or max(2, len(logit_rows))
        given = self._inputs.send(token_ids, logit_rows, padded, rows, sampled)
        if padded > tokens and not getattr(attention, "takes_padding", False):
            attention = FirstRows(attention, tokens)
        if layers is not None and size is not None:
            output = self._last(layers.run(size, attention), given.logit_rows, compiled_for)
        else:
            output = self._step(given, attention, compiled_for)
            if layers is not None and not layers.is_captured:
                self._capture(layers)
        return first_rows(output, len(logit_rows))

    def free_memory(self) -> int | None:
        """See `DeviceEngine.free_memory`: runs the largest step over an attention that does nothing."""
        if self._torch_device.type != "cuda":
            return None
        tokens, rows = self._options.max_tokens, self._options.logit_rows
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
        for graphs in (self._graphs, self._layer_graphs):
            if graphs is not None:
                graphs.clear()
        self._given.clear()
        self._weights.clear()
        release(self, "_embedding", "_scale", "_inputs", "_outputs", "_host_logits")

    def _capture(self, layers: LayerGraphs) -> None:
        """Capture the pieces of steps of few rows, after a step that was launched kernel by kernel."""
        try:
            for size in reversed(layers.sizes):
                given = self._inputs.send(np.zeros(size, np.int64), np.arange(2), size, 2)
                compiled_for = self._functions.band_for(size)
                # For real first: the library's products have other kernels for other numbers of rows.
                run_layers(self._layers(given, {}, compiled_for), NoAttention())
                values: Values = {}
                captured = self._layers(given, values, compiled_for)
                layers.capture(size, captured, len(self._given) - 1, values)
        except torch.OutOfMemoryError:
            # They spare the host time, and no step needs them.
            _log.warning("%s has no room for graphs of small prefill steps; they are launched", self.device)
            layers.clear()
            self._layer_graphs = None

    def _step(self, given: StepNumbers, attention: Attention, compiled_for: int | None) -> DeviceOutput:
        """The whole of a step, by the functions that `rows_for` or `band_for` names."""
        values: Values = {}
        run_layers(self._layers(given, values, compiled_for), attention)
        return self._last(values, given.logit_rows, compiled_for)

    def _layers(self, given: StepNumbers, values: Values, compiled_for: int | None) -> Iterator[Cut]:
        """Launches every piece but the last. Waits behind each until attention has been launched; leaves in
        `values` what the last one takes.
        """
        embeds = torch.nn.functional.embedding(given.token_ids(), self._embedding)
        if self._scale is not None:
            embeds *= self._scale
        observer = self._observer
        if observer is not None:
            observer.residual(-1, embeds)
        values["inputs_embeds"] = embeds
        for index, piece in enumerate(self._functions.pieces[:-1]):
            inputs = [values[name] for name in piece.inputs]
            outputs = self._functions.get(index, compiled_for)(*inputs, *self._given[index])
            values |= zip(piece.outputs, outputs, strict=True)
            out = torch.empty_like(values["q"], memory_format=torch.contiguous_format)
            if observer is not None and index:
                observer.residual(index - 1, values[piece.hands_on["carried_0"]])
            yield index, values["q"], values["k"], values["v"], out
            handed_on = {name: values[source] for name, source in piece.hands_on.items()}
            values.clear()
            values |= handed_on | {ATTENTION: out}

    def _last(self, values: Values, logit_rows: Tensor, compiled_for: int | None) -> DeviceOutput:
        """The piece behind the last layer, and the likeliest tokens."""
        piece = self._functions.pieces[-1]
        last = len(self._given) - 1
        given = values | {"logit_rows": logit_rows}
        inputs = [given[name] for name in piece.inputs]
        outputs = self._functions.get(last, compiled_for)(*inputs, *self._given[last])
        if self._observer is not None:
            self._observer.residual(last - 1, outputs[-1])
        return self._outputs.choose(outputs[0])
