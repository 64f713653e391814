"""Which tensors with memory of their own are alive."""

from __future__ import annotations

import gc
import weakref

import torch


class NewTensors:
    """The tensors that were made since, as long as somebody holds them."""

    def __init__(self) -> None:
        self._before = {id(tensor) for tensor in _tensors()}
        self._made: list[weakref.ref[torch.Tensor]] = []

    def note(self) -> int:
        """Bytes of those that are alive now; they are the ones that `left` asks for."""
        made = [tensor for tensor in _tensors() if id(tensor) not in self._before]
        self._made = [weakref.ref(tensor) for tensor in made]
        return sum(
            {
                tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in made
            }.values()
        )

    def left(self) -> list[tuple[int, ...]]:
        """The shapes of those that somebody still holds."""
        gc.collect()
        return [tuple(tensor.shape) for one in self._made if (tensor := one()) is not None and tensor.numel()]


def _tensors() -> list[torch.Tensor]:
    """Without stand-ins that have no data, which compilers keep."""
    gc.collect()
    return [one for one in gc.get_objects() if type(one) in (torch.Tensor, torch.nn.Parameter)]
