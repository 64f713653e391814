"""Memory and streams of TensorRT as torch sees them."""

from __future__ import annotations

import contextlib
from typing import Any, Protocol

_TYPES = {"float32": "<f4", "float16": "<f2", "bfloat16": "<i2"}
"""dtype -> what the array interface calls it. It knows no bfloat16: 16 bits are taken, and seen as one."""


class Memory(Protocol):
    """What a plugin does with addresses. Nothing here may allocate, copy or wait: streams are captured."""

    def tensor(self, address: int, shape: tuple[int, int], dtype: str) -> Any:
        """A row-major torch tensor over memory that is TensorRT's."""

    def on_stream(self, handle: int) -> contextlib.AbstractContextManager[Any]:
        """Let torch work on a CUDA stream that is TensorRT's."""

    def clear(self, address: int, size: int, stream: int) -> None:
        """Set bytes to zero, in order with what is on the stream."""


class CudaMemory:
    """Device memory of the current GPU. torch and cuda.bindings are imported when first needed."""

    def tensor(self, address: int, shape: tuple[int, int], dtype: str) -> Any:
        """See `Memory.tensor`."""
        import torch

        tensor = torch.as_tensor(_Array(address, shape, _TYPES[dtype]), device="cuda")
        if tensor.data_ptr() != address:
            raise RuntimeError("the engine is on another GPU than the current one of torch")
        return tensor.view(torch.bfloat16) if dtype == "bfloat16" else tensor

    def on_stream(self, handle: int) -> contextlib.AbstractContextManager[Any]:
        """See `Memory.on_stream`."""
        import torch

        if torch.cuda.current_stream().cuda_stream == handle:
            return contextlib.nullcontext()
        return torch.cuda.stream(torch.cuda.ExternalStream(handle))  # type: ignore[no-untyped-call]

    def clear(self, address: int, size: int, stream: int) -> None:
        """See `Memory.clear`. Raises RuntimeError with CUDA's name of the error."""
        from cuda.bindings import runtime

        (status,) = runtime.cudaMemsetAsync(address, 0, size, stream)
        if status != runtime.cudaError_t.cudaSuccess:
            raise RuntimeError(f"cudaMemsetAsync of {size} bytes failed: {status.name}")


class _Array:
    """An address with the CUDA array interface, version 3.

    https://numba.readthedocs.io/en/stable/cuda/cuda_array_interface.html
    """

    def __init__(self, address: int, shape: tuple[int, int], kind: str) -> None:
        # No stream: the work is enqueued on TensorRT's own, so nothing has to wait for another.
        self.__cuda_array_interface__ = {
            "shape": shape,
            "typestr": kind,
            "data": (address, False),
            "version": 3,
            "strides": None,
        }
