"""The creator: TensorRT finds it by the operator's name and asks it for a plugin, to build or to run."""

from __future__ import annotations

from typing import Any

from cleave.errors import EngineError
from cleave.plugins.schema import DOMAIN, OPERATOR, VERSION
from cleave.plugins.tensorrt.fields import NAMES, PluginFields
from cleave.plugins.tensorrt.host import current
from cleave.plugins.tensorrt.memory import CudaMemory, Memory
from cleave.plugins.tensorrt.operator import Operator
from cleave.plugins.tensorrt.plugin import field_names, plugin_class


def make_creator(trt: Any, memory: Memory) -> Any:
    """An IPluginCreatorV3One for a TensorRT module; its plugins belong to the host that is bound."""
    make_plugin = plugin_class(trt)

    class CleaveAttentionCreator(trt.IPluginCreatorV3One):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.IPluginCreatorV3One.__init__(self)
            self.name = OPERATOR
            self.plugin_version = str(VERSION)
            self.plugin_namespace = DOMAIN
            self.field_names = field_names(trt, NAMES)

        def create_plugin(self, name: str, field_collection: Any, phase: Any) -> Any:
            """A plugin of the fields of an ONNX node (to build), or of those of an engine (to run)."""
            host = current()
            try:
                is_building = phase == trt.TensorRTPhase.BUILD
                return make_plugin(Operator(PluginFields.read(field_collection), memory, host, is_building))
            except EngineError as error:
                if host is not None:
                    host.fail(error)
                raise

    return CleaveAttentionCreator()


def register(trt: Any) -> Any:
    """The creator in TensorRT's registry, which the process has one of; registered on the first call.

    Raises EngineError where another plugin has the name, such as the native library of Cleave.
    """
    registry = trt.get_plugin_registry()
    found = registry.get_creator(OPERATOR, str(VERSION), DOMAIN)
    if found is None:
        found = make_creator(trt, CudaMemory())
        if not registry.register_creator(found, DOMAIN):
            raise EngineError(f"TensorRT {trt.__version__} does not register the plugin {OPERATOR}")
    if type(found).__name__ != "CleaveAttentionCreator":
        raise EngineError(
            f"another plugin {OPERATOR} is registered in this process, such as libcleave_plugin.so; "
            "Python has its own: do not load that one here"
        )
    return found
