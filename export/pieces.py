"""The cutter: a batchful graph becomes the pieces between its cuts.

L layers give L + 1 pieces, of which only three differ: first, middle, last. Weights become named
inputs of a piece, so that one middle piece serves every layer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy.typing as npt
import onnx
from onnx import helper

from cleave.errors import ArtifactError
from cleave.plugins.schema import DOMAIN, is_cut, layer_of

ATTENTION = "attention"
"""Name of the input through which a piece receives the output of the attention server."""


@dataclass(frozen=True, slots=True)
class Piece:
    """What lies between two cuts, as a graph of its own.

    The first piece takes `inputs_embeds`; every other one takes `attention` and `carried_0..`, what
    the piece before it hands on; the last one also `logit_rows`. A piece gives `q`, `k`, `v` and
    `carry_0..`, the last one `logits`.
    """

    model: onnx.ModelProto
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    weights: dict[str, str]
    """Name of a weight in `model` (an input without data) -> name of the tensor in weights.safetensors."""
    hands_on: dict[str, str]
    """Input `carried_i` of the next piece -> what it is here: an output, or an input that passes through
    untouched and is no output of `model`, to spare a copy (the residual of layer 0 is `inputs_embeds`)."""
    nodes: tuple[str, ...] = ()
    """What each node of `model` is called in the whole graph."""


def cut(model: onnx.ModelProto) -> list[Piece]:
    """Cut a batchful graph at its attention operators. No weight data is read.

    Every node goes to the piece of its earliest consumer. Returns one piece more than there are
    layers; the middle ones share one `model` object. Raises ArtifactError where the operators are
    not one per layer, or the middle pieces differ in structure.
    """
    graph = _Graph(model)
    pieces = [graph.piece(index) for index in range(graph.layers + 1)]
    middles = pieces[1:-1]
    for index, piece in enumerate(middles[1:], start=2):
        if piece.model.SerializeToString(deterministic=True) != middles[0].model.SerializeToString(
            deterministic=True
        ):
            raise ArtifactError(
                f"the piece after layer {index - 1} has another structure than the piece after layer 0; "
                "Cleave shares one middle piece between all layers and cannot run this graph"
            )
    shared = [
        Piece(middles[0].model, piece.inputs, piece.outputs, piece.weights, piece.hands_on, piece.nodes)
        for piece in middles
    ]
    return [pieces[0], *shared, pieces[-1]]


class _Graph:
    """A batchful graph with the piece of every node worked out."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        graph = model.graph
        self.producer = {name: node for node in graph.node for name in node.output}
        try:
            self.cuts = {layer_of(node): node for node in graph.node if is_cut(node)}
        except ValueError as error:
            raise ArtifactError(f"the graph is damaged: {error}; export batchful again") from None
        self.layers = len(self.cuts)
        count = sum(is_cut(node) for node in graph.node)
        if count == 0 or sorted(self.cuts) != list(range(count)):
            raise ArtifactError(
                f"the graph has {count} attention operators for layers {sorted(self.cuts)}; "
                "there must be exactly one for each layer, from 0 on"
            )
        self.weights = {tensor.name: tensor for tensor in graph.initializer if _is_external(tensor)}
        self.constants = {tensor.name: tensor for tensor in graph.initializer if not _is_external(tensor)}
        self.types = {value.name: value for value in (*graph.value_info, *graph.input, *graph.output)}
        self.piece_of = self._assign()

    def _assign(self) -> dict[int, int]:
        """Node id -> index of its piece: that of its earliest consumer. Constants belong to all."""
        latest: dict[str, int] = {value.name: self.layers for value in self.model.graph.output}
        pieces: dict[int, int] = {}
        for node in reversed(self.model.graph.node):
            used = [latest[name] for name in node.output if name in latest]
            index = layer_of(node) if is_cut(node) else min(used, default=self.layers)
            pieces[id(node)] = index
            for name in node.input:
                latest[name] = min(latest.get(name, self.layers), index)
        for node in self.model.graph.node:
            for name in node.input:
                source = self.producer.get(name)
                if source is not None and is_cut(source) and layer_of(source) >= pieces[id(node)]:
                    raise ArtifactError(
                        f"node {node.name!r} needs the attention of layer {layer_of(source)} "
                        f"before the cut of layer {pieces[id(node)]}; the graph cannot be cut there"
                    )
        return pieces

    def _nodes(self, index: int) -> Iterator[onnx.NodeProto]:
        for node in self.model.graph.node:
            if self.piece_of[id(node)] == index and not is_cut(node):
                yield node

    def _carried_into(self, index: int) -> list[str]:
        """Values known before piece `index` that it or a later piece needs, in graph order.

        A graph input counts as known once the first piece uses it; others go straight to their user.
        """
        needed = {
            name
            for node in self.model.graph.node
            if self.piece_of[id(node)] >= index and not is_cut(node)
            for name in node.input
        }
        needed |= {name for layer in range(index, self.layers) for name in self.cuts[layer].input}
        first_uses = {name for node in self._nodes(0) for name in node.input}
        known = [value.name for value in self.model.graph.input if value.name in first_uses]
        known += [
            name
            for node in self.model.graph.node
            if self.piece_of[id(node)] < index and not is_cut(node)
            for name in node.output
        ]
        return [name for name in known if name in needed]

    def piece(self, index: int) -> Piece:
        """Build piece `index`, with names that do not depend on the layer."""
        nodes = list(self._nodes(index))
        carried_in = self._carried_into(index) if index else []
        last = index == self.layers
        carried_out = [] if last else self._carried_into(index + 1)
        names: dict[str, str] = {}
        if index:
            names[self.cuts[index - 1].output[0]] = ATTENTION
        names |= {name: f"carried_{position}" for position, name in enumerate(carried_in)}
        used = {name for node in nodes for name in node.input}
        for value in self.model.graph.input:
            if value.name in used and value.name not in names:
                names[value.name] = value.name
        inputs = list(names)

        results: dict[str, str] = {}
        hands_on: dict[str, str] = {}
        if last:
            results = {value.name: value.name for value in self.model.graph.output}
        else:
            results = dict(zip(self.cuts[index].input, ("q", "k", "v"), strict=True))
            if len(results) != 3 or results.keys() & (names.keys() | set(carried_out)):
                raise ArtifactError(f"layer {index}: q, k and v must be three values of their own")
        for position, name in enumerate(carried_out):
            if name not in names:
                results[name] = f"carry_{position}"
            hands_on[f"carried_{position}"] = names.get(name, f"carry_{position}")

        weights: dict[str, str] = {}
        constants: list[onnx.TensorProto] = []
        renamed_nodes: list[onnx.NodeProto] = []
        for position, node in enumerate(nodes):
            for name in node.input:
                if name in names or not name:
                    continue
                if name in self.weights:
                    names[name] = _weight_name(name, weights)
                    weights[names[name]] = name
                elif name in self.constants:
                    names[name] = f"constant_{len(constants)}"
                    constants.append(_renamed(self.constants[name], names[name]))
            for output, name in enumerate(node.output):
                names[name] = results.get(name, f"value_{position}_{output}")
            renamed = onnx.NodeProto()
            renamed.CopyFrom(node)
            renamed.name = f"node_{position}"
            renamed.doc_string = ""
            del renamed.input[:], renamed.output[:], renamed.metadata_props[:]
            renamed.input.extend(names.get(name, "") for name in node.input)
            renamed.output.extend(names[name] for name in node.output)
            renamed_nodes.append(renamed)

        graph = helper.make_graph(
            renamed_nodes,
            "piece",
            [self._value(name, names[name]) for name in inputs]
            + [self._weight_value(original, name) for name, original in weights.items()],
            [self._value(name, result) for name, result in results.items()],
            initializer=constants,
        )
        opsets = [opset for opset in self.model.opset_import if opset.domain != DOMAIN]
        piece = helper.make_model(graph, opset_imports=opsets, ir_version=self.model.ir_version)
        given, gives = tuple(names[name] for name in inputs), tuple(results.values())
        return Piece(piece, given, gives, weights, hands_on, tuple(node.name for node in nodes))

    def _value(self, name: str, renamed: str) -> onnx.ValueInfoProto:
        if name not in self.types:
            raise ArtifactError(f"the graph does not say the type of {name!r}, which crosses a cut")
        value = onnx.ValueInfoProto()
        value.CopyFrom(self.types[name])
        value.name = renamed
        del value.metadata_props[:]
        return value

    def _weight_value(self, name: str, renamed: str) -> onnx.ValueInfoProto:
        tensor = self.weights[name]
        return helper.make_tensor_value_info(renamed, tensor.data_type, list(tensor.dims))


