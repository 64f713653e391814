"""What the engine and its fake library suppose of TensorRT for RTX, held against the real bindings.

The fake has no more than is listed here, and the engine runs over the fake: so every call of the engine
exists in the real library, under this name and with these arguments.
"""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path
from typing import Any

import fake_tensorrt_rtx
import pytest
from fake_tensorrt_rtx import Library

from cleave.runtime.engines.tensorrt_rtx import build, execution, library

pytest.importorskip("tensorrt_rtx_libs", reason="TensorRT for RTX has no wheel for this machine")
trt = library.load()
CLASSES = ("Runtime", "ICudaEngine", "IExecutionContext", "IRuntimeConfig")
OWN = {"dimensions", "array_type", "state", "logger", "model", "profiles", "compute", "allocation"}
"""Members of the fake that the engine knows nothing of."""


def members(name: str) -> dict[str, Any]:
    found = vars(getattr(fake_tensorrt_rtx, name))
    return {key: value for key, value in found.items() if not key.startswith("_") and key not in OWN}


def parameters(documentation: str) -> list[list[str]]:
    """The names of the arguments of every overload that a docstring of pybind shows."""
    signatures = re.findall(r"^(?:\d+\. )?\w+\(self: [^,)]*(?:, )?(.*)\) ->", documentation, re.MULTILINE)
    return [re.findall(r"(?:^|, )(\w+): ", signature) for signature in signatures]


@pytest.mark.parametrize("name", CLASSES)
def test_every_member_of_the_fake_is_one_of_the_real_class(name: str) -> None:
    real = getattr(trt, name)
    assert members(name)
    for member in members(name):
        assert hasattr(real, member), f"{name}.{member}"


@pytest.mark.parametrize("name", CLASSES)
def test_calls_have_the_real_names_and_number_of_arguments(name: str) -> None:
    checked = 0
    for member, value in members(name).items():
        if not inspect.isfunction(value):
            assert isinstance(value, property)
            assert isinstance(inspect.getattr_static(getattr(trt, name), member), property), member
            continue
        expected = [argument for argument in inspect.signature(value).parameters if argument != "self"]
        overloads = parameters(getattr(trt, name).__dict__[member].__doc__ or "")
        assert expected in overloads, f"{name}.{member}{expected} is none of {overloads}"
        checked += 1
    assert checked > 1


def test_attributes_that_are_set_on_a_configuration_can_be_set() -> None:
    for name in ("dynamic_shapes_kernel_specialization_strategy", "cuda_graph_strategy"):
        found = inspect.getattr_static(trt.IRuntimeConfig, name)
        assert isinstance(found, property)
        assert found.fset is not None
    assert trt.IExecutionContext.set_device_memory.__doc__


@pytest.mark.parametrize(
    "name", [key for key, value in vars(Library).items() if isinstance(value, type) and key != "ILogger"]
)
def test_every_member_of_an_enumeration_is_a_real_one(name: str) -> None:
    real = getattr(trt, name).__members__
    for member in getattr(Library, name).__members__:
        assert member in real, f"{name}.{member}"
    if name == "EngineInvalidityDiagnostics":
        for member, value in Library.EngineInvalidityDiagnostics.__members__.items():
            assert int(real[member]) == value  # these are bits of one number


def test_severities_are_the_real_ones() -> None:
    assert set(Library.ILogger.Severity.__members__) == set(trt.ILogger.Severity.__members__)


@pytest.mark.parametrize("module", [execution, build])
def test_every_name_that_is_taken_of_the_library_is_there(module: Any) -> None:
    """`trt.X` and `trt.X.Y` as they stand in the source."""
    tree = ast.parse(Path(module.__file__).read_text("utf-8"))
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            chain = [node.attr]
            below = node.value
            while isinstance(below, ast.Attribute):
                chain.append(below.attr)
                below = below.value
            if (isinstance(below, ast.Name) and below.id == "trt") or chain[-1] == "_trt":
                names.add(tuple(part for part in reversed(chain) if part != "_trt"))
    assert len(names) > 3
    for name in names:
        found = trt
        for part in name:
            assert hasattr(found, part), ".".join(name)
            found = getattr(found, part)


def test_without_a_driver_a_plan_is_refused_and_not_believed(tmp_path: Path) -> None:
    """What this machine can know of deserialising: the real call answers None and says why."""
    logger = library.make_logger(trt)
    runtime = trt.Runtime(logger)
    assert runtime.deserialize_cuda_engine(b"no plan") is None
    assert logger.errors
    validity, diagnostics = runtime.get_engine_validity(b"no plan" * 100)
    assert validity == trt.EngineValidity.INVALID
    assert isinstance(int(diagnostics), int)
