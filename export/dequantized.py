"""A quantised artifact turned back into floats, to be compared with what floats give.

The weights are those that the integers stand for, so what is left of a difference is not that of the
quantisation: a graph that is wrong, or activations rounded to integers.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper

from cleave.errors import ArtifactError
from cleave.export.artifact import Artifact
from cleave.export.manifest import LM_HEAD
from cleave.export.quantization import SCALE, QuantizedTensor
from cleave.export.quantized import Quantized, RowInt8
from cleave.export.quantized_storage import from_arrays

_Floats = npt.NDArray[np.float32]


def dequantized_matrix(artifact: Artifact, tensor: QuantizedTensor) -> _Floats:
    """What one quantised tensor stands for, [out of all members, in], its inputs as they are stored.

    Raises ArtifactError for damage.
    """
    return _stored(artifact, tensor).dequantize()


def dequantized_weights(artifact: Artifact) -> Iterator[tuple[str, _Floats]]:
    """Every quantised matrix by its name in the checkpoint, [out, in] as it is there, the embedding included.

    A quantised lm_head is "lm_head.weight" even where the checkpoint ties it to the embedding.
    """
    quantization = artifact.manifest.quantization
    for tensor in quantization.tensors if quantization else ():
        rows = 0
        matrix = dequantized_matrix(artifact, tensor)
        if tensor.order is not None:
            restored = np.empty_like(matrix)
            restored[:, artifact.weight(tensor.order)] = matrix
            matrix = restored
        for name, out in tensor.members:
            yield (LM_HEAD if tensor.name == LM_HEAD else name), matrix[rows : rows + out]
            rows += out
    if quantization is not None and quantization.embedding:
        name = artifact.manifest.embedding
        yield name, RowInt8(artifact.weight(name), artifact.weight(name + SCALE)).dequantize()


def use_dequantized(model: Any, artifact: Artifact) -> None:
    """Give a transformers model in float32 the weights that a quantised artifact computes with."""
    use_weights(model, dequantized_weights(artifact))


def use_weights(model: Any, weights: Iterable[tuple[str, _Floats]]) -> None:
    """Give a transformers model in float32 some weights by their names."""
    import torch

    for name, matrix in weights:
        module, _, leaf = name.rpartition(".")
        # A new parameter: a tied lm_head shall not bring the embedding along.
        weight = torch.nn.Parameter(torch.from_numpy(matrix), requires_grad=False)
        setattr(model.get_submodule(module), leaf, weight)


def float_graph(artifact: Artifact) -> onnx.ModelProto:
    """The batchful graph with plain linear layers where a quantised artifact multiplies integers.

    Their weights have the names of `QuantizedTensor`s; see `dequantized_matrix`.
    """
    model = artifact.batchful_graph()
    graph = model.graph
    quantization = artifact.manifest.quantization
    tensors = {tensor.name: tensor for tensor in (quantization.tensors if quantization else ())}
    producer = {name: node for node in graph.node for name in node.output}
    readers = {name: node for node in graph.node for name in node.input}
    nodes = []
    for node in graph.node:
        weight = node.input[1] if len(node.input) > 1 else ""
        if weight not in tensors:
            nodes.append(node)
            continue
        source, result = node.input[0], node.output[0]
        if node.op_type == "MatMulIntegerToFloat":
            source = producer[producer[source].input[0]].input[0]  # QuantizeLinear of Div of it
            result = readers[result].output[0]  # of Mul by the largest value of the row
        nodes.append(helper.make_node("Gemm", [source, weight], [result], transB=1))
    _keep_used(graph, nodes)
    for tensor in graph.initializer:
        if tensor.name in tensors:
            tensor.data_type = onnx.TensorProto.FLOAT
            tensor.dims[:] = [tensors[tensor.name].out, tensors[tensor.name].inputs]
    return model


def _keep_used(graph: onnx.GraphProto, nodes: list[onnx.NodeProto]) -> None:
    """Let `nodes` be those of the graph, less what nobody reads; the first to give a value gives it."""
    used = {value.name for value in graph.output}
    kept: list[onnx.NodeProto] = []
    given: set[str] = set()
    unique = []
    for node in nodes:
        if not given & set(node.output):
            unique.append(node)
        given |= set(node.output)
    for node in reversed(unique):
        if used & set(node.output):
            kept.insert(0, node)
            used |= set(node.input)
    del graph.node[:]
    graph.node.extend(kept)
    weights = [tensor for tensor in graph.initializer if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(weights)


def _stored(artifact: Artifact, tensor: QuantizedTensor) -> Quantized:
    quantization = artifact.manifest.quantization
    if quantization is None:
        raise ArtifactError(f"{artifact.folder} is not quantised, so {tensor.name} is not")
    return from_arrays([artifact.weight(name) for name, _, _ in quantization.stored(tensor)])
