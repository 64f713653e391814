"""Programs in which a row's bits do not depend on how many rows there are."""

from __future__ import annotations

import copy
import operator
from typing import Any

import torch
import torch.nn.functional as F
from torch import fx

from cleave.errors import EngineError
from cleave.runtime.engines.inductor.fuse import residual_of, swiglu_of
from cleave.runtime.engines.inductor.operators import rms_norm
from cleave.runtime.engines.inductor.program import Program
from cleave.runtime.engines.inductor.small import SMALL_NORM
from cleave.runtime.engines.inductor.tiles import TILED_LINEAR


def fix_rows(program: Program, where: str) -> Program:
    """The same program with `tiled_linear` and `small_norm` in the place of what sums over a row.

    Everything else works value by value. A library picks its kernel by the number of rows, and with it the
    order of the sums. Raises EngineError, `where` in it, for a product of two activations.
    """
    module = copy.deepcopy(program.module)
    graph = module.graph
    for node in list(graph.nodes):
        if node.target is torch.matmul:
            raise EngineError(f"{where} multiplies activations, so it cannot be deterministic")
        if node.op == "call_function" and node.target is F.linear:
            _fix(graph, node)
        elif node.target is rms_norm:
            with graph.inserting_before(node):
                node.replace_all_uses_with(graph.call_function(SMALL_NORM, node.args))
    graph.eliminate_dead_code()
    graph.lint()
    module.recompile()
    return Program(module, program.inputs, program.weights, program.outputs)


def _fix(graph: fx.Graph, node: fx.Node) -> None:
    x, weight, bias = node.args
    product = swiglu_of(node) if bias is None else None
    added = residual_of(node) if bias is None and product is None else None
    residual: Any = None
    if added is not None:
        residual = next(value for value in added.args if value is not node)
    last = product or added or node
    with graph.inserting_before(last):
        made = graph.call_function(TILED_LINEAR, (x, weight, residual, product is not None))
        if bias is not None:
            made = graph.call_function(operator.add, (made, bias))
    last.replace_all_uses_with(made)
