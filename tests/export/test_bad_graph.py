"""Graphs that were made to mislead, with digests that fit: an ArtifactError that says what and why."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from command import assert_one_sentence
from damage import sign_again
from onnx import helper, numpy_helper
from spoilt import refuse

from cleave import LLM
from cleave.errors import ArtifactError
from cleave.export.artifact import BATCHFUL, WEIGHTS
from cleave.plugins.schema import is_cut


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
