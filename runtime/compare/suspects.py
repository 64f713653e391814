"""Which weights a place depends on that no earlier place does: where to look for the error."""

from __future__ import annotations

from collections.abc import Mapping

from cleave.export.artifact import Artifact
from cleave.export.pieces import Piece, cut
from cleave.runtime.compare.trace import Place


def suspects(artifact: Artifact, place: Place) -> tuple[str, ...]:
    """Names of weights in the artifact; none for the output of attention, which has no weights."""
    if place.tensor == "attention":
        return ()
    if place.layer < 0:
        return (artifact.manifest.embedding,)
    pieces = cut(artifact.batchful_graph())
    if place.tensor == "residual" and place.layer < len(pieces) - 2:
        return _weights(pieces[place.layer + 1], next(iter(pieces[place.layer + 1].hands_on.values())))
    if place.tensor == "residual":
        last = pieces[-1]
        before_logits = _gathered(last)
        return _weights(last, before_logits) if before_logits else tuple(last.weights.values())
    piece = pieces[place.layer]
    known = next(iter(piece.hands_on.values()), None) or _gathered(piece)
    return _weights(piece, place.tensor, without=known)


def _weights(piece: Piece, output: str, without: str | None = None) -> tuple[str, ...]:
    """Weights that reach `output`, less those that reach it only through the value `without`."""
    producers = {name: node for node in piece.model.graph.node for name in node.output}
    reached: set[str] = set()
    waiting = [output]
    while waiting:
        name = waiting.pop()
        if name in reached or name == without:
            continue
        reached.add(name)
        if name in producers:
            waiting += producers[name].input
    return _in_order(piece.weights, reached)


def _in_order(weights: Mapping[str, str], reached: set[str]) -> tuple[str, ...]:
    return tuple(tensor for name, tensor in weights.items() if name in reached)


def _gathered(piece: Piece) -> str | None:
    """The residual of the last piece: what rows are gathered from."""
    return next((node.input[0] for node in piece.model.graph.node if node.op_type == "Gather"), None)
