"""What a plugin knows of its layer: read from the ONNX node by the parser, and written into the engine."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from typing import Any

from cleave.errors import EngineError

FORMAT = 1
"""Version of what engines hold; an engine of another one has to be built again."""


@dataclass(frozen=True, slots=True)
class PluginFields:
    """The plugin fields, int32 each."""

    layer: int
    heads: int
    kv_heads: int
    head_dim: int
    version: int = FORMAT

    def __post_init__(self) -> None:
        """Raises EngineError for values that no layer has, or for an engine of another version."""
        if self.version != FORMAT:
            raise EngineError(
                f"the engine holds CleaveAttention plugins of version {self.version}, and this Cleave has "
                f"version {FORMAT}; build the engine again"
            )
        if self.layer < 0 or min(self.heads, self.kv_heads, self.head_dim) < 1 or self.heads % self.kv_heads:
            raise EngineError(
                f"the CleaveAttention node of layer {self.layer} has {self.heads} heads, {self.kv_heads} "
                f"kv_heads and head_dim {self.head_dim}; all must be at least 1, and heads a multiple of "
                "kv_heads"
            )

    @property
    def q_size(self) -> int:
        """Width of q and of out."""
        return self.heads * self.head_dim

    @property
    def kv_size(self) -> int:
        """Width of k and of v."""
        return self.kv_heads * self.head_dim

    @property
    def widths(self) -> tuple[int, int, int, int]:
        """Widths of q, k, v and out."""
        return self.q_size, self.kv_size, self.kv_size, self.q_size

    def values(self) -> dict[str, int]:
        """Name of each field -> its value."""
        return asdict(self)

    @classmethod
    def read(cls, collection: Iterable[Any]) -> PluginFields:
        """From what TensorRT gives a creator: things with `name` and `data`, an array of one int32.

        Raises EngineError for a field that is missing or is not one number. Others are ignored.
        """
        given = {field.name: field.data for field in collection}
        missing = [name for name in NAMES if name not in given]
        if missing:
            raise EngineError(
                f"a CleaveAttention node has no {', '.join(missing)}; the parser gets its model from "
                "cleave.plugins.tensorrt.graph.with_fields"
            )
        found = {}
        for name in {*NAMES, "version"} & given.keys():
            if len(given[name]) != 1:
                raise EngineError(f"the field {name} of a CleaveAttention node is not one number")
            found[name] = int(given[name][0])
        return cls(**found)


NAMES = tuple(field.name for field in fields(PluginFields) if field.name != "version")
"""The fields that the parser reads: attributes of the ONNX node. `version` is only in engines."""
