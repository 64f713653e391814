"""TensorRT for RTX as far as the engine uses it, with the real one's rules.

A plan is the piece's ONNX graph with its profiles. A run is ONNX Runtime's, over host memory; on a GPU it is
torch's, which can be captured in a CUDA graph. What the real library answers with False and a message is
answered so here; what it leaves undefined raises `RuleBroken`.
"""

from __future__ import annotations

import enum
import gc
import json
import weakref
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import onnx
import torch
from fake_tensorrt_pieces import DTYPES, Arguments, on_gpu, on_host
from fake_tensorrt_plans import MAGIC, VERSION

_ALIGNED = 64
"""What torch aligns host memory to; on a GPU TensorRT asks for 256, and torch gives 512."""


class RuleBroken(AssertionError):
    """Something that the real library would not survive, or would answer with garbage."""


class State:
    """What all objects of one fake library share."""

    def __init__(self, device: str) -> None:
        self.device = device
        self.recorded: list[Callable[[], None]] | None = None
        """Work of the capture under way; None outside one."""
        self.is_capturable = True
        self.runs: list[tuple[str, int, int]] = []
        """Of every run that was carried out: plan, profile, tokens."""
        self.contexts = 0
        self.memory = Memory(device)
        self.alive: weakref.WeakSet[Any] = weakref.WeakSet()

    @property
    def is_capturing(self) -> bool:
        """Whether a graph is being captured."""
        return self.recorded is not None or (
            self.device != "cpu" and torch.cuda.is_current_stream_capturing()
        )

    def outside_capture(self, what: str) -> None:
        """Raises RuleBroken while a graph is captured."""
        if self.is_capturing:
            raise RuleBroken(f"{what} while a graph is captured")


class _Enum(enum.IntEnum):
    pass


class _Logger:
    class Severity(_Enum):
        INTERNAL_ERROR = 0
        ERROR = 1
        WARNING = 2
        INFO = 3
        VERBOSE = 4

    def log(self, severity: Any, message: str) -> None:
        raise NotImplementedError


class Library:
    """Stands in for the module `tensorrt_rtx_bindings`."""

    __version__ = VERSION
    ILogger = _Logger

    class TensorIOMode(_Enum):
        INPUT = 1
        OUTPUT = 2

    class DataType(_Enum):
        FLOAT = 0
        HALF = 1
        INT64 = 8

    class ComputeCapability(_Enum):
        SM86 = 86
        SM89 = 89
        SM120 = 120

    class ExecutionContextAllocationStrategy(_Enum):
        STATIC = 0
        USER_MANAGED = 2

    class DynamicShapesKernelSpecializationStrategy(_Enum):
        LAZY = 0
        EAGER = 1
        NONE = 2

    class CudaGraphStrategy(_Enum):
        DISABLED = 0
        WHOLE_GRAPH_CAPTURE = 1

    class EngineValidity(_Enum):
        VALID = 0
        SUBOPTIMAL = 1
        INVALID = 2

    class EngineInvalidityDiagnostics(enum.IntFlag):
        VERSION_MISMATCH = 1
        UNSUPPORTED_CC = 2
        MALFORMED_ENGINE = 32

    def __init__(self, device: str = "cpu") -> None:
        self.state = State(device)

    def Runtime(self, logger: Any) -> Runtime:  # noqa: N802
        return Runtime(logger, self.state)


class Runtime:
    def __init__(self, logger: Any, state: State) -> None:
        self._logger, self._state = logger, state
        state.alive.add(self)

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None:
        self._state.outside_capture("an engine is loaded")
        if not serialized_engine.startswith(MAGIC):
            self._logger.log(_Logger.Severity.ERROR, "the magic tag does not match")
            return None
        return ICudaEngine(self._logger, self._state, self, serialized_engine[len(MAGIC) :])

    def get_engine_validity(self, buffer: bytes) -> tuple[Any, int]:
        if buffer.startswith(MAGIC):
            return Library.EngineValidity.VALID, 0
        return Library.EngineValidity.INVALID, int(Library.EngineInvalidityDiagnostics.MALFORMED_ENGINE)


class IRuntimeCache:
    pass


