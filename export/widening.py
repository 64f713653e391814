"""Graphs and weights in float32, for processors without float16 and bfloat16 arithmetic."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from cleave.errors import ArtifactError

_NARROW = (onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16)


def widen(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph in float32. Raises ArtifactError for a whole one, whose weights are in place."""
    wide = onnx.ModelProto()
    wide.CopyFrom(model)
    graph = wide.graph
    for value in (*graph.input, *graph.output, *graph.value_info):
        if value.type.tensor_type.elem_type in _NARROW:
            value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    for tensor in graph.initializer:
        _widen_tensor(tensor)
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i in _NARROW:
                attribute.i = onnx.TensorProto.FLOAT
            if attribute.type == onnx.AttributeProto.TENSOR:
                _widen_tensor(attribute.t)
    return wide


def computable(weight: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """The weight in a dtype that a processor computes in: integers as they are, floats in float32."""
    return weight if weight.dtype.kind in "iu" else np.asarray(weight, np.float32)


def _widen_tensor(tensor: onnx.TensorProto) -> None:
    if tensor.data_type not in _NARROW:
        return
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        raise ArtifactError(f"{tensor.name} is a weight in place; cut the graph before widening it")
    values = numpy_helper.to_array(tensor).astype(np.float32)
    tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
