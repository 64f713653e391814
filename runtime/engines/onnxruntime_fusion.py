"""Fewer and larger operators for ONNX Runtime on the CPU, where it does not fuse them itself.

A decode step of one request reads every weight once, so what an operator costs beside that is lost. Two
things are changed, and rows stay bit-identical for every number of rows and threads:

- q, k and v become one `Gemm` and a `Split`: small matrices do not reach the memory's bandwidth;
- the residual is added by the `Gemm` that computes what is added to it.

With the 135M shape of benchmarks/shapes.py on two cores this takes 5 % off a step of one token, 2 % off one
of eight, 1 % off one of 128. gate and up stay two: splitting a wide result costs what joining them saves.
`SkipSimplifiedLayerNormalization` in the place of the addition and the norm gains nothing beside it that can
be measured, and no operator for the CPU computes silu(gate) * up at once.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

FUSION = 1
"""Changes with what `fuse` makes, since its results are saved in the engine cache."""
_WORTH_JOINING = 3
_PLAIN: dict[str, Any] = {"alpha": 1.0, "beta": 1.0, "transA": 0, "transB": 1}
_DEFAULTS = _PLAIN | {"transB": 0}


def fuse(model: onnx.ModelProto, weights: Collection[str]) -> Mapping[str, tuple[str, ...]]:
    """Fuse the operators of a piece in place; `weights` are those of its inputs that are weights.

    Gives back the inputs that are new: name -> the weights that are concatenated along their first
    dimension to make it, which are inputs no more.
    """
    fusion = _Fusion(model.graph, set(weights))
    fusion.join()
    fusion.add_residuals()
    return fusion.joined


class _Fusion:
    def __init__(self, graph: onnx.GraphProto, weights: set[str]) -> None:
        self._graph = graph
        self._weights = weights
        self.joined: dict[str, tuple[str, ...]] = {}

    def join(self) -> None:
        """Linear layers of one input become one, where there are at least three of them."""
        groups: dict[tuple[str, int], list[onnx.NodeProto]] = {}
        for node in self._graph.node:
            if _is_linear(node) and set(node.input[1:]) <= self._weights:
                groups.setdefault((node.input[0], len(node.input)), []).append(node)
        for (source, _), linears in groups.items():
            if len(linears) >= _WORTH_JOINING:
                self._join(source, linears)

    def add_residuals(self) -> None:
        """x + linear(y) becomes one operator, where both have a row for every token and as many columns."""
        widths = self._widths()
        producers = {name: node for node in self._graph.node for name in node.output}
        uses = [name for node in self._graph.node for name in node.input]
        results = {value.name for value in self._graph.output}
        for add in [node for node in self._graph.node if node.op_type == "Add"]:
            for residual, computed in (tuple(add.input), tuple(add.input)[::-1]):
                linear = producers.get(computed)
                if (
                    linear is not None
                    and _is_linear(linear)
                    and len(linear.input) == 2
                    and residual in widths
                    and widths[residual] == widths.get(computed)
                    and uses.count(computed) == 1
                    and computed not in results
                ):
                    # In the place of the sum, since the residual may be computed after the linear layer.
                    self._graph.node.remove(linear)
                    add.CopyFrom(_linear([*linear.input, residual], add.output[0], add.name))
                    producers[add.output[0]] = add
                    break

    def _join(self, source: str, linears: Sequence[onnx.NodeProto]) -> None:
        sizes = [self._shape(linear.input[1])[0] for linear in linears]
        inputs = [source]
        for position in range(1, len(linears[0].input)):
            members = tuple(linear.input[position] for linear in linears)
            inputs.append("+".join(members))
            self.joined[inputs[-1]] = members
            self._weights.add(inputs[-1])
            shape = [sum(sizes), *self._shape(members[0])[1:]]
            self._graph.input.append(helper.make_tensor_value_info(inputs[-1], onnx.TensorProto.FLOAT, shape))
        result = "+".join(linear.output[0] for linear in linears)
        split = f"sizes of {result}"
        self._graph.initializer.append(numpy_helper.from_array(np.array(sizes, np.int64), split))
        at = list(self._graph.node).index(linears[0])
        outputs = [linear.output[0] for linear in linears]
        for linear in linears:
            self._graph.node.remove(linear)
        self._graph.node.insert(at, _linear(inputs, result, f"{linears[0].name}_joined"))
        self._graph.node.insert(
            at + 1, helper.make_node("Split", [result, split], outputs, f"{linears[0].name}_split", axis=1)
        )
        unused = {name for members in self.joined.values() for name in members}
        for value in [value for value in self._graph.input if value.name in unused]:
            self._graph.input.remove(value)

    def _widths(self) -> dict[str, int]:
        """Columns of values with a row for every token: those of inputs, and what comes of linear layers."""
        widths = {
            value.name: self._shape(value.name)[1]
            for value in self._graph.input
            if value.name not in self._weights and len(self._shape(value.name)) == 2
        }
        picked: set[str] = set()
        for node in self._graph.node:
            if node.op_type == "Gather" or picked & set(node.input):
                picked |= set(node.output)
            elif _is_linear(node) and node.input[1] in self._weights:
                widths[node.output[0]] = self._shape(node.input[1])[0]
            elif node.op_type == "Add":
                left, right = (widths.get(name) for name in node.input)
                if left is not None and left == right:
                    widths[node.output[0]] = left
        return widths

    def _shape(self, name: str) -> Sequence[int]:
        value = next(value for value in self._graph.input if value.name == name)
        return [dimension.dim_value for dimension in value.type.tensor_type.shape.dim]


def _linear(inputs: Sequence[str], output: str, name: str) -> onnx.NodeProto:
    return helper.make_node("Gemm", inputs, [output], name, **_PLAIN)


def _is_linear(node: onnx.NodeProto) -> bool:
    """Whether it is x times a transposed matrix, plus a third input where there is one."""
    return node.op_type == "Gemm" and _DEFAULTS | dict(_numbers(node)) == _PLAIN


def _numbers(node: onnx.NodeProto) -> Iterator[tuple[str, float | int]]:
    for attribute in node.attribute:
        yield attribute.name, attribute.f if attribute.type == onnx.AttributeProto.FLOAT else attribute.i
