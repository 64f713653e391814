"""A program: one piece as a torch graph, its weights among the inputs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import fx

from cleave.errors import EngineError
from cleave.export.pieces import Piece
from cleave.runtime.engines.inductor.operators import constant_of, translate


@dataclass(frozen=True, slots=True)
class Program:
    """One piece in torch's terms. Layers that share a program differ in their weights alone."""

    module: fx.GraphModule
    """Takes the activations of `inputs`, then the `weights`; gives a tuple of the `outputs`.

    An output may be an input that the program has overwritten; see `add_in_place`."""
    inputs: tuple[str, ...]
    weights: tuple[tuple[str, ...], ...]
    """For each weight the names in the piece of the tensors that it is made of, one below the other."""
    outputs: tuple[str, ...]


def program_of(piece: Piece, where: str) -> Program:
    """Translate a piece. `where` names it in errors: "the piece after layer 3".

    Raises EngineError for an operator that has no translation.
    """
    graph = fx.Graph()
    tracer = fx.proxy.GraphAppendingTracer(graph)
    values: dict[str, Any] = {}
    for name in (*piece.inputs, *piece.weights):
        values[name] = fx.Proxy(graph.placeholder(_identifier(name)), tracer)
    model = piece.model.graph
    constants = {tensor.name: constant_of(tensor) for tensor in model.initializer}
    for node in model.node:
        given = [_value(name, values, constants, graph, tracer) for name in node.input]
        try:
            results = translate(node, given, constants)
        except EngineError as error:
            raise EngineError(f"{where}: {error}") from None
        if len(node.output) == 1:
            values[node.output[0]] = results
        else:
            values |= {name: results[index] for index, name in enumerate(node.output)}
    graph.output(tuple(values[name].node for name in piece.outputs))
    graph.eliminate_dead_code()
    graph.lint()
    return Program(
        fx.GraphModule(torch.nn.Module(), graph),
        piece.inputs,
        tuple((name,) for name in piece.weights),
        piece.outputs,
    )


def _value(
    name: str, values: dict[str, Any], constants: dict[str, Any], graph: fx.Graph, tracer: fx.proxy.TracerBase
) -> Any:
    """What an input of a node is. A constant of floats becomes a number; one of whole numbers is looked up
    by the operator that needs it.
    """
    if not name:
        return None
    if name in values:
        return values[name]
    constant = constants[name]
    if constant.dtype.kind in "iu":
        return None
    if constant.size != 1:
        raise EngineError(f"constant {name} has {constant.size} values; only weights may have more than one")
    return float(constant.reshape(())[()])


def _identifier(name: str) -> str:
    return name.replace(".", "_")
