"""The attention server as a TorchPipe backend, and a TorchPipe node as an attention server.

TorchPipe (omniback 0.2) makes backends by name, and names are the process's: each server has its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch

from cleave.errors import AttentionError, MissingPackage
from cleave.plugins.torch_operator import Server

EXTRA = "torchpipe"


def omniback() -> Any:
    """The module `omniback`. Raises MissingPackage where it is not installed."""
    try:
        import omniback as module
    except ImportError as error:
        raise MissingPackage(error.name or "omniback", EXTRA, "a TorchPipe backend") from None
    return module


def register_attention(server: Server, name: str = "CleaveAttention") -> None:
    """Make an attention server known to TorchPipe under a name.

    The step has to be planned, and is committed, by whoever runs the batchful part. A request is one layer
    of it: `data` [q, k, v], `layer`, and `output` [out], which is written; `result` is out. A node may have
    its own layer instead, as `layer` or `layer_idx` in its configuration. Tensors on the CPU are handed over
    as numpy arrays, those of a GPU as torch tensors, without a copy. Raises MissingPackage.
    """

    class CleaveAttention:
        def init(self, params: Mapping[str, str], options: Any = None) -> None:
            found = params.get("layer", params.get("layer_idx"))
            self._layer = None if found is None else int(found)

        def forward(self, ios: Any) -> None:
            for io in ios:
                layer = self._layer if self._layer is not None else int(io["layer"])
                tensors = [_seen(tensor) for tensor in (*io["data"], *_outputs(io))]
                server.run(layer, *tensors)
                io["result"] = io["output"][0]

        def max(self) -> int:
            return 1

    omniback().register(name, CleaveAttention)


class NodeAttention:
    """What an engine takes for its attention server: every layer is a request to a TorchPipe node."""

    def __init__(self, node: Callable[[dict[str, Any]], None]) -> None:
        """`node` is what `omniback.pipe` gives for a node whose backend is CleaveAttention."""
        self._node = node

    def run(self, layer: int, q: Any, k: Any, v: Any, out: Any) -> None:
        """See `cleave.kvcache.server.AttentionServer.run`. Raises what the server behind the node raises."""
        data, output = [_tensor(array) for array in (q, k, v)], [_tensor(out)]
        self._node({"data": data, "layer": layer, "output": output})


def _outputs(io: Any) -> Any:
    if "output" not in io:
        raise AttentionError("a request to CleaveAttention has no output; give the tensor to write to: [out]")
    return io["output"]


def _tensor(array: Any) -> torch.Tensor:
    return torch.from_numpy(array) if isinstance(array, np.ndarray) else array


def _seen(tensor: Any) -> Any:
    """The same memory, as attention backends take it."""
    seen = torch.utils.dlpack.from_dlpack(tensor)
    return seen.numpy() if seen.device.type == "cpu" else seen