class IRuntimeConfig:
    def __init__(self) -> None:
        self.allocation = Library.ExecutionContextAllocationStrategy.STATIC
        self.dynamic_shapes_kernel_specialization_strategy: Any = (
            Library.DynamicShapesKernelSpecializationStrategy.LAZY
        )
        self.cuda_graph_strategy: Any = Library.CudaGraphStrategy.DISABLED
        self._cache: IRuntimeCache | None = None

    def set_execution_context_allocation_strategy(self, strategy: Any) -> None:
        self.allocation = strategy

    def create_runtime_cache(self) -> IRuntimeCache:
        return IRuntimeCache()

    def set_runtime_cache(self, cache: IRuntimeCache) -> bool:
        self._cache = cache
        return True


class ICudaEngine:
    def __init__(self, logger: Any, state: State, runtime: Runtime, plan: bytes) -> None:
        head, _, graph = plan.partition(b"\n")
        described = json.loads(head)
        self.logger, self.state, self._runtime = logger, state, weakref.ref(runtime)
        self.name: str = described["name"]
        self.profiles: list[dict[str, list[int]]] = described["profiles"]
        self.model = onnx.ModelProto.FromString(graph)
        self._io = {
            value.name: (mode, value.type.tensor_type)
            for mode, values in (
                (Library.TensorIOMode.INPUT, self.model.graph.input),
                (Library.TensorIOMode.OUTPUT, self.model.graph.output),
            )
            for value in values
        }
        self.compute = on_host(self.model) if state.device == "cpu" else on_gpu(self.model)
        state.alive.add(self)

    @property
    def num_io_tensors(self) -> int:
        return len(self._io)

    @property
    def device_memory_size_v2(self) -> int:
        return 4096

    def get_tensor_name(self, index: int) -> str:
        return list(self._io)[index]

    def get_tensor_mode(self, name: str) -> Any:
        return self._io[name][0]

    def get_tensor_dtype(self, name: str) -> Any:
        return Library.DataType[DTYPES[self._io[name][1].elem_type][0]]

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return tuple(dim.dim_value or -1 for dim in self._io[name][1].shape.dim)

    def dimensions(self, name: str) -> list[str | int]:
        return [dim.dim_param or dim.dim_value for dim in self._io[name][1].shape.dim]

    def array_type(self, name: str) -> Any:
        return DTYPES[self._io[name][1].elem_type][1]

    def create_runtime_config(self) -> IRuntimeConfig:
        return IRuntimeConfig()

    def create_execution_context(self, runtime_config: IRuntimeConfig) -> IExecutionContext:
        self.state.outside_capture("an execution context is made")
        if self._runtime() is None:
            raise RuleBroken("the runtime went away before its engine")
        self.state.contexts += 1
        return IExecutionContext(self, runtime_config)


