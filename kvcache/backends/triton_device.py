"""The device that the attention backends for GPUs run on, and what it has."""

from __future__ import annotations

import os

import torch
import triton

from cleave.errors import AttentionError

_OLDEST = (8, 0)
_INTERPRETED = (4, 1 << 18)
"""The interpreter's multiprocessors: few, so that a test's histories are split as long ones are."""


def usable(name: str, backend: str = "triton") -> torch.device:
    """The device. Raises AttentionError where the kernels of `backend` cannot run on it."""
    device = torch.device(name)
    if device.type == "cpu":
        if os.environ.get("TRITON_INTERPRET") != "1":
            raise AttentionError(
                f"the {backend} attention backend runs on the CPU only in Triton's interpreter, for tests: "
                "set TRITON_INTERPRET=1 before the start"
            )
        return device
    if device.type != "cuda" or not torch.cuda.is_available():
        raise AttentionError(
            f"the {backend} attention backend needs an NVIDIA GPU, and torch finds none for device {name!r}; "
            'take attention="cpu", or see that the driver and a CUDA build of torch are installed'
        )
    capability = torch.cuda.get_device_capability(device)
    if capability < _OLDEST:
        raise AttentionError(
            f"{torch.cuda.get_device_name(device)} has compute capability {capability[0]}.{capability[1]}; "
            f"the {backend} attention backend needs {_OLDEST[0]}.{_OLDEST[1]} or higher"
        )
    return device


def resources(device: torch.device) -> tuple[int, int]:
    """Multiprocessors, and the bytes of shared memory that a program can have on each."""
    if device.type == "cpu":
        return _INTERPRETED
    index = torch.cuda.current_device() if device.index is None else device.index
    properties = triton.runtime.driver.active.utils.get_device_properties(index)
    return int(properties["multiprocessor_count"]), int(properties["max_shared_mem"])
