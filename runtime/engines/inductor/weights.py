"""The weights of a model in device memory, copied there once."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from cleave.errors import EngineError
from cleave.export.artifact import Artifact
from cleave.kvcache.budget import mib

Tensor = torch.Tensor
_BLOCK = 64 << 20
_RAW = {2: np.int16, 4: np.int32}


class DeviceWeights:
    """Weights by the names of the tensors they are made of. A tensor that is asked for twice is shared."""

    def __init__(self, artifact: Artifact, dtype: torch.dtype, device: torch.device) -> None:
        self._artifact = artifact
        self._dtype = dtype
        self._device = device
        self._loaded: dict[tuple[str, ...], Tensor] = {}
        self._copy: Callable[[Tensor, npt.NDArray[Any]], None]
        self._copy = _Staging(device) if device.type == "cuda" else _plain_copy

    @property
    def nbytes(self) -> int:
        """Bytes of device memory that the weights take."""
        return sum(tensor.nbytes for tensor in self._loaded.values())

    def get(self, names: tuple[str, ...]) -> Tensor:
        """The tensors of weights.safetensors called `names`, one below the other, in one tensor.

        Raises ArtifactError for a name that is not there, EngineError where the device is full.
        """
        if names not in self._loaded:
            self._loaded[names] = self._load([self._artifact.weight(name) for name in names])
        return self._loaded[names]

    def clear(self) -> None:
        """Give the memory back, once nobody else holds the tensors; nothing is loaded afterwards."""
        self._loaded.clear()
        self._copy = _plain_copy

    def _load(self, parts: Sequence[npt.NDArray[Any]]) -> Tensor:
        rows = sum(len(part) for part in parts)
        try:
            whole = torch.empty((rows, *parts[0].shape[1:]), dtype=self._dtype, device=self._device)
        except torch.OutOfMemoryError:
            raise EngineError(
                f"{self._device} is full after {mib(self.nbytes)} of weights; take a GPU with more memory, "
                "export in a narrower dtype, or free what other processes hold"
            ) from None
        start = 0
        for part in parts:
            self._copy(whole[start : start + len(part)], part)
            start += len(part)
        return whole


def _plain_copy(target: Tensor, source: npt.NDArray[Any]) -> None:
    target.copy_(as_tensor(source))


def as_tensor(array: npt.NDArray[Any]) -> Tensor:
    """A mapped array as a tensor over the same memory; numpy has no bfloat16 that torch knows."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that the memory is read-only: nothing is written there
        raw = torch.from_numpy(np.asarray(array).view(_RAW[array.itemsize]))
    return raw.view(getattr(torch, array.dtype.name))


class _Staging:
    """Copies to a GPU through two pinned buffers: one is filled from disk while the other one travels."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._buffers = [torch.empty(_BLOCK, dtype=torch.uint8, pin_memory=True) for _ in range(2)]
        self._arrived = [torch.cuda.Event() for _ in self._buffers]  # type: ignore[no-untyped-call]
        self._next = 0

    def __call__(self, target: Tensor, source: npt.NDArray[Any]) -> None:
        given = as_tensor(source)
        if given.dtype != target.dtype:
            target.copy_(given)
            return
        from_bytes, to_bytes = (tensor.reshape(-1).view(torch.uint8) for tensor in (given, target))
        for start in range(0, len(from_bytes), _BLOCK):
            block = from_bytes[start : start + _BLOCK]
            staged = self._buffers[self._next][: len(block)]
            self._arrived[self._next].synchronize()
            staged.copy_(block)
            to_bytes[start : start + _BLOCK].copy_(staged, non_blocking=True)
            self._arrived[self._next].record(torch.cuda.current_stream(self._device))
            self._next = 1 - self._next
