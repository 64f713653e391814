"""What runs the kernels under compute-sanitizer: which kernels, and its verdict over a stand-in of that."""

from __future__ import annotations

import importlib
import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
SCRIPT = ROOT / "scripts" / "sanitize.py"
LAUNCHED = "all kernels were launched, and all tests passed"
SAID = {
    "memcheck": f"{LAUNCHED}\n========= ERROR SUMMARY: 0 errors",
    "racecheck": f"""{LAUNCHED}
========= Error: Race reported between Write access at matrix_kernel+0x5c0 in small_kernel.py:210
=========     and Read access at matrix_kernel+0x670 in small_kernel.py:211 [12 hazards]
========= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)""",
    "others": f"""{LAUNCHED}
========= Uninitialized __global__ memory read of size 4 bytes
=========     at void at::native::unrolled_elementwise_kernel<...>+0x120
========= ERROR SUMMARY: 1 error""",
    "fails": "FAILED test_small.py::test_a\n========= ERROR SUMMARY: 0 errors",
}
STAND_IN = """#!/bin/sh
[ "$1" = --help ] && exit
[ "$2" = initcheck ] && [ -n "$SLEEPS" ] && exec sleep 60
cat "$SAID/$2"
exit $(cat "$SAID/$2.code")
"""


@pytest.fixture
def sanitize() -> ModuleType:
    spec = importlib.util.spec_from_file_location("sanitize", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_knows_every_kernel(sanitize: ModuleType) -> None:
    """Triton's functions that are called kernels, in all modules of the rooms that have some."""
    pytest.importorskip("triton")
    from triton.runtime.interpreter import InterpretedFunction
    from triton.runtime.jit import JITFunction

    found = set()
    for room in sanitize.SOURCES:
        for file in (ROOT / room).glob("*.py"):
            if "triton.jit" in file.read_text("utf-8"):
                module = importlib.import_module(f"cleave.{room.replace('/', '.')}.{file.stem}")
                found |= {
                    name
                    for name, value in vars(module).items()
                    if isinstance(value, JITFunction | InterpretedFunction) and name.endswith("_kernel")
                }
    assert {"decode_kernel", "matrix_kernel", "draw_kernel"} < found
    assert sanitize.kernels() == found


@pytest.mark.parametrize(
    ("said", "code", "words"),
    [
        ({"memcheck": ("memcheck", 0)}, 0, ("memcheck: clean, after", "ERROR SUMMARY: 0 errors")),
        (
            {"memcheck": ("memcheck", 0), "racecheck": ("racecheck", 86)},
            1,
            ("memcheck: clean,", "racecheck: 2 PLACES IN OWN KERNELS, after", "1 hazard displayed"),
        ),
        ({"initcheck": ("others", 86)}, 0, ("initcheck: clean but for kernels of others",)),
        ({"memcheck": ("fails", 1)}, 1, ("memcheck: FAILED with exit code 1", "test_small.py::test_a")),
        ({"memcheck": ("fails", 86)}, 1, ("memcheck: FAILED with exit code 86",)),
        ({"initcheck": ("memcheck", 0), "SLEEPS": ("", 0)}, 1, ("initcheck: NOT AT ITS END, after",)),
    ],
    ids=["clean", "race", "others", "fails", "fails and found", "late"],
)
def test_its_verdict_is_that_of_the_tools(
    tmp_path: Path, said: dict[str, tuple[str, int]], code: int, words: tuple[str, ...]
) -> None:
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "SAID": str(tmp_path)}
    if said.pop("SLEEPS", None) is not None:
        environment["SLEEPS"] = "1"
    for tool, (which, ends_with) in said.items():
        (tmp_path / tool).write_text(SAID[which] + "\n")
        (tmp_path / f"{tool}.code").write_text(str(ends_with))
    stand_in = tmp_path / "compute-sanitizer"
    stand_in.write_text(STAND_IN)
    stand_in.chmod(0o755)
    command = [sys.executable, str(SCRIPT), "--seconds", "3", *(f"--tool={tool}" for tool in said)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stdout + done.stderr
    for word in words:
        assert word in done.stdout


def test_without_compute_sanitizer_it_says_where_it_is(tmp_path: Path) -> None:
    if Path("/usr/local/cuda/bin/compute-sanitizer").exists():
        pytest.skip("there is a CUDA toolkit on this machine")
    environment = os.environ | {"PATH": str(tmp_path)}
    command = [sys.executable, str(SCRIPT)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "part of the CUDA toolkit" in done.stderr
