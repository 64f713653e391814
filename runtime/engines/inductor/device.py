"""Which device the engine runs on, and whether it can."""

from __future__ import annotations

import importlib.util
import os
import platform

import torch

from cleave.errors import EngineError, MissingPackage
from cleave.runtime.engines.cuda import check_is_current

CAPABILITY = (8, 0)
"""The least compute capability: Ampere, the first one with bfloat16."""


def check_device(name: str | None, dtype: str) -> torch.device:
    """The device called `name`, "cuda", "cuda:0" or "cpu"; None is the current GPU.

    Raises EngineError where there is no such GPU, or it is not the current one, or cannot compute in
    `dtype`, MissingPackage where Triton, which the GPU's kernels are written in, is not installed.
    """
    try:
        device = torch.device(name or "cuda")
    except RuntimeError:
        raise EngineError(f"there is no device {name!r}; give cuda or cpu") from None
    if device.type == "cpu":
        return device
    if device.type != "cuda":
        raise EngineError(f"the engine inductor runs on NVIDIA GPUs, and on the CPU; not on {name!r}")
    if torch.version.cuda is None:
        raise EngineError(
            f"torch {torch.__version__} was built without CUDA; install a CUDA build of torch, "
            "or take engine onnxruntime, or give device cpu (slow, for tests)"
        )
    if not torch.cuda.is_available():
        raise EngineError(f"torch sees no NVIDIA GPU{_why_none()}; take engine onnxruntime on the CPU")
    if device.index is not None and device.index >= torch.cuda.device_count():
        raise EngineError(f"there is no {name}; torch sees {torch.cuda.device_count()} GPUs, from cuda:0 on")
    current = torch.cuda.current_device()
    check_is_current(current if device.index is None else device.index, current)
    device = torch.device("cuda", current)
    capability = torch.cuda.get_device_capability(device)
    if capability < CAPABILITY:
        raise EngineError(
            f"{torch.cuda.get_device_name(device)} has compute capability {capability[0]}.{capability[1]}; "
            f"the engine inductor needs {CAPABILITY[0]}.{CAPABILITY[1]} for {dtype}: take engine onnxruntime"
        )
    if importlib.util.find_spec("triton") is None:
        raise MissingPackage("triton", "gpu", "the engine inductor")
    return device


def check_deterministic(device: torch.device, dtype: str) -> None:
    """Raises EngineError where rows cannot be given the same bits in every batch."""
    if device.type != "cuda":
        raise EngineError(
            "the engine inductor is deterministic on a GPU only; on the CPU take engine onnxruntime, "
            "which always is, or leave deterministic away"
        )
    if dtype == "float32":
        raise EngineError(
            "the engine inductor is deterministic in float16 and bfloat16, and the artifact is float32; "
            "export it in one of them, or leave deterministic away"
        )


def _why_none() -> str:
    """What torch itself says of the driver, or that the GPUs are hidden."""
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if hidden is not None and hidden.strip() in ("", "-1"):
        return f" (CUDA_VISIBLE_DEVICES is {hidden!r})"
    try:
        torch.cuda.init()  # type: ignore[no-untyped-call]
    except (RuntimeError, AssertionError) as error:
        return f" ({' '.join(str(error).split())[:200]})"
    return f" on this {platform.system()}"
