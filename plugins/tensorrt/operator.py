"""What the plugin does, apart from the interfaces of TensorRT."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from cleave.errors import AttentionError, EngineError
from cleave.plugins.tensorrt.fields import PluginFields
from cleave.plugins.tensorrt.host import Host, current
from cleave.plugins.tensorrt.memory import Memory

TENSORS = ("q", "k", "v", "out")
BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
"""The dtypes that there are, and bytes of a value."""


@dataclass(slots=True)
class Operator:
    """One plugin object."""

    fields: PluginFields
    memory: Memory
    host: Host | None
    """Whose attention server it calls; None: whoever is bound when a context is made."""
    is_building: bool
    """Whether it is only there to be timed: it writes zeros, and calls nobody."""
    _seen: tuple[tuple[Any, ...], tuple[Any, ...]] | None = field(default=None, repr=False)
    """Addresses of the last call, and the tensors over them: TensorRT uses the same ones again."""

    def clone(self) -> Operator:
        """The same, for the host that is bound here, or else for its own."""
        return replace(self, host=current() or self.host, _seen=None)

    def check_widths(self, shapes: Sequence[Sequence[int]]) -> None:
        """Raises EngineError unless q, k, v and out have the widths of this layer; -1 is any."""
        for name, shape, width in zip(TENSORS, shapes, self.fields.widths, strict=True):
            if len(shape) != 2 or shape[1] not in (-1, width):
                own = self.fields
                raise EngineError(
                    f"{name} of layer {own.layer} is {list(shape)}; it must be [tokens, {width}], for "
                    f"{own.heads} heads, {own.kv_heads} kv_heads and head_dim {own.head_dim}"
                )

    def run(self, tokens: int, dtype: str, inputs: Sequence[int], out: int, stream: int) -> None:
        """Attention of the layer, enqueued: addresses of q, k, v [tokens, width], and of out.

        Raises whatever the attention server raises, AttentionError where there is none.
        """
        if self.is_building:
            self.memory.clear(out, tokens * self.fields.q_size * BYTES[dtype], stream)
            return
        if self.host is None:
            raise AttentionError(
                "a CleaveAttention plugin ran with no attention server; deserialise the engine and create "
                "its contexts inside `with bound(host):`"
            )
        with self.memory.on_stream(stream):
            self.host.server.run(self.fields.layer, *self._tensors(tokens, dtype, (*inputs, out)))

    def _tensors(self, tokens: int, dtype: str, addresses: tuple[int, ...]) -> tuple[Any, ...]:
        key = (tokens, dtype, addresses)
        if self._seen is None or self._seen[0] != key:
            made = tuple(
                self.memory.tensor(address, (tokens, width), dtype)
                for address, width in zip(addresses, self.fields.widths, strict=True)
            )
            self._seen = key, made
        return self._seen[1]
