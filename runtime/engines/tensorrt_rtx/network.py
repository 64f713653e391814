"""From the graph of a piece to TensorRT's network."""

from __future__ import annotations

from typing import Any

from cleave.errors import EngineError
from cleave.export.pieces import Piece

_DOMAINS = ("", "ai.onnx", "com.microsoft")
"""Domains whose operators are what the parser takes them for: it goes by the type alone."""


class Network:
    """A piece, parsed. Keeps everything that must live as long as the network."""

    def __init__(self, trt: Any, logger: Any, name: str, piece: Piece) -> None:
        """Parse a piece; types are those of the graph.

        Raises EngineError for operators that the parser does not know: names nodes and layers.
        """
        self.name = name
        _check_domains(name, piece)
        self.builder = trt.Builder(logger)
        flags = 1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        self.definition = self.builder.create_network(flags)
        self._parser = trt.OnnxParser(self.definition, logger)
        if not self._parser.parse(piece.model.SerializeToString()):
            raise EngineError(_refusal(self._parser, name, piece))

    @property
    def inputs(self) -> list[Any]:
        """The ITensors that go in, weights included."""
        return [self.definition.get_input(index) for index in range(self.definition.num_inputs)]

    @property
    def outputs(self) -> list[Any]:
        """The ITensors that come out."""
        return [self.definition.get_output(index) for index in range(self.definition.num_outputs)]


def _check_domains(name: str, piece: Piece) -> None:
    for index, node in enumerate(piece.model.graph.node):
        if node.domain not in _DOMAINS:
            raise EngineError(
                f"{_place(index, name, piece)} is of the domain {node.domain!r}; the parser of TensorRT for "
                f"RTX ignores domains and would take it for its own {node.op_type}"
            )


def _refusal(parser: Any, name: str, piece: Piece) -> str:
    """Every error of the parser, with the node in the artifact's own graph."""
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    told = []
    for error in errors:
        index = error.node()
        nodes = piece.model.graph.node
        place = _place(index, name, piece) if 0 <= index < len(nodes) else f"the {name} piece"
        unknown = 0 <= index < len(nodes) and not parser.supports_operator(nodes[index].op_type)
        told.append(f"{place}: {'an unknown operator' if unknown else error.desc()}")
    return (
        "the ONNX parser of TensorRT for RTX does not take this model: "
        f"{'; '.join(told) or 'it does not say why'}. Use the engine kind `inductor`"
    )


def _place(index: int, name: str, piece: Piece) -> str:
    node = piece.model.graph.node[index]
    known = piece.nodes[index] if index < len(piece.nodes) else node.name
    return f"node {known!r} ({node.op_type}) {_WHERE[name]}"


_WHERE = {
    "first": "before the attention of layer 0",
    "middle": "between the attention of layer 0 and layer 1, and so after every layer but the last",
    "last": "after the attention of the last layer",
}
