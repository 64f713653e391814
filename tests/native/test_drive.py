"""The plugins of Python and of C++ called as TensorRT calls them: through its C++ interfaces.

Needs the headers of TensorRT (TENSORRT_ROOT) and a C++ compiler; no TensorRT and no GPU. The module whose
bindings are used is TENSORRT_MODULE, by default that of TensorRT for RTX.
"""

from __future__ import annotations

import ctypes
import importlib
import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from command import REPOSITORY
from plugin_driver import HostMemory

from cleave.errors import AttentionError, EngineError
from cleave.kvcache.server import AttentionServer
from cleave.kvcache.spec import AttentionSpec
from cleave.kvcache.step import Chunk
from cleave.plugins.tensorrt.creator import make_creator
from cleave.plugins.tensorrt.host import Host, bound

ROOT = os.environ.get("TENSORRT_ROOT", "")
CUDA = os.environ.get("CUDA_HOME", "/usr/local/cuda")
pytestmark = pytest.mark.skipif(
    not (ROOT and shutil.which("c++")),
    reason="needs TENSORRT_ROOT, the headers of TensorRT, and a C++ compiler",
)
SPEC = AttentionSpec(4, 2, 16, 0.25)
FIELDS = (3, 4, 2, 16, 1)
BUILD, RUNTIME = 0, 1
TYPES = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 7}


