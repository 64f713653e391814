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
_VIEWS = (operator.getitem, torch.split, torch.unsqueeze, "reshape")
"""What launches nothing; methods of tensors by their names."""
_VALUE_BY_VALUE = (F.embedding, operator.add, operator.mul, "to")
"""What is one launch by itself, and could be joined to another one of these."""


def is_direct(program: Program) -> bool:
    """Whether Inductor would launch the same kernels as torch does, so that compiling gains nothing.

    That is so where every node is a kernel of its own, or a value by value operation that reads from none
    of its kind, but for one whose result a kernel needs first. Such programs are for few rows: nearly all of
    their steps are captured, where the host's part is nothing.
    """
    nodes = program.module.graph.nodes
    is_known = all(
        node.op in ("placeholder", "output") or node.target in (*_KERNELS, *_VIEWS, *_VALUE_BY_VALUE)
        for node in nodes
    )
    return is_known and not any(_is_joined(node) for node in nodes if _is_value_by_value(node))


def _is_value_by_value(node: fx.Node) -> bool:
    return node.op in ("call_function", "call_method") and node.target in _VALUE_BY_VALUE


def _is_joined(node: fx.Node) -> bool:
    """Whether it can be computed together with something that it reads."""
    sources = set(_sources(node))
    return any(
        _is_value_by_value(source) and not any(_needs(other, source) for other in sources - {source})
        for source in sources
    )


def _needs(node: fx.Node, wanted: fx.Node) -> bool:
    """Whether a node is computed of another one, near or far."""
    return node is wanted or any(_needs(source, wanted) for source in node.all_input_nodes)


def _sources(node: fx.Node) -> Iterator[fx.Node]:
    """What made the values that a node reads, behind all views of them."""
    for source in node.all_input_nodes:
        if source.op in ("call_function", "call_method") and source.target in _VIEWS:
            yield from _sources(source)
        else:
            yield source
