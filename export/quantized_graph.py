"""The linear layers of a traced graph, rewritten to operators that multiply integers.

int4: `MatMulNBits` of ONNX Runtime at accuracy level 4, which quantises its input in the same groups.
int8: every row of the input is divided by its largest value and quantised; `MatMulIntegerToFloat` sums in
int32, so that the order of the sum, and with it the batch, does not matter. Layers that read the same
input become one, and the input is quantised once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from cleave.errors import ExportError
from cleave.export.input_order import order_of
from cleave.export.manifest import EMBEDDING, LM_HEAD
from cleave.export.quantization import Quantization, QuantizedTensor
from cleave.export.quantized import check_group_size

MICROSOFT = "com.microsoft"
_ACTIVATION_LARGEST = 127
_ACTIVATION_ZERO = 128
"""Activations are unsigned, the only kind that processors multiply fast with signed weights."""
_TYPES = {"I8": ir.DataType.INT8, "U8": ir.DataType.UINT8, "F32": ir.DataType.FLOAT}


def quantize_graph(
    model: ir.Model, wanted: Callable[[str], bool], quantization: Quantization
) -> Quantization:
    """Rewrite the linear layers whose weight is `wanted`, in place; their weights become other graph inputs.

    The graph is of float32. Gives back `quantization` with its tensors. Raises ExportError for a matrix
    that is wanted and is not that of a linear layer, or has inputs that no group size divides.
    """
    rewriter = _Rewriter(model, quantization)
    layers: dict[str, list[ir.Node]] = {}
    for value in [value for value in model.graph.inputs if wanted(str(value.name))]:
        for node in _linear_layers(value):
            layers.setdefault(str(_given(node, 0).name), []).append(node)
    order = {id(node): position for position, node in enumerate(model.graph)}
    for nodes in layers.values():
        rewriter.rewrite(sorted(nodes, key=lambda node: order[id(node)]))
    model.graph.opset_imports[MICROSOFT] = 1
    return replace(quantization, tensors=tuple(rewriter.tensors))


def _linear_layers(weight: ir.Value) -> list[ir.Node]:
    nodes = [use.node for use in weight.uses()]
    for node in nodes:
        transposed = node.attributes.get("transB")
        if (
            node.op_type != "Gemm"
            or node.inputs[1] is not weight
            or not transposed
            or not transposed.as_int()
        ):
            raise ExportError(
                f"{weight.name} is read by {node.op_type}; what can be quantised are linear layers (Gemm)"
            )
    return nodes


class _Rewriter:
    def __init__(self, model: ir.Model, quantization: Quantization) -> None:
        self.graph = model.graph
        self.quantization = quantization
        self.tensors: list[QuantizedTensor] = []
        self._constants: dict[str, ir.Value] = {}
        self._layer = ""
        """What the nodes that are added now are named after."""

    def rewrite(self, nodes: Sequence[ir.Node]) -> None:
        """Linear layers of one input, in the order of the graph, become one product and a Split."""
        first, x = nodes[0], _given(nodes[0], 0)
        names = [str(_given(node, 1).name) for node in nodes]
        tensor = QuantizedTensor(
            # A tied lm_head keeps a copy of its own: the embedding is looked up row by row.
            LM_HEAD if names == [EMBEDDING] else _joined(names),
            tuple((name, _width(node.outputs[0])) for name, node in zip(names, nodes, strict=True)),
            _width(x),
            order_of(x),
        )
        self.tensors.append(tensor)
        self._layer = tensor.name.removesuffix(".weight")
        weights = [self._input(*described) for described in self.quantization.stored(tensor)]
        product = (
            self._int8(first, x, weights) if len(weights) == 2 else self._int4(first, x, weights, tensor)
        )
        results = [product] if len(nodes) == 1 else self._split(first, product, tensor)
        for node, result in zip(nodes, results, strict=True):
            self._replace(node, result)

    def _int4(
        self, before: ir.Node, x: ir.Value, weights: Sequence[ir.Value], tensor: QuantizedTensor
    ) -> ir.Value:
        size = self.quantization.group_size or 0
        check_group_size(size, tensor.inputs, tensor.members[0][0])
        attributes = {"K": tensor.inputs, "N": tensor.out, "bits": 4, "block_size": size, "accuracy_level": 4}
        return self._add(before, "MatMulNBits", [x, *weights], domain=MICROSOFT, **attributes)

    def _int8(self, before: ir.Node, x: ir.Value, weights: Sequence[ir.Value]) -> ir.Value:
        """Each row r of x is largest[r] / 127 times integers from -127 to 127."""
        step = self._constant("one_127th", np.array(1 / _ACTIVATION_LARGEST, np.float32))
        zero = self._constant("activation_zero_point", np.array(_ACTIVATION_ZERO, np.uint8))
        last_axis = self._constant("last_axis", np.array([1], np.int64))
        magnitude = self._add(before, "Abs", [x])
        largest = self._add(before, "ReduceMax", [magnitude, last_axis], keepdims=1)
        # A row of zeros is 0 / 0 here; whatever integers come of it are multiplied by 0 in the end.
        shares = self._add(before, "Div", [x, largest])
        integers = self._add(before, "QuantizeLinear", [shares, step, zero])
        values, scales = weights
        summed = self._add(
            before, "MatMulIntegerToFloat", [integers, values, step, scales, zero], domain=MICROSOFT
        )
        return self._add(before, "Mul", [summed, largest])

    def _split(self, before: ir.Node, product: ir.Value, tensor: QuantizedTensor) -> Sequence[ir.Value]:
        sizes = np.array([out for _, out in tensor.members], np.int64)
        split = self._constant(f"split_{'_'.join(map(str, sizes))}", sizes)
        name, axis = f"{self._layer}/Split", ir.AttrInt64("axis", 1)
        node = ir.Node("", "Split", [product, split], [axis], num_outputs=len(sizes), name=name)
        self.graph.insert_before(before, node)
        return list(node.outputs)

    def _replace(self, node: ir.Node, result: ir.Value) -> None:
        """Put `result` (plus the bias, if there is one) in the place of a linear layer and its weight."""
        output, weight = node.outputs[0], _given(node, 1)
        bias = node.inputs[2] if len(node.inputs) > 2 else None
        if bias is not None:
            self._layer = str(weight.name).removesuffix(".weight")
            result = self._add(node, "Add", [result, bias])
        result.shape, result.type = output.shape, output.type
        name = output.name
        output.replace_all_uses_with(result, replace_graph_outputs=True)
        self.graph.remove(node, safe=True)
        result.name = name
        if not weight.uses():
            self.graph.inputs.remove(weight)

    def _add(
        self, before: ir.Node, kind: str, inputs: Sequence[ir.Value], *, domain: str = "", **attributes: int
    ) -> ir.Value:
        attached = [ir.AttrInt64(name, value) for name, value in attributes.items()]
        node = ir.Node(domain, kind, inputs, attached, name=f"{self._layer}/{kind}")
        node.outputs[0].name = node.name
        self.graph.insert_before(before, node)
        return node.outputs[0]

    def _input(self, name: str, dtype: str, shape: tuple[int, ...]) -> ir.Value:
        value = ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(_TYPES[dtype]))
        self.graph.inputs.append(value)
        return value

    def _constant(self, name: str, array: npt.NDArray[Any]) -> ir.Value:
        if name not in self._constants:
            value = ir.Value(name=name, const_value=ir.Tensor(array, name=name))
            value.shape, value.type = (
                ir.Shape(array.shape),
                ir.TensorType(ir.DataType.from_numpy(array.dtype)),
            )
            self.graph.register_initializer(value)
            self._constants[name] = value
        return self._constants[name]


def _given(node: ir.Node, position: int) -> ir.Value:
    value = node.inputs[position]
    if value is None:
        raise ExportError(f"the linear layer {node.name} of the traced graph lacks input {position}")
    return value


def _width(value: ir.Value) -> int:
    size = value.shape[-1] if value.shape is not None else None
    if not isinstance(size, int):
        raise ExportError(f"the traced graph does not say how wide {value.name} is")
    return size


def _joined(names: Sequence[str]) -> str:
    """One name for all: "attn.q_proj.weight" and "attn.k_proj.weight" are "attn.q_proj+k_proj.weight"."""
    first, *others = (name.removesuffix(".weight") for name in names)
    parent = first.rpartition(".")[0] + "."
    return "+".join([first, *(other.removeprefix(parent) for other in others)]) + ".weight"
