"""What was found on a machine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Gpu:
    """One NVIDIA GPU, as its driver tells."""

    name: str
    compute_capability: str
    """Such as "8.9"."""
    memory_mib: int


@dataclass(frozen=True, slots=True)
class Package:
    """A package that Cleave may use."""

    version: str | None
    """None where it is not installed."""
    error: str | None = None
    """Why it cannot be imported; None where it can, or was not tried."""

    @property
    def is_usable(self) -> bool:
        """Installed, and nothing known against it."""
        return self.version is not None and self.error is None


@dataclass(frozen=True, slots=True)
class Cache:
    """The engine cache."""

    folder: str
    is_writable: bool
    entries: int
    size: int
    """Bytes of all entries."""
    error: str | None = None


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything that a verdict depends on, and what a reader of a report wants to know."""

    cleave: str
    python: str
    system: str
    cpu: str
    cores: int
    memory: int
    """Bytes of main memory."""
    packages: Mapping[str, Package]
    """Name of a distribution -> what was found."""
    missing: Mapping[str, tuple[str, ...]]
    """Extra of Cleave -> its distributions that are not installed."""
    cache: Cache
    best_engine: str = "onnxruntime"
    """The engine kind that is taken where none is asked for, for an artifact that is not quantised."""
    arithmetic: str = ""
    """What matrix products on the CPU are computed with; empty where that is not known."""
    huge_pages: bool = False
    """Whether Linux gives large weights huge pages."""
    driver: str | None = None
    """Version of the NVIDIA driver; None where there is none."""
    driver_error: str | None = None
    """Why no driver was found."""
    cuda: str | None = None
    """The newest CUDA that the driver runs."""
    torch_cuda: str | None = None
    """The CUDA that torch was built with; None: none."""
    torch_sees_gpu: bool = False
    gpus: tuple[Gpu, ...] = ()
    rtx_capabilities: tuple[str, ...] = ()
    """Compute capabilities that the installed TensorRT for RTX builds for."""
    environment: Mapping[str, str] = field(default_factory=dict)
    """Variables that change what Cleave or CUDA does."""

    def package(self, name: str) -> Package:
        """What was found of a distribution."""
        return self.packages.get(name, Package(None))
