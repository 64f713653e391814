"""What the fake TensorRT has, the real bindings have too.

They are those of TENSORRT_MODULE; by default TensorRT for RTX, which has the same interfaces.
"""

from __future__ import annotations

import enum
import inspect
import os
from typing import Any

import fake_tensorrt
import fake_tensorrt_builder
import pytest
from fake_tensorrt import Library

NAME = os.environ.get("TENSORRT_MODULE", "tensorrt_rtx_bindings")
if NAME == "tensorrt_rtx_bindings":
    pytest.importorskip("tensorrt_rtx_libs", reason="TensorRT for RTX has no wheel for this machine")
trt = pytest.importorskip(NAME)
REAL = {
    "Builder": "Builder",
    "Network": "INetworkDefinition",
    "Parser": "OnnxParser",
    "Error": "ParserError",
    "Tensor": "ITensor",
    "Config": "IBuilderConfig",
    "Profile": "IOptimizationProfile",
    "TimingCache": "ITimingCache",
    "Plan": "IHostMemory",
    "Runtime": "Runtime",
    "Engine": "ICudaEngine",
    "Context": "IExecutionContext",
    "_Registry": "IPluginRegistry",
}
OF_THE_FAKE = {
    "Network": {"model", "plugins"},
    "Profile": {"shapes"},
    "Config": {"profiles", "flags", "timing"},
    "Engine": {"library", "logger", "model", "profiles", "plugins"},
    "Context": {"stream"},
}
"""What fakes have for each other."""


def members(kind: Any) -> set[str]:
    own = {name for name in (*vars(kind), *getattr(kind, "__annotations__", {})) if not name.startswith("_")}
    return own | {"num_io_tensors"} if kind is fake_tensorrt.Engine else own


@pytest.mark.parametrize("name", REAL)
def test_every_method_is_one_of_the_real_class(name: str) -> None:
    real = getattr(trt, REAL[name])
    module = fake_tensorrt if hasattr(fake_tensorrt, name) else fake_tensorrt_builder
    for member in members(getattr(module, name)) - OF_THE_FAKE.get(name, set()):
        assert hasattr(real, member), f"{REAL[name]} has no {member}"


def test_every_name_of_the_module_is_there() -> None:
    for name, item in vars(Library).items():
        if name.startswith("_") or inspect.isfunction(item):
            continue
        real = getattr(trt, name)
        if inspect.isclass(item) and issubclass(item, enum.IntEnum):
            for member in item.__members__:
                assert hasattr(real, member), f"{name}.{member}"
    for name in ("Builder", "OnnxParser", "Runtime", "get_plugin_registry"):
        assert callable(getattr(trt, name))
