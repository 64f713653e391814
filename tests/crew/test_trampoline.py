"""The library in memory: the system's own loader takes it, and it goes where it is told."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path

import pytest

from cleave.crew.trampoline import Trampoline, is_supported, library

pytestmark = pytest.mark.skipif(not is_supported(), reason="libraries are made on Linux for x86-64 only")
Function = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64, ctypes.c_int64)


def address_of(function: object) -> int:
    return ctypes.cast(function, ctypes.c_void_p).value or 0


def loaded(path: str, name: str) -> object:
    function = ctypes.CDLL(path)[name]
    function.restype, function.argtypes = ctypes.c_int64, (ctypes.c_int64, ctypes.c_int64)
    return function


def permissions_of(name: str) -> list[str]:
    """Of every part of this process's memory that has this in its name."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return [line.split()[1] for line in lines if name in line]


@pytest.fixture
def trampolines() -> Iterator[list[Trampoline]]:
    made: list[Trampoline] = []
    yield made
    for trampoline in made:
        trampoline.close()


def test_arguments_and_result_pass_through(trampolines: list[Trampoline]) -> None:
    target = Function(lambda a, b: a - b)
    trampolines.append(Trampoline("minus", address_of(target)))
    assert loaded(trampolines[0].path, "minus")(1 << 40, -7) == (1 << 40) + 7


def test_the_loader_does_not_take_one_for_another() -> None:
    """The number of a closed file comes again, while the library that was loaded from it is still there."""
    targets = [Function(lambda a, b, factor=factor: factor * a + b) for factor in range(1, 20)]
    found = []
    for target in targets:
        trampoline = Trampoline("scale", address_of(target))
        found.append(loaded(trampoline.path, "scale"))
        trampoline.close()
    assert [function(100, 1) for function in found] == [100 * factor + 1 for factor in range(1, 20)]


def test_stacks_stay_not_executable(trampolines: list[Trampoline]) -> None:
    target = Function(lambda a, b: 0)
    trampolines.append(Trampoline("nothing", address_of(target)))
    loaded(trampolines[0].path, "nothing")
    stacks = [
        line.split()[1] for line in Path("/proc/self/maps").read_text().splitlines() if "[stack" in line
    ]
    assert stacks
    assert not any("x" in permissions for permissions in stacks)


def test_nothing_is_both_written_and_executed(tmp_path: Path) -> None:
    file = tmp_path / "library.so"
    file.write_bytes(library("a_rather_long_name_for_a_function", 1))
    ctypes.CDLL(str(file))
    lines = [
        line.split()[1] for line in Path("/proc/self/maps").read_text().splitlines() if str(file) in line
    ]
    assert sorted(permissions[:3] for permissions in lines) == ["r-x", "rw-"]
