"""How the fake TensorRT for RTX computes a piece: by ONNX Runtime on the host, by torch on a GPU."""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import onnx
import onnxruntime as ort
import torch

from cleave.export.pieces import Piece
from cleave.runtime.engines.inductor.program import program_of

DTYPES = {1: ("FLOAT", np.float32), 10: ("HALF", np.float16), 7: ("INT64", np.int64)}
"""Element type of ONNX -> what TensorRT calls it, and numpy's."""

Arguments = dict[str, tuple[int, tuple[int, ...]]]
"""Address and shape of every input and output."""


def on_host(model: onnx.ModelProto) -> Callable[[Arguments], None]:
    """Computes a piece by ONNX Runtime."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    inputs = {value.name: _element(value) for value in model.graph.input}
    outputs = {value.name: _element(value) for value in model.graph.output}

    def array(place: tuple[int, tuple[int, ...]], dtype: Any) -> np.ndarray:
        size = math.prod(place[1]) * np.dtype(dtype).itemsize
        return np.frombuffer((ctypes.c_char * size).from_address(place[0]), dtype).reshape(place[1])

    def compute(arguments: Arguments) -> None:
        given = {name: array(arguments[name], dtype) for name, dtype in inputs.items()}
        results = session.run(list(outputs), given)
        for (name, dtype), result in zip(outputs.items(), results, strict=True):
            array(arguments[name], dtype)[:] = result

    return compute


def on_gpu(model: onnx.ModelProto) -> Callable[[Arguments], None]:
    """Computes a piece by torch, on the current stream."""
    inputs = {value.name: _element(value) for value in model.graph.input}
    outputs = {value.name: _element(value) for value in model.graph.output}
    program = program_of(Piece(model, tuple(inputs), tuple(outputs), {}, {}), "a piece")

    def tensor(place: tuple[int, tuple[int, ...]], dtype: Any) -> torch.Tensor:
        class Memory:
            __cuda_array_interface__: ClassVar[dict[str, Any]] = {
                "data": (place[0], False),
                "shape": place[1],
                "typestr": np.dtype(dtype).str,
                "version": 3,
                "stream": None,
            }

        return torch.as_tensor(Memory(), device="cuda")

    def compute(arguments: Arguments) -> None:
        results = program.module(*(tensor(arguments[name], dtype) for name, dtype in inputs.items()))
        for (name, dtype), result in zip(outputs.items(), results, strict=True):
            tensor(arguments[name], dtype).copy_(result)

    return compute


def _element(value: onnx.ValueInfoProto) -> Any:
    return DTYPES[value.type.tensor_type.elem_type][1]
