"""Artifacts that are incomplete or altered: an ArtifactError that says what and why."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command import cleave
from damage import alter_byte, copy_of
from spoilt import edit_manifest, read_all, refuse

from cleave import LLM
from cleave.errors import ArtifactError
from cleave.export.artifact import BATCHFUL, WEIGHTS, Artifact
from cleave.export.exporter import ExportRequest, export
from cleave.export.manifest import PARTS

FILES = (
    BATCHFUL,
    WEIGHTS,
    "prefill_batchless.onnx",
    "decode_batchless.onnx",
    "tokenizer.json",
    "tokenizer_config.json",
    "generation_config.json",
)


def test_the_files_of_an_artifact_are_those_that_are_spoilt_below(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    assert set(manifest["files"]) == set(FILES)
    assert {path.name for path in folder.iterdir()} == {*FILES, "manifest.json"}
    read_all(folder)


# What is no artifact.


def test_no_folder(tmp_path: Path) -> None:
    refuse(tmp_path / "nowhere", "there is no artifact at", "nowhere", "cleave export")


def test_a_file_in_place_of_a_folder(folder: Path) -> None:
    refuse(folder / WEIGHTS, "there is no artifact at")


def test_a_path_that_no_file_can_have() -> None:
    with pytest.raises(ArtifactError):
        LLM("x" * 5000)


def test_no_manifest(folder: Path) -> None:
    (folder / "manifest.json").unlink()
    refuse(folder, "is not an artifact", "manifest.json")


def test_a_checkpoint_in_place_of_an_artifact(checkpoint: Callable[[str], Path]) -> None:
    refuse(checkpoint("two_layers"), "looks like a checkpoint", "cleave export")


# Files.


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_file_is_named(folder: Path, name: str) -> None:
    data = (folder / name).read_bytes()
    (folder / name).write_bytes(data[: len(data) // 2])
    refuse(folder, name, f"{len(data) // 2} bytes", str(len(data)))


@pytest.mark.parametrize("name", FILES)
def test_an_altered_file_of_the_same_size_is_named_by_its_digest(folder: Path, name: str) -> None:
    alter_byte(folder / name)
    refuse(folder, name, "altered", "SHA-256")


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    refuse(folder, name, "is missing", "again")


@pytest.mark.parametrize("name", [*FILES, "manifest.json"])
def test_a_link_out_of_the_folder_is_refused(folder: Path, tmp_path: Path, name: str) -> None:
    (folder / name).rename(tmp_path / name)
    (folder / name).symlink_to(tmp_path / name)
    refuse(folder, name, "link")


def test_the_folder_itself_may_be_a_link(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(folder)
    read_all(tmp_path / "link")


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "sub/file", "..", ".", "manifest.json"])
@pytest.mark.parametrize("where", ["files", "parts"])
def test_a_file_name_that_leaves_the_folder(folder: Path, name: str, where: str) -> None:
    def change(manifest: dict[str, Any]) -> None:
        if where == "files":
            manifest["files"][name] = manifest["files"]["tokenizer.json"]
        else:
            manifest["parts"]["tokenizer"].append(name)

    edit_manifest(folder, change)
    refuse(folder, "manifest.json", "damaged", repr(name))


def test_a_name_that_is_too_long_for_a_file(folder: Path) -> None:
    edit_manifest(folder, lambda data: data["files"].update({"x" * 5000: data["files"][WEIGHTS]}))
    with pytest.raises(ArtifactError):
        read_all(folder)


def test_a_file_that_the_manifest_does_not_name_is_not_read(folder: Path) -> None:
    expected = Artifact.open(folder).eos_token_ids

    def forget(manifest: dict[str, Any]) -> None:
        del manifest["files"]["generation_config.json"]
        manifest["parts"]["tokenizer"].remove("generation_config.json")

    edit_manifest(folder, forget)
    (folder / "generation_config.json").write_text('{"eos_token_id": 1}')
    assert Artifact.open(folder).eos_token_ids == expected


@pytest.mark.parametrize("part", PARTS)
def test_a_part_without_its_files_is_refused(folder: Path, part: str) -> None:
    def forget(manifest: dict[str, Any]) -> None:
        names = manifest["parts"][part]
        for other in manifest["parts"]:
            manifest["parts"][other] = [name for name in manifest["parts"][other] if name not in names]
        for name in names:
            del manifest["files"][name]

    edit_manifest(folder, forget)
    refuse(folder, "manifest.json", "again")


# Parts.


@pytest.mark.parametrize("part", PARTS)
def test_a_missing_part_is_named_with_the_command_that_makes_it(
    checkpoint: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    monkeypatch.setattr("cleave.export.exporter.run_check", lambda *_, **__: {})
    output = tmp_path / "an artifact"
    others = tuple(other for other in PARTS if other != part)
    export(ExportRequest(str(copy_of(checkpoint("one_layer"), tmp_path / "a model")), output, others))
    message = refuse(output, f"lacks {part}", f"--export {part}")
    command = shlex.split(message.partition("run: ")[2])
    assert command[:2] == ["cleave", "export"]
    assert cleave(*command[1:]).code == 0
    read_all(output)
