"""The kinds of engines: where each is found, what it needs, and what it can promise."""

from __future__ import annotations

import importlib
import importlib.util
from dataclasses import dataclass
from typing import Any

from cleave.errors import EngineError, MissingPackage
from cleave.export.artifact import Artifact


@dataclass(frozen=True, slots=True)
class EngineKind:
    """One kind. Factory and builder are called with (Artifact, EngineOptions)."""

    name: str
    factory: str
    """Module and class, with a colon."""
    package: str
    extra: str
    builder: str | None = None
    """Module and class of the EngineBuilder; None where nothing is built ahead of time."""
    devices: tuple[str, ...] = ("cuda",)
    """Where it computes, by the names of torch."""
    runs_quantized: bool = False
    can_be_deterministic: bool = False
    """It keeps what `EngineOptions.deterministic` promises where it is asked to, or does always."""

    def load(self, place: str) -> Any:
        """The class at "module:name". Raises MissingPackage where the kind's package is not installed."""
        if not _installed(self.package):
            raise MissingPackage(self.package, self.extra, f"the engine {self.name}")
        module, _, name = place.partition(":")
        return getattr(importlib.import_module(module), name)

    def check(self, artifact: Artifact, *, device: str | None, deterministic: bool) -> None:
        """Raises EngineError for a device, an option or an artifact that this kind cannot run."""
        self.check_device(device)
        self._check_deterministic(deterministic)
        self._check_quantization(artifact)

    def check_device(self, name: str | None) -> None:
        """Raises EngineError for a device that it does not compute on; None, its own choice, is allowed."""
        if name is None or name.partition(":")[0] in self.devices:
            return
        able = " or ".join(kind.name for kind in KINDS.values() if name.partition(":")[0] in kind.devices)
        if not able:
            known = dict.fromkeys(device for kind in KINDS.values() for device in kind.devices)
            raise EngineError(f"device is {name!r}; give {' or '.join(known)}, or leave it away")
        raise EngineError(
            f"the engine {self.name} computes on {' and '.join(self.devices)}, and not on {name!r}; "
            f"leave device away, or take engine {able}"
        )

    def _check_deterministic(self, is_asked_for: bool) -> None:
        """Raises EngineError where it is asked for and cannot be promised."""
        if is_asked_for and not self.can_be_deterministic:
            able = " or ".join(name for name, kind in KINDS.items() if kind.can_be_deterministic)
            raise EngineError(
                f"the engine {self.name} picks its kernels by the size of a step, so it cannot be "
                f"deterministic; take engine {able}, or leave deterministic away"
            )

    def _check_quantization(self, artifact: Artifact) -> None:
        """Raises EngineError for a quantised artifact that this kind cannot run."""
        quantization = artifact.manifest.quantization
        if quantization is not None and not self.runs_quantized:
            able = ", ".join(name for name, kind in KINDS.items() if kind.runs_quantized)
            raise EngineError(
                f"{artifact.folder} is quantised ({quantization.method}), and the engine {self.name} "
                f"computes in floats; use --engine {able}, or export without --quantize"
            )


_ALL = (
    EngineKind(
        "onnxruntime",
        "cleave.runtime.engines.onnxruntime:OnnxRuntimeEngine",
        "onnxruntime",
        "cpu",
        builder="cleave.runtime.engines.onnxruntime_builder:OnnxRuntimeBuilder",
        devices=("cpu",),
        runs_quantized=True,
        can_be_deterministic=True,
    ),
    EngineKind(
        "inductor",
        "cleave.runtime.engines.inductor.engine:InductorEngine",
        "torch",
        "gpu",
        builder="cleave.runtime.engines.inductor.builder:InductorBuilder",
        devices=("cpu", "cuda"),
        can_be_deterministic=True,
    ),
    EngineKind(
        "tensorrt_rtx",
        "cleave.runtime.engines.tensorrt_rtx.engine:TensorRtRtxEngine",
        "tensorrt_rtx_bindings",
        "rtx",
        builder="cleave.runtime.engines.tensorrt_rtx.builder:TensorRtRtxBuilder",
    ),
    EngineKind(
        "tensorrt",
        "cleave.runtime.engines.tensorrt.engine:TensorRtEngine",
        "tensorrt",
        "tensorrt",
        builder="cleave.runtime.engines.tensorrt.builder:TensorRtBuilder",
    ),
)
KINDS = {kind.name: kind for kind in _ALL}


def engine_kinds() -> tuple[str, ...]:
    """The names of all kinds."""
    return tuple(KINDS)


def engine_kind(name: str) -> EngineKind:
    """A kind by its name. Raises EngineError for one that is not there."""
    check_engine_kind(name)
    return KINDS[name]


def check_engine_kind(name: str | None) -> None:
    """Raises EngineError for a kind that is not there; None, the best one, is allowed."""
    if name is not None and name not in KINDS:
        raise EngineError(f"there is no engine kind {name!r}; kinds are: {', '.join(KINDS)}")


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None
