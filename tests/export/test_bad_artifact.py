"""Artifacts that are incomplete, altered or made to mislead: an ArtifactError that says what and why."""

from __future__ import annotations

import contextlib
import copy
import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from command import assert_one_sentence, cleave
from damage import alter_byte, copy_of, edit_json, sign_again
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper

from cleave import LLM
from cleave.errors import ArtifactError
from cleave.export.artifact import BATCHFUL, WEIGHTS, Artifact
from cleave.export.exporter import ExportRequest, export
from cleave.export.manifest import FORMAT, PARTS, Manifest
from cleave.plugins.schema import is_cut

FILES = (
    BATCHFUL,
    WEIGHTS,
    "prefill_batchless.onnx",
    "decode_batchless.onnx",
    "tokenizer.json",
    "tokenizer_config.json",
    "generation_config.json",
)


@pytest.fixture
def folder(artifact: Callable[[str], Path], tmp_path: Path) -> Path:
    """An artifact that a test may spoil."""
    return copy_of(artifact("two_layers"), tmp_path / "artifact")


def read_all(folder: Path) -> None:
    """Everything that serving reads of an artifact."""
    artifact = Artifact.open(folder)
    artifact.batchful_graph()
    artifact.embedding()
    for pair in artifact.batchless_graphs():
        for path in pair:
            assert path.is_file()
    assert isinstance(artifact.eos_token_ids, frozenset)
    assert isinstance(artifact.generation_config, dict)


def refuse(folder: Path, *words: str) -> str:
    with pytest.raises(ArtifactError) as refused:
        read_all(folder)
    assert_one_sentence(str(refused.value), "", *words)
    with pytest.raises(ArtifactError):
        LLM(folder)
    return str(refused.value)


def edit_manifest(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    edit_json(folder / "manifest.json", change)


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


# The manifest.


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


# Graphs that were made to mislead, with digests that fit.


def edit_graph(folder: Path, name: str, change: Callable[[onnx.ModelProto], object]) -> None:
    model = onnx.load(folder / name, load_external_data=False)
    change(model)
    onnx.save(model, folder / name)
    sign_again(folder, name)


def point(tensor: onnx.TensorProto, **changes: str) -> None:
    for entry in tensor.external_data:
        entry.value = changes.get(entry.key, entry.value)


@pytest.mark.parametrize("location", ["../secret", "/etc/passwd", "tokenizer.json", ""])
def test_weights_that_lie_elsewhere(folder: Path, location: str) -> None:
    edit_graph(folder, BATCHFUL, lambda model: point(model.graph.initializer[-1], location=location))
    refuse(folder, BATCHFUL, WEIGHTS)


@pytest.mark.parametrize("change", [{"offset": "0"}, {"offset": "-8"}, {"length": "4"}, {"offset": "x"}])
def test_weights_at_another_place_in_the_file(folder: Path, change: dict[str, str]) -> None:
    edit_graph(folder, BATCHFUL, lambda model: point(model.graph.initializer[-1], **change))
    refuse(folder, BATCHFUL, WEIGHTS, "disagree")


def external_tensor(name: str) -> onnx.TensorProto:
    tensor = numpy_helper.from_array(np.zeros(4, np.float32), name)
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../secret")
    return tensor


def add_constant(model: onnx.ModelProto) -> None:
    """A tensor inside a node, which no list of weights shows."""
    model.graph.node.add().CopyFrom(
        helper.make_node("Constant", [], ["stray"], value=external_tensor("stray"))
    )


def add_branch(model: onnx.ModelProto) -> None:
    """A tensor in a graph inside a node."""
    branch = helper.make_graph([], "branch", [], [], initializer=[external_tensor("stray")])
    model.graph.node.add().CopyFrom(
        helper.make_node("If", ["x"], ["y"], then_branch=branch, else_branch=branch)
    )


def add_function(model: onnx.ModelProto) -> None:
    """A tensor in a function of the model."""
    node = helper.make_node("Constant", [], ["stray"], value=external_tensor("stray"))
    model.functions.add().node.add().CopyFrom(node)


def add_weight(model: onnx.ModelProto) -> None:
    model.graph.initializer.add().CopyFrom(external_tensor("stray"))


@pytest.mark.parametrize("add", [add_constant, add_branch, add_function, add_weight])
@pytest.mark.parametrize("name", [BATCHFUL, "prefill_batchless.onnx", "decode_batchless.onnx"])
def test_data_that_a_graph_keeps_outside_of_the_artifact(
    folder: Path, name: str, add: Callable[[onnx.ModelProto], None]
) -> None:
    edit_graph(folder, name, add)
    with pytest.raises(ArtifactError, match=name):
        LLM(folder, attention="onnx")


def drop_cut(model: onnx.ModelProto) -> None:
    cut = next(node for node in model.graph.node if is_cut(node))
    model.graph.node.remove(cut)


def double_cut(model: onnx.ModelProto) -> None:
    cut = next(node for node in model.graph.node if is_cut(node))
    extra = model.graph.node.add()
    extra.CopyFrom(cut)
    extra.output[0] = "again"


def nameless_cut(model: onnx.ModelProto) -> None:
    del next(node for node in model.graph.node if is_cut(node)).attribute[:]


@pytest.mark.parametrize("change", [drop_cut, double_cut, nameless_cut])
def test_an_operator_that_was_lost_or_doubled(
    folder: Path, change: Callable[[onnx.ModelProto], None]
) -> None:
    edit_graph(folder, BATCHFUL, change)
    with pytest.raises(ArtifactError, match=r"attention operator|layer"):
        LLM(folder)


@pytest.mark.parametrize("name", [BATCHFUL, "tokenizer.json", WEIGHTS])
@pytest.mark.parametrize("data", [b"", b"\x00" * 64, b"\xff" * 64, b"{}"])
def test_a_file_that_is_something_else_altogether(folder: Path, name: str, data: bytes) -> None:
    (folder / name).write_bytes(data)
    sign_again(folder, name)
    with pytest.raises(ArtifactError) as refused:
        LLM(folder)
    assert_one_sentence(str(refused.value), "", "again")


def test_a_spec_of_other_heads_is_an_error_and_no_wild_read(folder: Path) -> None:
    manifest = json.loads((folder / "manifest.json").read_text())
    changed = copy.deepcopy(manifest)
    changed["specs"][0] |= {"heads": 64, "kv_heads": 32}
    (folder / "manifest.json").write_text(json.dumps(changed))
    with LLM(folder) as llm:
        (answer,) = llm.generate([[1, 2, 3]])
    assert answer.finish_reason == "error"
    assert "heads" in str(answer.error) or "shape" in str(answer.error) or "q" in str(answer.error)
