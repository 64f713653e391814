"""The engine kind `tensorrt`: one plan, whose plugins call the attention server."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any

import torch

from cleave.errors import EngineError
from cleave.export.artifact import Artifact
from cleave.plugins.tensorrt.creator import register
from cleave.plugins.tensorrt.host import Host, bound
from cleave.runtime.engines.engine import Attention, DeviceOutput, EngineOptions, Observer
from cleave.runtime.engines.inductor.graphs import DecodeGraphs
from cleave.runtime.engines.inductor.weights import DeviceWeights
from cleave.runtime.engines.release import release
from cleave.runtime.engines.tensorrt import library
from cleave.runtime.engines.tensorrt.builder import TensorRtBuilder
from cleave.runtime.engines.tensorrt_rtx.device import check_device, compute_capability
from cleave.runtime.engines.tensorrt_rtx.execution import Plan
from cleave.runtime.engines.tensorrt_rtx.library import make_logger
from cleave.runtime.engines.tensorrt_rtx.plan import EngineDescription
from cleave.runtime.engines.tensorrt_rtx.steps import ProfiledSteps

Tensor = torch.Tensor


class TensorRtEngine(ProfiledSteps):
    """See `cleave.runtime.engines.engine.DeviceEngine`."""

    kind = "tensorrt"

    def __init__(self, artifact: Artifact, options: EngineOptions) -> None:
        """Load plan and embedding; without `options.cache` the plan is built first.

        Raises EngineError for a GPU, driver or plan that does not fit, MissingPackage.
        """
        manifest = artifact.manifest
        device = check_device(options.device, self.kind)
        trt = library.load()
        self._creator = register(trt)
        self.device, self.dtype = str(device), manifest.dtype
        self.notes: tuple[str, ...] = ()
        logger = make_logger(trt)
        self._runtime = trt.Runtime(logger)
        self._host = Host()
        with tempfile.TemporaryDirectory(prefix="cleave-engine-") as made:
            folder = options.cache or Path(made)
            if options.cache is None:
                TensorRtBuilder(artifact, options).build(folder, None)
            described = EngineDescription.read(folder)
            described.check_fits(options, compute_capability(device))
            (whole,) = described.pieces
            on_device = torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
            with on_device, bound(self._host), self._host.serving(None):
                self._plan = _WholePlan(trt, logger, self._runtime, folder / whole.file, whole)
        super().__init__(described.profiles, manifest.vocab_size, device)
        kind = getattr(torch, self.dtype)
        self._embedding = DeviceWeights(artifact, kind, device).get((manifest.embedding,))
        most, hidden = self._profiles.max_tokens, manifest.hidden_size
        self._embeds = torch.zeros(most, hidden, dtype=kind, device=device)
        self._rows = torch.zeros(most, dtype=torch.int64, device=device)
        self._logits = torch.zeros(most, manifest.vocab_size, dtype=torch.float32, device=device)
        scratch = max(256, self._plan.scratch_bytes)
        self._scratch = torch.empty(scratch, dtype=torch.uint8, device=device)
        self._scale = manifest.embedding_scale
        self._graphs = DecodeGraphs(self._profiles.buckets, device)

    def observe(self, observer: Observer | None) -> None:
        """See `Engine.observe`. Raises EngineError: the plan does not give its residuals."""
        if observer is not None:
            raise EngineError(
                "the plan of the engine tensorrt does not give residuals, so it cannot be observed; "
                "observe the engine onnxruntime or inductor"
            )

    def close(self) -> None:
        """See `Engine.close`."""
        if self._stream is not None:
            self._stream.synchronize()
        self._graphs.clear()
        self._plan.close()
        self._runtime = None
        release(self, "_embedding", "_embeds", "_rows", "_logits", "_scratch")
        self._release_steps()

    def _captured(self, number: int, key: Hashable, step: Callable[[], DeviceOutput]) -> DeviceOutput:
        return self._graphs.run(self._profiles.buckets[number], key, step)

    def _forward(self, number: int, token_ids: Tensor, logit_rows: Tensor, attention: Attention) -> Tensor:
        tokens, rows = len(token_ids), len(logit_rows)
        embeds = self._embeds[:tokens]
        torch.index_select(self._embedding, 0, token_ids, out=embeds)
        if self._scale != 1:
            embeds *= self._scale
        self._rows[:rows].copy_(logit_rows)
        tensors = {"inputs_embeds": embeds, "logit_rows": self._rows, "logits": self._logits}
        addresses = {name: tensor.data_ptr() for name, tensor in tensors.items()}
        shapes = {"inputs_embeds": tuple(embeds.shape), "logit_rows": (rows,)}
        with bound(self._host), self._host.serving(attention):
            self._context(number).run(shapes, addresses, self._handle)
        return self._logits[:rows]

    def _context(self, number: int) -> Any:
        scratch = self._scratch.data_ptr(), self._scratch.nbytes
        return self._plan.context(number, self._profiles, scratch, self._handle)


class _WholePlan(Plan):
    """The only plan of an engine; its contexts are those of TensorRT itself."""

    library_name = "TensorRT"

    def _configured(self, *, is_bucket: bool) -> Any:
        """What `create_execution_context` takes: scratch memory is given, so that a run allocates nothing."""
        return self._trt.ExecutionContextAllocationStrategy.USER_MANAGED
