"""Exports that fail, are broken off, or meet another one: nothing changes, and the next one works."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest
from command import assert_one_sentence, contents, process
from damage import copy_of

from cleave.errors import ExportError
from cleave.export import exporter, staging
from cleave.export.artifact import Artifact, read_manifest
from cleave.export.exporter import ExportRequest, export
from cleave.export.manifest import PARTS
from cleave.export.tensorfile import TensorFileWriter

QUICK = tuple(part for part in PARTS if part != "batchful")
"""All that needs no tracing, which takes the most time by far; weights are written all the same."""
FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture
def model(checkpoint: Callable[[str], Path]) -> str:
    return str(checkpoint("one_layer"))


@pytest.fixture(scope="module")
def quick(checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An artifact of the quick parts."""
    folder = tmp_path_factory.mktemp("quick")
    export(ExportRequest(str(checkpoint("one_layer")), folder, QUICK, check=False))
    return folder


@pytest.fixture(params=["no folder", "empty folder", "artifact"])
def output(request: pytest.FixtureRequest, artifact: Callable[[str], Path], tmp_path: Path) -> Path:
    """What an export may find."""
    folder = tmp_path / "models" / "output"
    if request.param == "empty folder":
        folder.mkdir(parents=True)
    if request.param == "artifact":
        copy_of(artifact("one_layer"), folder)
    return folder


@pytest.fixture
def unchanged(
    output: Path, tmp_path: Path, artifact: Callable[[str], Path], quick: Path, model: str
) -> Iterator[None]:
    """Whatever goes wrong: nothing has changed, and the next export makes the artifact it should."""
    before = contents(tmp_path / "models")
    yield
    assert contents(tmp_path / "models") == before
    there = (output / "manifest.json").exists()
    if there:
        Artifact.open(output)
    export(ExportRequest(model, output, QUICK, check=False))
    assert contents(output) == contents(artifact("one_layer") if there else quick)


def refused(request: ExportRequest, *words: str, **options: Any) -> None:
    with pytest.raises(ExportError) as error:
        export(request, **options)
    assert_one_sentence(str(error.value), "", *words)


# A full disk.


def full_after(blocks: int, write: Callable[..., Any]) -> Callable[..., Any]:
    """`write`, on a disk that has room for so many calls."""
    left = blocks

    def limited(*arguments: Any, **options: Any) -> Any:
        nonlocal left
        left -= 1
        if left < 0:
            raise FULL
        return write(*arguments, **options)

    return limited


