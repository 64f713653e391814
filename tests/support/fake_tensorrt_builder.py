"""The part of the fake TensorRT that builds: network, parser, configuration and builder."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import tensorrt_stand_in
from fake_tensorrt_rtx import RuleBroken, _Logger

from cleave.plugins.schema import is_cut, layer_of

STRONGLY_TYPED, TF32 = 1, 7
"""Members of NetworkDefinitionCreationFlag and BuilderFlag."""
_TYPES = {1: "FLOAT", 7: "INT64"}


class Error:
    def __init__(self, text: str) -> None:
        self._text = text

    def desc(self) -> str:
        return self._text


class Tensor:
    def __init__(self, value: onnx.ValueInfoProto) -> None:
        kind = value.type.tensor_type
        self.name = value.name
        self.dtype = tensorrt_stand_in.DataType[_TYPES[kind.elem_type]]
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
    def __init__(self, library: Any, network: Network, logger: Any) -> None:
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
        self.flags = {TF32}
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
    def __init__(self, library: Any, logger: Any) -> None:
        self._library, self._logger = library, logger

    def create_network(self, flags: int) -> Network:
        if flags != 1 << STRONGLY_TYPED:
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
        if TF32 in config.flags:
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
