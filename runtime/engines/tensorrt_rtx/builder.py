"""What TensorRT for RTX builds ahead of time, for the engine cache."""

from __future__ import annotations

from pathlib import Path

from rich.table import Table

from cleave.export.artifact import Artifact
from cleave.export.pieces import cut
from cleave.runtime.engine_cache.key import EngineKey
from cleave.runtime.engines.builder import BuildProgress, graph_digest
from cleave.runtime.engines.engine import EngineOptions
from cleave.runtime.engines.tensorrt_rtx import architecture
from cleave.runtime.engines.tensorrt_rtx.build import BuildRequest, build
from cleave.runtime.engines.tensorrt_rtx.library import load
from cleave.runtime.engines.tensorrt_rtx.plan import EngineDescription
from cleave.runtime.engines.tensorrt_rtx.profiles import Profiles
from cleave.runtime.engines.tensorrt_rtx.table import table

_GROWS = ("max_tokens", "max_sequences")


class TensorRtRtxBuilder:
    """See `cleave.runtime.engines.builder.EngineBuilder`.

    Weights are no part of the plans, and the middle plan serves any number of layers: the same plans
    serve every checkpoint of one shape.
    """

    is_optional = False

    def __init__(self, artifact: Artifact, options: EngineOptions) -> None:
        """Cut the artifact. Raises EngineError for GPUs that TensorRT for RTX does not build for."""
        trt = load()
        given = options.compute_capability
        if given is None:
            # Only here is a GPU asked for, and torch, which knows it.
            from cleave.runtime.engines.tensorrt_rtx.device import check_device, compute_capability

            given = compute_capability(check_device(options.device))
        capabilities = architecture.parse(given, trt)
        architecture.check_dtype(capabilities, artifact.manifest.dtype)
        profiles = Profiles(min(options.max_sequences, options.max_tokens), options.max_tokens)
        self._request = BuildRequest(capabilities, profiles)
        self._pieces = cut(artifact.batchful_graph())
        self.key = EngineKey(
            {
                "graph": graph_digest(self._pieces),
                "kind": "tensorrt_rtx",
                "kind_version": str(trt.__version__),
                "device": capabilities,
                "dtype": artifact.manifest.dtype,
                "max_tokens": profiles.max_tokens,
                "max_sequences": profiles.max_sequences,
                "flags": ("strongly typed", "no TF32", "user allocation"),
            }
        )

    def serves(self, key: EngineKey) -> bool:
        """Plans for more GPUs, or for larger steps, do as well."""
        mine, other = self.key.fields, key.fields
        if any(mine[name] != other.get(name) for name in mine if name not in ("device", *_GROWS)):
            return False
        device, sizes = other.get("device"), [other.get(name) for name in _GROWS]
        return (
            isinstance(device, tuple)
            and set(self._request.compute_capabilities) <= set(device)
            and all(
                isinstance(size, int) and size >= wanted
                for size, wanted in zip(sizes, (mine[name] for name in _GROWS), strict=True)
                if isinstance(wanted, int)
            )
        )

    def build(self, folder: Path, progress: BuildProgress | None) -> None:
        """See `EngineBuilder.build`. Needs neither a GPU nor CUDA."""
        build(self._pieces, self._request, folder, progress=progress)

    def table(self, folder: Path) -> Table:
        """See `EngineBuilder.table`."""
        return table(EngineDescription.read(folder))
