"""The plugin as TensorRT sees it: IPluginV3 with the capabilities core, build and runtime."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from cleave.plugins.schema import DOMAIN, OPERATOR, VERSION
from cleave.plugins.tensorrt.host import current
from cleave.plugins.tensorrt.operator import Operator

MakePlugin = Callable[[Operator], Any]


def plugin_class(trt: Any) -> MakePlugin:
    """The class of the plugins for a TensorRT module; called with an Operator.

    TensorRT turns an exception of its methods into an error code and a line on stderr, so each one that can
    fail tells its host first.
    """
    dtypes = {trt.DataType.FLOAT: "float32", trt.DataType.HALF: "float16", trt.DataType.BF16: "bfloat16"}
    bases = (trt.IPluginV3, trt.IPluginV3OneCore, trt.IPluginV3OneBuild, trt.IPluginV3OneRuntime)

    class CleaveAttention(*bases):  # type: ignore[misc]
        def __init__(self, operator: Operator) -> None:
            for base in bases:
                base.__init__(self)
            self.plugin_name = OPERATOR
            self.plugin_version = str(VERSION)
            self.plugin_namespace = DOMAIN
            self.num_outputs = 1
            self.operator = operator
            # TensorRT reads fields by address, later than it asks for them: all of it lives with the plugin,
            # and nothing has to be converted where no function of the bindings is under way.
            arrays = {name: np.array([value], np.int32) for name, value in operator.fields.values().items()}
            self._fields = arrays, _collection(trt, arrays)
            self._held = trt.PluginFieldCollection_(self._fields[1])

        # IPluginV3

        def get_capability_interface(self, capability: Any) -> Any:
            return self

        def clone(self) -> Any:
            return CleaveAttention(self.operator.clone())

        # Build

        def get_output_data_types(self, input_types: Any) -> list[Any]:
            return [input_types[0]]

        def get_output_shapes(self, inputs: Any, shape_inputs: Any, expr_builder: Any) -> list[Any]:
            return [trt.DimsExprs(inputs[0])]

        def supports_format_combination(self, pos: int, in_out: Any, num_inputs: int) -> bool:
            # What lies beyond `pos` may not be looked at.
            own, first = in_out[pos].desc, in_out[0].desc
            return bool(
                own.format == trt.TensorFormat.LINEAR and own.type == first.type and own.type in dtypes
            )

        def configure_plugin(self, inputs: Any, outputs: Any) -> None:
            self._told(lambda: self._check([tensor.desc for tensor in (*inputs, *outputs)]))

        def get_workspace_size(self, inputs: Any, outputs: Any) -> int:
            return 0

        def get_valid_tactics(self) -> list[int]:
            return []

        # Runtime

        def on_shape_change(self, inputs: Any, outputs: Any) -> None:
            self._told(lambda: self._check([*inputs, *outputs]))

        def set_tactic(self, tactic: int) -> None:
            pass

        def attach_to_context(self, resource_context: Any) -> Any:
            return self.clone()

        def get_fields_to_serialize(self) -> Any:
            return self._held

        def enqueue(
            self, input_desc: Any, output_desc: Any, inputs: Any, outputs: Any, workspace: int, stream: int
        ) -> None:
            first = input_desc[0]
            self._told(
                lambda: self.operator.run(first.dims[0], dtypes[first.type], inputs, outputs[0], stream)
            )

        def _check(self, descriptions: list[Any]) -> None:
            self.operator.check_widths([tuple(description.dims) for description in descriptions])

        def _told(self, action: Callable[[], None]) -> None:
            try:
                action()
            except BaseException as error:
                host = self.operator.host or current()
                if host is not None:
                    host.fail(error)
                raise

    make: MakePlugin = CleaveAttention
    return make


def field_names(trt: Any, names: tuple[str, ...]) -> Any:
    """The collection that tells the parser which attributes a node has."""
    return _collection(trt, {name: np.empty(0, np.int32) for name in names})


def _collection(trt: Any, arrays: dict[str, np.ndarray[Any, Any]]) -> Any:
    kind = trt.PluginFieldType.INT32
    return trt.PluginFieldCollection([trt.PluginField(name, data, kind) for name, data in arrays.items()])
