"""The runner of the tests on a GPU, over files that pass, fail, are skipped, and never end."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "gpu_tests.py"
FILES = {
    "passes": "def test_a(): pass\ndef test_b(): pass",
    "fails": "def test_a(): assert 'this' == 'that'",
    "skips": "import pytest\npytest.importorskip('no_such_package')",
    "skips_some": "import pytest\ndef test_a(): pass\ndef test_b(): pytest.skip('for lack of a reason')",
    "breaks": "import no_such_package",
    "hangs": "import time\ndef test_a():\n    while True:\n        time.sleep(0.1)",
    "dies": "import os\ndef test_a(): os.abort()",
}


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_tests", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "gpu_tests", module)
    spec.loader.exec_module(module)
    return module


def verdict(runner: ModuleType, folder: Path, names: list[str], seconds: float = 60) -> bool:
    files = []
    for name in names:
        (folder / f"test_{name}.py").write_text(FILES[name] + "\n")
        files.append(runner.File(str(folder / f"test_{name}.py"), folder / name))
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
    runner: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert not verdict(runner, tmp_path, ["hangs", "passes"], seconds=3)
    said = capsys.readouterr().out
    assert "KeyboardInterrupt" in said
    assert "interrupted" in said


def test_every_file_that_needs_a_gpu_is_among_them(runner: ModuleType) -> None:
    named = list(runner.named())
    assert len(named) == len(set(named))
    for file in named:
        assert (SCRIPT.parent.parent / file).is_file()
    found = {
        str(file.relative_to(SCRIPT.parent.parent))
        for file in SCRIPT.parent.parent.glob("tests/gpu/test_*.py")
    }
    assert found <= set(named)
