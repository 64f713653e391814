"""What crosses the cuts while a model reads some tokens, place by place."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]

AT_A_CUT = ("q", "k", "v", "attention", "residual")
"""What there is to see of a layer, in the order in which it is computed: q, k, v before RoPE, the
attention output before o_proj, and the residual after the layer."""


class Place(NamedTuple):
    """Where a tensor was seen. The embedding is the residual of layer -1."""

    layer: int
    tensor: str

    def __str__(self) -> str:
        if self.tensor == "logits":
            return "logits"
        return "embedding" if self.layer < 0 else f"layer {self.layer}: {self.tensor}"


def places(layers: int) -> Iterator[Place]:
    """Every place of a model with that many layers, in the order of computation."""
    yield Place(-1, "residual")
    for layer in range(layers):
        for tensor in AT_A_CUT:
            yield Place(layer, tensor)
    yield Place(layers, "logits")


class Trace:
    """The tensors of one run, each [tokens, width] float32."""

    def __init__(self, layers: int, tokens: int) -> None:
        self.layers = layers
        self.tokens = tokens
        self._arrays: dict[Place, Array] = {}

    def __getitem__(self, place: Place) -> Array:
        """Raises KeyError for a place that was not seen."""
        return self._arrays[place]

    def put(self, place: Place, start: int, rows: Any) -> None:
        """Keep a copy of `rows` [count, width] as those of the tokens from `start` on."""
        values = to_numpy(rows)
        if place not in self._arrays:
            self._arrays[place] = np.full((self.tokens, values.shape[1]), np.nan, np.float32)
        self._arrays[place][start : start + len(values)] = values


def to_numpy(array: Any) -> Array:
    """A numpy or torch array of any device and dtype, as float32 on the host."""
    if hasattr(array, "detach"):
        array = array.detach().float().cpu().numpy()
    return np.asarray(array, np.float32)


def overwrite(array: Any, values: Array) -> None:
    """Write `values` into a numpy or torch array, in its own dtype and on its own device."""
    if hasattr(array, "detach"):
        array.copy_(array.new_tensor(values))
    else:
        array[...] = values
