"""The part of TensorRT's module that plugins use, where no TensorRT can be loaded: same names, same rules.

`tests/plugins/tensorrt/test_bindings.py` holds it against the real bindings.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable
from typing import Any

import numpy as np

__version__ = "stand-in"


class DataType(enum.IntEnum):
    FLOAT = 0
    HALF = 1
    INT8 = 2
    INT32 = 3
    BF16 = 7
    INT64 = 8


class TensorFormat(enum.IntEnum):
    LINEAR = 0
    CHW2 = 1
    HWC8 = 2


class PluginFieldType(enum.IntEnum):
    INT32 = 5


class PluginCapabilityType(enum.IntEnum):
    CORE = 0
    BUILD = 1
    RUNTIME = 2


class TensorRTPhase(enum.IntEnum):
    BUILD = 0
    RUNTIME = 1


class PluginField:
    def __init__(self, name: str, data: Any, type: PluginFieldType) -> None:
        self.name, self._data, self.type = name, memoryview(data), PluginFieldType(type)

    @property
    def data(self) -> np.ndarray:
        return np.frombuffer(self._data, np.int32)

    @property
    def size(self) -> int:
        return len(self.data)


class PluginFieldCollection(list):  # type: ignore[type-arg]
    pass


class PluginFieldCollection_(list):  # type: ignore[type-arg]  # noqa: N801
    pass


class DimsExprs(list):  # type: ignore[type-arg]
    def __init__(self, dims: int | Iterable[Any]) -> None:
        super().__init__([None] * dims if isinstance(dims, int) else dims)


class Dims(tuple):  # type: ignore[type-arg]
    __slots__ = ()


class PluginTensorDesc:
    dims: Dims
    type: DataType
    format: TensorFormat


class DynamicPluginTensorDesc:
    desc: PluginTensorDesc
    min: Dims
    opt: Dims
    max: Dims


class IPluginV3:
    pass


class IPluginV3OneCore:
    plugin_name: str
    plugin_version: str
    plugin_namespace: str


class IPluginV3OneBuild:
    num_outputs: int


class IPluginV3OneRuntime:
    pass


class IPluginCreatorV3One:
    name: str
    plugin_version: str
    plugin_namespace: str
    field_names: PluginFieldCollection


class _Registry:
    def __init__(self) -> None:
        self._creators: dict[tuple[str, str, str], Any] = {}

    def get_creator(self, type: str, version: str, plugin_namespace: str = "") -> Any:
        return self._creators.get((type, version, plugin_namespace))

    def register_creator(self, creator: Any, plugin_namespace: str = "") -> bool:
        key = (creator.name, creator.plugin_version, plugin_namespace)
        return self._creators.setdefault(key, creator) is creator

    def deregister_creator(self, creator: Any) -> bool:
        self._creators = {key: known for key, known in self._creators.items() if known is not creator}
        return True


_registry = _Registry()


def get_plugin_registry() -> _Registry:
    return _registry
