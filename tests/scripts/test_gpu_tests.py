"""The runner of the tests on a GPU, over files that pass, fail, are skipped, and never end."""

from __future__ import annotations

import importlib
import os
import re
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import psutil
import pytest
import torch

ROOT = Path(__file__).resolve().parents[2]
FILES = {
    "passes": "def test_a(): pass\ndef test_b(): pass",
    "fails": "def test_a(): assert 'this' == 'that'",
    "skips": "import pytest\npytest.importorskip('no_such_package')",
    "skips_some": "import pytest\ndef test_a(): pass\ndef test_b(): pytest.skip('for lack of a reason')",
    "breaks": "import no_such_package",
    "hangs": """
import os, pathlib, time
def test_a():
    pathlib.Path(__file__).with_name("pid.new").write_text(str(os.getpid()))
    pathlib.Path(__file__).with_name("pid.new").rename(pathlib.Path(__file__).with_name("pid"))
    while True:
        time.sleep(0.1)""",
    "dies": "import os\ndef test_a(): os.abort()",
    "leaves": """
import pathlib, subprocess
def test_a():
    with pathlib.Path(__file__).with_name("pipe").open("w") as pipe:
        subprocess.Popen(["sleep", "600"], stdout=pipe)""",
}
LEFT_OUT = {
    "tests/runtime/inductor/test_inductor_bad_input.py": "what is said where there is no GPU",
    "tests/runtime/test_release.py": "tests/gpu/test_memory.py counts a GPU's own bytes",
}
"""Files that ask for a GPU and are not run by `make gpu`; why."""


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "scripts"))
    return importlib.import_module("gpu_tests")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the runner asks torch says that there is one."""
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


@pytest.fixture
def main(runner: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., int]]:
    """The command, in `tmp_path`; gives back its exit code."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PYTEST_DISABLE_PLUGIN_AUTOLOAD", "1")
    before = signal.signal(signal.SIGTERM, lambda number, frame: None)

    def run(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["gpu_tests.py", *arguments])
        with pytest.raises(SystemExit) as ended:
            runner.main()
        assert isinstance(ended.value.code, int)
        return ended.value.code

    yield run
    signal.signal(signal.SIGTERM, before)


def written(folder: Path, name: str) -> str:
    (folder / f"test_{name}.py").write_text(FILES[name] + "\n")
    return str(folder / f"test_{name}.py")


def verdict(runner: ModuleType, folder: Path, names: list[str], seconds: float = 60) -> bool:
    files = [runner.File(written(folder, name), folder / name) for name in names]
    environment = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    runner.run(files, 2, seconds, environment, ["-c", os.devnull])
    return bool(runner.report(files, 1.0))


def test_all_is_well_where_nothing_fails(
    runner: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert verdict(runner, tmp_path, ["passes", "skips", "skips_some"])
    said = capsys.readouterr().out
    assert "2 passed" in said
    assert "skipped 1: for lack of a reason" in said
    assert "no_such_package" in said
    assert "passed in 1 s: 3 passed, 2 skipped" in said


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("fails", ("FAILED", "1 failure", "'this' == 'that'")),
        ("breaks", ("FAILED", "1 error", "no_such_package")),
        ("dies", ("FAILED", "no report", "Fatal Python error: Aborted")),
    ],
)
def test_what_fails_is_shown(
    runner: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, words: tuple[str, ...]
) -> None:
    assert not verdict(runner, tmp_path, [name, "passes"])
    said = capsys.readouterr().out
    for word in (*words, f"not well: {tmp_path}/test_{name}.py"):
        assert word in said


def test_what_does_not_end_is_interrupted(
    runner: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = SimpleNamespace(monotonic=lambda: 100.0 * (tmp_path / "pid").exists(), sleep=time.sleep)
    monkeypatch.setattr(runner, "time", clock)
    assert not verdict(runner, tmp_path, ["hangs"], seconds=60)
    said = capsys.readouterr().out
    assert "KeyboardInterrupt" in said
    assert "interrupted" in said


def test_processes_that_a_file_leaves_behind_are_ended(runner: ModuleType, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    pipe = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    assert verdict(runner, tmp_path, ["leaves"])
    assert select.select([pipe], [], [], 30)[0], "the last writer still lives"
    assert os.read(pipe, 1) == b""
    os.close(pipe)


def test_a_report_that_was_cut_off_counts_for_none(runner: ModuleType, tmp_path: Path) -> None:
    file = runner.File("test_a.py", tmp_path)
    file.report.write_text('<testsuites><testsuite><testcase name="test_a" />')
    file.read()
    assert not file.has_passed
    assert file.line().endswith("test_a.py  no report")


@pytest.mark.usefixtures("gpu")
def test_the_command_passes_options_on_and_keeps_what_it_is_told_to(
    main: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [f"--pytest=-c {os.devnull} -k 'test_b or test_c'", "--keep", "kept"]
    assert main(written(tmp_path, "passes"), written(tmp_path, "fails"), *options) == 0
    said = capsys.readouterr().out
    assert "test_fails.py  no tests" in said
    assert re.search(r"passed in \d+ s: 1 passed$", said.strip())
    assert (tmp_path / "kept" / "00-test_passes" / "report.xml").is_file()
    assert main(written(tmp_path, "passes"), *options) == 2
    assert capsys.readouterr().err == "error: --keep: kept exists; name a new folder\n"


@pytest.mark.usefixtures("gpu")
@pytest.mark.parametrize(
    ("name", "words"), [("fails", "1 failure; not well:"), ("skips", "1 skipped; nothing was tested")]
)
def test_the_command_fails_where_a_test_does_or_none_is_run(
    main: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, words: str
) -> None:
    assert main(written(tmp_path, name), f"--pytest=-c {os.devnull}") == 1
    assert words in capsys.readouterr().out


@pytest.mark.usefixtures("gpu")
def test_a_terminated_command_ends_its_tests(
    main: Callable[..., int], runner: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sleep(seconds: float) -> None:
        time.sleep(seconds)
        if (tmp_path / "pid").exists():
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(runner, "time", SimpleNamespace(monotonic=time.monotonic, sleep=sleep))
    assert main(written(tmp_path, "hangs"), f"--pytest=-c {os.devnull}", "--seconds=60") == 128 + 15
    assert not psutil.pid_exists(int((tmp_path / "pid").read_text()))


def test_what_it_does_not_know_is_not_taken_for_a_file(
    main: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main("-k", "float16") == 2
    assert "unrecognized arguments: -k" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("cuda", "words"), [(None, "install a CUDA build of torch"), ("13.0", "sees no NVIDIA GPU; look at")]
)
def test_without_a_gpu_it_says_what_to_do(
    main: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    cuda: str | None,
    words: str,
) -> None:
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert main() == 2
    said = capsys.readouterr().err
    assert said.startswith("error: torch ")
    assert said.count("\n") == 1
    assert words in said


def test_every_file_that_needs_a_gpu_is_among_them(runner: ModuleType) -> None:
    named = list(runner.named())
    assert len(named) == len(set(named))
    for file in named:
        assert (ROOT / file).is_file()
    asks = re.compile(r"mark\.gpu\b|^[^\"#\n]*cuda\.is_available\(\)|^from .* import .*\bGPU\b", re.M)
    found = {
        str(file.relative_to(ROOT))
        for file in (ROOT / "tests").rglob("test_*.py")
        if asks.search(file.read_text("utf-8"))
    }
    assert found - set(named) == set(LEFT_OUT)
