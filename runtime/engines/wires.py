"""Which buffer each piece reads and writes, where buffers are made once and used in every step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from cleave.errors import EngineError
from cleave.export.pieces import Piece


@dataclass(slots=True)
class Wires:
    """The buffers of all pieces, by name."""

    inputs: list[dict[str, str]] = field(default_factory=list)
    """For each piece: input -> buffer."""
    outputs: list[dict[str, str]] = field(default_factory=list)
    """For each piece: output -> buffer."""
    widths: dict[str, int] = field(default_factory=dict)
    """Buffer -> its columns, for those with a row for every token of the step."""
    residuals: list[str] = field(default_factory=list)
    """For each piece the buffer that it hands on; that of piece i has the residual after layer i - 1."""


def wire(pieces: Sequence[Piece]) -> Wires:
    """Lay out the buffers of pieces that run one after the other.

    Raises EngineError where a middle piece hands on what it did not compute.
    """
    wires = Wires()
    carried: dict[str, str] = {}
    for index, piece in enumerate(pieces):
        inputs = {name: carried.get(name, name) for name in piece.inputs}
        # A carry is read and written by the same piece, so it alternates between two buffers.
        outputs = {
            name: f"{name}/{index % 2}" if name in piece.hands_on.values() else name for name in piece.outputs
        }
        if index and not set(piece.hands_on.values()) <= set(piece.outputs):
            raise EngineError("a middle piece hands on what it did not compute; this engine cannot run it")
        here = inputs | outputs
        given = [*piece.hands_on.values(), *piece.outputs]
        wires.residuals.append(here[given[0] if piece.hands_on else given[-1]])
        carried = {name: here[source] for name, source in piece.hands_on.items()}
        wires.inputs.append(inputs)
        wires.outputs.append(outputs)
        for value in (*piece.model.graph.input, *piece.model.graph.output):
            dims = value.type.tensor_type.shape.dim
            if value.name in here and len(dims) == 2:
                wires.widths[here[value.name]] = dims[1].dim_value
    del wires.widths["logits"]
    return wires
