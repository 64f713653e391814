"""The translated pieces against ONNX Runtime, and what has no translation."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
import torch.nn.functional as F
from checkpoints import VARIANTS

from cleave.errors import EngineError
from cleave.export.artifact import Artifact
from cleave.export.pieces import Piece, cut
from cleave.runtime.engines.inductor.join import join_linears
from cleave.runtime.engines.inductor.pick import pick_first
from cleave.runtime.engines.inductor.program import Program, program_of
from cleave.runtime.engines.residual import with_residual

TOKENS = 7


def three_pieces(artifact: Artifact) -> list[Piece]:
    pieces = cut(artifact.batchful_graph())
    return [pieces[index] for index in sorted({0, 1, len(pieces) - 1})]


def inputs_of(piece: Piece) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    widths = {value.name: value.type.tensor_type.shape.dim[-1].dim_value for value in piece.model.graph.input}
    return {
        name: np.array([4, 0, 6])
        if name == "logit_rows"
        else generator.standard_normal((TOKENS, widths[name]), np.float32)
        for name in piece.inputs
    }


def run_by_onnxruntime(piece: Piece, artifact: Artifact) -> list[np.ndarray]:
    session = ort.InferenceSession(piece.model.SerializeToString(), providers=["CPUExecutionProvider"])
    weights = {name: np.array(artifact.weight(tensor)) for name, tensor in piece.weights.items()}
    return session.run(list(piece.outputs), inputs_of(piece) | weights)


def run_by_torch(program: Program, piece: Piece, artifact: Artifact) -> list[torch.Tensor]:
    inputs = inputs_of(piece)
    weights = [
        np.concatenate([artifact.weight(piece.weights[name]) for name in names]) for names in program.weights
    ]
    given = [torch.from_numpy(array) for array in (*(inputs[name] for name in program.inputs), *weights)]
    return list(program.module(*given))


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_piece_gives_what_onnx_runtime_gives(artifact: Callable[[str], Path], variant: str) -> None:
    opened = Artifact.open(artifact(variant))
    for piece in three_pieces(opened):
        expected = run_by_onnxruntime(piece, opened)
        program = program_of(piece, "a piece")
        rows = {name: opened.tensors[tensor].shape[0] for name, tensor in piece.weights.items()}
        joined = join_linears(program, rows)
        for made in (program, joined, pick_first(joined)):
            assert made.outputs == piece.outputs
            for got, wanted in zip(run_by_torch(made, piece, opened), expected, strict=True):
                np.testing.assert_allclose(got.numpy(), wanted, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("variant", ["gqa", "attention_bias", "mlp_bias", "qwen2", "qwen3"])
def test_layers_that_read_one_value_become_one_matrix(artifact: Callable[[str], Path], variant: str) -> None:
    opened = Artifact.open(artifact(variant))
    piece = three_pieces(opened)[1]
    program = program_of(piece, "a piece")
    rows = {name: opened.tensors[tensor].shape[0] for name, tensor in piece.weights.items()}
    joined = join_linears(program, rows)

    def linears(program: Program) -> int:
        return sum(node.target is F.linear for node in program.module.graph.nodes)

    assert linears(program) == 7
    assert linears(joined) == 4  # o, gate and up, down, and q, k and v of the next layer
    assert sorted(name for names in joined.weights for name in names) == sorted(piece.weights)
    assert ("self_attn.q_proj.weight", "self_attn.k_proj.weight", "self_attn.v_proj.weight") in joined.weights
    assert len(program.weights) == len(piece.weights)  # the program that was joined is as it was


@pytest.mark.parametrize("variant", ["gqa", "mlp_bias", "one_layer", "qwen3"])
def test_the_last_piece_computes_nothing_of_rows_that_nobody_asks_for(
    artifact: Callable[[str], Path], variant: str
) -> None:
    opened = Artifact.open(artifact(variant))
    pieces = three_pieces(opened)
    for piece in pieces[:-1]:
        program = program_of(piece, "a piece")
        assert pick_first(program) is program
    seen: list[int] = []

    class Watched(torch.fx.Interpreter):
        def run_node(self, n: torch.fx.Node) -> object:
            given = super().run_node(n)
            if n.target is F.linear:
                seen.append(len(given))
            return given

    program = program_of(pieces[-1], "the last piece")
    inputs = inputs_of(pieces[-1])
    arrays = (inputs[name] for name in program.inputs)
    weights = (opened.weight(pieces[-1].weights[name]) for (name,) in program.weights)
    Watched(pick_first(program).module).run(*(torch.from_numpy(np.array(one)) for one in (*arrays, *weights)))
    assert seen == [3] * 5  # o, gate, up, down and the head


def test_a_last_piece_that_gives_its_residual_computes_all_rows(artifact: Callable[[str], Path]) -> None:
    piece = with_residual(three_pieces(Artifact.open(artifact("gqa")))[-1])
    program = program_of(piece, "the last piece")
    assert pick_first(program) is program


def changed(piece: Piece, operator: str, change: Callable[[onnx.NodeProto], None]) -> Piece:
    model = onnx.ModelProto()
    model.CopyFrom(piece.model)
    change(next(node for node in model.graph.node if node.op_type == operator))
    return replace(piece, model=model)


@pytest.fixture(scope="module")
def middle(artifact: Callable[[str], Path]) -> Piece:
    return three_pieces(Artifact.open(artifact("gqa")))[1]


def test_an_unknown_operator_is_named_with_its_node_and_layer(middle: Piece) -> None:
    piece = changed(middle, "Sigmoid", lambda node: setattr(node, "op_type", "HardSwish"))
    with pytest.raises(EngineError, match=r"after layer 5: operator HardSwish of node node_4 .*: Add"):
        program_of(piece, "the piece after layer 5")


def test_an_operator_of_another_domain_is_not_taken_for_its_namesake(middle: Piece) -> None:
    piece = changed(middle, "Add", lambda node: setattr(node, "domain", "com.example"))
    with pytest.raises(EngineError, match=r"operator com\.example::Add"):
        program_of(piece, "the piece after layer 0")


@pytest.mark.parametrize(
    ("operator", "attribute", "value"),
    [("Gemm", "alpha", 0.5), ("Gemm", "transA", 1), ("RMSNormalization", "axis", 0)],
)
def test_an_attribute_without_a_translation_is_refused(
    middle: Piece, operator: str, attribute: str, value: float
) -> None:
    def change(node: onnx.NodeProto) -> None:
        kept = [entry for entry in node.attribute if entry.name != attribute]
        del node.attribute[:]
        node.attribute.extend([*kept, onnx.helper.make_attribute(attribute, value)])

    with pytest.raises(EngineError, match=rf"operator {operator} of node .*{attribute}"):
        program_of(changed(middle, operator, change), "the piece after layer 0")
