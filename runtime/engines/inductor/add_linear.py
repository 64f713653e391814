"""Linear layers that add what they give to the residual where it lies."""

from __future__ import annotations

import copy
import operator
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from cleave.runtime.engines.inductor.fuse import residual_of
from cleave.runtime.engines.inductor.operators import rms_norm
from cleave.runtime.engines.inductor.program import Program

Tensor = torch.Tensor


@torch.library.custom_op("cleave::add_linear_", mutates_args=("residual",))
def add_linear_(residual: Tensor, x: Tensor, weight: Tensor) -> None:
    """Add a linear layer without bias to `residual`. What is compiled calls torch instead; see `lowering.py`.

    x [rows, width]; weight [height, width]; residual [rows, height]. All of one dtype.
    """
    residual.addmm_(x, weight.t())


ADD_LINEAR = torch.ops.cleave.add_linear_.default
"""The operator as graphs have it."""
_NO_VIEWS = (F.embedding, F.linear, operator.add, operator.mul, operator.sub, operator.truediv, rms_norm)
"""What gives a tensor of its own, so that whoever reads that later does not read what it was made of."""


def add_in_place(
    program: Program, owned: Mapping[str, int], shapes: Mapping[str, tuple[int, ...]]
) -> Program:
    """The same program with `add_linear_` wherever the sum may overwrite the residual.

    Otherwise torch copies the residual first, and adds the product to the copy. `owned` are the inputs,
    [rows, width], that the program may overwrite because nobody else reads them afterwards, and their widths.
    `shapes` are those of the weights, by their placeholders. A sum is left as it is where something reads the
    residual after it, or may hold a view of it.
    """
    module = copy.deepcopy(program.module)
    graph = module.graph
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    widths = {
        node: owned[name] for name, node in zip(program.inputs, placeholders, strict=False) if name in owned
    }
    for node in list(graph.nodes):
        if node.op != "call_function":
            continue
        if node.target is F.embedding and node.args[1] in widths:
            widths[node] = widths[node.args[1]]
        elif node.target is F.linear and node.args[2] is None:
            _add(graph, node, widths, shapes)
    graph.lint()
    module.recompile()
    return Program(module, program.inputs, program.weights, program.outputs)


def _add(
    graph: fx.Graph, node: fx.Node, widths: Mapping[fx.Node, int], shapes: Mapping[str, tuple[int, ...]]
) -> None:
    """Put the operator in the place of a linear layer and the sum behind it, where that may be."""
    x, weight, _ = node.args
    added = residual_of(node)
    if added is None or x in widths or not isinstance(weight, fx.Node) or weight.name not in shapes:
        return
    residual: Any = next(value for value in added.args if value is not node)
    if widths.get(residual) != shapes[weight.name][0] or not _is_last_reader(graph, added, residual):
        return
    with graph.inserting_before(added):
        graph.call_function(ADD_LINEAR, (residual, x, weight))
    added.replace_all_uses_with(residual)
    graph.erase_node(added)
    graph.erase_node(node)


def _is_last_reader(graph: fx.Graph, added: fx.Node, residual: fx.Node) -> bool:
    """Whether all that reads the residual, but for the sum, has ended before it and keeps no view."""
    order = {node: place for place, node in enumerate(graph.nodes)}
    return all(
        user.target in (*_NO_VIEWS, ADD_LINEAR) and order[user] < order[added]
        for user in residual.users
        if user is not added
    )
