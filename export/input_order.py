"""Act-order: inputs of quantised matrices are reordered, so that their groups are in a row."""

from __future__ import annotations

from collections.abc import Mapping

import onnx_ir as ir

from cleave.errors import ExportError


def reorder_inputs(model: ir.Model, orders: Mapping[str, str]) -> None:
    """Let linear layers read x[:, order] in place of x, in a traced graph whose weights are its inputs.

    `orders`: name of a weight -> name of its order [in] int32, which becomes an input of the graph. The
    weights are those whose columns were reordered, so that the result stays what it was. Layers that read
    one input in one order share the reordered one. Raises ExportError for a weight that is not that of a
    linear layer.
    """
    graph = model.graph
    reordered: dict[tuple[int, str], ir.Value] = {}
    added: dict[str, ir.Value] = {}
    for node in list(graph):
        for position, value in enumerate(node.inputs):
            if value is None or value.name not in orders:
                continue
            x = node.inputs[0]
            if node.op_type != "Gemm" or position != 1 or x is None or x.shape is None:
                raise ExportError(f"{value.name} is read by {node.op_type}; only linear layers have an order")
            name = orders[value.name]
            if (id(x), name) not in reordered:
                if name not in added:
                    added[name] = ir.Value(
                        name=name, shape=ir.Shape([x.shape[-1]]), type=ir.TensorType(ir.DataType.INT32)
                    )
                gather = ir.Node("", "Gather", [x, added[name]], [ir.AttrInt64("axis", 1)])
                gather.outputs[0].shape, gather.outputs[0].type = x.shape, x.type
                graph.insert_before(node, gather)
                reordered[id(x), name] = gather.outputs[0]
            node.replace_input_with(0, reordered[id(x), name])
    graph.inputs.extend(added.values())


def order_of(x: ir.Value) -> str | None:
    """The name of the order in which `reorder_inputs` made `x`; None for another value."""
    node = x.producer()
    if node is None or node.op_type != "Gather" or node.attributes.get_int("axis", 0) != 1:
        return None
    order = node.inputs[1]
    return None if order is None else str(order.name)
