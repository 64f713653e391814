"""Fused pieces: as few operators as meant, ONNX Runtime's own results for the pieces as they were cut."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest
from onnx import helper

from cleave.export.artifact import Artifact
from cleave.export.pieces import Piece, cut
from cleave.export.widening import widen
from cleave.runtime.engines.onnxruntime import make_session
from cleave.runtime.engines.onnxruntime_fusion import fuse
from cleave.runtime.engines.residual import with_residual

Array = npt.NDArray[Any]
VARIANTS = ("gqa", "tied", "attention_bias", "mlp_bias", "qwen2", "qwen3", "one_layer")


def pieces(folder: Path) -> tuple[Artifact, list[Piece]]:
    artifact = Artifact.open(folder)
    return artifact, cut(artifact.batchful_graph())


def activations(piece: Piece, tokens: int) -> dict[str, Array]:
    generator = np.random.default_rng(0)
    widths = {value.name: value.type.tensor_type.shape.dim for value in piece.model.graph.input}
    made: dict[str, Array] = {
        name: generator.standard_normal((tokens, widths[name][1].dim_value), np.float32)
        for name in piece.inputs
        if name != "logit_rows"
    }
    if "logit_rows" in piece.inputs:
        made["logit_rows"] = np.arange(tokens)[::-1].copy()
    return made


def as_cut(piece: Piece, artifact: Artifact, inputs: dict[str, Array]) -> list[Array]:
    """What the piece gives without fusion, without ONNX Runtime's own, and with weights as inputs."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(widen(piece.model).SerializeToString(), options)
    weights = {name: artifact.weight(tensor).astype(np.float32) for name, tensor in piece.weights.items()}
    given: list[Array] = session.run(list(piece.outputs), weights | inputs)
    return given


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_fused_piece_gives_what_it_gave(variant: str, artifact: Callable[[str], Path]) -> None:
    opened, found = pieces(artifact(variant))
    for piece in found:
        inputs = activations(piece, 5)
        session, kept = make_session(piece, opened, 1)
        for got, expected in zip(
            session.run(list(piece.outputs), inputs), as_cut(piece, opened, inputs), strict=True
        ):
            np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
        del session, kept


@pytest.mark.parametrize("variant", ["gqa", "attention_bias", "qwen3"])
@pytest.mark.parametrize("index", [0, 1, -1])
def test_rows_of_a_fused_piece_are_the_same_in_any_number(
    variant: str, index: int, artifact: Callable[[str], Path]
) -> None:
    opened, found = pieces(artifact(variant))
    piece = found[index]
    names = [name for name in piece.inputs if name != "logit_rows"]
    whole = activations(piece, 70)
    one_thread, kept = make_session(piece, opened, 1)
    two_threads, also_kept = make_session(piece, opened, 2)
    expected = dict(zip(piece.outputs, one_thread.run(list(piece.outputs), whole), strict=True))
    for tokens in (1, 2, 3, 8, 33, 70):
        inputs = {name: whole[name][:tokens] for name in names}
        if "logit_rows" in piece.inputs:
            inputs["logit_rows"] = np.arange(tokens)
        for session in (one_thread, two_threads):
            for name, got in zip(piece.outputs, session.run(list(piece.outputs), inputs), strict=True):
                rows = expected[name][::-1] if name == "logits" else expected[name]
                np.testing.assert_array_equal(got, rows[:tokens])
    del kept, also_kept


@pytest.mark.parametrize("variant", ["gqa", "qwen2"])
def test_nothing_is_computed_apart_that_can_be_computed_at_once(
    variant: str, artifact: Callable[[str], Path]
) -> None:
    _, found = pieces(artifact(variant))
    first, middle, last = (operators(piece) for piece in (found[0], found[1], found[-1]))
    assert (first["Gemm"], first["Split"], first["Add"]) == (1, 1, 0)
    assert (middle["Gemm"], middle["Split"], middle["Add"]) == (5, 1, 0)
    assert (last["Gemm"], last["Split"], last["Add"]) == (5, 0, 0)


def operators(piece: Piece) -> Counter[str]:
    model = widen(piece.model)
    fuse(model, piece.weights)
    return Counter(node.op_type for node in model.graph.node)


def test_the_residual_of_the_last_piece_can_still_be_observed(artifact: Callable[[str], Path]) -> None:
    opened, found = pieces(artifact("gqa"))
    last = with_residual(found[-1])
    inputs = activations(last, 4)
    session, kept = make_session(last, opened, 1)
    for got, expected in zip(
        session.run(list(last.outputs), inputs), as_cut(last, opened, inputs), strict=True
    ):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
    del kept


def value(name: str, *shape: int | str) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)


def test_what_only_looks_like_a_residual_stays() -> None:
    """Of another width, used twice, or with the rows of `logit_rows`."""
    gemm = {"transB": 1}
    nodes = [
        helper.make_node("Gemm", ["x", "w"], ["twice"], **gemm),
        helper.make_node("Add", ["x", "twice"], ["a"]),
        helper.make_node("Mul", ["twice", "a"], ["b"]),
        helper.make_node("Gemm", ["b", "w"], ["narrow_left"], **gemm),
        helper.make_node("Add", ["narrow_left", "narrow"], ["c"]),
        helper.make_node("Gather", ["c", "rows"], ["picked"]),
        helper.make_node("Gemm", ["picked", "w"], ["of_picked"], **gemm),
        helper.make_node("Add", ["of_picked", "x"], ["out"]),
    ]
    rows = helper.make_tensor_value_info("rows", onnx.TensorProto.INT64, ["rows"])
    inputs = [value("x", "tokens", 4), value("narrow", "tokens", 1), value("w", 4, 4), rows]
    model = helper.make_model(helper.make_graph(nodes, "piece", inputs, [value("out", "tokens", 4)]))
    before = model.SerializeToString(deterministic=True)
    assert not fuse(model, ["w"])
    assert model.SerializeToString(deterministic=True) == before
