"""TensorRT as far as the engine uses it, over host memory: parser and builder, plugins, plans and contexts.

A plan is the graph with its weights, its profiles, and what the plugins serialised; a run is that of onnx's
reference evaluator, which calls the plugin of the context at every cut. Nothing is captured in graphs.
"""

from __future__ import annotations

import base64
import ctypes
import enum
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import tensorrt_stand_in
from fake_tensorrt_rtx import Memory, RuleBroken, _Enum, _Logger
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from plugin_driver import Driver, HostMemory

from cleave.plugins.schema import is_cut, layer_of

VERSION = "10.9.0.fake"
_TYPES = {1: ("FLOAT", np.float32), 7: ("INT64", np.int64)}


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
        STRONGLY_TYPED = 1

    class BuilderFlag(_Enum):
        TF32 = 7

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


class Error:
    def __init__(self, text: str) -> None:
        self._text = text

    def desc(self) -> str:
        return self._text


class Tensor:
    def __init__(self, value: onnx.ValueInfoProto) -> None:
        kind = value.type.tensor_type
        self.name = value.name
        self.dtype = tensorrt_stand_in.DataType[_TYPES[kind.elem_type][0]]
        self.shape = tuple(dim.dim_value or -1 for dim in kind.shape.dim)


class Network:
    model: onnx.ModelProto
    plugins: dict[int, Any]

    @property
    def num_inputs(self) -> int:
        return len(self.model.graph.input)

    @property
    def num_outputs(self) -> int:
        return len(self.model.graph.output)

    def get_input(self, index: int) -> Tensor:
        return Tensor(self.model.graph.input[index])

    def get_output(self, index: int) -> Tensor:
        return Tensor(self.model.graph.output[index])


class Parser:
    def __init__(self, library: Library, network: Network, logger: Any) -> None:
        self._library, self._network, self._logger = library, network, logger
        self._errors: list[str] = []

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def get_error(self, index: int) -> Error:
        return Error(self._errors[index])

    def parse(self, model: bytes, path: str) -> bool:
        """Loads weights from beside `path`, and creates a plugin for each cut by its attributes."""
        network = self._network
        network.model = onnx.ModelProto.FromString(model)
        onnx.load_external_data_for_model(network.model, str(Path(path).parent))
        network.plugins = {}
        creator = self._library.get_plugin_registry().get_creator("CleaveAttention", "1", "cleave")
        known = {field.name for field in creator.field_names}
        for node in filter(is_cut, network.model.graph.node):
            values = {item.name: item.i for item in node.attribute if item.name in known}
            try:
                plugin = creator.create_plugin(
                    node.name, self._library.driver.fields(**values), tensorrt_stand_in.TensorRTPhase.BUILD
                )
            except Exception:
                self._errors.append("Could not create the plugin.")
                return False
            network.plugins[layer_of(node)] = plugin
        return True


class Profile:
    def __init__(self) -> None:
        self.shapes: dict[str, list[tuple[int, ...]]] = {}

    def set_shape(self, name: str, low: Any, optimum: Any, high: Any) -> None:
        self.shapes[name] = [low, optimum, high]


class TimingCache:
    def __init__(self, content: bytes) -> None:
        self._content = content

    def serialize(self) -> bytes:
        return self._content


class Config:
    progress_monitor: Any = None

    def __init__(self) -> None:
        self.profiles: list[Profile] = []
        self.flags = {Library.BuilderFlag.TF32}
        self.timing: TimingCache | None = None

    def clear_flag(self, flag: Any) -> None:
        self.flags.discard(flag)

    def create_timing_cache(self, content: bytes) -> TimingCache | None:
        return None if content.startswith(b"damaged") else TimingCache(content)

    def set_timing_cache(self, cache: TimingCache, ignore_mismatch: bool) -> bool:
        self.timing = cache
        return True

    def get_timing_cache(self) -> TimingCache | None:
        return self.timing

    def add_optimization_profile(self, profile: Profile) -> int:
        self.profiles.append(profile)
        return len(self.profiles) - 1


class Plan(bytes):
    @property
    def nbytes(self) -> int:
        return len(self)


class Builder:
    def __init__(self, library: Library, logger: Any) -> None:
        self._library, self._logger = library, logger

    def create_network(self, flags: int) -> Network:
        if flags != 1 << Library.NetworkDefinitionCreationFlag.STRONGLY_TYPED:
            raise RuleBroken("TensorRT 11 has strongly typed networks only")
        return Network()

    def create_builder_config(self) -> Config:
        return Config()

    def create_optimization_profile(self) -> Profile:
        return Profile()

    def build_serialized_network(self, network: Network, config: Config) -> Plan | None:
        """Asks the plugins what a build asks, times them, and keeps what they serialise."""
        self._library.builds += 1
        if config.timing is not None:
            self._library.timings.append(config.timing.serialize())
            config.timing = TimingCache(b"measured")
        if Library.BuilderFlag.TF32 in config.flags:
            raise RuleBroken("float32 with ten bits")
        driver, monitor = self._library.driver, config.progress_monitor
        monitor.phase_start("build", None, len(network.plugins))
        held = {}
        for step, (layer, plugin) in enumerate(network.plugins.items()):
            fields = {field.name: int(field.data[0]) for field in plugin.get_fields_to_serialize()}
            widths = [fields["heads"], fields["kv_heads"], fields["kv_heads"], fields["heads"]]
            tensors = [driver.dynamic((-1, width * fields["head_dim"]), "FLOAT") for width in widths]
            if not all(plugin.supports_format_combination(at, tensors, 3) for at in range(4)):
                self._logger.log(_Logger.Severity.ERROR, "could not find any implementation")
                return None
            plugin.configure_plugin(tensors[:3], tensors[3:])
            (out,) = [np.full((2, widths[3] * fields["head_dim"]), np.nan, np.float32)]
            clone = plugin.clone()
            clone.on_shape_change([tensor.desc for tensor in tensors[:3]], [tensors[3].desc])
            described = [driver.describe((2, width * fields["head_dim"]), "FLOAT") for width in widths]
            clone.enqueue(described[:3], described[3:], [1, 1, 1], [out.ctypes.data], 0, 5)
            if out.any():
                raise RuleBroken("a plugin leaves its output undefined while it is timed")
            held[layer] = fields
            if not monitor.step_complete("build", step):
                return None
        monitor.phase_finish("build")
        graph = base64.b64encode(network.model.SerializeToString()).decode()
        profiles = [profile.shapes for profile in config.profiles]
        return Plan(json.dumps({"graph": graph, "held": held, "profiles": profiles}).encode())


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
