"""The pieces, held against the whole graph in plain ONNX Runtime with a stand-in for attention."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
import pytest
from onnx import helper, numpy_helper

from cleave.errors import ArtifactError
from cleave.export.artifact import Artifact, load_graph
from cleave.export.exporter import ExportRequest, export
from cleave.export.external import external_tensors
from cleave.export.pieces import ATTENTION, Piece, cut
from cleave.export.widening import widen
from cleave.plugins.schema import is_cut, layer_of

Arrays = dict[str, npt.NDArray[Any]]
TOKENS, ROWS = 5, [4, 1]
SOME = ("gqa", "tied", "attention_bias", "mlp_bias", "qwen3", "one_layer", "two_layers")


@pytest.fixture
def graph(artifact: Callable[[str], Path]) -> onnx.ModelProto:
    """The batchful graph of three layers, to be changed."""
    return Artifact.open(artifact("gqa")).batchful_graph()


def run(model: onnx.ModelProto, inputs: Arrays, outputs: tuple[str, ...]) -> Arrays:
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return dict(zip(outputs, session.run(list(outputs), inputs), strict=True))


# A stand-in for attention that depends on q, k, v and the layer, and mixes the tokens.


def stand_in(layer: int, q_size: int, kv_size: int) -> tuple[npt.NDArray[Any], npt.NDArray[Any]]:
    generator = np.random.default_rng(layer)
    mixing = generator.normal(0, 0.5, (TOKENS, TOKENS))
    spreading = generator.normal(0, 0.1, (2 * kv_size, q_size))
    return mixing.astype(np.float32), spreading.astype(np.float32)


def attend(layer: int, q: npt.NDArray[Any], k: npt.NDArray[Any], v: npt.NDArray[Any]) -> npt.NDArray[Any]:
    mixing, spreading = stand_in(layer, q.shape[1], k.shape[1])
    return mixing @ np.tanh(q + np.concatenate([k, v], axis=1) @ spreading)


def with_stand_in(model: onnx.ModelProto, artifact: Artifact) -> onnx.ModelProto:
    """The whole graph with the stand-in for every operator, and its weights inside."""
    whole = onnx.ModelProto()
    whole.CopyFrom(model)
    nodes = []
    for node in whole.graph.node:
        if not is_cut(node):
            nodes.append(node)
            continue
        layer, (q, k, v) = layer_of(node), node.input
        spec = artifact.manifest.layer_specs[layer]
        names = [f"{part}_{layer}" for part in ("mixing", "spreading", "kv", "spread", "sum", "tanh")]
        for name, values in zip(names, stand_in(layer, spec.q_size, spec.kv_size), strict=False):
            whole.graph.initializer.append(numpy_helper.from_array(values, name))
        mixing, spreading, kv, spread, total, tanh = names
        nodes += [
            helper.make_node("Concat", [k, v], [kv], axis=1),
            helper.make_node("MatMul", [kv, spreading], [spread]),
            helper.make_node("Add", [q, spread], [total]),
            helper.make_node("Tanh", [total], [tanh]),
            helper.make_node("MatMul", [mixing, tanh], [node.output[0]]),
        ]
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del whole.graph.node[:]
    whole.graph.node.extend(kept)
    for tensor in whole.graph.initializer:
        if tensor.external_data:
            tensor.CopyFrom(numpy_helper.from_array(np.array(artifact.weight(tensor.name)), tensor.name))
    return whole


def run_pieces(
    pieces: list[Piece], artifact: Artifact, inputs: Arrays, *, wide: bool = False
) -> npt.NDArray[Any]:
    values = dict(inputs)
    for layer, piece in enumerate(pieces):
        feeds = {name: values[name] for name in piece.inputs}
        for name, tensor in piece.weights.items():
            weight = np.array(artifact.weight(tensor))
            feeds[name] = weight.astype(np.float32) if wide else weight
        values |= run(widen(piece.model) if wide else piece.model, feeds, piece.outputs)
        values |= {carried: values[name] for carried, name in piece.hands_on.items()}
        if layer < len(pieces) - 1:
            values[ATTENTION] = attend(layer, values["q"], values["k"], values["v"])
    return values["logits"]


def some_inputs(hidden: int) -> Arrays:
    embeds = np.random.default_rng(7).normal(0, 1, (TOKENS, hidden)).astype(np.float32)
    return {"inputs_embeds": embeds, "logit_rows": np.array(ROWS, np.int64)}


@pytest.mark.parametrize("variant", SOME)
def test_the_pieces_give_the_logits_of_the_whole_graph(variant: str, artifact: Callable[[str], Path]) -> None:
    opened = Artifact.open(artifact(variant))
    graph = opened.batchful_graph()
    inputs = some_inputs(opened.manifest.hidden_size)
    expected = run(with_stand_in(graph, opened), inputs, ("logits",))["logits"]
    assert expected.shape == (len(ROWS), opened.manifest.vocab_size)
    got = run_pieces(cut(graph), opened, inputs)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("variant", SOME)
def test_there_is_one_piece_more_than_layers_and_one_middle(
    variant: str, artifact: Callable[[str], Path]
) -> None:
    opened = Artifact.open(artifact(variant))
    pieces = cut(opened.batchful_graph())
    layers = opened.manifest.num_layers
    assert len(pieces) == layers + 1
    assert len({id(piece.model) for piece in pieces}) == min(layers + 1, 3)
    assert all(piece.model is pieces[1].model for piece in pieces[1:-1])
    for index, piece in enumerate(pieces):
        onnx.checker.check_model(piece.model, full_check=True)
        assert not any(is_cut(node) for node in piece.model.graph.node)
        assert not list(external_tensors(piece.model))
        assert piece.inputs[0] == (ATTENTION if index else "inputs_embeds")
        assert piece.outputs[:3] == (("q", "k", "v") if index < layers else ("logits",))
        given = [value.name for value in piece.model.graph.input]
        assert given == [*piece.inputs, *piece.weights]
        assert [value.name for value in piece.model.graph.output] == list(piece.outputs)


@pytest.mark.parametrize("variant", SOME)
def test_every_weight_belongs_to_one_piece(variant: str, artifact: Callable[[str], Path]) -> None:
    opened = Artifact.open(artifact(variant))
    graph = opened.batchful_graph()
    used = [tensor for piece in cut(graph) for tensor in piece.weights.values()]
    assert len(used) == len(set(used))
    assert set(used) == {tensor.name for tensor in graph.graph.initializer if tensor.external_data}


def test_only_the_rows_asked_for_reach_the_last_norm_and_lm_head(artifact: Callable[[str], Path]) -> None:
    """Rows that are not asked for change nothing, and the order is the one asked for."""
    opened = Artifact.open(artifact("gqa"))
    pieces = cut(opened.batchful_graph())
    inputs = some_inputs(opened.manifest.hidden_size)
    every = run_pieces(pieces, opened, inputs | {"logit_rows": np.arange(TOKENS)})
    for rows in ([0], [TOKENS - 1], [3, 3, 0], list(range(TOKENS))[::-1]):
        got = run_pieces(pieces, opened, inputs | {"logit_rows": np.array(rows)})
        np.testing.assert_allclose(got, every[rows], rtol=0, atol=1e-5 * np.abs(every).max())
    last = pieces[-1].model.graph
    order = [node.op_type for node in last.node]
    assert order.index("Gather") < order.index("RMSNormalization", order.index("Gather"))
    assert order[-1] == "Gemm"


def test_a_graph_that_is_cut_is_not_changed(graph: onnx.ModelProto) -> None:
    before = graph.SerializeToString(deterministic=True)
    first = [piece.model.SerializeToString(deterministic=True) for piece in cut(graph)]
    assert graph.SerializeToString(deterministic=True) == before
    assert [piece.model.SerializeToString(deterministic=True) for piece in cut(graph)] == first


# Graphs that cannot be cut.


def cuts_of(graph: onnx.ModelProto) -> list[onnx.NodeProto]:
    return [node for node in graph.graph.node if is_cut(node)]


def lose(graph: onnx.ModelProto, layer: int) -> None:
    graph.graph.node.remove(cuts_of(graph)[layer])


def number_again(graph: onnx.ModelProto, layer: int, number: int) -> None:
    cuts_of(graph)[layer].attribute[0].i = number


def no_cuts(graph: onnx.ModelProto) -> None:
    for node in cuts_of(graph):
        graph.graph.node.remove(node)


def no_number(graph: onnx.ModelProto) -> None:
    del cuts_of(graph)[0].attribute[:]


def doubled(graph: onnx.ModelProto) -> None:
    again = graph.graph.node.add()
    again.CopyFrom(cuts_of(graph)[1])
    again.output[0] = "again"


def swapped(graph: onnx.ModelProto) -> None:
    number_again(graph, 0, 1)
    cuts_of(graph)[1].attribute[0].i = 0


def same_q_and_k(graph: onnx.ModelProto) -> None:
    cuts_of(graph)[0].input[1] = cuts_of(graph)[0].input[0]


def other_epsilon(graph: onnx.ModelProto) -> None:
    """Layer 1 computes something else than the other layers."""
    norms = [node for node in graph.graph.node if node.op_type == "RMSNormalization"]
    for attribute in norms[3].attribute:
        if attribute.name == "epsilon":
            attribute.f = 0.5


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda graph: lose(graph, 0), "2 attention operators"),
        (lambda graph: lose(graph, 1), "2 attention operators"),
        (lambda graph: number_again(graph, 1, 0), "3 attention operators"),
        (lambda graph: number_again(graph, 2, 3), r"\[0, 1, 3\]"),
        (no_cuts, "0 attention operators"),
        (no_number, "layer"),
        (doubled, "4 attention operators"),
        (swapped, "before the cut"),
        (same_q_and_k, "q, k and v"),
        (other_epsilon, "another structure"),
    ],
)
def test_a_graph_that_cannot_be_cut_is_refused(
    graph: onnx.ModelProto, change: Callable[[onnx.ModelProto], None], words: str
) -> None:
    change(graph)
    with pytest.raises(ArtifactError, match=words) as error:
        cut(graph)
    assert len(str(error.value).splitlines()) == 1


# Widening.


@pytest.fixture(scope="module", params=["float16", "bfloat16"])
def narrow(
    request: pytest.FixtureRequest,
    checkpoint: Callable[[str], Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Artifact:
    folder = tmp_path_factory.mktemp(request.param)
    export(ExportRequest(str(checkpoint("qwen3")), folder, dtype=request.param, check=False))
    return Artifact.open(folder)


def element_types(model: onnx.ModelProto) -> set[int]:
    """Every element type that a graph speaks of."""
    graph = model.graph
    values = (*graph.input, *graph.output, *graph.value_info)
    types = {value.type.tensor_type.elem_type for value in values}
    types |= {tensor.data_type for tensor in graph.initializer}
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                types.add(attribute.t.data_type)
            if attribute.name in ("to", "dtype", "stash_type"):
                types.add(attribute.i)
    return types


NARROW = {onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16}


def test_a_widened_piece_speaks_of_no_narrow_type(narrow: Artifact) -> None:
    for piece in cut(narrow.batchful_graph()):
        assert element_types(piece.model) & NARROW
        before = piece.model.SerializeToString(deterministic=True)
        wide = widen(piece.model)
        assert not element_types(wide) & NARROW
        assert piece.model.SerializeToString(deterministic=True) == before
        onnx.checker.check_model(wide, full_check=True)
    for pair in narrow.batchless_graphs():
        for path in pair:
            wide = widen(load_graph(path))
            assert not element_types(wide) & NARROW
            onnx.checker.check_model(wide, full_check=True)


def test_widened_pieces_compute_what_the_float32_graph_computes(
    narrow: Artifact, artifact: Callable[[str], Path]
) -> None:
    """The graph of the float32 artifact with the narrow weights is the truth."""
    inputs = some_inputs(narrow.manifest.hidden_size)
    wide_graph = Artifact.open(artifact("qwen3")).batchful_graph()
    whole = with_stand_in(wide_graph, narrow)
    for tensor in whole.graph.initializer:
        if tensor.data_type in NARROW:
            values = numpy_helper.to_array(tensor).astype(np.float32)
            tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
    expected = run(whole, inputs, ("logits",))["logits"]
    got = run_pieces(cut(narrow.batchful_graph()), narrow, inputs, wide=True)
    np.testing.assert_allclose(got, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


def test_a_float32_graph_is_widened_to_itself(graph: onnx.ModelProto) -> None:
    assert widen(graph) == graph


def test_a_whole_narrow_graph_is_not_widened(narrow: Artifact) -> None:
    with pytest.raises(ArtifactError, match="cut the graph"):
        widen(narrow.batchful_graph())
