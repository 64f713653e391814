"""TensorRT as far as the engine uses it, over host memory: parser and builder, plugins, plans and contexts.

A plan is the graph with its weights, its profiles, and what the plugins serialised; a run is that of onnx's
reference evaluator, which calls the plugin of the context at every cut. Nothing is captured in graphs.
"""

from __future__ import annotations

import base64
import ctypes
import enum
import json
from typing import Any

import numpy as np
import onnx
import tensorrt_stand_in
from fake_tensorrt_builder import (
    STRONGLY_TYPED,
    TF32,
    Builder,
    Network,
    Parser,
    Tensor,
)
from fake_tensorrt_rtx import Memory, RuleBroken, _Enum, _Logger
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from plugin_driver import Driver, HostMemory

from cleave.plugins.schema import is_cut

VERSION = "10.9.0.fake"


class _Registry:
    def __init__(self, creator: Any) -> None:
        self._creator = creator

    def get_creator(self, name: str, version: str, namespace: str) -> Any:
        assert (name, version, namespace) == ("CleaveAttention", "1", "cleave")
        return self._creator


class Library:
    """Stands in for the module `tensorrt`."""

    __version__ = VERSION
    ILogger = _Logger

    class TensorIOMode(_Enum):
        INPUT = 1
        OUTPUT = 2

    class ExecutionContextAllocationStrategy(_Enum):
        STATIC = 0
        USER_MANAGED = 2

    class NetworkDefinitionCreationFlag(_Enum):
        STRONGLY_TYPED = STRONGLY_TYPED

    class BuilderFlag(_Enum):
        TF32 = TF32

    class IProgressMonitor:
        pass

    def __init__(self) -> None:
        self.memory = Memory("cpu")
        self.builds = 0
        self.timings: list[bytes] = []
        """What each build was given of earlier timings."""
        self.driver = Driver(self, HostMemory())
        self._registry = _Registry(self.driver.creator)

    def __getattr__(self, name: str) -> Any:
        return getattr(tensorrt_stand_in, name)

    def get_plugin_registry(self) -> _Registry:
        return self._registry

    def Builder(self, logger: Any) -> Builder:  # noqa: N802
        return Builder(self, logger)

    def OnnxParser(self, network: Network, logger: Any) -> Parser:  # noqa: N802
        return Parser(self, network, logger)

    def Runtime(self, logger: Any) -> Runtime:  # noqa: N802
        return Runtime(self, logger)


class Runtime:
    def __init__(self, library: Library, logger: Any) -> None:
        self._library, self._logger = library, logger

    def deserialize_cuda_engine(self, plan: bytes) -> Engine | None:
        try:
            data = json.loads(plan)
        except ValueError:
            self._logger.log(_Logger.Severity.ERROR, "the magic tag does not match")
            return None
        return Engine(self._library, self._logger, data)


class Engine:
    device_memory_size_v2 = 4096

    def __init__(self, library: Library, logger: Any, data: dict[str, Any]) -> None:
        self.library, self.logger = library, logger
        self.model = onnx.ModelProto.FromString(base64.b64decode(data["graph"]))
        self.profiles = data["profiles"]
        creator, phase = library.driver.creator, tensorrt_stand_in.TensorRTPhase.RUNTIME
        self.plugins = {
            int(layer): creator.create_plugin("", library.driver.fields(**fields), phase)
            for layer, fields in data["held"].items()
        }
        graph, modes = self.model.graph, Library.TensorIOMode
        self._io = {value.name: (modes.INPUT, Tensor(value)) for value in graph.input}
        self._io |= {value.name: (modes.OUTPUT, Tensor(value)) for value in graph.output}
        self.num_io_tensors = len(self._io)

    def get_tensor_name(self, index: int) -> str:
        return list(self._io)[index]

    def get_tensor_mode(self, name: str) -> Any:
        return self._io[name][0]

    def get_tensor_dtype(self, name: str) -> enum.IntEnum:
        return self._io[name][1].dtype

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self._io[name][1].shape

    def create_execution_context(self, strategy: Any) -> Context:
        if strategy != Library.ExecutionContextAllocationStrategy.USER_MANAGED:
            raise RuleBroken("a context that allocates")
        return Context(self)


class Context:
    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._plugins = {layer: plugin.attach_to_context(None) for layer, plugin in engine.plugins.items()}
        self._profile = -1
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._scratch = (0, 0)
        driver, plugins, context = engine.library.driver, self._plugins, self

        class CleaveAttention(OpRun):
            op_domain = "cleave"

            def _run(self, q: Any, k: Any, v: Any, layer: Any = None, **rest: Any) -> Any:
                q, k, v = (np.ascontiguousarray(array) for array in (q, k, v))
                out = np.full_like(q, np.nan)
                described = [driver.describe(array.shape, "FLOAT") for array in (q, k, v, out)]
                plugin = plugins[layer]
                plugin.on_shape_change(described[:3], described[3:])
                inputs = [array.ctypes.data for array in (q, k, v)]
                plugin.enqueue(described[:3], described[3:], inputs, [out.ctypes.data], 0, context.stream)
                return (out,)

        self.stream = 0
        self._evaluator = ReferenceEvaluator(_plain(engine.model), new_ops=[CleaveAttention])

    def set_optimization_profile_async(self, index: int, stream: int) -> bool:
        self._profile = index
        return 0 <= index < len(self._engine.profiles)

    def set_device_memory(self, memory: int, size: int) -> None:
        if size < self._engine.device_memory_size_v2:
            raise RuleBroken(f"{size} bytes do not do")
        self._scratch = memory, size

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        low, _, high = self._engine.profiles[self._profile][name]
        if not all(a <= size <= b for a, size, b in zip(low, shape, high, strict=True)):
            self._engine.logger.log(_Logger.Severity.ERROR, f"{name} {shape} is outside the profile")
            return False
        self._shapes[name] = shape
        return True

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        """False after an exception of a plugin, as its status is an error code."""
        rows = self._shapes["logit_rows"][0]
        vocab = self._engine.get_tensor_shape("logits")[1]
        self.stream = stream
        sizes = {**self._shapes, "logits": (rows, vocab)}
        arrays = {}
        for name, shape in sizes.items():
            kind = np.int64 if name == "logit_rows" else np.float32
            size = int(np.prod(shape)) * np.dtype(kind).itemsize
            self._engine.library.memory.check(self._addresses[name], size, name)
            arrays[name] = _array(self._addresses[name], shape, kind)
        try:
            (logits,) = self._evaluator.run(
                ["logits"], {name: arrays[name] for name in ("inputs_embeds", "logit_rows")}
            )
        except Exception:
            self._engine.logger.log(_Logger.Severity.ERROR, "enqueue failed: status -1")
            return False
        arrays["logits"][:] = logits
        return True


def _array(address: int, shape: tuple[int, ...], kind: Any) -> np.ndarray:
    size = int(np.prod(shape)) * np.dtype(kind).itemsize
    return np.frombuffer((ctypes.c_char * size).from_address(address), kind).reshape(shape)


def _plain(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with the attribute `layer` alone: the evaluator checks the others against a schema."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for node in filter(is_cut, copy.graph.node):
        kept = [attribute for attribute in node.attribute if attribute.name == "layer"]
        del node.attribute[:]
        node.attribute.extend(kept)
    return copy
