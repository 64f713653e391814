"""Linear layers of few rows, each joined with what stands before and after it into one launch."""

from __future__ import annotations

import copy
import operator
from collections.abc import Callable
from dataclasses import astuple
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from cleave.runtime.engines.inductor.choose import Linear
from cleave.runtime.engines.inductor.operators import rms_norm
from cleave.runtime.engines.inductor.program import Program
from cleave.runtime.engines.inductor.small import ADD_NORM, SMALL_LINEAR, SMALL_NORM, SPLIT_LINEAR
from cleave.runtime.engines.inductor.small_launch import Blocks

_LINEARS = (F.linear, SMALL_LINEAR, SPLIT_LINEAR)
Choose = Callable[[Linear], Blocks | None]
"""The blocks of the own kernel for a layer; None where the library's product is faster."""


def fuse_small_linears(
    program: Program, rows: int, shapes: dict[str, tuple[int, ...]], choose: Choose
) -> Program:
    """The same program, for so many rows, with `small_linear` wherever `choose` gives blocks.

    `shapes` are those of the weights, by their placeholders. A residual that is added to what a layer
    gives becomes part of it, and so does the SwiGLU of its two halves; with one row also a norm that it alone
    reads. With more rows the norm behind the residual may add up instead what the layer gives in parts.
    """
    module = copy.deepcopy(program.module)
    graph = module.graph
    for node in list(graph.nodes):
        if node.op == "call_function" and node.target is F.linear and node.args[2] is None:
            _fuse(graph, node, rows, shapes, choose)
    for node in list(graph.nodes):
        if node.target is rms_norm and _feeds_linears(node):
            with graph.inserting_before(node):
                node.replace_all_uses_with(graph.call_function(SMALL_NORM, node.args))
    graph.eliminate_dead_code()
    graph.lint()
    module.recompile()
    return Program(module, program.inputs, program.weights, program.outputs)


def _fuse(
    graph: fx.Graph, node: fx.Node, rows: int, shapes: dict[str, tuple[int, ...]], choose: Choose
) -> None:
    x, weight, _ = node.args
    if not isinstance(x, fx.Node) or not isinstance(weight, fx.Node) or weight.name not in shapes:
        return
    norm: Any = x if rows == 1 and x.target is rms_norm and len(x.users) == 1 else None
    product = swiglu_of(node)
    added = None if product is not None else residual_of(node)
    height, width = shapes[weight.name]
    next_norm = _norm_of(added) if added is not None and rows > 1 else None
    layer = Linear(
        rows, height, width, norm is not None, added is not None, product is not None, next_norm is not None
    )
    blocks = choose(layer)
    if added is not None and next_norm is not None and (blocks is None or blocks.splits):
        _add_and_norm(graph, node, added, next_norm, blocks)
        return
    if blocks is None:
        return
    source, scale, epsilon = norm.args if norm is not None else (x, None, 0.0)
    residual = None
    last = product or added or node
    if added is not None:
        residual = next(value for value in added.args if value is not node)
    with graph.inserting_before(last):
        made = graph.call_function(
            SMALL_LINEAR,
            (source, weight, scale, residual, epsilon, product is not None, list(astuple(blocks))),
        )
    last.replace_all_uses_with(made)


def _add_and_norm(
    graph: fx.Graph, node: fx.Node, added: fx.Node, norm: fx.Node, blocks: Blocks | None
) -> None:
    """Put `add_norm` in the place of a sum and its norm; it adds up the parts of the linear layer too."""
    x, weight, _ = node.args
    residual = next(value for value in added.args if value is not node)
    with graph.inserting_before(added):
        if blocks is None:
            parts = graph.call_function(torch.unsqueeze, (node, 0))
        else:
            parts = graph.call_function(SPLIT_LINEAR, (x, weight, list(astuple(blocks))))
        both = graph.call_function(ADD_NORM, (parts, residual, *norm.args[1:]))
        total, normed = (graph.call_function(operator.getitem, (both, index)) for index in range(2))
    added.replace_all_uses_with(total)
    norm.replace_all_uses_with(normed)


def _norm_of(added: fx.Node) -> fx.Node | None:
    """The norm of a sum, where there is one, which linear layers alone read."""
    norms = [user for user in added.users if user.target is rms_norm and user.args[0] is added]
    return norms[0] if len(norms) == 1 and _feeds_linears(norms[0]) else None


def _feeds_linears(norm: fx.Node) -> bool:
    return bool(norm.users) and all(user.target in _LINEARS for user in norm.users)


def swiglu_of(node: fx.Node) -> fx.Node | None:
    """The product in silu(gate) * up, where gate and up are the halves of `node` that nobody else reads."""
    (split,) = node.users if len(node.users) == 1 else (None,)
    if split is None or split.target is not torch.split or len(split.users) != 2:
        return None
    sizes: Any = split.args[1]
    halves = {user.args[1]: user for user in split.users if user.target is operator.getitem}
    if halves.keys() != {0, 1} or sizes[0] != sizes[1]:
        return None
    gate, up = halves[0], halves[1]
    sigmoid = next((user for user in gate.users if user.target is torch.sigmoid), None)
    if sigmoid is None or len(gate.users) != 2 or len(sigmoid.users) != 1 or len(up.users) != 1:
        return None
    (silu,) = sigmoid.users
    (product,) = up.users
    if silu.target is not operator.mul or set(silu.args) != {gate, sigmoid} or len(silu.users) != 1:
        return None
    return product if product.target is operator.mul and set(product.args) == {silu, up} else None


def residual_of(node: fx.Node) -> fx.Node | None:
    """The sum of `node` and another tensor, where nothing else reads `node`."""
    (added,) = node.users if len(node.users) == 1 else (None,)
    if added is None or added.target is not operator.add or len(set(added.args)) != 2:
        return None
    return added if all(isinstance(value, fx.Node) for value in added.args) else None
