"""Does with a plugin what TensorRT does: the parser's creation, the build's timing, an engine, a context."""

from __future__ import annotations

import contextlib
import ctypes
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from cleave.kvcache.spec import AttentionSpec
from cleave.plugins.tensorrt.creator import make_creator
from cleave.plugins.tensorrt.memory import Memory

NAMES = {torch.float32: "FLOAT", torch.float16: "HALF", torch.bfloat16: "BF16"}


class HostMemory:
    """Memory of the host, for machines without a GPU; notes on which streams work was put."""

    def __init__(self) -> None:
        self.streams: list[int] = []

    def tensor(self, address: int, shape: tuple[int, int], dtype: str) -> torch.Tensor:
        kind = getattr(torch, dtype)
        size = shape[0] * shape[1] * kind.itemsize
        flat = np.frombuffer((ctypes.c_char * size).from_address(address), np.uint8)
        return torch.from_numpy(flat).view(kind).view(shape)

    def on_stream(self, handle: int) -> contextlib.AbstractContextManager[Any]:
        self.streams.append(handle)
        return contextlib.nullcontext()

    def clear(self, address: int, size: int, stream: int) -> None:
        self.streams.append(stream)
        ctypes.memset(address, 0, size)


@dataclass
class Driver:
    """TensorRT's part, for one module of it."""

    trt: Any
    memory: Memory

    def __post_init__(self) -> None:
        self.creator = make_creator(self.trt, self.memory)

    def fields(self, **values: Any) -> Any:
        """A collection of int32 fields."""
        kind = self.trt.PluginFieldType.INT32
        return self.trt.PluginFieldCollection(
            [
                self.trt.PluginField(name, np.atleast_1d(np.array(value, np.int32)), kind)
                for name, value in values.items()
            ]
        )

    def parsed(self, layer: int, spec: AttentionSpec) -> Any:
        """The plugin that the parser adds to a network."""
        values = {"heads": spec.heads, "kv_heads": spec.kv_heads, "head_dim": spec.head_dim}
        phase = self.trt.TensorRTPhase.BUILD
        return self.creator.create_plugin(f"layer_{layer}", self.fields(layer=layer, **values), phase)

    def deserialised(self, plugin: Any) -> Any:
        """The plugin of an engine that was built with `plugin`, of which only the fields are left."""
        held = {field.name: np.array(field.data) for field in plugin.get_fields_to_serialize()}
        return self.creator.create_plugin("", self.fields(**held), self.trt.TensorRTPhase.RUNTIME)

    def in_context(self, layer: int, spec: AttentionSpec) -> Any:
        """The plugin of an execution context; a host has to be bound."""
        return self.deserialised(self.parsed(layer, spec)).attach_to_context(None)

    def describe(self, shape: Sequence[int], kind: str, order: str = "LINEAR") -> Any:
        """A PluginTensorDesc."""
        described = self.trt.PluginTensorDesc()
        described.dims = self.trt.Dims(shape)
        described.type = getattr(self.trt.DataType, kind)
        described.format = getattr(self.trt.TensorFormat, order)
        return described

    def dynamic(self, shape: Sequence[int], kind: str, order: str = "LINEAR") -> Any:
        """A DynamicPluginTensorDesc."""
        described = self.trt.DynamicPluginTensorDesc()
        described.desc = self.describe(shape, kind, order)
        return described

    def enqueue(self, plugin: Any, q: torch.Tensor, k: Any, v: Any, out: Any, stream: int) -> None:
        """Run a plugin over tensors, as an execution context does."""
        inputs, outputs = (
            [self.describe(tensor.shape, NAMES[tensor.dtype]) for tensor in side]
            for side in ((q, k, v), (out,))
        )
        plugin.on_shape_change(inputs, outputs)
        addresses = [tensor.data_ptr() for tensor in (q, k, v)]
        plugin.enqueue(inputs, outputs, addresses, [out.data_ptr()], 0, stream)