@pytest.fixture(scope="module")
def drive(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    library = compiled(tmp_path_factory.mktemp("drive") / "drive.so", "tests/native/drive.cpp")
    for name in ("drive_creator", "drive_create", "drive_clone", "drive_attach"):
        getattr(library, name).restype = ctypes.c_void_p
    return library


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> ctypes.CDLL:
    return compiled(tmp_path_factory.mktemp("native") / "plugin.so", "plugins/native/plugin.cpp", "-lcudart")


def compiled(output: Path, source: str, *options: str) -> ctypes.CDLL:
    line = ["c++", "-std=c++17", "-shared", "-fPIC", "-Wall", "-Wextra", "-Werror", "-o", output]
    line += ["-isystem", f"{ROOT}/include", "-isystem", f"{CUDA}/include", REPOSITORY / source]
    line += [f"-L{CUDA}/lib64", f"-Wl,-rpath,{CUDA}/lib64", *options]
    ended = subprocess.run(line, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return ctypes.CDLL(str(output))


@dataclass
class Plugins:
    """Creates plugins and runs them, over tensors of the host."""

    drive: ctypes.CDLL
    creator: int

    def create(self, phase: int, fields: tuple[int, ...] = FIELDS) -> int | None:
        made: int | None = self.drive.drive_create(
            ctypes.c_void_p(self.creator), (ctypes.c_int32 * 5)(*fields), phase
        )
        return made

    def call(self, name: str, plugin: int | None, *rest: Any) -> Any:
        assert plugin
        return getattr(self.drive, name)(ctypes.c_void_p(plugin), *rest)

    def run(self, plugin: int | None, tensors: list[torch.Tensor], width: int = SPEC.q_size) -> int:
        *inputs, out = [tensor.data_ptr() for tensor in tensors]
        status: int = self.call(
            "drive_run",
            plugin,
            *(len(tensors[0]), width, SPEC.kv_size, TYPES[tensors[0].dtype]),
            (ctypes.c_void_p * 3)(*inputs),
            (ctypes.c_void_p * 1)(out),
            ctypes.c_void_p(29),
        )
        return status


def address(wrapped: Any) -> int:
    """Of the C++ object behind an object of pybind11 with one base: the first word behind the head."""
    found = ctypes.c_void_p.from_address(id(wrapped) + object.__basicsize__).value
    assert found
    return found


@pytest.fixture(scope="module")
def in_python(drive: ctypes.CDLL) -> Iterator[tuple[Plugins, HostMemory]]:
    name = os.environ.get("TENSORRT_MODULE", "tensorrt_rtx_bindings")
    if name == "tensorrt_rtx_bindings":
        pytest.importorskip("tensorrt_rtx_libs")
    memory = HostMemory()
    creator = make_creator(importlib.import_module(name), memory)
    yield Plugins(drive, address(creator)), memory
    del creator  # until here TensorRT's side of it is in use


@pytest.fixture(scope="module")
def in_cpp(drive: ctypes.CDLL, native: ctypes.CDLL) -> Plugins:
    return Plugins(drive, drive.drive_creator(ctypes.cast(native.getCreators, ctypes.c_void_p)))


@pytest.fixture(params=["in_python", "in_cpp"])
def plugins(request: pytest.FixtureRequest) -> Plugins:
    found = request.getfixturevalue(request.param)
    made: Plugins = found if request.param == "in_cpp" else found[0]
    return made


def rows(count: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    widths = (SPEC.q_size, SPEC.kv_size, SPEC.kv_size)
    made = [torch.randn(count, width, generator=generator).to(dtype) for width in widths]
    return [*made, torch.full((count, SPEC.q_size), torch.nan, dtype=dtype)]


def server() -> AttentionServer:
    made = AttentionServer(
        [SPEC] * 4, backend="reference", num_pages=8, max_position=64, max_tokens=32, dtype="float32"
    )
    made.open(0)
    made.plan([Chunk(0, 0, 2)])
    return made


def expected(tensors: list[torch.Tensor]) -> torch.Tensor:
    out = torch.empty_like(tensors[3])
    server().run(3, *tensors[:3], out)
    return out


@pytest.mark.parametrize(("kind", "is_taken"), [(0, 1), (1, 1), (7, 1), (2, 0), (3, 0)])
def test_a_build_gets_its_answers(plugins: Plugins, kind: int, is_taken: int) -> None:
    answers = (ctypes.c_int32 * 11)()
    plugins.call("drive_build", plugins.create(BUILD), 64, 32, kind, answers)
    assert list(answers) == [*[is_taken] * 4, 0, kind, 1, 0, 0, 0, 1]
    plugins.call("drive_build", plugins.create(BUILD), 65, 32, kind, answers)
    assert answers[7] != 0
    names = ctypes.create_string_buffer(100)
    plugins.call("drive_names", plugins.create(BUILD), names)
    assert names.value == b"CleaveAttention 1 cleave "


def test_what_is_serialised_is_the_same_in_both(plugins: Plugins) -> None:
    made = plugins.create(RUNTIME)
    for plugin in (made, plugins.call("drive_clone", made), plugins.call("drive_attach", made)):
        values, names = (ctypes.c_int32 * 8)(), ctypes.create_string_buffer(200)
        assert plugins.call("drive_fields", plugin, values, names) == 5
        assert tuple(values)[:5] == FIELDS
        assert names.value == b"layer heads kv_heads head_dim version "


@pytest.mark.parametrize("fields", [(3, 4, 3, 16, 1), (-1, 4, 2, 16, 1), (3, 0, 2, 16, 1), (3, 4, 2, 16, 2)])
def test_fields_that_cannot_be_give_no_plugin(plugins: Plugins, fields: tuple[int, ...]) -> None:
    assert plugins.create(BUILD, fields) is None
    assert plugins.create(RUNTIME, fields) is None


def test_with_nobody_bound_a_run_fails_with_a_status(plugins: Plugins) -> None:
    assert plugins.run(plugins.create(RUNTIME), rows(2)) != 0


# The one in Python.


@pytest.mark.parametrize("dtype", TYPES)
def test_while_building_it_writes_zeros(in_python: tuple[Plugins, HostMemory], dtype: torch.dtype) -> None:
    plugins, memory = in_python
    made = plugins.create(BUILD)
    for plugin in (made, plugins.call("drive_clone", made)):
        tensors = rows(3, dtype)
        assert plugins.run(plugin, tensors) == 0
        assert not tensors[3].any()
    assert memory.streams[-1] == 29


def test_two_threads_have_two_servers(in_python: tuple[Plugins, HostMemory]) -> None:
    plugins, _ = in_python
    ready = threading.Barrier(2)
    found: dict[int, tuple[int, bool, int]] = {}

    def use(number: int) -> None:
        host, own = Host(), server()
        with bound(host):
            ready.wait(10)
            plugin = plugins.call("drive_attach", plugins.create(RUNTIME))
            ready.wait(10)
        tensors = rows(2, seed=number)
        with host.serving(own):
            status = plugins.run(plugin, tensors)
        found[number] = status, torch.equal(tensors[3], expected(tensors)), own.runs

    threads = [threading.Thread(target=use, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert found == {0: (0, True, 1), 1: (0, True, 1)}


def test_an_exception_is_a_status_and_is_raised_at_the_end(in_python: tuple[Plugins, HostMemory]) -> None:
    plugins, _ = in_python
    host = Host()
    with bound(host):
        plugin = plugins.call("drive_attach", plugins.create(RUNTIME))

    class Failing:
        def run(self, layer: int, *tensors: Any) -> None:
            raise AttentionError("no pages are free")

    statuses = []
    with pytest.raises(AttentionError, match="no pages are free"), host.serving(Failing()):
        statuses.append(plugins.run(plugin, rows(2)))
    with pytest.raises(EngineError, match=r"q of layer 3 is \[2, 65\]"), host.serving(server()):
        statuses.append(plugins.run(plugin, rows(2), width=65))
    assert all(status != 0 for status in statuses)


# The one in C++.


class Call(ctypes.Structure):
    """`CleaveCall` of cleave_plugin.h."""

    _fields_ = (
        *((name, ctypes.c_int32) for name in ("layer", "heads", "kv_heads", "head_dim")),
        ("tokens", ctypes.c_int64),
        ("type", ctypes.c_int),
        *((name, ctypes.c_void_p) for name in ("q", "k", "v", "out", "stream")),
    )


Run = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.POINTER(Call))


class CHost(ctypes.Structure):
    """`CleaveHost` of cleave_plugin.h."""

    _fields_ = (("abi", ctypes.c_int32), ("context", ctypes.c_void_p), ("run", Run))


@pytest.mark.parametrize("dtype", TYPES)
def test_a_host_in_c_gets_the_call(native: ctypes.CDLL, in_cpp: Plugins, dtype: torch.dtype) -> None:
    calls: list[dict[str, int]] = []

    def run(context: int, call: Any) -> int:
        calls.append({name: getattr(call.contents, name) for name, _ in Call._fields_} | {"context": context})
        return 0 if len(calls) == 1 else 7

    host = CHost(1, 1234, Run(run))
    assert native.cleave_bind(ctypes.byref(host)) == 0
    plugin = in_cpp.call("drive_attach", in_cpp.create(RUNTIME))
    assert native.cleave_bind(None) == 0
    tensors = rows(2, dtype)
    assert in_cpp.run(plugin, tensors) == 0
    places = dict(zip(("q", "k", "v", "out"), (tensor.data_ptr() for tensor in tensors), strict=True))
    kinds = {torch.float32: 0, torch.float16: 1, torch.bfloat16: 2}
    sizes = {"layer": 3, "heads": 4, "kv_heads": 2, "head_dim": 16, "tokens": 2, "stream": 29}
    assert calls == [{**sizes, **places, "type": kinds[dtype], "context": 1234}]
    assert in_cpp.run(plugin, tensors) == 7
    assert in_cpp.run(plugin, tensors, width=65) != 0
    assert len(calls) == 2


def test_a_host_of_another_abi_is_refused(native: ctypes.CDLL) -> None:
    assert native.cleave_bind(ctypes.byref(CHost(2, None, Run(lambda context, call: 0)))) == 1
