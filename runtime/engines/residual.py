"""What an engine shows an observer: the residual stream, where a piece hands it on."""

from __future__ import annotations

from collections.abc import Sequence

import onnx

from cleave.errors import EngineError
from cleave.export.pieces import Piece


def check_observable(pieces: Sequence[Piece]) -> None:
    """Raises EngineError where a piece hands on more than the residual."""
    if any(len(piece.hands_on) > 1 for piece in pieces[:-1]):
        raise EngineError(
            "this model carries more than the residual from layer to layer; it cannot be observed"
        )


def with_residual(piece: Piece) -> Piece:
    """The last piece with one more output: the residual [tokens, hidden] that `logit_rows` picks from."""
    model = onnx.ModelProto()
    model.CopyFrom(piece.model)
    rows = {"logit_rows"}
    for node in model.graph.node:
        if node.op_type == "Gather" and node.input[1] in rows:
            residual = node.input[0]
            break
        if rows & set(node.input):
            rows |= set(node.output)
    else:
        raise EngineError("the last piece does not gather the rows of logit_rows; it cannot be observed")
    output = model.graph.output.add()
    output.CopyFrom(next(value for value in model.graph.input if value.name.startswith("carried_")))
    output.name = residual
    return Piece(model, piece.inputs, (*piece.outputs, residual), piece.weights, piece.hands_on)
