"""Linear layers that read the same input, joined into one: q, k and v; gate and up.

One matrix that is three times as tall is read faster than three, and is one launch.
"""

from __future__ import annotations

import copy
import operator
from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from cleave.runtime.engines.inductor.program import Program


def join_linears(program: Program, rows: Mapping[str, int]) -> Program:
    """The same program with every group of linear layers that read one value joined.

    `rows` has the first dimension of every weight, by its name in the piece. What the layers of a group
    gave are now slices of one result, so they are no longer contiguous.
    """
    module = copy.deepcopy(program.module)
    graph = module.graph
    placeholders = [node for node in graph.nodes if node.op == "placeholder"]
    made_of = dict(zip(placeholders[len(program.inputs) :], program.weights, strict=True))
    for group in _groups(graph, made_of):
        _join(graph, group, made_of, rows)
    graph.eliminate_dead_code()
    for node in [node for node in made_of if not node.users]:
        graph.erase_node(node)
        del made_of[node]
    graph.lint()
    module.recompile()
    weights = tuple(made_of[node] for node in graph.nodes if node in made_of)
    return Program(module, program.inputs, weights, program.outputs)


def _groups(graph: fx.Graph, weights: Mapping[fx.Node, tuple[str, ...]]) -> list[list[fx.Node]]:
    """Linear layers by what they read; with and without bias do not mix."""
    groups: dict[tuple[fx.Node, bool], list[fx.Node]] = {}
    for node in graph.nodes:
        if node.op == "call_function" and node.target is F.linear:
            x, weight, bias = node.args
            if weight in weights and (bias is None or bias in weights):
                groups.setdefault((x, bias is None), []).append(node)
    return [group for group in groups.values() if len(group) > 1]


def _join(
    graph: fx.Graph,
    group: list[fx.Node],
    made_of: dict[fx.Node, tuple[str, ...]],
    rows: Mapping[str, int],
) -> None:
    x: Any = group[0].args[0]
    joined: list[fx.Node | None] = []
    for position in (1, 2):
        parts: list[Any] = [node.args[position] for node in group]
        if parts[0] is None:
            joined.append(None)
            continue
        last = [node for node in graph.nodes if node.op == "placeholder"][-1]
        with graph.inserting_after(last):
            whole = graph.placeholder("_".join(part.name for part in parts))
        made_of[whole] = tuple(name for part in parts for name in made_of[part])
        joined.append(whole)
    weights: list[Any] = [node.args[1] for node in group]
    sizes = [sum(rows[name] for name in made_of[weight]) for weight in weights]
    with graph.inserting_before(group[0]):
        product = graph.call_function(F.linear, (x, *joined))
        split = graph.call_function(torch.split, (product, sizes, -1))
        slices = [graph.call_function(operator.getitem, (split, index)) for index in range(len(group))]
    for node, part in zip(group, slices, strict=True):
        node.replace_all_uses_with(part)
