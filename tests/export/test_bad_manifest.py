"""Manifests that are damaged or made to mislead: an ArtifactError that says what and why."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from damage import copy_of, sign_again
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from spoilt import edit_manifest, read_all, refuse

from cleave.errors import ArtifactError
from cleave.export.artifact import WEIGHTS, Artifact
from cleave.export.manifest import FORMAT, Manifest


@pytest.mark.parametrize("number", [FORMAT + 1, 10**30])
def test_a_newer_format(folder: Path, number: int) -> None:
    edit_manifest(folder, lambda manifest: manifest.update(format=number))
    refuse(folder, f"format {number}", f"up to {FORMAT}", "upgrade")


@pytest.mark.parametrize("number", [0, -1, True, "1", 1.0, None, [1]])
def test_a_format_that_never_was(folder: Path, number: object) -> None:
    edit_manifest(folder, lambda manifest: manifest.update(format=number))
    refuse(folder, "manifest.json", "is not the manifest")


@pytest.mark.parametrize("data", [b"", b"{", b"\xff\xfe\xfd", b"[" * 100_000, b'{"format": ' + b"9" * 5000])
def test_a_manifest_that_is_no_json(folder: Path, data: bytes) -> None:
    (folder / "manifest.json").write_bytes(data)
    refuse(folder, "manifest.json", "damaged")


@pytest.mark.parametrize("data", [b"[]", b"1", b"null", b"{}", b'"manifest"'])
def test_a_manifest_that_is_no_manifest(folder: Path, data: bytes) -> None:
    (folder / "manifest.json").write_bytes(data)
    refuse(folder, "manifest.json", "export again")


def test_every_entry_of_the_manifest_is_missed(folder: Path) -> None:
    whole = json.loads((folder / "manifest.json").read_text())
    for name in set(whole) - {"cut", "format"}:
        (folder / "manifest.json").write_text(json.dumps({k: v for k, v in whole.items() if k != name}))
        refuse(folder, "manifest.json", "damaged", name)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("num_layers",), 3),
        (("num_layers",), 0),
        (("num_layers",), 2.0),
        (("num_layers",), float("inf")),
        (("dtype",), "int8"),
        (("spec_of_layer",), [0, 1]),
        (("spec_of_layer",), [0, -1]),
        (("spec_of_layer",), []),
        (("specs",), []),
        (("specs", 0, "heads"), 0),
        (("specs", 0, "heads"), 4.0),
        (("specs", 0, "heads"), "4"),
        (("specs", 0, "head_dim"), float("nan")),
        (("specs", 0, "scale"), float("nan")),
        (("specs", 0, "scale"), "1"),
        (("specs", 0, "window"), -1),
        (("specs", 0, "rope", "kind"), "spiral"),
        (("specs", 0, "rope", "base"), "1e4"),
        (("specs", 0, "rope", "rotary_dim"), 3),
        (("specs", 0, "rope", "surprise"), 1),
        (("config", "vocab_size"), "301"),
        (("config", "hidden_size"), -1),
        (("config", "max_position_embeddings"), 0),
        (("config",), []),
        (("embedding_scale",), float("nan")),
        (("files", WEIGHTS, "bytes"), "many"),
        (("files", WEIGHTS), {"sha256": "0"}),
    ],
    ids=str,
)
def test_a_value_that_cannot_be(folder: Path, path: tuple[Any, ...], value: object) -> None:
    def change(manifest: Any) -> None:
        for step in path[:-1]:
            manifest = manifest[step]
        manifest[path[-1]] = value

    edit_manifest(folder, change)
    refuse(folder, "manifest.json", "damaged")


@pytest.mark.parametrize(
    ("name", "value"), [("vocab_size", 300), ("hidden_size", 32), ("vocab_size", 10**12)]
)
def test_sizes_that_are_not_those_of_the_embedding(folder: Path, name: str, value: int) -> None:
    edit_manifest(folder, lambda manifest: manifest["config"].update({name: value}))
    refuse(folder, "embedding", str(value))


def test_an_embedding_that_is_not_there(folder: Path) -> None:
    edit_manifest(folder, lambda manifest: manifest.update(embedding="wte"))
    refuse(folder, WEIGHTS, "wte")


@pytest.mark.parametrize("value", ["end", [[1]], {"a": 1}, [None], float("inf")])
def test_end_tokens_that_are_no_numbers(folder: Path, value: object) -> None:
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": value}))
    sign_again(folder, "generation_config.json")
    refuse(folder, "eos_token_id")


@pytest.mark.parametrize(
    ("value", "tokens"), [(None, {257}), (7, {7}), ([7, 9], {7, 9}), ([], {257}), ([7], {7})]
)
def test_end_tokens_are_one_a_list_or_none(folder: Path, value: object, tokens: set[int]) -> None:
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": value}))
    sign_again(folder, "generation_config.json")
    assert Artifact.open(folder).eos_token_ids == tokens


def places(data: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The path to everything inside a JSON value."""
    items = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    return [place for key, value in items for place in [(*path, key), *places(value, (*path, key))]]


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=5,
)


@settings(
    max_examples=400,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_a_mutated_manifest_is_read_or_refused_and_nothing_else(
    artifact: Callable[[str], Path], tmp_path: Path, data: st.DataObject
) -> None:
    source = artifact("two_layers")
    if not tmp_path.joinpath("artifact").exists():
        copy_of(source, tmp_path / "artifact")
    manifest = json.loads((source / "manifest.json").read_text())
    for _ in range(data.draw(st.integers(1, 3))):
        *path, key = data.draw(st.sampled_from(places(manifest)))
        parent = manifest
        for step in path:
            parent = parent[step]
        if data.draw(st.booleans()):
            del parent[key]
        else:
            parent[key] = data.draw(anything | st.sampled_from(["../x", "/etc/passwd", 10**400]))
    (tmp_path / "artifact" / "manifest.json").write_text(json.dumps(manifest))
    with contextlib.suppress(ArtifactError):
        read_all(tmp_path / "artifact")


@settings(max_examples=200, deadline=None, derandomize=True)
@given(data=st.data())
def test_bytes_that_are_changed_in_the_manifest_give_a_manifest_or_an_error(
    artifact: Callable[[str], Path], data: st.DataObject
) -> None:
    text = bytearray((artifact("two_layers") / "manifest.json").read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        text[data.draw(st.integers(0, len(text) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(ArtifactError):
        Manifest.from_json(bytes(text), Path("manifest.json"))


def test_a_manifest_is_read_as_it_was_written(artifact: Callable[[str], Path]) -> None:
    for variant in ("two_layers", "rope_yarn", "qwen2_mixed_windows"):
        text = (artifact(variant) / "manifest.json").read_text()
        assert Manifest.from_json(text, Path("manifest.json")).to_json() == text