@pytest.mark.usefixtures("unchanged")
def test_the_disk_is_full_while_weights_are_written(
    model: str, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    blocks = 5 if any(output.glob("*.safetensors")) else 0
    with monkeypatch.context() as patch:
        patch.setattr(TensorFileWriter, "write", full_after(blocks, TensorFileWriter.write))
        refused(ExportRequest(model, output, QUICK, check=False), str(output), "full", "undone")


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize(
    ("target", "calls"), [("onnx.save", 0), ("onnx.save", 1), ("pathlib.Path.write_text", 0), ("os.fsync", 3)]
)
def test_the_disk_is_full_while_something_else_is_written(
    model: str, output: Path, monkeypatch: pytest.MonkeyPatch, target: str, calls: int
) -> None:
    real = {"onnx.save": onnx.save, "pathlib.Path.write_text": Path.write_text, "os.fsync": os.fsync}
    with monkeypatch.context() as patch:
        patch.setattr(target, full_after(calls, real[target]))
        refused(ExportRequest(model, output, QUICK, check=False), str(output), "full", "undone")


@pytest.mark.usefixtures("unchanged")
def test_the_disk_is_full_while_the_tokenizer_is_written(
    model: str, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def save(*_: object, **__: object) -> None:
        raise Exception("No space left on device (os error 28)")  # so the tokenizers library says it

    with monkeypatch.context() as patch:
        patch.setattr("transformers.PreTrainedTokenizerFast.save_pretrained", save)
        refused(ExportRequest(model, output, QUICK, check=False), str(output), "full", "undone")


@pytest.mark.usefixtures("unchanged")
def test_too_little_room_is_said_before_anything_is_written(
    model: str, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(staging.shutil, "disk_usage", lambda _: SimpleNamespace(free=5 << 20))
        patch.setattr(TensorFileWriter, "__init__", full_after(0, TensorFileWriter.__init__))
        refused(ExportRequest(model, output, QUICK, check=False), "GiB in", "are free")


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A real filesystem of 256 KiB, too small for the weights."""
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)]
    try:
        mounted = subprocess.run(command, capture_output=True, check=False).returncode == 0
    except OSError:
        mounted = False
    if not mounted:
        pytest.skip("mounting a filesystem is not allowed here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def test_a_disk_that_is_really_full(small_disk: Path, model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exporter, "require_space", lambda *_: None)
    output = small_disk / "output"
    export(ExportRequest(model, output, ("tokenizer", "decode_batchless"), check=False))
    before = contents(small_disk)
    refused(ExportRequest(model, output, check=False), "full", "undone")
    assert contents(small_disk) == before
    # Now leave no room for the tokenizer either, whose library has errors of its own.
    with contextlib.suppress(OSError), (small_disk / "ballast").open("wb", buffering=0) as ballast:
        while True:
            ballast.write(bytes(4096))
    before = contents(small_disk)
    for part in ("tokenizer", "prefill_batchless", "embed_tokens"):
        refused(ExportRequest(model, output, (part,), check=False), "full", "undone")
        assert contents(small_disk) == before
    (small_disk / "ballast").unlink()
    export(ExportRequest(model, output, ("tokenizer",), check=False))


# Broken off.


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize(
    ("moment", "parts"), [("tracing", PARTS), ("writing weights", QUICK), ("digesting", QUICK)]
)
def test_an_interruption_leaves_nothing(
    model: str, output: Path, moment: str, parts: tuple[str, ...]
) -> None:
    def interrupt(what: str, done: int, total: int) -> None:
        if what == moment:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        export(ExportRequest(model, output, parts), interrupt)


KILLED = """
import os, signal, sys
from cleave.export.exporter import ExportRequest, export

def report(what, done, total):
    if what == "writing weights" and done:
        os.kill(os.getpid(), signal.SIGKILL)

export(ExportRequest(sys.argv[1], sys.argv[2], ("embed_tokens",), check=False), report)
"""


def test_a_killed_export_spoils_nothing_and_the_next_one_clears_up(
    model: str, artifact: Callable[[str], Path], tmp_path: Path
) -> None:
    output = copy_of(artifact("one_layer"), tmp_path / "output")
    before = contents(output)
    assert process(["-c", KILLED, model, output]).code == -signal.SIGKILL
    after = contents(output)
    assert before is not None
    assert after is not None
    assert {name: data for name, data in after.items() if not name.startswith(".export")} == before
    assert any(name.startswith(".export-") for name in after), "nothing was being written yet"
    Artifact.open(output)
    export(ExportRequest(model, output, ("tokenizer",), check=False))
    assert {path.name for path in output.iterdir()} == {path.name for path in artifact("one_layer").iterdir()}
    export(ExportRequest(model, output, QUICK, check=False))
    assert contents(output) == before


@pytest.mark.usefixtures("unchanged")
def test_files_that_cannot_be_moved_are_all_left_where_they_were(
    model: str, output: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of the moves of a publication fails in its turn; the moves that undo the others work."""
    move, before = Path.replace, contents(output)
    calls = 0

    def replace(path: Path, target: Path) -> Path:
        nonlocal calls
        calls += 1
        if calls == failing:
            raise OSError(errno.EIO, "Input/output error")
        return move(path, target)

    moves = 7 * (2 if before else 1)  # what is there is moved away first
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", replace)
        for failing in range(1, moves + 1):
            calls = 0
            refused(ExportRequest(model, output, QUICK, check=False), "undone", "Input/output error")
            assert contents(output) == before, f"after move {failing}"


# In the way.


def test_a_file_in_place_of_the_folder(model: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    refused(ExportRequest(model, tmp_path / "file", check=False), "is a file")
    refused(ExportRequest(model, tmp_path / "file" / "deeper", check=False), "cannot be made")
    assert contents(tmp_path) == {"file": b"mine"}


def test_a_folder_that_cannot_be_made(model: str) -> None:
    refused(ExportRequest(model, Path("/proc/cleave/output"), check=False), "/proc/cleave/output")


@pytest.mark.parametrize("name", ["tokenizer.json", "weights.safetensors", "manifest.json"])
def test_a_folder_where_a_file_is_to_be(model: str, tmp_path: Path, name: str) -> None:
    (tmp_path / "output" / name).mkdir(parents=True)
    (tmp_path / "output" / name / "mine").write_text("mine")
    before = contents(tmp_path)
    refused(ExportRequest(model, tmp_path / "output", QUICK, check=False), name, "is a folder")
    assert contents(tmp_path) == before


def test_a_checkpoint_is_not_exported_over_itself_or_another(
    model: str, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    other = copy_of(checkpoint("gqa"), tmp_path / "other")
    before = contents(other)
    refused(ExportRequest(model, other, check=False), "is a checkpoint")
    refused(ExportRequest(str(other), other, check=False), "is a checkpoint")
    assert contents(other) == before


def test_files_of_the_user_in_the_folder_stay(model: str, tmp_path: Path) -> None:
    output = tmp_path / "output"
    output.mkdir()
    (output / "notes.txt").write_text("mine")
    export(ExportRequest(model, output, QUICK, check=False))
    export(ExportRequest(model, output, QUICK, check=False))
    assert (output / "notes.txt").read_text() == "mine"


# Two at once.


def test_a_second_export_into_the_same_folder_is_refused(model: str, tmp_path: Path, quick: Path) -> None:
    output = tmp_path / "output"
    tries: list[str] = []

    def second(what: str, done: int, total: int) -> None:
        if what == "writing weights" and not tries:
            for parts in (PARTS, ("tokenizer",)):
                with pytest.raises(ExportError, match="another export") as error:
                    export(ExportRequest(model, output, parts, check=False))
                tries.append(str(error.value))

    export(ExportRequest(model, output, QUICK, check=False), second)
    assert len(tries) == 2
    assert contents(output) == contents(quick)


def test_a_second_export_in_another_process_is_refused(model: str, tmp_path: Path) -> None:
    output = tmp_path / "output"
    seen = []

    def second(what: str, done: int, total: int) -> None:
        if not seen:
            options = ("--model", model, "--output_dir", output, "--export", "prefill_batchless")
            seen.append(process(["-m", "cleave", "export", *options]))

    export(ExportRequest(model, output, ("embed_tokens",), check=False), second)
    seen[0].refused("another export", str(output))


def test_a_part_that_came_while_this_export_started_is_not_lost(
    model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The manifest is read under the lock, so a part published just before the lock was free counts."""
    output, locked = tmp_path / "output", exporter.staging

    def late(folder: Path) -> Any:
        monkeypatch.setattr(exporter, "staging", locked)
        export(ExportRequest(model, output, ("tokenizer",), check=False))
        return locked(folder)

    export(ExportRequest(model, output, ("decode_batchless",), check=False))
    monkeypatch.setattr(exporter, "staging", late)
    export(ExportRequest(model, output, ("prefill_batchless",), check=False))
    assert set(read_manifest(output).parts) == {"tokenizer", "decode_batchless", "prefill_batchless"}


# What the check finds.


@pytest.mark.usefixtures("unchanged")
@pytest.mark.parametrize("output", ["artifact"], indirect=True)
@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (ExportError("the exported graphs disagree with transformers"), ExportError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
    ids=["disagrees", "interrupted"],
)
def test_an_export_whose_check_fails_is_undone(
    model: str,
    output: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    raised: type[BaseException],
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(exporter, "run_check", fail)
        with pytest.raises(raised):
            export(ExportRequest(model, output, QUICK))
