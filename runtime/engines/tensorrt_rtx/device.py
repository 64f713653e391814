"""The GPU that the engine runs on."""

from __future__ import annotations

import torch

from cleave.errors import EngineError


def check_device(name: str | None) -> torch.device:
    """The GPU called `name`, such as "cuda:1"; None is the first one.

    Raises EngineError where there is none: plans can be built without a GPU, but not run.
    """
    try:
        device = torch.device(name or "cuda")
    except RuntimeError:
        raise EngineError(f"there is no device {name!r}; give cuda or cuda:1") from None
    if device.type != "cuda":
        raise EngineError(f"the engine tensorrt_rtx runs on NVIDIA RTX cards, and not on {name!r}")
    if not torch.cuda.is_available():
        raise EngineError(
            f"torch {torch.__version__} sees no NVIDIA GPU, which the engine tensorrt_rtx runs on; "
            "take engine onnxruntime here, or build for another machine with --compute_capability 8.9"
        )
    index = torch.cuda.current_device() if device.index is None else device.index
    if index >= torch.cuda.device_count():
        raise EngineError(f"there is no {name}; torch sees {torch.cuda.device_count()} GPUs, from cuda:0 on")
    return torch.device("cuda", index)


def compute_capability(device: torch.device) -> str:
    """Such as "8.9"."""
    major, minor = torch.cuda.get_device_capability(device)
    return f"{major}.{minor}"
