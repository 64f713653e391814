"""The stand-in and the plugin, held against the bindings of TensorRT for RTX: what is called is there."""

from __future__ import annotations

import enum
import inspect
from typing import Any

import pytest
import tensorrt_stand_in
from plugin_driver import Driver, HostMemory

from cleave.kvcache.spec import AttentionSpec

pytest.importorskip("tensorrt_rtx_libs", reason="TensorRT for RTX has no wheel for this machine")
trt = pytest.importorskip("tensorrt_rtx_bindings")
INTERFACES = ("IPluginV3", "IPluginV3OneCore", "IPluginV3OneBuild", "IPluginV3OneRuntime")
OWN = {
    name
    for name, item in vars(tensorrt_stand_in).items()
    if inspect.isclass(item) and item.__module__ == "tensorrt_stand_in" and not name.startswith("_")
}


@pytest.mark.parametrize("name", sorted(OWN))
def test_what_the_stand_in_has_the_real_one_has_too(name: str) -> None:
    own, real = getattr(tensorrt_stand_in, name), getattr(trt, name)
    if issubclass(own, enum.IntEnum):
        members = {member: int(value) for member, value in real.__members__.items()}
        assert {member.name: int(member) for member in own}.items() <= members.items()
        return
    for member in {*vars(own), *getattr(own, "__annotations__", {})}:
        assert member.startswith("_") or hasattr(real, member), f"{name}.{member}"


def test_the_registry_has_what_is_called() -> None:
    registry = trt.get_plugin_registry()
    for name in ("get_creator", "register_creator", "deregister_creator"):
        assert callable(getattr(registry, name))


def test_every_method_of_the_plugin_is_one_that_the_library_calls() -> None:
    """A misspelled one would never be called, and the default would be taken for it."""
    known: set[str] = set()
    for name in INTERFACES:
        known |= set(dir(getattr(trt, name)))
    plugin: Any = Driver(trt, HostMemory()).parsed(0, AttentionSpec(4, 2, 16, 0.25))
    own = {name for name in vars(type(plugin)) if not name.startswith("_")}
    assert own - known == set()
    assert own >= {
        *("get_capability_interface", "clone", "get_output_data_types", "get_output_shapes"),
        *("supports_format_combination", "configure_plugin", "on_shape_change", "attach_to_context"),
        *("enqueue", "get_fields_to_serialize", "set_tactic"),
    }
