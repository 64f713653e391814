"""Programs that pick the rows that are asked for before they compute anything of them."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from cleave.runtime.engines.inductor.operators import rms_norm
from cleave.runtime.engines.inductor.program import Program

_ROW_BY_ROW: tuple[Callable[..., Any], ...] = (
    F.gelu,
    operator.add,
    operator.getitem,
    operator.mul,
    operator.sub,
    operator.truediv,
    rms_norm,
    torch.neg,
    torch.sigmoid,
    torch.tanh,
)
"""What gives of every row what it would give of it alone; with weights, which have no rows, as operands."""


def pick_first(program: Program) -> Program:
    """The same program with rows picked from its inputs, where they were picked from what it had computed.

    The piece behind the last layer is asked for the last token of a prompt alone, and its MLP is most of what
    a layer computes. A program is given back as it is where it picks no rows, where they do not come from its
    inputs row by row, or where something else needs all of them.
    """
    module = copy.deepcopy(program.module)
    graph = module.graph
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    inputs, weights = placeholders[: len(program.inputs)], placeholders[len(program.inputs) :]
    for node in graph.nodes:
        if node.op == "call_function" and node.target is F.embedding and node.args[1] not in weights:
            break
    else:
        return program
    index, computed = node.args[:2]
    asked, needed = _before([index]), _before([computed])
    rows = [one for one in inputs if one in needed]
    inner = [one for one in graph.nodes if one in needed and one not in placeholders]
    if not inner or needed & asked or not all(_is_row_by_row(one, weights) for one in inner):
        return program
    if any(user not in needed and user is not node for one in (*rows, *inner) for user in one.users):
        return program
    for one in [one for one in graph.nodes if one in asked and one not in placeholders]:
        inner[0].prepend(one)
    for one in rows:
        with graph.inserting_before(inner[0]):
            picked = graph.call_function(F.embedding, (index, one))
        one.replace_all_uses_with(picked, delete_user_cb=lambda user, picked=picked: user is not picked)
    node.replace_all_uses_with(computed)
    graph.erase_node(node)
    graph.lint()
    module.recompile()
    return Program(module, program.inputs, program.weights, program.outputs)


def _before(nodes: Iterable[fx.Node]) -> set[fx.Node]:
    """These nodes and all that they are computed from."""
    found: set[fx.Node] = set()
    left = list(nodes)
    while left:
        node = left.pop()
        if node not in found:
            found.add(node)
            left += node.all_input_nodes
    return found


def _is_row_by_row(node: fx.Node, weights: list[fx.Node]) -> bool:
    if node.op == "call_method":
        return node.target == "to"
    if node.target is F.linear:
        return all(one is None or one in weights for one in node.args[1:])
    if node.target is torch.split:
        return node.args[2:] == (-1,) or node.kwargs.get("dim") in (-1, 1)
    return node.op == "call_function" and node.target in _ROW_BY_ROW
