"""Programs that are run as they are: a compiler would find nothing to join in them."""

from __future__ import annotations

import operator
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import fx

from cleave.runtime.engines.inductor.program import Program
from cleave.runtime.engines.inductor.small import ADD_NORM, SMALL_LINEAR, SMALL_NORM, SPLIT_LINEAR

_KERNELS = (F.linear, SMALL_LINEAR, SMALL_NORM, SPLIT_LINEAR, ADD_NORM)
"""What is one launch, whoever runs the program."""
_VIEWS = (operator.getitem, torch.split, torch.unsqueeze)
"""What launches nothing."""
_LAUNCHES = (F.embedding, operator.add, operator.mul)
"""What is one launch by itself, and could be joined to another one of these."""


def is_direct(program: Program) -> bool:
    """Whether Inductor would launch the same kernels as torch does, so that compiling gains nothing.

    That is so where every node is a kernel of its own, or a value by value operation none of whose
    operands comes from another one. Such programs run in captured steps, where the host's part is nothing.
    """
    return all(_is_known(node) for node in program.module.graph.nodes) and not any(
        _is_launch(source)
        for node in program.module.graph.nodes
        if _is_launch(node)
        for source in _sources(node)
    )


def _is_known(node: fx.Node) -> bool:
    if node.op == "call_function":
        return node.target in _KERNELS or node.target in _VIEWS or _is_launch(node)
    return node.op in ("placeholder", "output") or _is_launch(node)


def _is_launch(node: fx.Node) -> bool:
    if node.op == "call_method":
        return node.target == "to"
    return node.op == "call_function" and node.target in _LAUNCHES


def _sources(node: fx.Node) -> Iterator[fx.Node]:
    """What made the values that a node reads, behind all views of them."""
    for source in node.all_input_nodes:
        if source.op == "call_function" and source.target in _VIEWS:
            yield from _sources(source)
        else:
            yield source
