"""The traced graph, made small: the form that engines fuse well and that the cutter expects."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir
import onnxscript.optimizer
from onnx_ir.passes.common import CommonSubexpressionEliminationPass, RemoveUnusedNodesPass
from onnxscript.rewriter import onnx_fusions


def simplify(model: ir.Model, weight_name: Callable[[str], str]) -> ir.Model:
    """Simplify a traced batchful graph in place, and name its weights as the checkpoint does.

    Weights become graph inputs: with them as initializers the optimizer would fold transposes into
    anonymous copies and merge equal norms of different layers. Shapes are fixed but for the first
    dimension, RMS norms become `RMSNormalization`, repeated subexpressions one.
    """
    graph = model.graph
    for name, value in list(graph.initializers.items()):
        del graph.initializers[name]
        value.name = weight_name(name)
        value.const_value = None
        graph.inputs.append(value)
    for node in list(graph):
        if node.op_type == "Reshape":
            _keep_first_dimension(graph, node)
    onnxscript.optimizer.optimize(model)
    onnx_fusions.fuse(model)
    for node in list(graph):
        if node.op_type == "Reshape":
            _join_reshapes(node)
    RemoveUnusedNodesPass()(model)
    CommonSubexpressionEliminationPass()(model)
    RemoveUnusedNodesPass()(model)
    for node in graph:
        node.metadata_props.clear()
        node.doc_string = None
    for value in graph.inputs:
        value.metadata_props.clear()
    _name_dimensions(graph)
    return model


def _name_dimensions(graph: ir.Graph) -> None:
    """Call the dynamic dimensions what they are: torch.export numbers them."""
    names: dict[str, str] = {}
    for value, name in zip(graph.inputs[:2], ("tokens", "rows"), strict=True):
        if value.shape is not None:
            names[str(value.shape[0])] = name
    values = [*graph.inputs, *(output for node in graph for output in node.outputs)]
    for value in values:
        if value.shape is not None:
            value.shape = ir.Shape(
                size if isinstance(size, int) else names.get(str(size)) for size in value.shape
            )


def _fixed_tail(value: ir.Value | None) -> tuple[int, ...] | None:
    """The dimensions after the first, if all are known."""
    if value is None or value.shape is None or not value.shape:
        return None
    tail = value.shape[1:]
    return tuple(int(size) for size in tail) if all(isinstance(size, int) for size in tail) else None


def _keep_first_dimension(graph: ir.Graph, node: ir.Node) -> None:
    """Turn a shape computed from the number of tokens into the constant [0, ...]: 0 means "as it was"."""
    source, result = node.inputs[0], node.outputs[0]
    tail = _fixed_tail(result)
    if tail is None or source is None or source.shape is None or result.shape is None:
        return
    if not source.shape or source.shape[0] != result.shape[0]:
        return
    shape = ir.Node("", "Constant", [], [ir.AttrInt64s("value_ints", [0, *tail])])
    graph.insert_before(node, shape)
    node.replace_input_with(1, shape.outputs[0])
    node.attributes["allowzero"] = ir.AttrInt64("allowzero", 0)


def _join_reshapes(node: ir.Node) -> None:
    """Reshape of a reshape is one; a reshape to the shape that a value has already is none."""
    source, result = node.inputs[0], node.outputs[0]
    if source is None:
        return
    before = source.producer()
    if before is not None and before.op_type == "Reshape" and before.inputs[0] is not None:
        first = before.inputs[0]
        if first.shape is not None and result.shape is not None and first.shape[:1] == result.shape[:1]:
            node.replace_input_with(0, first)
            source = first
    if source.shape is not None and source.shape == result.shape and not result.is_graph_output():
        result.replace_all_uses_with(source)
