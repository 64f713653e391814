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
STAND_IN = """#!/bin/sh
case "$1 $2" in
--help*) echo "  --kernel-name" ;;
"--tool memcheck") echo "$@"; echo "========= ERROR SUMMARY: 0 errors" ;;
"--tool racecheck") echo "========= RACECHECK SUMMARY: 1 hazard displayed"; exit 86 ;;
"--tool initcheck") exec sleep 60 ;;
esac
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
    ("tools", "code", "words"),
    [
        (("memcheck",), 0, ("memcheck: clean after", "ERROR SUMMARY: 0 errors")),
        (("memcheck", "racecheck"), 1, ("memcheck: clean", "racecheck: ERRORS after", "1 hazard displayed")),
        (("initcheck",), 1, ("initcheck: NOT AT ITS END after",)),
    ],
)
def test_its_verdict_is_that_of_the_tools(
    tmp_path: Path, tools: tuple[str, ...], code: int, words: tuple[str, ...]
) -> None:
    stand_in = tmp_path / "compute-sanitizer"
    stand_in.write_text(STAND_IN)
    stand_in.chmod(0o755)
    command = [sys.executable, str(SCRIPT), "--seconds", "2", *(f"--tool={tool}" for tool in tools)]
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
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