class IExecutionContext:
    def __init__(self, engine: ICudaEngine, config: IRuntimeConfig) -> None:
        self._engine, self._config = weakref.ref(engine), config
        self._state, self._name = engine.state, engine.name
        self._profile: int | None = None
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._addresses: dict[str, int] = {}
        self._scratch: tuple[int, int] | None = None
        self._has_run = False
        self._state.alive.add(self)

    @property
    def engine(self) -> ICudaEngine:
        engine = self._engine()
        if engine is None:
            raise RuleBroken("the engine went away before its context")
        return engine

    def set_optimization_profile_async(self, profile_index: int, stream_handle: int) -> bool:
        self._state.outside_capture("a profile is chosen")
        if not 0 <= profile_index < len(self.engine.profiles):
            return self._refuse(f"profile {profile_index} is out of range")
        self._profile, self._shapes, self._has_run = profile_index, {}, False
        return True

    def set_device_memory(self, memory: int, size: int) -> None:
        self._state.outside_capture("device memory is set")
        if self._config.allocation != Library.ExecutionContextAllocationStrategy.USER_MANAGED:
            raise RuleBroken("device memory is given to a context that manages its own")
        if size < self.engine.device_memory_size_v2 or not memory or memory % _ALIGNED:
            raise RuleBroken(f"{size} bytes of device memory at {memory} do not do")
        self._scratch = memory, size

    def set_input_shape(self, name: str, shape: Sequence[int]) -> bool:
        self._state.outside_capture("a shape is set")
        if self._profile is None:
            raise RuleBroken("a shape is set before a profile is chosen")
        allowed = self.engine.profiles[self._profile]
        for dimension, size in zip(self.engine.dimensions(name), shape, strict=True):
            low, high = allowed[dimension] if isinstance(dimension, str) else (dimension, dimension)
            if not low <= size <= high:
                return self._refuse(f"{name} {tuple(shape)} is outside profile {self._profile}")
        if self._shapes.get(name) != tuple(shape):
            self._has_run = False
        self._shapes[name] = tuple(shape)
        return True

    def set_tensor_address(self, name: str, memory: int) -> bool:
        if name not in self.engine._io:
            return self._refuse(f"there is no tensor {name}")
        if not memory or memory % _ALIGNED:
            raise RuleBroken(f"address {memory} of {name} is null or not aligned")
        self._addresses[name] = memory
        return True

    def is_stream_capturable(self, stream: int) -> bool:
        return self._state.is_capturable

    def execute_async_v3(self, stream_handle: int) -> bool:
        engine = self.engine
        if self._scratch is None:
            raise RuleBroken("a run without device memory")
        self._state.memory.check(*self._scratch, "device memory")
        values = {"tokens": 0, "rows": 0}
        arguments: Arguments = {}
        for name in engine._io:
            dimensions = engine.dimensions(name)
            if engine.get_tensor_mode(name) == Library.TensorIOMode.INPUT:
                if name not in self._shapes and any(isinstance(size, str) for size in dimensions):
                    return self._refuse(f"the shape of {name} is not set")
                shape = self._shapes.get(name, tuple(dimensions))
                for dimension, size in zip(dimensions, shape, strict=True):
                    if isinstance(dimension, str):
                        if values[dimension] not in (0, size):
                            return self._refuse(f"{dimension} is {values[dimension]} and {size}")
                        values[dimension] = size
            else:
                shape = tuple(values[size] if isinstance(size, str) else size for size in dimensions)
            if name not in self._addresses:
                return self._refuse(f"the address of {name} is not set")
            size = int(np.prod(shape)) * np.dtype(engine.array_type(name)).itemsize
            self._state.memory.check(self._addresses[name], size, name)
            arguments[name] = self._addresses[name], shape
        if self._state.device != "cpu" and stream_handle in (0, torch.cuda.default_stream().cuda_stream):
            raise RuleBroken("a run on the default stream")
        strategies = Library.DynamicShapesKernelSpecializationStrategy
        if self._state.is_capturing:
            if not self._has_run:
                raise RuleBroken("a capture before the first run of these shapes")
            if self._config.dynamic_shapes_kernel_specialization_strategy == strategies.LAZY:
                raise RuleBroken("a capture of kernels that may be replaced later")
            if self._state.recorded is not None:
                self._state.recorded.append(lambda: self._execute(arguments, values["tokens"]))
                return True
        self._has_run = True
        self._execute(arguments, values["tokens"])
        return True

    def _execute(self, arguments: Arguments, tokens: int) -> None:
        self.engine.compute(arguments)
        self._state.runs.append((self._name, self._profile or 0, tokens))

    def _refuse(self, message: str) -> bool:
        self.engine.logger.log(_Logger.Severity.ERROR, message)
        return False


class Memory:
    """Looks whether an address range lies in a tensor that is alive."""

    def __init__(self, device: str) -> None:
        self._device = device
        self._tensors: list[tuple[int, int, weakref.ref[Any]]] = []

    def check(self, address: int, size: int, what: str) -> None:
        """Raises RuleBroken where no live tensor has all of these bytes."""
        if self._has(address, size):
            return
        self._tensors = []
        for tensor in _tensors(self._device):
            start = tensor.untyped_storage().data_ptr()
            self._tensors.append((start, start + tensor.untyped_storage().nbytes(), weakref.ref(tensor)))
        if not self._has(address, size):
            raise RuleBroken(f"{what}: {size} bytes at {address} are not in any tensor that is alive")

    def _has(self, address: int, size: int) -> bool:
        return any(
            start <= address and address + size <= end and owner() is not None
            for start, end, owner in self._tensors
        )


def _tensors(device: str) -> Iterator[torch.Tensor]:
    for item in gc.get_objects():
        if type(item) is torch.Tensor and item._base is None and item.device.type == device:
            yield item
