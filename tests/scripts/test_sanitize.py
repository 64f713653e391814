"""What runs the kernels under compute-sanitizer: which kernels, and its verdict over a stand-in of that."""

from __future__ import annotations

import importlib
import os
import sys
import time
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
SAID = {
    "memcheck": "ALL_LAUNCHED\n========= ERROR SUMMARY: 0 errors",
    "racecheck": """ALL_LAUNCHED
========= Error: Race reported between Write access at matrix_kernel+0x5c0 in small_kernel.py:210
=========     and Read access at matrix_kernel+0x670 in small_kernel.py:211 [12 hazards]
========= RACECHECK SUMMARY: 1 hazard displayed (1 error, 0 warnings)""",
    "others": """ALL_LAUNCHED
========= Uninitialized __global__ memory read of size 4 bytes
=========     at void at::native::unrolled_elementwise_kernel<...>+0x120
========= ERROR SUMMARY: 1 error""",
    "fails": "FAILED test_small.py::test_a\n========= ERROR SUMMARY: 0 errors",
}
STAND_IN = """#!/bin/sh
[ "$1" = --help ] && exit
[ -e "$SAID/sleeps" ] && : > "$SAID/began" && exec sleep 600
cat "$SAID/$2"
exit $(cat "$SAID/$2.code")
"""


@pytest.fixture
def sanitize(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    return importlib.import_module("sanitize")


def exit_code(sanitize: ModuleType) -> object:
    """Of the command."""
    with pytest.raises(SystemExit) as ended:
        sanitize.main()
    return ended.value.code


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
        ({"memcheck": ("others", 139)}, 1, ("memcheck: FAILED with exit code 139",)),
        ({"initcheck": ("sleeps", 0)}, 1, ("initcheck: NOT AT ITS END, after",)),
    ],
    ids=["clean", "race", "others", "fails", "fails and found", "crashes", "late"],
)
def test_its_verdict_is_that_of_the_tools(
    sanitize: ModuleType,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    said: dict[str, tuple[str, int]],
    code: int,
    words: tuple[str, ...],
) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setenv("SAID", str(tmp_path))
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    clock = SimpleNamespace(monotonic=lambda: 100.0 * (tmp_path / "began").exists(), sleep=time.sleep)
    monkeypatch.setattr(sanitize, "time", clock)
    for tool, (which, ends_with) in said.items():
        if which == "sleeps":
            (tmp_path / "sleeps").touch()
        else:
            (tmp_path / tool).write_text(SAID[which].replace("ALL_LAUNCHED", sanitize.ALL_LAUNCHED) + "\n")
        (tmp_path / f"{tool}.code").write_text(str(ends_with))
    stand_in = tmp_path / "compute-sanitizer"
    stand_in.write_text(STAND_IN)
    stand_in.chmod(0o755)
    monkeypatch.setattr(sys, "argv", ["sanitize.py", "--seconds=60", *(f"--tool={tool}" for tool in said)])
    ended = exit_code(sanitize)
    printed = capsys.readouterr().out
    assert ended == code, printed
    for word in words:
        assert word in printed


@pytest.mark.parametrize(
    ("found", "words"),
    [(None, "it is part of the CUDA toolkit"), ("/bin/true", "install a CUDA build of torch")],
    ids=["compute-sanitizer", "a GPU"],
)
def test_what_is_missing_is_one_sentence(
    sanitize: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    found: str | None,
    words: str,
) -> None:
    monkeypatch.setattr(sanitize.shutil, "which", lambda name, path: found)
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(sys, "argv", ["sanitize.py"])
    assert exit_code(sanitize) == 2
    said = capsys.readouterr().err
    assert said.startswith("error: ")
    assert said.count("\n") == 1
    assert words in said
