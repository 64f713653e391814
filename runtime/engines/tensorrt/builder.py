"""What TensorRT builds ahead of time, for the engine cache."""

from __future__ import annotations

import hashlib
from pathlib import Path

import torch
from rich.table import Table

from cleave.errors import EngineError
from cleave.export.artifact import Artifact
from cleave.plugins.tensorrt.fields import FORMAT
from cleave.runtime.engine_cache.directory import cache_directory
from cleave.runtime.engine_cache.key import EngineKey
from cleave.runtime.engines.builder import BuildProgress
from cleave.runtime.engines.engine import EngineOptions
from cleave.runtime.engines.tensorrt import library
from cleave.runtime.engines.tensorrt.build import build
from cleave.runtime.engines.tensorrt.timing import TimingCache
from cleave.runtime.engines.tensorrt_rtx.device import check_device, compute_capability
from cleave.runtime.engines.tensorrt_rtx.plan import EngineDescription
from cleave.runtime.engines.tensorrt_rtx.profiles import Profiles
from cleave.runtime.engines.tensorrt_rtx.table import table

_GROWS = ("max_tokens", "max_sequences")


class TensorRtBuilder:
    """See `cleave.runtime.engines.builder.EngineBuilder`. The weights are in the plan."""

    is_optional = False

    def __init__(self, artifact: Artifact, options: EngineOptions) -> None:
        """Look at the GPU here. Raises EngineError where there is none, or where another one is asked for."""
        self._trt = library.load()
        device = check_device(options.device, "tensorrt")
        self._capability = compute_capability(device)
        if options.compute_capability not in (None, self._capability):
            raise EngineError(
                "TensorRT builds for the GPU that it builds on, which has compute capability "
                f"{self._capability}; leave compute_capability away, and build on the other machine"
            )
        self._artifact = artifact
        most = options.max_tokens
        self._profiles = Profiles(min(options.max_sequences, most), most, prefill_rows=most)
        name = _device_name(device)
        self._timing = TimingCache(cache_directory(), str(self._trt.__version__), name)
        manifest = artifact.manifest
        graph = artifact.batchful_graph().SerializeToString(deterministic=True)
        self.key = EngineKey(
            {
                "graph": hashlib.sha256(graph).hexdigest(),
                "weights": manifest.files["weights.safetensors"].sha256,
                "kind": "tensorrt",
                "kind_version": str(self._trt.__version__),
                "plugin_version": FORMAT,
                "device": name,
                "compute_capability": self._capability,
                "dtype": manifest.dtype,
                "max_tokens": self._profiles.max_tokens,
                "max_sequences": self._profiles.max_sequences,
                "flags": ("strongly typed", "no TF32"),
            }
        )

    def serves(self, key: EngineKey) -> bool:
        """A plan for larger steps does as well."""
        mine, other = self.key.fields, key.fields
        if any(mine[name] != other.get(name) for name in mine if name not in _GROWS):
            return False
        pairs = [(mine[name], other.get(name)) for name in _GROWS]
        return all(isinstance(a, int) and isinstance(b, int) and a <= b for a, b in pairs)

    def build(self, folder: Path, progress: BuildProgress | None) -> None:
        """See `EngineBuilder.build`."""
        build(
            self._trt,
            self._artifact,
            self._profiles,
            self._capability,
            folder,
            self._timing,
            progress=progress,
        )

    def table(self, folder: Path) -> Table:
        """See `EngineBuilder.table`."""
        drawn = table(EngineDescription.read(folder))
        drawn.title = f"TensorRT {self._trt.__version__}"
        return drawn


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device)
