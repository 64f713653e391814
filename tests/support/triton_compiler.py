"""Triton's compiler without a GPU: kernels are compiled for Hopper for real, and cannot be launched.

For processes that are started without Triton's interpreter.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget


class _Driver:
    """What the compiler asks of a driver."""

    def get_current_target(self) -> GPUTarget:
        return GPUTarget("cuda", 90, 32)

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0


class Compilations:
    """Kernels by name, as Triton compiles them, or finds them in its cache."""

    def __init__(self) -> None:
        self.compiled: Counter[str] = Counter()
        self.found: Counter[str] = Counter()

    def __call__(self, *, src: Any, cache_hit: bool, **told: Any) -> None:
        (self.found if cache_hit else self.compiled)[src.fn.fn.__name__] += 1


def pretend_hopper() -> Compilations:
    """Let Triton compile for compute capability 9.0, and torch say that this is the current GPU."""
    triton.runtime.driver.set_active(_Driver())
    torch.cuda.is_available = lambda: True
    torch.cuda.get_device_capability = lambda device=None: (9, 0)
    torch.cuda.get_device_name = lambda device=None: "Hopper"
    seen = Compilations()
    triton.knobs.compilation.listener = seen
    return seen
