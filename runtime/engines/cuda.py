"""Whether an NVIDIA GPU can be used, asked of the driver itself: cheap, and without importing torch."""

from __future__ import annotations

import ctypes
import importlib.util
import os
from pathlib import Path

from cleave.errors import EngineError

_COMPUTE_CAPABILITY_MAJOR = 75
"""CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR of the CUDA driver API."""
_LEAST_MAJOR = 8


def cuda_is_usable() -> bool:
    """Whether a driver, a GPU of compute capability 8.0 or more and a torch with CUDA are all there.

    Makes no CUDA context. On a machine without a driver it costs the failed opening of a library.
    """
    return _driver_has_a_gpu() and _torch_has_cuda()


def check_is_current(index: int, current: int) -> None:
    """Raises EngineError for a GPU that is not the current one.

    Kernels and events go to the current one, whichever tensors they are given; see `make_current`.
    """
    if index != current:
        raise EngineError(
            f"cuda:{index} is not the current GPU, cuda:{current}, which engines compute on; "
            f"start the process with CUDA_VISIBLE_DEVICES={index}, and leave the device away, or call "
            f"torch.cuda.set_device({index}) before"
        )


def make_current(device: str) -> None:
    """Make an engine's device the current one of this thread, "cuda:1" say; nothing where it is "cpu".

    Every thread has a current GPU of its own, cuda:0 at first, so each one that runs steps has to.
    """
    if device.startswith("cuda"):
        import torch  # the engine has brought it

        torch.cuda.set_device(device)


def _driver_has_a_gpu() -> bool:
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1"):
        return False
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    device, major = ctypes.c_int(), ctypes.c_int()
    return (
        driver.cuInit(0) == 0
        and driver.cuDeviceGet(ctypes.byref(device), 0) == 0
        and driver.cuDeviceGetAttribute(ctypes.byref(major), _COMPUTE_CAPABILITY_MAJOR, device) == 0
        and major.value >= _LEAST_MAJOR
    )


def _torch_has_cuda() -> bool:
    try:
        found = importlib.util.find_spec("torch")
    except ImportError:
        return False
    folders = found.submodule_search_locations if found else None
    return any((Path(folder) / "lib" / "libtorch_cuda.so").exists() for folder in folders or ())
