"""The GPU that the engine runs on."""

from __future__ import annotations

import torch

from cleave.errors import EngineError
from cleave.runtime.engines.cuda import check_is_current


def check_device(name: str | None, kind: str = "tensorrt_rtx") -> torch.device:
    """The GPU called `name`, "cuda" or "cuda:0"; None is the current one.

    Raises EngineError where there is none, or it is not the current one. Plans can be built without a
    GPU, but not run.
    """
    try:
        device = torch.device(name or "cuda")
    except RuntimeError:
        raise EngineError(f"there is no device {name!r}; give cuda") from None
    if device.type != "cuda":
        raise EngineError(f"the engine {kind} runs on NVIDIA GPUs, and not on {name!r}")
    if not torch.cuda.is_available():
        others = " or build for another machine with --compute_capability 8.9"
        raise EngineError(
            f"torch {torch.__version__} sees no NVIDIA GPU, which the engine {kind} runs on; "
            f"take engine onnxruntime here{',' + others if kind == 'tensorrt_rtx' else ''}"
        )
    current = torch.cuda.current_device()
    index = current if device.index is None else device.index
    if index >= torch.cuda.device_count():
        raise EngineError(f"there is no {name}; torch sees {torch.cuda.device_count()} GPUs, from cuda:0 on")
    check_is_current(index, current)
    return torch.device("cuda", index)


def compute_capability(device: torch.device) -> str:
    """Such as "8.9"."""
    major, minor = torch.cuda.get_device_capability(device)
    return f"{major}.{minor}"