def make_initializers(model: onnx.ModelProto, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
    """Turn inputs of a piece into initializers without data.

    ONNX Runtime gets the data by `SessionOptions.add_external_initializers` under the same names.
    """
    graph = model.graph
    for value in [value for value in graph.input if value.name in arrays]:
        array = arrays[value.name]
        graph.input.remove(value)
        tensor = graph.initializer.add(
            name=value.name,
            data_type=helper.np_dtype_to_tensor_dtype(array.dtype),
            dims=array.shape,
            data_location=onnx.TensorProto.EXTERNAL,
        )
        for key, text in (("location", "elsewhere"), ("offset", "0"), ("length", str(array.nbytes))):
            tensor.external_data.add(key=key, value=text)


def _is_external(tensor: onnx.TensorProto) -> bool:
    return tensor.data_location == onnx.TensorProto.EXTERNAL


def _weight_name(name: str, taken: dict[str, str]) -> str:
    """The tensor's name without its layer: "model.layers.7.mlp.up_proj.weight" -> "mlp.up_proj.weight"."""
    parts = name.split(".")
    numbers = [position for position, part in enumerate(parts) if part.isdigit()]
    short = ".".join(parts[numbers[0] + 1 :]) if numbers else name
    unique, count = short, 1
    while unique in taken:
        count += 1
        unique = f"{short}.{count}"
    return unique


def _renamed(tensor: onnx.TensorProto, name: str) -> onnx.TensorProto:
    renamed = onnx.TensorProto()
    renamed.CopyFrom(tensor)
    renamed.name = name
    return renamed
